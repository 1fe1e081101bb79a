"""The stages of one trial, and the loop over the trials of a plan."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.base import interrupts
from orchestrator.base.bounded import CONSOLE_BYTES
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, BenchError, LastStageEnded
from orchestrator.base.folderlock import only_writer
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import (
    ATTEMPTS,
    Attempt,
    attempt_json,
    charge,
    counts,
    fault_of,
    next_turn,
    nothing_works,
)
from orchestrator.evidence.layout import RunDir, TrialDir, TrialWriter, write_json
from orchestrator.evidence.manifest import Ended
from orchestrator.formats.kernelreports import BROKEN, STALLS, KernelReport
from orchestrator.formats.units import GIB
from orchestrator.machine.guest.workload import run_guest_boots, run_maps, settle_host
from orchestrator.machine.host.device import read_host_facts
from orchestrator.machine.host.host import Host, explained_by_the_host
from orchestrator.machine.host.machine import Machine
from orchestrator.machine.host.settings import prove_settings, write_settings
from orchestrator.machine.metal import metal
from orchestrator.machine.nested.saved import SavedHosts
from orchestrator.machine.nested.sharing import HostPool, NestedMachine
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.runner import runner_facts
from orchestrator.machine.runner.state import BenchState, bench_state
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.vm import hypervisor
from orchestrator.run.diskspace import no_space_explained
from orchestrator.run.prepare import Prepared, guest_kernel_facts, plan_facts, prepare
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import PlannedTrial, make_plan
from orchestrator.scenario.vocabulary import ARMS, WARM_UP, ArmName, is_emulated

log = logging.getLogger("barometer.run")
Enough = Callable[[RunDir, int], bool]
"""Stop rule of a run: gets the run and a number N, and returns True if the trials of the first N
pairs are enough."""

_SAME_BENCH_FAILURES = 2


@dataclass(frozen=True)
class Runner:
    """Resources that all runs of one process share: libvirt's embedded driver opens once in a
    process."""

    cache: Cache
    state: BenchState
    libvirt: hypervisor.Connection
    progress: Progress
    keep: bool = False
    """True: leave the private folder, and the evidence of a trial that is interrupted."""


@contextlib.contextmanager
def runner(cache: Cache, progress: Progress, *, keep: bool = False) -> Iterator[Runner]:
    """Keep this machine ready to run plans while the block runs. Whatever they leave outside their
    own folders is removed at the end of the block."""
    with (
        bench_state(keep=keep) as state,
        hypervisor.embedded(state.folder / "libvirt", cache.folder("libvirt")) as libvirt,
        interrupts.at_once(libvirt.stop),
    ):
        yield Runner(cache, state, libvirt, progress, keep)
        if keep:
            progress.note(f"kept: {state.folder}")


@dataclass(frozen=True)
class Bench:
    """Resources that all trials of a run share."""

    scenario: Scenario
    prepared: Prepared
    run: RunDir
    state: BenchState
    libvirt: hypervisor.Connection
    progress: Progress
    keep: bool = False
    """True: leave the evidence of a trial that is interrupted."""
    enough: Enough | None = None
    """Stop rule of `trials.until`, called after each block with the number of pairs so far."""
    only: ArmName | None = None
    """Run this arm's trials only; the others are left for another day."""
    machine: Machine | None = None
    """Provider of the hosts, with all that they need; None if all trials are complete."""

    @property
    def hosts(self) -> Machine:
        """The machine that boots the trials' hosts."""
        assert self.machine is not None, "a complete run boots nothing"
        return self.machine


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
    with no_space_explained(out), only_writer(out):
        if (known := _known_accel(scenario, out, enough, only)) is not None:
            return run_trials(_prepare_bench(scenario, text, out, here, enough, only, known))
        with taken_machine(scenario, f"barometer run {out}", here) as machine:
            bench = _prepare_bench(scenario, text, out, here, enough, only, machine)
            machine.install(here.cache)
            return run_trials(bench)


def _prepare_bench(
    scenario: Scenario, text: str, out: Path, here: Runner, enough: Enough | None,
    only: ArmName | None, machine: Machine | tuple[Accel, str],
) -> Bench:  # fmt: skip
    """Prepare the run and its folder. `machine` is that of `prepare`."""
    prepared = prepare(scenario, machine, here.cache, here.progress)
    run = RunDir.create(out, text, plan_facts(scenario, prepared), prepared.configs())
    return Bench(
        scenario, prepared, run, here.state, here.libvirt, here.progress, here.keep, enough, only,
        None if isinstance(machine, tuple) else machine,
    )  # fmt: skip


def all_made(scenario: Scenario, out: Path, enough: Enough | None) -> bool:
    """True if every trial of the run has been made, even if the bench failed it, and no trial is
    to be repeated. An interrupt then takes nothing from the run. Raises EvidenceError if the run
    cannot be read."""

    def is_made(run: RunDir, planned: PlannedTrial) -> bool:
        return (run.trials_path / planned.name).exists()

    return _all(scenario, out, enough, None, is_made)


def _known_accel(
    scenario: Scenario, out: Path, enough: Enough | None, only: ArmName | None
) -> tuple[Accel, str] | None:
    """Return the accelerator of a run's host, and the reason for it, if all trials are complete
    and none is to be repeated, so that nothing is left to do on the host; else None. Raises
    EvidenceError if the run cannot be read."""
    if not _all(scenario, out, enough, only, _is_complete):
        return None
    plan = RunDir.open(out).plan()
    return plan.accel, plan.accel_reason


def _all(
    scenario: Scenario, out: Path, enough: Enough | None, only: ArmName | None,
    done: Callable[[RunDir, PlannedTrial], bool],
) -> bool:  # fmt: skip
    """True if `done` is true for each trial up to the last that is needed, and if none of these is
    to be repeated."""
    if not (out / "plan.json").exists():
        return False
    run = RunDir.open(out)
    for pairs, block in _blocks(scenario, enough, only):
        if not all(done(run, planned) and not _next_turn(run, planned, only) for planned in block):
            return False
        if enough is not None and enough(run, pairs):
            break
    return True


@contextlib.contextmanager
def taken_machine(scenario: Scenario, what: str, here: Runner) -> Iterator[Machine]:
    """Take the machine of a scenario's hosts while the block runs: lease a metal host, and put it
    back; or end the VM that is kept for several trials. `what`: what others are told who wait for
    the lease. Raises the errors of `metal.leased_machine`."""
    host, device = scenario.host, scenario.device
    if host.kind == "metal" and device.kind == "hostdev":  # a scenario has both or none
        config = ["--ssh-config", str(host.ssh_config)] if host.ssh_config else []
        here.state.add(hosts=shlex.join([host.address, *config]))
        scratch = here.state.folder / "metal"
        with metal.leased_machine(host, device, what, scratch, here.progress) as machine:
            yield machine
    else:
        saved = SavedHosts(here.cache, here.libvirt.version)
        with contextlib.closing(HostPool(here.state, here.libvirt, saved)) as pool:
            yield NestedMachine.of(scenario, pool)


def run_trials(bench: Bench) -> bool:
    """Run the trials that are not complete, one after the other. With accel exact, whose numbers
    do not depend on what else the machine does, as many run at once as there are CPUs and memory,
    except for trials that share a host. Stops and returns False as `run_plan` does."""
    watch = _BenchWatch(bench)
    for pairs, block in _blocks(bench.scenario, bench.enough, bench.only):
        if not _run_block(bench, block, watch):
            return False
        repeat_undecided(bench, block)
        if bench.enough is not None and bench.enough(bench.run, pairs):
            bench.progress.note(f"enough after {pairs} pairs")
            break
    return True


def _blocks(
    scenario: Scenario, enough: Enough | None, only: ArmName | None
) -> list[tuple[int, list[PlannedTrial]]]:
    """Return the trials that are made together, with the number of pairs up to them: all trials,
    or blocks of two pairs if there is a stop rule."""
    plan = [planned for planned in make_plan(scenario) if only in (None, planned.arm)]
    most = scenario.trials.most_pairs
    if enough is None:
        return [(most, plan)]
    return [
        (pairs, [planned for planned in plan if pairs - 2 < max(planned.pair, 1) <= pairs])
        for pairs in range(2, most + 1, 2)
    ]


def _is_complete(run: RunDir, planned: PlannedTrial) -> bool:
    """True unless the trial has to be made, or made again because the bench failed it."""
    done = run.trials_path / planned.name
    if not done.exists():
        return False
    outcome = TrialDir.open(done).manifest.outcome
    return not (isinstance(outcome, Ended) and outcome.by_bench)


def _run_block(bench: Bench, block: Sequence[PlannedTrial], stop: _BenchWatch) -> bool:
    """Run the trials of a block that are not complete. Returns False as `run_trials` does."""
    pending = []
    for planned in block:
        if _is_complete(bench.run, planned):
            bench.progress.note(f"trial {planned.name}: complete already")
            continue
        pending.append(planned)
    apart = bench.prepared.accel == "exact" and bench.scenario.host.fresh_boots
    width = _at_once(bench.scenario) if apart else 1
    if min(width, len(pending)) > 1:
        return _run_at_once(bench, pending, width, stop)
    for planned in pending:
        title = f"trial {planned.name} ({bench.prepared.kernels[planned.boots].release})"
        try:
            with bench.progress.stage(title):
                run_until_it_counts(bench, planned)
        except BarometerError as exc:
            bench.progress.note(f"{title}: {exc}")
        if stop.saw(planned):
            return False
    return True


class _BenchWatch:
    """Detector of a run that is of no use: two trials in a row are charged to the bench for one
    reason, or every attempt of both arms has failed, so that there is nothing to compare."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._reasons: list[str] = []
        self._attempts = _attempts_of(bench.run)

    def saw(self, planned: PlannedTrial) -> bool:
        """True if the run has to stop, now that this trial has ended."""
        folder = self._bench.run.trials_path / planned.name
        if not folder.exists():  # it was interrupted
            return False
        attempts = TrialDir.open(folder).attempts()
        ended = attempts[-1]
        if planned.arm != WARM_UP:
            self._attempts += attempts
        by_bench = ended.reason and ended.charge == "bench"
        self._reasons = [*self._reasons, ended.reason] if by_bench else []
        last = self._reasons[-_SAME_BENCH_FAILURES:]
        broken = len(last) == _SAME_BENCH_FAILURES and len(set(last)) == 1
        if broken:
            self._bench.progress.note("the bench failed twice for the same reason: stopping here")
        if (vain := nothing_works(self._attempts)) and not broken:
            self._bench.progress.note("every attempt of both arms has failed: stopping here")
        return broken or vain


def _at_once(scenario: Scenario) -> int:
    """Return how many exact hosts this machine carries: each takes a CPU, its memory and QEMU's
    own."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    fit = int(available[1]) * 1024 // (scenario.nested.memory + 2 * GIB) if available else 1
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def _run_at_once(
    bench: Bench, pending: Sequence[PlannedTrial], width: int, stop: _BenchWatch
) -> bool:
    """Run each trial in a thread. An interrupt ends their machines, and with them the trials.
    Returns False as run_trials does."""

    def work(planned: PlannedTrial) -> None:
        with bench.progress.lane(planned.name) as lane:
            run_until_it_counts(replace(bench, progress=lane), planned)

    title = f"{len(pending)} trials, {min(width, len(pending))} at once"
    with bench.progress.stage(title), ThreadPoolExecutor(width) as pool:
        running = {pool.submit(work, planned): planned for planned in pending}
        try:
            for future in as_completed(running):
                exc = future.exception()
                if exc is not None and not isinstance(exc, BarometerError):
                    raise exc
                if exc is not None:
                    bench.progress.note(f"trial {running[future].name}: {exc}")
                if stop.saw(running[future]):
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


def repeat_undecided(bench: Bench, block: Sequence[PlannedTrial]) -> None:
    """Attempt trials with an undecided failure again, in turns of both arms, until they are
    measured, until an arm is charged, or until too many attempts have been made."""
    left = 4 + len(block) // 4
    for planned in block:
        while (
            left
            and not bench.libvirt.stopped.is_set()
            and (turn := _next_turn(bench.run, planned, bench.only)) is not None
        ):
            left -= 1
            what = "the trial again" if turn == planned.boots else f"the {turn}, in its turn"
            title = f"trial {planned.name}: undecided whose failure it was: {what}"
            with bench.progress.stage(title):
                if turn == planned.boots:
                    _attempt_again(bench, planned)
                else:
                    _attempt_beside(bench, planned, turn)


def _next_turn(run: RunDir, planned: PlannedTrial, only: ArmName | None) -> ArmName | None:
    """Return the arm to attempt next because of this trial; None if it is not to be repeated."""
    folder = run.trials_path / planned.name
    if planned.arm == WARM_UP or not folder.exists():
        return None
    attempts = TrialDir.open(folder).attempts()
    last = attempts[-1]
    if not last.reason or last.charge != "undecided":
        return None
    turn = next_turn(_attempts_of(run), planned.boots, alone=only is not None)
    failed, _ = counts(attempts, planned.boots)
    return None if turn == planned.boots and failed >= ATTEMPTS else turn


def _attempts_of(run: RunDir) -> list[Attempt]:
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


def run_trial(
    bench: Bench,
    planned: PlannedTrial,
    repeated: Sequence[Attempt] = (),
    *,
    final: Path | None = None,
    through: str = "",
) -> None:
    """Boot a host and run its workload. The trial is complete on disk whatever happens, unless the
    run itself is interrupted. Raises the error that ended the trial early. `repeated`: the
    attempts before this one. `through`: name of the stage after which the trial ends, if it has
    such a stage."""
    final = final or bench.run.trials_path / planned.name
    partial = TrialWriter.partial_path(final)
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left of this trial
    bench.state.add(partial=str(partial))
    before = {"repeated": [attempt_json(attempt) for attempt in repeated]}
    trial = TrialWriter(final, _trial_facts(bench, planned) | before)
    try:
        _climb(bench, planned, trial, through)
    except BaseException as exc:
        # interrupted, here or in another trial, or no space: there is nothing to judge
        is_interrupted = bench.libvirt.stopped.is_set() or interrupts.is_requested()
        if is_interrupted or isinstance(exc, KeyboardInterrupt | OSError):
            if not bench.keep:
                shutil.rmtree(trial.path, ignore_errors=True)
            raise
        if isinstance(exc, BarometerError):
            stages = [s["name"] for s in trial.manifest["stages"] if s["outcome"] != "ok"]
            _charge(bench, planned, trial, exc, stages[0] if stages else "start")
        else:
            what = f"a bug in barometer: {type(exc).__name__}: {exc}"
            _charge(bench, planned, trial, BenchError(what, reason=Reason.BUG), "unknown")
        trial.complete()
        raise
    trial.complete()


def _charge(
    bench: Bench, planned: PlannedTrial, trial: TrialWriter, exc: BarometerError, stage: str
) -> None:
    """Record what ended a trial, and whom it is charged to."""
    reports = trial.host_reports()
    charged = charge(
        exc.reason, emulated=is_emulated(bench.prepared.accel),
        guest_emulated=trial.manifest.get("guest_accel") == "tcg", reports=reports,
        changed=bench.prepared.kernels[planned.boots].swapped,
    )  # fmt: skip
    trial.failed(exc, stage, charged, _telling_line(reports, trial))


def _telling_line(reports: Sequence[KernelReport], trial: TrialWriter) -> str:
    """Return the report that the host's kernel is broken, else its first stall since the trial
    began, else an empty string."""
    since = reports[trial.manifest.get("reports_before", 0) :]
    return next(
        (
            report.line
            for kinds, among in ((BROKEN, reports), (STALLS, since))
            for report in among
            if report.kind in kinds
        ),
        "",
    )


def _climb(bench: Bench, planned: PlannedTrial, trial: TrialWriter, through: str = "") -> None:
    """Run the stages of a trial, up to the one called `through`."""
    trial.last_stage = through
    with contextlib.suppress(LastStageEnded):
        _climb_stages(bench, planned, trial)


def _climb_stages(bench: Bench, planned: PlannedTrial, trial: TrialWriter) -> None:
    """Run the stages: provisioned machine > proven kernel > bound device > workload under its
    passes."""
    scenario, progress = bench.scenario, bench.progress
    boots_guests = scenario.workload == "guest-boot" and {*planned.passes} != {"counts"}
    with contextlib.ExitStack() as ladder:
        with progress.stage("host: boot"), trial.stage("host-boot"):
            host = ladder.enter_context(
                bench.hosts.boot(
                    planned.boots, scenario.arms[planned.boots].words, trial,
                    progress=progress, with_libvirt=boots_guests,
                )
            )  # fmt: skip
        ladder.callback(_save_reports, host, trial)
        ladder.callback(_save_dmesg, host, trial)
        ladder.enter_context(explained_by_the_host(host))
        _set(bench, planned.boots, host, trial)
        with progress.stage("host: device"), trial.stage("device"):
            devices = ladder.enter_context(bench.hosts.bind_devices(host, trial))
            write_json(trial.host / "facts.json", read_host_facts(host, devices))
            if scenario.workload == "guest-boot":
                trial.record(guest_accel="kvm" if host.kvm else "tcg")
        if boots_guests:
            run_guest_boots(
                host, devices, scenario, planned.passes, keys=RunKeys.make(), trial=trial,
                progress=progress,
            )  # fmt: skip
        else:
            settle_host(host, scenario.host, scenario.arms, trial=trial, progress=progress)
            run_maps(
                host, devices[0], scenario.map, scenario.points(), planned.passes, trial=trial,
                progress=progress,
            )  # fmt: skip
        host.check()
        if scenario.arms[planned.boots].is_set:
            with trial.stage("settings-again"):  # proves that nothing has changed them meanwhile
                _proven(bench, planned.boots, host)


def _set(bench: Bench, arm: ArmName, host: Host, trial: TrialWriter) -> None:
    """Apply and prove the arm's settings, if either arm has any."""
    if any(bench.scenario.arms[name].is_set for name in ARMS):
        with bench.progress.stage("host: settings"), trial.stage("settings"):
            write_settings(host.change, bench.scenario.arms[arm], arm)
            trial.record(arm_settings=_proven(bench, arm, host))


def _proven(bench: Bench, arm: ArmName, host: Host) -> dict[str, Any]:
    return prove_settings(host.shell, bench.prepared.kernels[arm], bench.scenario.arms, arm)


def _trial_facts(bench: Bench, planned: PlannedTrial) -> dict[str, Any]:
    scenario, prepared = bench.scenario, bench.prepared
    return {
        "arm": planned.arm, "pair": planned.pair, "number": planned.number,
        "barometer": __version__, "workload": scenario.workload, "accel": prepared.accel,
        "kernel": {"release": prepared.kernels[planned.boots].release,
                   "source": str(scenario.arms[planned.boots].kernel),
                   "digest": prepared.kernels[planned.boots].digest},
        "guest_kernel": guest_kernel_facts(scenario, prepared),
        "bar": scenario.device.bar, "device_kind": scenario.device.kind,
        "device_count": scenario.device.count, "device_mmap": scenario.device.mmap,
        "host_kind": scenario.host.kind, **bench.hosts.trial_facts(planned.boots),
        **_workload_facts(scenario), "passes": list(planned.passes),
        "runner_versions": bench.libvirt.version(), "runner": runner_facts(),
        "guest_packages": bench.hosts.guest_packages(),
    }  # fmt: skip


def _workload_facts(scenario: Scenario) -> dict[str, Any]:
    if scenario.workload == "map":
        return {"map_backend": scenario.map.backend, "map_thp": scenario.map.thp}
    if scenario.guest is None:
        return {}
    wanted = ("cpus", "firmware", "boot", "backing", "viommu", "backend")
    return {f"guest_{name}": getattr(scenario.guest, name) for name in wanted} | {
        "guest_phys_bits": scenario.guest.phys_bits or scenario.host.phys_bits
    }


def _save_reports(host: Host, trial: TrialWriter) -> None:
    """Record what the host's kernel reported about itself."""
    reports = [
        {"kind": report.kind, "line": report.line, "seconds": report.seconds}
        for report in host.kernel.reports()
    ]
    trial.record(kernel_reports=reports)


def _save_dmesg(host: Host, trial: TrialWriter) -> None:
    if host.shell.alive():
        with contextlib.suppress(BarometerError):
            said = host.shell.run("dmesg", timeout=30, limit=CONSOLE_BYTES).stdout
            (trial.host / "dmesg.txt").write_text(said)
