"""The loop over the trials of a plan."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from orchestrator.base import interrupts
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.progress import Progress
from orchestrator.evidence.faults import (
    ATTEMPTS,
    Attempt,
    counts,
    fault_of,
    next_turn,
    nothing_works,
)
from orchestrator.evidence.layout import RunDir, TrialDir
from orchestrator.evidence.manifest import Ended
from orchestrator.formats.units import GIB
from orchestrator.machine.host.machine import Machine
from orchestrator.machine.metal import metal
from orchestrator.machine.nested.saved import SavedHosts
from orchestrator.machine.nested.sharing import HostPool, NestedMachine
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.state import BenchState, bench_state
from orchestrator.machine.vm import hypervisor
from orchestrator.run.diskspace import no_space_explained
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import build_plan, prepare
from orchestrator.run.trial import Bench, Visit, run_trial
from orchestrator.scenario.machines import Device, HostSpec
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import PlannedTrial, make_plan
from orchestrator.scenario.vocabulary import WARM_UP, ArmName

Enough = Callable[[RunDir, int], bool]
"""Stop rule of a run: gets the run and a number N, and returns True if the trials of the first N
pairs are enough."""

_SAME_BENCH_FAILURES = 2


@dataclass(frozen=True)
class Runner:
    """Resources that all runs of one process share: libvirt's embedded driver opens once in a
    process."""

    kernels: RunKernels
    state: BenchState
    libvirt: hypervisor.Connection
    progress: Progress
    keep: bool = False
    """True: leave the private folder, and the evidence of a trial that is interrupted."""
    visit: Visit | None = None
    """That of `Bench`. Trials are then made one after the other."""

    @property
    def cache(self) -> Cache:
        return self.kernels.cache


@contextlib.contextmanager
def ready_runner(
    kernels: RunKernels, progress: Progress, *, keep: bool = False, visit: Visit | None = None
) -> Iterator[Runner]:
    """Keep this machine ready to run plans while the block runs. Whatever they leave outside their
    own folders is removed at the end of the block."""
    with (
        bench_state(keep=keep) as state,
        hypervisor.embedded(state.folder / "libvirt", kernels.cache.folder("libvirt")) as libvirt,
        interrupts.at_once(libvirt.stop),
    ):
        yield Runner(kernels, state, libvirt, progress, keep, visit)
        if keep:
            progress.note(f"kept: {state.folder}")


@dataclass(frozen=True)
class Schedule:
    """The trials of a run in their order, and the rule that ends it."""

    blocks: tuple[tuple[int, tuple[PlannedTrial, ...]], ...]
    """The trials that are made together, with the number of pairs up to them: all trials, or
    blocks of two pairs if there is a stop rule."""
    enough: Enough | None = None
    """Stop rule of `trials.until`, called after each block with the number of pairs so far."""
    alone: bool = False
    """True if only one arm's trials are made; the others are left for another day."""

    @classmethod
    def of(
        cls, plan: Sequence[PlannedTrial], enough: Enough | None = None,
        only: ArmName | None = None,
    ) -> Self:  # fmt: skip
        """Return the schedule of a plan, or of its arm `only`."""
        plan = tuple(planned for planned in plan if only in (None, planned.arm))
        most = max(planned.pair for planned in plan)
        if enough is None:
            return cls(((most, plan),), alone=only is not None)
        blocks = tuple(
            (pairs, tuple(p for p in plan if pairs - 2 < max(p.pair, 1) <= pairs))
            for pairs in range(2, most + 1, 2)
        )
        return cls(blocks, enough, alone=only is not None)

    def has_enough(self, run: RunDir, pairs: int) -> bool:
        """True if the stop rule says that the trials of the first `pairs` pairs are enough."""
        return self.enough is not None and self.enough(run, pairs)

    def is_all_made(self, out: Path) -> bool:
        """True if every trial of the run has been made, even if the bench failed it, and no trial
        is to be repeated. An interrupt then takes nothing from the run. Raises EvidenceError if
        the run cannot be read."""
        return self._is_done(out, lambda run, planned: (run.trials_path / planned.name).exists())

    def find_accel(self, out: Path) -> tuple[Accel, str] | None:
        """Return the accelerator of a run's host, and the reason for it, if all trials are
        complete and none is to be repeated, so that nothing is left to do on the host; else None.
        Raises EvidenceError if the run cannot be read."""
        if not self._is_done(out, _is_complete):
            return None
        plan = RunDir.open(out).plan()
        return plan.accel, plan.accel_reason

    def _is_done(self, out: Path, is_made: Callable[[RunDir, PlannedTrial], bool]) -> bool:
        """True if `is_made` is true for each trial up to the last that is needed, and if none of
        these is to be repeated."""
        if not (out / "plan.json").exists():
            return False
        run = RunDir.open(out)
        for pairs, block in self.blocks:
            for planned in block:
                if not is_made(run, planned) or _choose_turn(run, planned, alone=self.alone):
                    return False
            if self.has_enough(run, pairs):
                break
        return True


def run_plan(
    scenario: Scenario,
    text: str,
    out: Path,
    here: Runner,
    enough: Enough | None = None,
    *,
    only: ArmName | None = None,
) -> bool:
    """Run every trial of the plan that is not complete yet, in order; evidence goes under `out`.
    With `trials.until`, `enough` decides after each block whether it was the last. `only`: run the
    trials of one arm; such a run is judged as one that is not complete.

    Goes on after a failed trial. Stops and returns False if the bench fails twice in a row for the
    same reason, or if every attempt of both arms has failed. Raises ScenarioError or BenchError if
    the run cannot be prepared.
    """
    schedule = Schedule.of(make_plan(scenario), enough, only)
    with no_space_explained(out), only_writer(out):
        if (accel := schedule.find_accel(out)) is not None:
            return run_trials(_prepare_bench(scenario, text, out, here, accel), schedule)
        with ready_bench(scenario, text, out, here) as bench:
            return run_trials(bench, schedule)


@contextlib.contextmanager
def ready_bench(scenario: Scenario, text: str, out: Path, here: Runner) -> Iterator[Bench]:
    """Keep a scenario's machine taken, with all that its hosts need, while the block runs. `text`
    is the scenario's. Raises as `run_plan`."""
    host, device = scenario.host, scenario.device
    with taken_machine(host, device, f"barometer run {out}", here) as machine:
        bench = _prepare_bench(scenario, text, out, here, machine)
        machine.install(here.cache)
        yield bench


def _prepare_bench(
    scenario: Scenario, text: str, out: Path, here: Runner, machine: Machine | tuple[Accel, str]
) -> Bench:
    """Prepare the run and its folder. `machine` is that of `prepare`."""
    prepared = prepare(scenario, machine, here.kernels, here.progress)
    run = RunDir.create(out, text, build_plan(scenario, prepared), prepared.configs())
    return Bench(
        scenario, prepared, run, here.state, here.libvirt, here.progress, here.keep, here.visit,
        None if isinstance(machine, tuple) else machine,
    )  # fmt: skip


@contextlib.contextmanager
def taken_machine(host: HostSpec, device: Device, purpose: str, here: Runner) -> Iterator[Machine]:
    """Take the machine of a scenario's hosts while the block runs: lease a metal host, and put it
    back; or end the VM that is kept for several trials. `purpose` is shown to others who wait for
    the lease. Raises the errors of `metal.leased_machine`."""
    if host.kind == "metal" and device.kind == "hostdev":  # a scenario has both or none
        config = ["--ssh-config", str(host.ssh_config)] if host.ssh_config else []
        here.state.add(hosts=shlex.join([host.address, *config]))
        scratch = here.state.folder / "metal"
        with metal.leased_machine(host, device, purpose, scratch, here.progress) as machine:
            yield machine
    else:
        saved = SavedHosts(here.cache, here.libvirt)
        with contextlib.closing(HostPool(here.state, here.libvirt, saved)) as pool:
            yield NestedMachine.of(host, device, pool)


def run_trials(bench: Bench, schedule: Schedule) -> bool:
    """Run the trials that are not complete, one after the other. With accel exact, whose numbers
    do not depend on what else the machine does, as many run at once as there are CPUs and memory,
    except for trials that share a host. Stops and returns False as `run_plan` does."""
    watch = _BenchWatch(bench)
    for pairs, block in schedule.blocks:
        if not _run_block(bench, block, watch):
            return False
        repeat_undecided(bench, block, alone=schedule.alone)
        if schedule.has_enough(bench.run, pairs):
            bench.progress.note(f"enough after {pairs} pairs")
            break
    return True


def _is_complete(run: RunDir, planned: PlannedTrial) -> bool:
    """True unless the trial has to be made, or made again because the bench failed it."""
    folder = run.trials_path / planned.name
    if not folder.exists():
        return False
    outcome = TrialDir.open(folder).manifest.outcome
    return not (isinstance(outcome, Ended) and outcome.by_bench)


def _run_block(bench: Bench, block: Sequence[PlannedTrial], watch: _BenchWatch) -> bool:
    """Run the trials of a block that are not complete. Returns False as `run_trials` does."""
    pending = []
    for planned in block:
        if _is_complete(bench.run, planned):
            bench.progress.note(f"trial {planned.name}: complete already")
            continue
        pending.append(planned)
    apart = bench.prepared.accel == "exact" and bench.scenario.host.fresh_boots
    apart = apart and bench.visit is None
    width = min(_count_hosts(bench.scenario.nested.memory) if apart else 1, len(pending))
    if width > 1:
        return _run_at_once(bench, pending, width, watch)
    for planned in pending:
        title = f"trial {planned.name} ({bench.prepared.kernels[planned.boots].release})"
        try:
            with bench.progress.stage(title):
                run_until_it_counts(bench, planned)
        except BarometerError as exc:
            bench.progress.note(f"{title}: {exc}")
        if watch.is_hopeless(planned):
            return False
    return True


class _BenchWatch:
    """Detector of a run that is of no use: two trials in a row are charged to the bench for one
    reason, or every attempt of both arms has failed, so that there is nothing to compare."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._reasons: list[str] = []
        self._attempts = _list_attempts(bench.run)

    def is_hopeless(self, planned: PlannedTrial) -> bool:
        """True if the run has to stop, now that this trial has ended."""
        folder = self._bench.run.trials_path / planned.name
        if not folder.exists():  # it was interrupted
            return False
        attempts = TrialDir.open(folder).attempts()
        last = attempts[-1]
        if planned.arm != WARM_UP:
            self._attempts += attempts
        by_bench = last.reason and last.charge == "bench"
        self._reasons = [*self._reasons, last.reason] if by_bench else []
        latest = self._reasons[-_SAME_BENCH_FAILURES:]
        is_broken = len(latest) == _SAME_BENCH_FAILURES and len(set(latest)) == 1
        if is_broken:
            self._bench.progress.note("the bench failed twice for the same reason: stopping here")
        if (in_vain := nothing_works(self._attempts)) and not is_broken:
            self._bench.progress.note("every attempt of both arms has failed: stopping here")
        return is_broken or in_vain


def _count_hosts(memory: int) -> int:
    """Return how many exact hosts this machine carries at once: each takes a CPU, its memory in
    bytes and QEMU's own."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    fit = int(available[1]) * 1024 // (memory + 2 * GIB) if available else 1
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def _run_at_once(
    bench: Bench, pending: Sequence[PlannedTrial], width: int, watch: _BenchWatch
) -> bool:
    """Run each trial in a thread. An interrupt ends their machines, and with them the trials.
    Returns False as `run_trials` does."""

    def work(planned: PlannedTrial) -> None:
        with bench.progress.lane(planned.name) as lane:
            run_until_it_counts(replace(bench, progress=lane), planned)

    title = f"{len(pending)} trials, {width} at once"
    with bench.progress.stage(title), ThreadPoolExecutor(width) as pool:
        running = {pool.submit(work, planned): planned for planned in pending}
        try:
            for future in as_completed(running):
                exc = future.exception()
                if exc is not None and not isinstance(exc, BarometerError):
                    raise exc
                if exc is not None:
                    bench.progress.note(f"trial {running[future].name}: {exc}")
                if watch.is_hopeless(running[future]):
                    return False
        except BaseException:
            bench.libvirt.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return True


def run_until_it_counts(bench: Bench, planned: PlannedTrial) -> None:
    """Call `run_trial`, and call it again if the bench failed in a way that comes and goes. The
    manifest records every attempt, also those of an interrupted run."""
    final = bench.run.trials_path / planned.name
    for left in reversed(range(ATTEMPTS)):
        before = TrialDir.open(final).attempts() if final.exists() else ()
        try:
            run_trial(bench, planned, before)
        except BarometerError as exc:
            if not left or bench.libvirt.stopped.is_set() or not final.exists():
                raise
            failed = TrialDir.open(final).attempts()[-1]
            if failed.charge != "bench" or not fault_of(failed.reason).comes_and_goes:
                raise
            bench.progress.note(f"trial {planned.name}: {exc.message}: once more")
        else:
            return


def repeat_undecided(bench: Bench, block: Sequence[PlannedTrial], *, alone: bool) -> None:
    """Attempt trials with an undecided failure again, in turns of both arms, until they are
    measured, until an arm is charged, or until too many attempts have been made. `alone`: see
    `Schedule`."""
    left = 4 + len(block) // 4
    for planned in block:
        while (
            left
            and not bench.libvirt.stopped.is_set()
            and (turn := _choose_turn(bench.run, planned, alone=alone)) is not None
        ):
            left -= 1
            attempt = "the trial again" if turn == planned.boots else f"the {turn}, in its turn"
            title = f"trial {planned.name}: undecided whose failure it was: {attempt}"
            with bench.progress.stage(title):
                if turn == planned.boots:
                    _attempt_again(bench, planned)
                else:
                    _attempt_beside(bench, planned, turn)


def _choose_turn(run: RunDir, planned: PlannedTrial, *, alone: bool) -> ArmName | None:
    """Return the arm to attempt next because of this trial; None if it is not to be repeated."""
    folder = run.trials_path / planned.name
    if planned.arm == WARM_UP or not folder.exists():
        return None
    attempts = TrialDir.open(folder).attempts()
    last = attempts[-1]
    if not last.reason or last.charge != "undecided":
        return None
    turn = next_turn(_list_attempts(run), planned.boots, alone=alone)
    failed, _ = counts(attempts, planned.boots)
    return None if turn == planned.boots and failed >= ATTEMPTS else turn


def _list_attempts(run: RunDir) -> list[Attempt]:
    """Return every attempt at the run's trials, except those at the warm-up."""
    return [
        attempt for trial in run.trials() if trial.manifest.arm != WARM_UP
        for attempt in trial.attempts()
    ]  # fmt: skip


def _attempt_again(bench: Bench, planned: PlannedTrial) -> None:
    """Attempt the trial again. Its evidence takes the place of the last attempt's."""
    try:
        run_until_it_counts(bench, planned)
    except BarometerError as exc:
        bench.progress.note(f"trial {planned.name}: {exc}")


def _attempt_beside(bench: Bench, failed: PlannedTrial, arm: ArmName) -> None:
    """Attempt the trial with the other arm, up to the stage at which the trial failed. It is
    recorded only whether this attempt failed, and how; its measurements are not used."""
    trial = TrialDir.open(bench.run.trials_path / failed.name)
    outcome = trial.manifest.outcome
    assert isinstance(outcome, Ended)  # else there is nothing to repeat
    beside = replace(failed, arm=arm)
    folder = bench.run.trials_path / f".{failed.name}.beside"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run_trial(bench, beside, final=folder, through=outcome.stage)
    except BarometerError as exc:
        bench.progress.note(f"trial {failed.name}, the {arm} beside it: {exc}")
    if not folder.exists():  # it was interrupted
        return
    trial.add_attempt(TrialDir.open(folder).attempts()[-1])
    shutil.rmtree(folder)
