"""The loop over a plan, with trials that boot nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import (
    ArmFailedError,
    BarometerError,
    BenchError,
    LastStageEnded,
    ScenarioError,
)
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason, find_reason
from orchestrator.evidence.faults import failing_arm
from orchestrator.evidence.layout import RunDir, TrialDir, TrialWriter
from orchestrator.evidence.manifest import Ended, ProvenSettings, TrialFacts, WorkloadFacts
from orchestrator.formats.units import GIB
from orchestrator.kernels import KernelBundle, materialise_kernel
from orchestrator.machine.host.console import Console
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.kernelwatch import KernelWatch
from orchestrator.machine.nested.nested import BootSpec
from orchestrator.machine.nested.sharing import HostPool, NestedMachine
from orchestrator.machine.runner import images
from orchestrator.machine.runner.state import BenchState
from orchestrator.machine.vm.domain import Disk
from orchestrator.run import prepare as prepare_module
from orchestrator.run import trial as one_trial
from orchestrator.run import trials as loop
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import Prepared, build_plan
from orchestrator.run.trial import Bench
from orchestrator.run.trials import Enough, Runner, Schedule, run_plan, run_trials
from orchestrator.scenario.kernel_forms import DirKernel
from orchestrator.scenario.machines import HostDevice, MetalHost
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import PlannedTrial, make_plan
from orchestrator.scenario.trials import Arm, Arms
from orchestrator.scenario.vocabulary import ARMS, ArmName
from tests.unit.hosts import Recorded
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.manifests import NO_SETTINGS, facts_of
from tests.unit.scenarios import map_scenario, metal_scenario, scenario

SECONDS = 20.0
Climb = Callable[[PlannedTrial, TrialWriter], None]


class Machines:
    """The part of libvirt that ends machines."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def stop(self) -> None:
        self.stopped.set()


def made_up_facts(_bench: Bench, planned: PlannedTrial) -> TrialFacts:
    return facts_of(arm=planned.arm, pair=planned.pair, number=planned.number)


class Fixture:
    """A run whose trials do what a test prescribes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self._folder = monkeypatch, folder
        self.machines = Machines()
        self.begun: list[str] = []
        self.through: list[str] = []
        self.partial: list[str] = []
        self.bench: Bench | None = None
        self.held = True
        monkeypatch.setattr(one_trial, "describe_trial", made_up_facts)

    def trials(
        self, climb: Climb, chosen: Scenario, accel: str = "tcg", width: int = 1,
        keep: bool = False, enough: Enough | None = None, only: ArmName | None = None,
    ) -> list[TrialDir]:  # fmt: skip
        """Run and return the trials that are complete afterwards, in order."""

        def begin(bench: Bench, planned: PlannedTrial, trial: TrialWriter, through: str) -> None:
            self.begun.append(planned.name)
            self.through.append(through)
            climb(planned, trial)

        self._monkeypatch.setattr(one_trial, "run_stages", begin)
        self._monkeypatch.setattr(loop, "_count_hosts", lambda memory: width)
        kernels = dict.fromkeys(ARMS, SimpleNamespace(release="7.0", swapped={}))
        run_dir = RunDir(self._folder)
        run_dir.trials_path.mkdir(parents=True, exist_ok=True)
        state = SimpleNamespace(add=self.recorded)
        self.bench = Bench(
            chosen, cast(Prepared, SimpleNamespace(accel=accel, kernels=kernels)), run_dir,
            cast(BenchState, state), cast(Any, self.machines), Progress(), keep,
        )  # fmt: skip
        self.held = run_trials(self.bench, Schedule.of(make_plan(chosen), enough, only))
        return run_dir.trials()

    def recorded(self, partial: str) -> None:
        self.partial.append(partial)

    def left(self) -> list[str]:
        return sorted(p.name for p in (self._folder / "trials").iterdir())


@pytest.fixture
def fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fixture:
    return Fixture(monkeypatch, tmp_path / "run")


def nothing(planned: PlannedTrial, trial: TrialWriter) -> None:
    (trial.host / "console.log").write_text(planned.name)


def failing(*reasons: str | None, kind: type[BarometerError] = BenchError) -> Climb:
    """The n-th trial fails for the n-th reason."""

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        if (reason := reasons[planned.number - 1]) is not None:
            raise kind(f"trial {planned.number}", reason=find_reason(reason))

    return climb


PAIRS = "trials={pairs = 3, warm_up = false}"


def outcomes(trials: list[TrialDir]) -> list[str]:
    ends = [t.manifest.outcome for t in trials]
    return [one.reason if isinstance(one, Ended) else one.kind for one in ends]


def ended(trial: TrialDir) -> Ended:
    assert isinstance(trial.manifest.outcome, Ended)
    return trial.manifest.outcome


def test_trials_run_in_the_order_of_the_plan(fixture: Fixture) -> None:
    trials = fixture.trials(nothing, scenario(PAIRS))
    assert fixture.begun == [t.name for t in make_plan(scenario(PAIRS))]
    assert [t.path.name for t in trials] == fixture.begun
    assert outcomes(trials) == ["collected"] * 6
    assert [Path(p).name for p in fixture.partial] == [f".{n}.partial" for n in fixture.begun]


def test_run_goes_on_block_by_block_until_it_is_enough(fixture: Fixture) -> None:
    chosen = scenario("trials={until={max_pairs=8}, control=true}")
    looks: list[tuple[int, int]] = []

    def enough(run: RunDir, pairs: int) -> bool:
        looks.append((pairs, len(run.trials())))
        return pairs == 4

    trials = fixture.trials(nothing, chosen, enough=enough)
    # a warm-up, and two pairs with a control in each block
    assert looks == [(2, 6), (4, 11)]
    assert len(trials) == 11
    # a resumed run repeats no trial, and leaves out no look
    fixture.begun.clear()
    looks.clear()
    fixture.trials(nothing, chosen, enough=enough)
    assert (fixture.begun, looks) == ([], [(2, 11), (4, 11)])


def test_run_that_is_never_precise_ends_with_the_most_pairs(fixture: Fixture) -> None:
    chosen = scenario("trials={until={max_pairs=4}, warm_up=false}")
    assert len(fixture.trials(nothing, chosen, enough=lambda run, pairs: False)) == 8


def test_bench_that_keeps_failing_ends_a_run_between_blocks_too(fixture: Fixture) -> None:
    chosen = scenario("trials={until={}, warm_up=false, control=false}")
    fixture.trials(
        failing(None, None, None, "timeout", "timeout", None),
        chosen,
        enough=lambda run, pairs: False,
    )
    assert not fixture.held
    assert len(fixture.begun) == 5


def test_complete_trial_is_not_run_again_unless_the_bench_failed(fixture: Fixture) -> None:
    fixture.trials(failing(None, "timeout", None, None, "checkup", None), scenario(PAIRS))
    fixture.begun.clear()
    trials = fixture.trials(nothing, scenario(PAIRS))
    assert fixture.begun == ["0002-candidate", "0005-baseline"]
    assert outcomes(trials) == ["collected"] * 6


def test_arm_that_failed_is_a_result_and_is_not_run_again(fixture: Fixture) -> None:
    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        if planned.number <= 2:
            (trial.host / "console.log").write_text(VFIO_PANIC)
            raise ArmFailedError("it panicked", reason=Reason.HOST_PANIC)

    trials = fixture.trials(climb, scenario(PAIRS))
    assert outcomes(trials) == ["host-panic"] * 2 + ["collected"] * 4
    assert [ended(t).charge for t in trials[:2]] == ["arm"] * 2
    fixture.begun.clear()
    fixture.trials(nothing, scenario(PAIRS))
    assert fixture.begun == []


VFIO_PANIC = (
    "[    9.000000] Kernel panic - not syncing: x\n"
    "[    9.000000]  vfio_dma_do_map+0x1/0x2 [vfio_iommu_type1]\n"
)


def undecided(*arms: ArmName, times: int = 9, stage: str = "guest-0-plain") -> Climb:
    """Trials of these arms hang, so many times in all."""
    left = [times]

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        nothing(planned, trial)
        with trial.stage(stage):
            if planned.boots in arms and left[0]:
                left[0] -= 1
                raise ArmFailedError("it hangs", reason=Reason.GUEST_HANG)

    return climb


def told(trial: TrialDir) -> list[tuple[str, str]]:
    return [(attempt.arm, attempt.reason) for attempt in trial.attempts()]


def test_undecided_failure_that_does_not_come_back_is_measured(fixture: Fixture) -> None:
    trials = fixture.trials(undecided("candidate", times=1), scenario())
    assert fixture.begun == ["0001-baseline", "0002-candidate", "0002-candidate"]
    assert outcomes(trials) == ["collected"] * 2
    assert told(trials[1]) == [("candidate", "guest-hang"), ("candidate", "")]
    assert failing_arm([a for t in trials for a in t.attempts()]) is None


@pytest.mark.parametrize(("stage", "through"), [("guest-0-plain", "guest-0-plain"),
                                                ("host-boot", "host-boot")])  # fmt: skip
def test_undecided_failure_that_comes_back_is_decided_in_turns(
    fixture: Fixture, stage: str, through: str
) -> None:
    trials = fixture.trials(undecided("candidate", stage=stage), scenario())
    assert fixture.begun == [
        "0001-baseline", "0002-candidate",
        "0002-candidate", "0002-baseline", "0002-candidate", "0002-baseline",
    ]  # fmt: skip
    assert fixture.through == ["", "", "", through, "", through]
    assert outcomes(trials) == ["collected", "guest-hang"]
    assert ended(trials[1]).kind == "failed"
    candidate, baseline = ("candidate", "guest-hang"), ("baseline", "")
    assert told(trials[1]) == [candidate, candidate, baseline, candidate, baseline] or told(
        trials[1]
    ) == [candidate, baseline, candidate, baseline, candidate]
    assert failing_arm([a for t in trials for a in t.attempts()]) == "candidate"
    assert fixture.left() == ["0001-baseline", "0002-candidate"]
    # the resumed run is already decided
    fixture.begun.clear()
    fixture.trials(nothing, scenario())
    assert fixture.begun == []


def test_failure_of_both_arms_is_repeated_once_in_each(fixture: Fixture) -> None:
    trials = fixture.trials(undecided("candidate", "baseline"), scenario())
    assert fixture.begun == ["0001-baseline", "0002-candidate", "0001-baseline", "0001-candidate"]
    assert outcomes(trials) == ["guest-hang"] * 2


def test_failures_that_the_planned_trials_decide_are_not_repeated(fixture: Fixture) -> None:
    trials = fixture.trials(undecided("candidate"), scenario(PAIRS))
    assert len(fixture.begun) == len(trials) == 6


def test_failure_of_an_arm_that_runs_alone_is_repeated_alone(fixture: Fixture) -> None:
    trials = fixture.trials(undecided("candidate"), scenario(), only="candidate")
    assert fixture.begun == ["0002-candidate"] * 3
    assert outcomes(trials) == ["guest-hang"]


def test_interrupted_repetition_leaves_the_attempt_before_it(fixture: Fixture) -> None:
    first = undecided("candidate")

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        if len(fixture.begun) == 3:
            raise KeyboardInterrupt
        first(planned, trial)

    with pytest.raises(KeyboardInterrupt):
        fixture.trials(climb, scenario())
    assert fixture.left() == ["0001-baseline", "0002-candidate"]
    # and the resumed run continues from there
    trials = fixture.trials(nothing, scenario())
    assert fixture.begun[3:] == ["0002-candidate"]
    assert told(trials[1]) == [("candidate", "guest-hang"), ("candidate", "")]


@pytest.mark.parametrize(
    ("reasons", "run"),
    [
        (["timeout", "timeout"], 2),
        (["timeout", None, "timeout", None, "timeout", None], 6),
        (["timeout", "checkup", "timeout", "checkup", "timeout", "checkup"], 6),
        ([None, "timeout", "timeout"], 3),
        (["checkup", "timeout", "timeout"], 3),
    ],
)
def test_bench_that_fails_twice_in_a_row_for_the_same_reason_ends_the_run(
    fixture: Fixture, reasons: list[str | None], run: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = fixture.trials(failing(*reasons, *[None] * 6), scenario(PAIRS))
    assert len(trials) == len(fixture.begun) == run
    assert ("stopping here" in capsys.readouterr().err) == (run < 6)
    assert fixture.held == (run == 6)


def test_undecided_failures_in_a_row_do_not_end_the_run(fixture: Fixture) -> None:
    trials = fixture.trials(
        failing(*["host-no-boot"] * 2, *[None] * 4), scenario("trials={pairs=3, warm_up=false}")
    )
    assert fixture.held
    assert len(trials) == 6
    # they are repeated after the others
    assert fixture.begun[:6] == [trial.path.name for trial in trials]
    assert len(fixture.begun) > 6


def test_run_in_which_nothing_works_ends_after_two_attempts_of_each_arm(
    fixture: Fixture, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = fixture.trials(
        undecided("baseline", "candidate"), scenario("trials={pairs=50, warm_up=false}")
    )
    assert not fixture.held
    assert "stopping here" in capsys.readouterr().err
    assert len(trials) == 4


def test_benchs_failures_end_the_run_whatever_raised_them(fixture: Fixture) -> None:
    trials = fixture.trials(
        failing(*["output-flood"] * 2, *[None] * 4, kind=ArmFailedError), scenario(PAIRS)
    )
    assert not fixture.held
    assert len(trials) == len(fixture.begun) == 2


def test_attempt_beside_ends_behind_the_stage_that_failed(fixture: Fixture) -> None:
    through: list[tuple[str, list[str]]] = []

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        nothing(planned, trial)
        trial.last_stage = fixture.through[-1]
        done: list[str] = []
        through.append((planned.boots, done))
        with contextlib.suppress(LastStageEnded):
            for stage in ("host-boot", "device", "guest-0-plain", "guest-1-timing"):
                with trial.stage(stage):
                    done.append(stage)
                    if stage == "device" and planned.boots == "candidate":
                        raise ArmFailedError("it hangs", reason=Reason.GUEST_HANG)

    trials = fixture.trials(climb, scenario())
    assert [len(done) for arm, done in through if arm == "baseline"] == [4, 2, 2]
    assert told(trials[1])[-1] == ("candidate", "guest-hang")
    assert ("baseline", "") in told(trials[1])


def test_attempt_beside_that_is_interrupted_leaves_the_trial_as_it_was(fixture: Fixture) -> None:
    hang = undecided("candidate")

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        if fixture.through[-1]:
            fixture.machines.stop()
            raise BenchError("its machine was ended", reason=Reason.HOST_ENDED)
        hang(planned, trial)

    trials = fixture.trials(climb, scenario())
    assert fixture.begun == ["0001-baseline", *["0002-candidate"] * 2, "0002-baseline"]
    assert told(trials[1]) == [("candidate", "guest-hang")] * 2
    assert fixture.left() == ["0001-baseline", "0002-candidate"]


HUNG = "[{:5d}.000000] INFO: task CPU {}/KVM:340 blocked for more than 60 seconds.\n"
OOPS = "[  300.000000] BUG: kernel NULL pointer dereference, address: 0000000000000020\n"


@pytest.mark.parametrize(
    ("console", "before", "line"),
    [
        (HUNG.format(100, 0), 0, "CPU 0"),
        (HUNG.format(100, 0) + HUNG.format(200, 1), 1, "CPU 1"),
        (HUNG.format(100, 0), 1, ""),
        (HUNG.format(100, 0) + OOPS, 0, "NULL pointer"),
        (HUNG.format(100, 0) + HUNG.format(200, 1) + OOPS, 1, "NULL pointer"),
    ],
)
def test_line_of_a_failure_is_what_broke_the_kernel_or_a_stall_of_this_trial(
    fixture: Fixture, console: str, before: int, line: str
) -> None:
    """On a host that trials share, the console also has the reports of earlier trials."""

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        (trial.host / "console.log").write_text(console)
        trial.record(reports_before=before)
        raise ArmFailedError("it hangs", reason=Reason.GUEST_HANG)

    [trial, *_] = fixture.trials(climb, scenario())
    told_line = ended(trial).line
    assert line in told_line
    assert bool(told_line) == bool(line)


@pytest.mark.parametrize(("guest_accel", "charged"), [("tcg", "bench"), ("kvm", "undecided")])
def test_emulated_guest_of_a_kvm_host_is_the_emulators(
    fixture: Fixture, guest_accel: str, charged: str
) -> None:
    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        trial.record(guest_accel=guest_accel)
        raise ArmFailedError("it stands still", reason=Reason.GUEST_STALL)

    [trial, *_] = fixture.trials(climb, scenario(), accel="kvm")
    assert trial.attempts()[0].charge == charged


def test_exact_trials_run_as_many_at_once_as_the_machine_carries(fixture: Fixture) -> None:
    both = threading.Barrier(2, timeout=SECONDS)
    names = set()

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        both.wait()  # breaks unless two run at a time
        names.add(threading.current_thread().name)

    trials = fixture.trials(climb, map_scenario(PAIRS), accel="exact", width=2)
    assert outcomes(trials) == ["collected"] * 6
    assert len(names) == 2


@pytest.mark.parametrize(
    ("chosen", "accel", "width"),
    [
        (map_scenario(PAIRS, "host.fresh_boots=false"), "exact", 2),
        (map_scenario(PAIRS, "host.accel=tcg"), "tcg", 2),
        (map_scenario(PAIRS, "host.accel=kvm"), "kvm", 2),
        (map_scenario(PAIRS), "exact", 1),
    ],
)
def test_other_trials_run_one_after_the_other(
    fixture: Fixture, chosen: Scenario, accel: str, width: int
) -> None:
    threads: list[threading.Thread] = []
    fixture.trials(
        lambda planned, trial: threads.append(threading.current_thread()), chosen, accel, width
    )
    assert threads == [threading.main_thread()] * 6


def test_failure_beside_others_is_a_trials_own(fixture: Fixture) -> None:
    climb = failing("guest-panic", None, None, "timeout", None, None)
    trials = fixture.trials(climb, map_scenario(PAIRS), accel="exact", width=2)
    assert outcomes(trials) == [
        "guest-panic", "collected", "collected", "timeout", "collected", "collected",
    ]  # fmt: skip
    assert not fixture.machines.stopped.is_set()


def test_bench_that_keeps_failing_ends_a_run_at_once(
    fixture: Fixture, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = map_scenario("trials.pairs=50")
    climb = failing(*["disk-full"] * 100)
    trials = fixture.trials(climb, chosen, accel="exact", width=2)
    assert 2 <= len(trials) < 100
    assert not fixture.held
    assert "stopping here" in capsys.readouterr().err
    assert fixture.left() == sorted(t.path.name for t in trials)


def test_interrupt_ends_the_machines_and_leaves_no_partial_trial(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt reaches the thread that waits, while two trials are at work."""
    working = threading.Barrier(3, timeout=SECONDS)

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        nothing(planned, trial)
        working.wait()
        assert fixture.machines.stopped.wait(SECONDS)
        raise ArmFailedError("the host's machine ended by itself", reason=Reason.HOST_ENDED)

    def interrupted(running: object) -> Any:
        working.wait()
        assert len(fixture.left()) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fixture.trials(climb, map_scenario(PAIRS), accel="exact", width=2)
    assert fixture.machines.stopped.is_set()
    assert len(fixture.begun) == 2
    assert fixture.left() == []


def test_bug_in_one_trial_ends_those_beside_it(fixture: Fixture) -> None:
    working = threading.Barrier(2, timeout=SECONDS)

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        if planned.number <= 2:
            working.wait()
        if planned.number == 1:
            raise ZeroDivisionError
        assert fixture.machines.stopped.wait(SECONDS)
        raise BenchError("gone", reason=Reason.HOST_SSH_LOST)

    with pytest.raises(ZeroDivisionError):
        fixture.trials(climb, map_scenario(PAIRS), accel="exact", width=2)
    assert fixture.left() == ["0001-baseline"]
    assert outcomes(RunDir(fixture._folder).trials()) == ["bug"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "no space")])
@pytest.mark.parametrize("keep", [False, True])
def test_trial_that_was_interrupted_is_kept_only_when_asked(
    fixture: Fixture, error: BaseException, keep: bool
) -> None:
    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        nothing(planned, trial)
        raise error

    with pytest.raises(type(error)):
        fixture.trials(climb, scenario(), keep=keep)
    assert fixture.left() == [".0001-baseline.partial"] * keep


def test_partial_trial_of_a_killed_run_is_begun_anew(fixture: Fixture) -> None:
    def interrupted(planned: PlannedTrial, trial: TrialWriter) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fixture.trials(interrupted, scenario(), keep=True)
    assert fixture.left() == [".0001-baseline.partial"]
    assert outcomes(fixture.trials(nothing, scenario())) == ["collected"] * 2
    assert fixture.left() == ["0001-baseline", "0002-candidate"]


@pytest.mark.parametrize(
    ("cpus", "available", "memory", "fit"),
    [(8, 64, 4, 8), (8, 20, 4, 3), (8, 6, 4, 1), (8, 2, 4, 1), (1, 64, 4, 1), (8, 64, 30, 2)],
)
def test_hosts_at_once_are_those_that_cpus_and_memory_carry(
    monkeypatch: pytest.MonkeyPatch, cpus: int, available: int, memory: int, fit: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    text = f"MemTotal: 1 kB\nMemAvailable:   {available * GIB // 1024} kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert loop._count_hosts(memory * GIB) == fit


class Pool:
    """A host that trials share."""

    def __init__(self) -> None:
        self.asked: list[tuple[BootSpec, bool]] = []

    @contextmanager
    def boot(self, spec: BootSpec, *, shared: bool, **more: Any) -> Iterator[str]:
        self.asked.append((spec, shared))
        yield "the host"


@pytest.mark.parametrize(
    "error", [None, KeyboardInterrupt(), BenchError("x", reason=Reason.TIMEOUT)]
)
def test_host_that_trials_share_is_ended_with_the_run(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    closed: list[str] = []
    chosen = scenario()
    here = cast(Runner, SimpleNamespace(state="state", libvirt="libvirt", cache=None))
    monkeypatch.setattr(HostPool, "close", lambda _: closed.append("closed"))

    def run_it() -> None:
        with loop.taken_machine(chosen.host, chosen.device, "a run", here) as machine:
            assert isinstance(machine, NestedMachine)
            assert not closed
            if error is not None:
                raise error

    with contextlib.suppress(KeyboardInterrupt, BenchError):
        run_it()
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("chosen", "with_libvirt", "shared", "expected"),
    [
        (scenario(), True, False, True),
        (scenario(), False, False, False),
        (scenario("host.fresh_boots=false"), False, True, True),
        (scenario("host.fresh_boots=false"), True, True, True),
        (map_scenario(), False, False, False),
        (map_scenario("host.fresh_boots=false"), False, True, False),
    ],
)
def test_shared_host_is_the_same_for_all_passes_of_a_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: Scenario, with_libvirt: bool,
    shared: bool, expected: bool,
) -> None:  # fmt: skip
    kernel, pool = bundle(tmp_path), Pool()
    image = images.HostImage(tmp_path, tmp_path, None, {"qemu": "10"})
    payload = images.PayloadImage(tmp_path / "payload", {"dropbear": "2025"})
    monkeypatch.setattr(images, "host_image", lambda *how: image)
    monkeypatch.setattr(images, "payload_image", lambda *how: payload)
    machine = NestedMachine.of(chosen.host, chosen.device, cast(HostPool, pool))
    guest_kernel = kernel if chosen.workload == "guest-boot" else None
    kernels: dict[ArmName, KernelBundle] = {"baseline": kernel, "candidate": kernel}
    machine.provide(kernels, chosen.guest, guest_kernel, Cache(tmp_path / "cache"))
    trial = TrialWriter(tmp_path / "0001-candidate", facts_of())
    boot = machine.boot(
        "candidate", ("nosmt",), trial, progress=Progress(), with_libvirt=with_libvirt
    )
    with boot as host:
        assert host == cast(Host, "the host")
    [(spec, is_shared)] = pool.asked
    assert (is_shared, spec.with_libvirt) == (shared, expected)
    assert (spec.arm, spec.kernel, spec.words) == ("candidate", kernel, ("nosmt",))
    assert (spec.host, spec.device) == (chosen.nested, chosen.device)
    assert (spec.image, spec.payload) == (image, (Disk(payload.disk, "payload"),))
    assert machine.trial_facts("candidate") == {
        "host_memory": chosen.nested.memory, "host_viommu": "intel", "host_viommu_aw_bits": 48,
        "host_packages": {"qemu": "10"},
    }  # fmt: skip
    assert machine.guest_packages() == {"dropbear": "2025"}


def bundle(tmp_path: Path) -> KernelBundle:
    folder = folder_kernel(tmp_path / "kernel")
    return materialise_kernel(DirKernel(dir=folder), Cache(tmp_path / "cache"), Progress())


def test_plan_of_maps_has_no_guest_and_the_passes_of_each_trial(tmp_path: Path) -> None:
    kernel = bundle(tmp_path)
    prepared = Prepared(
        kernels={"baseline": kernel, "candidate": kernel}, guest_kernel=None, accel="exact",
        accel_reason="asked for",
    )  # fmt: skip
    facts = build_plan(map_scenario('trace.passes=["plain"]'), prepared)
    assert facts.guest_kernel is None
    assert [trial.passes for trial in facts.trials] == [("plain",)] * 2
    run_dir = RunDir.create(tmp_path / "run", "x", facts)
    assert RunDir.create(tmp_path / "run", "x", facts).plan() == run_dir.plan()


def test_plan_says_what_the_arms_are_set_to(tmp_path: Path) -> None:
    kernel = bundle(tmp_path)
    prepared = Prepared(
        kernels={"baseline": kernel, "candidate": kernel}, guest_kernel=None, accel="exact",
        accel_reason="asked for",
    )  # fmt: skip
    facts = build_plan(map_scenario("arms.candidate.cmdline=nosmt"), prepared)
    empty: dict[str, Any] = {"cmdline": "", "parameters": {}, "sysfs": {}}
    assert facts.to_json()["arm_settings"] == {
        "baseline": empty, "candidate": empty | {"cmdline": "nosmt"},
    }  # fmt: skip


@pytest.mark.parametrize("arm", ARMS)
def test_settings_are_written_before_they_are_proven_in_both_arms_or_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arm: ArmName
) -> None:
    """If an arm sets nothing, the values that the other arm sets are still read and recorded for
    it."""
    done: list[str] = []

    def proven(shell: object, kernel: object, arms: Arms, name: ArmName) -> ProvenSettings:
        done.append(f"prove {name}")
        return ProvenSettings.model_validate_json(json.dumps(NO_SETTINGS))

    def write(change: object, arm: Arm, name: ArmName) -> None:
        assert change is host.change
        done.append(f"write {name}")

    host = cast(Host, SimpleNamespace(shell=None, change=Recorded(done)))
    monkeypatch.setattr(one_trial, "write_settings", write)
    monkeypatch.setattr(one_trial, "prove_settings", proven)
    for cmdline in ("", "nosmt"):
        chosen = map_scenario(f"arms.candidate.cmdline={cmdline}")
        bench = SimpleNamespace(
            scenario=chosen, progress=Progress(),
            prepared=SimpleNamespace(kernels=dict.fromkeys(ARMS)),
        )  # fmt: skip
        trial = TrialWriter(tmp_path / f"0001-{cmdline}", facts_of())
        one_trial._apply_settings(cast(Bench, bench), arm, host, trial)
        assert (trial.manifest.arm_settings is not None) == bool(cmdline)
    assert done == [f"write {arm}", f"prove {arm}"]


def test_kernel_without_iommufd_is_refused_before_anything_boots(tmp_path: Path) -> None:
    kernel = bundle(tmp_path)
    overrides = ('trace.passes=["plain"]', "map.backend=iommufd")
    with pytest.raises(ScenarioError, match="has no iommufd") as caught:
        prepare_module._check_backend(kernel, map_scenario(*overrides))
    assert caught.value.reason == "kernel-lacks-module"
    prepare_module._check_backend(kernel, map_scenario())


def guest_keys(chosen: Scenario) -> WorkloadFacts:
    return one_trial._describe_guest(chosen.guest, chosen.host.phys_bits)


def test_guest_is_part_of_the_trials_facts() -> None:
    assert guest_keys(scenario("host.phys_bits=44")) == {
        "guest_cpus": 1, "guest_firmware": "seabios", "guest_boot": "direct",
        "guest_backing": "anonymous", "guest_viommu": "none", "guest_backend": "type1",
        "guest_phys_bits": 44,
    }  # fmt: skip
    assert guest_keys(scenario("guest.phys_bits=40"))["guest_phys_bits"] == 40


def test_configs_are_those_of_kernels_that_have_one(tmp_path: Path) -> None:
    without = bundle(tmp_path / "without")
    config = tmp_path / "config"
    config.write_bytes(b'CONFIG_LOCALVERSION="\xff"\n')
    prepared = Prepared(
        kernels={"baseline": without, "candidate": replace(without, config=config)},
        guest_kernel=None, accel="exact", accel_reason="asked for",
    )  # fmt: skip
    assert prepared.configs() == {"candidate": 'CONFIG_LOCALVERSION="\ufffd"\n'}


def breaking(*reasons: str | None, kind: type[BarometerError] = BenchError) -> Climb:
    """The n-th attempt fails for the n-th reason, whichever trial it belongs to."""
    left = list(reasons)

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        nothing(planned, trial)
        if left and (reason := left.pop(0)) is not None:
            raise kind(f"it was {reason}", reason=find_reason(reason))

    return climb


def repeated(trial: TrialDir) -> list[str]:
    return [attempt.reason for attempt in trial.manifest.repeated_attempts()]


@pytest.mark.parametrize(
    "reasons",
    [["host-crash"], ["exact-crawl"], ["host-crash"] * 2, ["host-no-timer", "guest-end-hang"]],
)
def test_trial_that_the_emulator_failed_is_begun_again(
    fixture: Fixture, reasons: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trials = fixture.trials(breaking(*reasons), scenario())
    assert fixture.begun == ["0001-baseline"] * (len(reasons) + 1) + ["0002-candidate"]
    assert outcomes(trials) == ["collected"] * 2
    assert [repeated(t) for t in trials] == [reasons, []]
    assert fixture.left() == ["0001-baseline", "0002-candidate"]
    notes = [line for line in capsys.readouterr().err.splitlines() if "once more" in line]
    assert len(notes) == len(reasons)
    for note, reason in zip(notes, reasons, strict=True):
        assert f"trial 0001-baseline: it was {reason}: once more" in note


def test_trial_that_the_emulator_keeps_failing_is_given_up(
    fixture: Fixture, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = ["host-crash", "exact-crawl", "host-crash"]
    trials = fixture.trials(breaking(*reasons), scenario())
    assert fixture.begun == ["0001-baseline"] * 3 + ["0002-candidate"]
    assert outcomes(trials) == ["host-crash", "collected"]
    assert repeated(trials[0]) == reasons[:2]
    assert ended(trials[0]).by_bench
    assert capsys.readouterr().err.count("once more") == 2


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("host-silent", BenchError),
        ("tracer-lost", BenchError),
    ],
)
def test_trial_that_failed_for_another_reason_is_not_begun_again(
    fixture: Fixture, reason: str, kind: type[BarometerError]
) -> None:
    trials = fixture.trials(breaking(reason, kind=kind), scenario())
    assert fixture.begun == ["0001-baseline", "0002-candidate"]
    assert outcomes(trials) == [reason, "collected"]
    assert repeated(trials[0]) == []


def test_other_failure_after_a_crash_is_the_trials_outcome(fixture: Fixture) -> None:
    trials = fixture.trials(breaking("host-crash", "host-silent"), scenario())
    assert fixture.begun == ["0001-baseline"] * 2 + ["0002-candidate"]
    assert outcomes(trials) == ["host-silent", "collected"]
    assert repeated(trials[0]) == ["host-crash"]


def test_trial_beside_others_is_begun_again_by_itself(fixture: Fixture) -> None:
    failed = threading.Event()

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        if planned.number == 4 and not failed.is_set():
            failed.set()
            raise BenchError("crawled", reason=Reason.EXACT_CRAWL)

    trials = fixture.trials(climb, map_scenario(PAIRS), accel="exact", width=2)
    assert outcomes(trials) == ["collected"] * 6
    assert [repeated(t) for t in trials] == [
        ["exact-crawl"] if number == 4 else [] for number in range(1, 7)
    ]
    assert len(fixture.begun) == 7


def test_crash_of_a_run_that_is_interrupted_is_not_begun_again(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = threading.Barrier(3, timeout=SECONDS)

    def climb(planned: PlannedTrial, trial: TrialWriter) -> None:
        working.wait()
        assert fixture.machines.stopped.wait(SECONDS)
        raise BenchError("gone", reason=Reason.HOST_CRASH)

    def interrupted(running: object) -> Any:
        working.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fixture.trials(climb, map_scenario(PAIRS), accel="exact", width=2)
    assert len(fixture.begun) == 2
    assert fixture.left() == []


def test_only_one_arm_can_be_run(fixture: Fixture) -> None:
    both = ["trials={pairs = 3, warm_up = true, control = true}"]
    fixture.trials(nothing, scenario(*both), only="candidate")
    assert [name.partition("-")[2] for name in fixture.begun] == ["candidate"] * 3
    fixture.trials(nothing, scenario(*both))
    assert len(fixture.begun) == len({*fixture.begun}) == len(make_plan(scenario(*both)))


# -- metal hosts -----------------------------------------------------------------------------


class Metal:
    """A run whose machine is leased, and whose trials do nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.done: list[str] = []
        self.out, self._cache = folder / "run", Cache(folder / "cache")
        self.bundle = bundle(folder)
        self.prepared = Prepared(
            kernels=dict.fromkeys(ARMS, self.bundle), guest_kernel=None, accel="none",
            accel_reason="a real machine",
        )  # fmt: skip
        self.state = SimpleNamespace(folder=folder / "state", add=self._add)
        self.failing: list[str | None] = []
        self.machine = SimpleNamespace(
            install=lambda cache: self.done.append("install"), trial_facts=lambda arm: {},
            guest_packages=lambda: {"busybox": "1.37"},
        )  # fmt: skip
        self.found: list[Any] = []
        """Accelerator that is known at each call of `prepare`; None if there is a machine."""
        monkeypatch.setattr(loop, "prepare", self._prepare)
        monkeypatch.setattr("orchestrator.machine.metal.metal.leased_machine", self._leased)
        monkeypatch.setattr(one_trial, "describe_trial", made_up_facts)
        monkeypatch.setattr(one_trial, "run_stages", self._climb)

    def _prepare(self, scenario: Scenario, machine: Any, *_: object) -> Prepared:
        self.found.append(machine if isinstance(machine, tuple) else None)
        return self.prepared

    def __call__(self, chosen: Scenario, enough: Enough | None = None) -> bool:
        self.done.clear()
        here = SimpleNamespace(
            cache=self._cache,
            kernels=RunKernels(self._cache),
            state=self.state,
            libvirt=Machines(),
            progress=Progress(),
            keep=False,
            visit=None,
        )
        return run_plan(chosen, "x", self.out, cast(Runner, here), enough)

    def _add(self, **what: str) -> None:
        self.done += [f"state: {value}" for name, value in what.items() if name == "hosts"]

    @contextmanager
    def _leased(
        self, spec: MetalHost, device: HostDevice, what: str, scratch: Path, progress: Progress
    ) -> Iterator[Any]:
        assert (what, scratch) == (f"barometer run {self.out}", self.state.folder / "metal")
        self.done.append(f"lease {spec.address} for {device.kind}")
        try:
            yield self.machine
        finally:
            self.done.append("put back")

    def _climb(
        self, bench: Bench, planned: PlannedTrial, trial: TrialWriter, through: str
    ) -> None:
        assert isinstance(bench.machine, NestedMachine) or bench.machine is cast(Any, self.machine)
        self.done.append(planned.name)
        if self.failing and (reason := self.failing.pop(0)):
            if reason == "interrupted":
                raise KeyboardInterrupt
            raise BenchError("x", reason=find_reason(reason))


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Metal:
    return Metal(monkeypatch, tmp_path)


def test_machine_is_leased_and_staged_once_for_all_trials(metal: Metal) -> None:
    assert metal(metal_scenario())
    assert metal.done == [
        "state: root@gpu1.lab", "lease root@gpu1.lab for hostdev", "install",
        "0001-baseline", "0002-candidate", "put back",
    ]  # fmt: skip


def test_what_recovers_a_machine_is_recorded_as_a_shell_takes_it(metal: Metal) -> None:
    metal(metal_scenario('host.ssh_config="/my lab/ssh"'))
    assert metal.done[0] == "state: root@gpu1.lab --ssh-config '/my lab/ssh'"


def test_machine_is_left_alone_when_all_trials_are_complete(
    metal: Metal, capsys: pytest.CaptureFixture[str]
) -> None:
    metal(metal_scenario())
    assert metal(metal_scenario())
    assert metal.done == []
    assert metal.found == [None, ("none", "a real machine")]
    assert "trial 0002-candidate: complete already" in capsys.readouterr().err


def test_nested_host_is_not_booted_when_all_trials_are_complete(metal: Metal) -> None:
    chosen = scenario("trials={pairs = 1, warm_up = false}")
    assert metal(chosen)
    assert metal.done == ["0001-baseline", "0002-candidate"]
    assert metal(chosen)
    assert metal.done == []
    assert metal.found == [None, ("none", "a real machine")]


@pytest.mark.parametrize("outcome", ["collected", "host-ssh-lost"])
def test_run_is_all_made_whatever_became_of_its_trials(metal: Metal, outcome: str) -> None:
    """It is not if a trial is missing."""
    chosen = metal_scenario()
    assert not Schedule.of(make_plan(chosen)).is_all_made(metal.out)
    metal.failing = [None, outcome] if outcome != "collected" else []
    metal(chosen)
    assert Schedule.of(make_plan(chosen)).is_all_made(metal.out)
    shutil.rmtree(metal.out / "trials/0002-candidate")
    assert not Schedule.of(make_plan(chosen)).is_all_made(metal.out)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_run_whose_repetition_was_interrupted_is_prepared_in_full(
    metal: Metal, turns: int
) -> None:
    """All its trials exist, and an undecided one has to be repeated."""
    chosen = metal_scenario()
    metal.failing = [None, "map-silent", *["map-silent", None][: turns - 1], "interrupted"]
    with pytest.raises(KeyboardInterrupt):
        metal(chosen)
    assert not Schedule.of(make_plan(chosen)).is_all_made(metal.out)
    assert metal(chosen)
    assert metal.found == [None, None]
    assert Schedule.of(make_plan(chosen)).is_all_made(metal.out)
    assert metal(chosen)
    assert metal.found[2:] == [("none", "a real machine")]


def test_machine_is_left_alone_once_there_are_enough_trials(metal: Metal) -> None:
    chosen = metal_scenario("trials={until={max_pairs=6}, warm_up=false, control=false}")
    assert metal(chosen, lambda run, pairs: pairs == 4)
    assert len([name for name in metal.done if name.startswith("00")]) == 8
    assert metal(chosen, lambda run, pairs: pairs == 4)
    assert metal.done == []
    assert metal(chosen, lambda run, pairs: pairs == 2)
    assert metal.done == []
    assert metal(chosen, lambda run, pairs: False)
    assert len([name for name in metal.done if name.startswith("00")]) == 4
    assert metal(chosen, lambda run, pairs: False)
    found = ("none", "a real machine")
    assert metal.found == [None, found, found, None, found]


def test_complete_run_of_other_kernels_is_refused(metal: Metal) -> None:
    metal(metal_scenario())
    others = dict.fromkeys(ARMS, replace(metal.bundle, digest="of another"))
    metal.prepared = replace(metal.prepared, kernels=others)
    with pytest.raises(ScenarioError, match="was begun with another baseline's kernel"):
        metal(metal_scenario())


def test_machine_is_leased_again_for_a_trial_that_the_bench_failed(metal: Metal) -> None:
    metal.failing = [None, "keeper-failed"]
    metal(metal_scenario())
    assert metal(metal_scenario())
    assert metal.found == [None, None]
    assert [d for d in metal.done if d.startswith(("lease", "000"))] == [
        "lease root@gpu1.lab for hostdev", "0002-candidate",
    ]  # fmt: skip


def test_machine_is_put_back_when_the_bench_keeps_failing(metal: Metal) -> None:
    metal.failing = ["timeout", "timeout"]
    assert not metal(metal_scenario())
    assert metal.done[-1] == "put back"


def metal_bench(metal: Metal, *overrides: str) -> Bench:
    state = cast(BenchState, metal.state)
    libvirt = SimpleNamespace(version=lambda: {"libvirt": "11.3.0"})
    return Bench(
        metal_scenario(*overrides), metal.prepared, RunDir(metal.out), state, cast(Any, libvirt),
        Progress(), machine=cast(Any, metal.machine),
    )  # fmt: skip


def test_arm_is_booted_by_the_machine_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    climb = one_trial.run_stages
    metal = Metal(monkeypatch, tmp_path)
    trial = TrialWriter(tmp_path / "0001-candidate", facts_of())
    planned = make_plan(metal_scenario())[-1]

    def boot(arm: ArmName, words: object, writer: TrialWriter, **more: Any) -> Any:
        assert writer is trial
        metal.done.append(f"boot {arm} {words}")
        raise BenchError("it is off", reason=Reason.MACHINE_LOST)

    metal.machine.boot = boot
    bench = metal_bench(metal, "arms.candidate.cmdline=nosmt iommu=pt")
    with pytest.raises(BenchError, match="it is off"):
        climb(bench, planned, trial)
    assert metal.done == ["boot candidate ('nosmt', 'iommu=pt')"]


@pytest.mark.parametrize("chosen", [scenario(PAIRS), metal_scenario()])
def test_machine_is_taken_before_anything_is_prepared_and_given_back_if_that_fails(
    metal: Metal, monkeypatch: pytest.MonkeyPatch, chosen: Scenario
) -> None:
    def refuse(*_: object) -> Prepared:
        raise ScenarioError("no such kernel", reason=Reason.NO_SUCH_PACKAGE)

    closed: list[str] = []
    monkeypatch.setattr(loop, "prepare", refuse)
    monkeypatch.setattr(HostPool, "close", lambda _: closed.append("closed"))
    with pytest.raises(ScenarioError):
        metal(chosen)
    assert "install" not in metal.done
    assert closed if chosen.host.kind == "nested" else metal.done[-1] == "put back"


def test_facts_of_a_trial_on_metal_have_nothing_of_a_nested_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trial_facts = one_trial.describe_trial
    metal = Metal(monkeypatch, tmp_path)
    bench = metal_bench(metal)
    facts = trial_facts(bench, make_plan(bench.scenario)[0]).to_json()
    assert {k for k in facts if k.startswith("host_")} == {"host_kind"}
    assert (facts["host_kind"], facts["device_kind"]) == ("metal", "hostdev")
    assert (facts["bar"], facts["device_count"], facts["accel"]) == (GIB, 1, "none")
    assert facts["guest_packages"] == {"busybox": "1.37"}
    assert (facts["map_backend"], facts["map_thp"]) == ("type1", "inherit")
    assert not {key for key in facts if key.startswith("guest_")} - {
        "guest_kernel",
        "guest_packages",
    }


def test_guest_on_metal_has_no_address_bits_of_a_nested_host() -> None:
    guest = ("workload=guest-boot", "guest={kernel = {dir = 'guest'}}")
    assert guest_keys(metal_scenario(*guest))["guest_phys_bits"] is None
    wide = guest_keys(metal_scenario(*guest, "guest.phys_bits=46"))
    assert wide["guest_phys_bits"] == 46


# the stages of a trial -----------------------------------------------------------------------


@pytest.mark.parametrize("oopses", [True, False])
def test_kernel_that_oopses_while_the_devices_are_given_back_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oopses: bool
) -> None:
    console = Console(tmp_path / "console.log")
    console.path.write_text("[    1.000000] fine\n")

    def put_back() -> None:
        if oopses:
            with console.path.open("a") as file:
                file.write("[    9.000000] BUG: kernel NULL pointer dereference, address: 0\n")
                file.write("[    9.000000]  vfio_pci_core_disable+0x1/0x2 [vfio_pci_core]\n")
                file.write("[    9.000000] ---[ end trace 0 ]---\n")

    host = SimpleNamespace(
        console=console, kernel=KernelWatch(console), release="7.3", is_alive=lambda: True,
        is_ours=True, emulated=True, kvm=False, shell=SimpleNamespace(alive=lambda: False),
        change=SimpleNamespace(put_back=put_back),
    )  # fmt: skip
    host.check = lambda: Host.check(cast(Host, host))

    @contextmanager
    def boot(*_: Any, **__: Any) -> Iterator[Host]:
        yield cast(Host, host)

    monkeypatch.setattr(one_trial, "read_host_facts", lambda *_: {})
    monkeypatch.setattr(one_trial, "run_maps", lambda *_, **__: None)
    monkeypatch.setattr(one_trial, "settle_host", lambda *_, **__: None)
    chosen = map_scenario()
    bench = SimpleNamespace(
        scenario=chosen, progress=Progress(), visit=None,
        hosts=SimpleNamespace(boot=boot, bind_devices=lambda *_: ("device",)),
    )  # fmt: skip
    trial = TrialWriter(tmp_path / "0001-baseline", facts_of(arm="baseline"))
    planned = make_plan(chosen)[0]
    raises = pytest.raises(ArmFailedError) if oopses else contextlib.nullcontext()
    with raises as caught:
        one_trial.run_stages(cast(Bench, bench), planned, trial)
    if caught is not None:
        assert caught.value.reason == "host-panic"
    stages = {stage.name: stage.outcome for stage in trial.manifest.stages}
    assert stages["host-check"] == ("host-panic" if oopses else "ok")
    kinds = [report.kind for report in trial.manifest.kernel_reports or ()]
    assert kinds == ["oops"] * oopses
