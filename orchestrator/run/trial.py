"""The stages of one trial: provisioned machine > proven kernel > bound device > workload under its
passes."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator import __version__
from orchestrator.base import interrupts
from orchestrator.base.bounded import CONSOLE_BYTES
from orchestrator.base.errors import BarometerError, BenchError, LastStageEnded
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import Attempt, charge
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.layout import RunDir, TrialWriter, write_json
from orchestrator.evidence.manifest import (
    AttemptRecord,
    ProvenSettings,
    ReportRecord,
    TrialFacts,
    WorkloadFacts,
)
from orchestrator.formats.kernelreports import BROKEN, STALLS, KernelReport
from orchestrator.machine.guest.workload import run_guest_boots, run_maps, settle_host
from orchestrator.machine.host.device import BoundDevice, read_host_facts
from orchestrator.machine.host.host import Host, explained_by_the_host
from orchestrator.machine.host.machine import Machine
from orchestrator.machine.host.settings import prove_settings, write_settings
from orchestrator.machine.runner.runner import runner_facts
from orchestrator.machine.runner.state import BenchState
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.vm import hypervisor
from orchestrator.run.prepare import Prepared, guest_kernel_record
from orchestrator.scenario.machines import Guest
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import PlannedTrial
from orchestrator.scenario.vocabulary import ARMS, ArmName, Pass, is_emulated

Visit = Callable[[Host, BarometerError | None], None]
"""Called when a trial's workload has ended, with its host, and with what ended it early."""


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
    visit: Visit | None = None
    machine: Machine | None = None
    """Provider of the hosts, with all that they need; None if all trials are complete."""

    @property
    def hosts(self) -> Machine:
        """The machine that boots the trials' hosts."""
        assert self.machine is not None, "a complete run boots nothing"
        return self.machine


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
    before = tuple(AttemptRecord.of(attempt) for attempt in repeated)
    facts = describe_trial(bench, planned)
    trial = TrialWriter(final, facts.model_copy(update={"repeated": before}))
    try:
        run_stages(bench, planned, trial, through)
    except BaseException as exc:
        # interrupted, here or in another trial, or no space: there is nothing to judge
        is_interrupted = bench.libvirt.stopped.is_set() or interrupts.is_requested()
        if is_interrupted or isinstance(exc, KeyboardInterrupt | OSError):
            if not bench.keep:
                shutil.rmtree(trial.path, ignore_errors=True)
            raise
        if isinstance(exc, BarometerError):
            stages = [stage.name for stage in trial.manifest.stages if stage.outcome != "ok"]
            _charge(bench, planned, trial, exc, stages[0] if stages else "start")
        else:
            message = f"a bug in barometer: {type(exc).__name__}: {exc}"
            _charge(bench, planned, trial, BenchError(message, reason=Reason.BUG), "unknown")
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
        guest_emulated=trial.manifest.guest_accel == "tcg", reports=reports,
        changed=bench.prepared.kernels[planned.boots].swapped,
    )  # fmt: skip
    trial.failed(exc, stage, charged, _find_telling_line(reports, trial))


def _find_telling_line(reports: Sequence[KernelReport], trial: TrialWriter) -> str:
    """Return the report that the host's kernel is broken, else its first stall since the trial
    began, else an empty string."""
    since = reports[trial.manifest.reports_before :]
    return next(
        (
            report.line
            for kinds, among in ((BROKEN, reports), (STALLS, since))
            for report in among
            if report.kind in kinds
        ),
        "",
    )


def run_stages(bench: Bench, planned: PlannedTrial, trial: TrialWriter, through: str = "") -> None:
    """Run the stages of a trial, up to the one called `through`."""
    trial.last_stage = through
    # The `counts` pass of a guest boot is one map from the host's user space: its probes fire for
    # each page, so on an unpatched kernel they would make the dozen maps of a guest boot minutes
    # longer.
    is_map = bench.scenario.workload == "map"
    map_passes = [p for p in planned.passes if is_map or p == "counts"]
    boot_passes = [p for p in planned.passes if p not in map_passes]
    with (
        contextlib.suppress(LastStageEnded),
        ready_host(bench, planned.boots, trial, boots_guests=bool(boot_passes)) as ready,
    ):
        with _visited(bench, ready.host):
            _run_workload(bench, ready, boot_passes, map_passes, trial)
        if bench.scenario.arms[planned.boots].is_set:
            with trial.stage("settings-again"):  # proves that nothing has changed them meanwhile
                _prove_settings(bench, planned.boots, ready.host)


@contextlib.contextmanager
def _visited(bench: Bench, host: Host) -> Iterator[None]:
    """Let somebody visit the host at the end of the block, if the run is made for that."""
    try:
        yield
    except BarometerError as exc:
        if bench.visit is not None:
            bench.visit(host, exc)
        raise
    if bench.visit is not None:
        bench.visit(host, None)


class ReadyHost(NamedTuple):
    """A host of one arm, ready for a workload."""

    host: Host
    devices: tuple[BoundDevice, ...]
    settle: Callable[[], None]
    """Waits until an exact host is idle. A guest's libvirt has to run before."""


@contextlib.contextmanager
def ready_host(
    bench: Bench, arm: ArmName, trial: TrialWriter, *, boots_guests: bool
) -> Iterator[ReadyHost]:
    """Keep a host booted under the arm's kernel, which is proven, with the arm's settings and its
    devices bound, while the block runs. Its console, kernel log and facts go into the trial."""
    scenario, progress = bench.scenario, bench.progress
    with contextlib.ExitStack() as ladder:
        with progress.stage("host: boot"), trial.stage("host-boot"):
            host = ladder.enter_context(
                bench.hosts.boot(
                    arm, scenario.arms[arm].words, trial, progress=progress,
                    with_libvirt=boots_guests,
                )
            )  # fmt: skip
        ladder.callback(_save_reports, host, trial)
        ladder.callback(_save_dmesg, host, trial)
        ladder.enter_context(explained_by_the_host(host))
        ladder.enter_context(_changes_put_back(host, trial))
        _apply_settings(bench, arm, host, trial)
        with progress.stage("host: device"), trial.stage("device"):
            devices = bench.hosts.bind_devices(host, trial)
            write_json(trial.host / "facts.json", read_host_facts(host, devices))
            if scenario.workload == "guest-boot":
                trial.record(guest_accel="kvm" if host.kvm else "tcg")
        settle = functools.partial(
            settle_host, host, scenario.host, scenario.arms, trial=trial, progress=progress
        )
        yield ReadyHost(host, devices, settle)


def _run_workload(
    bench: Bench, ready: ReadyHost, boot_passes: Sequence[Pass], map_passes: Sequence[Pass],
    trial: TrialWriter,
) -> None:  # fmt: skip
    scenario, progress = bench.scenario, bench.progress
    host, devices, settle = ready
    if boot_passes and scenario.guest is not None:
        run_guest_boots(
            host, devices, scenario.guest, scenario.device, boot_passes, keys=RunKeys.make(),
            settle=settle, trial=trial, progress=progress,
        )  # fmt: skip
    else:
        settle()
    if map_passes:
        run_maps(
            host, devices[0], scenario.map, scenario.points(), map_passes, trial=trial,
            progress=progress,
        )  # fmt: skip


@contextlib.contextmanager
def _changes_put_back(host: Host, trial: TrialWriter) -> Iterator[None]:
    """Put the trial's changes back after a block that has not failed, and check the host once
    more: a kernel that oopses only when the devices are given back has failed, too."""
    yield
    with trial.stage("host-check"):
        host.change.put_back()
        host.check()


def _apply_settings(bench: Bench, arm: ArmName, host: Host, trial: TrialWriter) -> None:
    """Apply and prove the arm's settings, if either arm has any."""
    if any(bench.scenario.arms[name].is_set for name in ARMS):
        with bench.progress.stage("host: settings"), trial.stage("settings"):
            write_settings(host.change, bench.scenario.arms[arm], arm)
            trial.record(arm_settings=_prove_settings(bench, arm, host))


def _prove_settings(bench: Bench, arm: ArmName, host: Host) -> ProvenSettings:
    return prove_settings(host.shell, bench.prepared.kernels[arm], bench.scenario.arms, arm)


def describe_trial(bench: Bench, planned: PlannedTrial) -> TrialFacts:
    """Return what the manifest says of a trial from its beginning."""
    scenario, prepared = bench.scenario, bench.prepared
    kernel = prepared.kernels[planned.boots]
    workload: WorkloadFacts = (
        {"map_backend": scenario.map.backend, "map_thp": scenario.map.thp}
        if scenario.workload == "map"
        else _describe_guest(scenario.guest, scenario.host.phys_bits)
    )
    return TrialFacts(
        arm=planned.arm, pair=planned.pair, number=planned.number,
        barometer=__version__, workload=scenario.workload, accel=prepared.accel,
        kernel=KernelRecord(
            release=kernel.release, source=str(scenario.arms[planned.boots].kernel),
            digest=kernel.digest,
        ),
        guest_kernel=guest_kernel_record(scenario, prepared),
        bar=scenario.device.bar, device_kind=scenario.device.kind,
        device_count=scenario.device.count, device_mmap=scenario.device.mmap,
        host_kind=scenario.host.kind, **bench.hosts.trial_facts(planned.boots), **workload,
        passes=tuple(planned.passes),
        runner_versions=bench.libvirt.version(), runner=runner_facts(),
        guest_packages=bench.hosts.guest_packages(),
    )  # fmt: skip


def _describe_guest(guest: Guest | None, host_bits: int | None) -> WorkloadFacts:
    """Return the keys of the guest. `host_bits`: physical address bits of a nested host's CPU,
    which the guest's are by default."""
    if guest is None:
        return {}
    return {
        "guest_cpus": guest.cpus, "guest_firmware": guest.firmware, "guest_boot": guest.boot,
        "guest_backing": guest.backing, "guest_viommu": guest.viommu,
        "guest_backend": guest.backend, "guest_phys_bits": guest.phys_bits or host_bits,
    }  # fmt: skip


def _save_reports(host: Host, trial: TrialWriter) -> None:
    """Record what the host's kernel reported about itself."""
    reports = host.kernel.reports()
    trial.record(
        kernel_reports=[
            ReportRecord(kind=report.kind, line=report.line, seconds=report.seconds)
            for report in reports
        ]
    )


def _save_dmesg(host: Host, trial: TrialWriter) -> None:
    if host.shell.alive():
        with contextlib.suppress(BarometerError):
            log = host.shell.run("dmesg", timeout=30, limit=CONSOLE_BYTES).stdout
            (trial.host / "dmesg.txt").write_text(log)
