"""The ladder of one trial, and the loop over a plan."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from orchestrator import __version__
from orchestrator.bench import hypervisor, images
from orchestrator.bench.accel import Accel, chosen_accel
from orchestrator.bench.device import bound_devices
from orchestrator.bench.domain import Disk
from orchestrator.bench.guest import GUEST_SERIAL, guest_cmdline
from orchestrator.bench.guestdisk import GuestDisk, grub_config, guest_disk
from orchestrator.bench.host import Host, charged_to_the_arm
from orchestrator.bench.keys import RunKeys
from orchestrator.bench.nested import proven_host, running_machine
from orchestrator.bench.runner import runner_facts
from orchestrator.bench.settings import prove_settings, write_settings
from orchestrator.bench.state import BenchState, bench_state
from orchestrator.bench.workload import guest_boots, maps, settle
from orchestrator.cache import Cache, disk_full
from orchestrator.errors import (
    BarometerError,
    BenchError,
    ScenarioError,
    key_named,
)
from orchestrator.evidence import RunDir, TrialDir, TrialWriter
from orchestrator.hashing import digest_of
from orchestrator.kernels import KernelBundle, checked, materialised
from orchestrator.kernels.parameters import check_parameter
from orchestrator.plan import PlannedTrial, make_plan
from orchestrator.progress import Progress
from orchestrator.scenario import ARMS, GIB, ArmName, Scenario

log = logging.getLogger("barometer.run")
Enough = Callable[[RunDir, int], bool]
"""Whether the trials of so many pairs, from the first, are enough."""

_TAGS: dict[ArmName, str] = {"baseline": "base", "candidate": "cand"}
"""In the releases of kernels that are built: as long for both, so that nothing else moves."""
_SAME_BENCH_FAILURES = 2
_ATTEMPTS = 3
_BY_CHANCE = {"host-crash", "exact-crawl"}
"""Failures of QEMU's emulation that come and go: such a trial is begun again, and that is said."""


@dataclass(frozen=True)
class Prepared:
    """Everything a plan needs that is built before anything boots."""

    kernels: dict[ArmName, KernelBundle]
    hosts: dict[ArmName, images.HostImage]
    guest_kernel: KernelBundle | None
    """None where the workload has no guest."""
    payload: images.PayloadImage
    guest_disk: GuestDisk | None
    """What the guest boots from; None: its kernel is in the payload."""
    accel: Accel
    accel_reason: str

    def disks(self) -> tuple[Disk, ...]:
        """What the host is given besides its own disks."""
        more = [Disk(self.guest_disk.path, GUEST_SERIAL)] if self.guest_disk else []
        return (Disk(self.payload.disk, "payload"), *more)

    def configs(self) -> dict[ArmName, str]:
        """Of the kernels that come with one."""
        return {
            arm: kernel.config.read_text("utf-8", errors="replace")
            for arm, kernel in self.kernels.items()
            if kernel.config
        }

    def guest_packages(self) -> dict[str, str]:
        return self.guest_disk.packages if self.guest_disk else self.payload.packages


def prepare(scenario: Scenario, cache: Cache, progress: Progress) -> Prepared:
    """Accelerator, kernels and images; nothing is booted but the probe of KVM.

    Raises ScenarioError for what the scenario asks and cannot be had, BenchError otherwise.
    """
    with progress.stage("accelerator"):
        accel, reason = chosen_accel(scenario.host.accel)
    progress.note(f"accelerator: {accel} ({reason})")
    for arm in ARMS:  # all of them, before any is built
        with key_named(f"arms.{arm}.kernel"):
            checked(scenario.arms[arm].kernel, cache)
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        with key_named("guest.kernel"):
            checked(scenario.guest.kernel, cache)
    kernels: dict[ArmName, KernelBundle] = {}
    for arm in ARMS:
        if kernels and scenario.arms[arm].kernel == scenario.arms.baseline.kernel:
            kernels[arm] = kernels["baseline"]  # down to the release
        else:
            kernel_stage = progress.stage(f"kernel of the {arm}: {scenario.arms[arm].kernel}")
            with kernel_stage, key_named(f"arms.{arm}.kernel"):
                kernels[arm] = materialised(scenario.arms[arm].kernel, cache, progress, _TAGS[arm])
                _has_backend(kernels[arm], scenario)
        for word in scenario.arms[arm].cmdline.split():
            name = word.partition("=")[0]
            # other words with a dot are of the kernel's core, which lists them nowhere
            if "." in name and kernels[arm].has_module(name.partition(".")[0]):
                with key_named(f"arms.{arm}.cmdline"):
                    check_parameter(kernels[arm], name)
        for name in scenario.arms[arm].parameters:
            with key_named(f'arms.{arm}.parameters."{name}"'):
                check_parameter(kernels[arm], name)
    guest_kernel = None
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        guest_stage = progress.stage(f"kernel of the guest: {scenario.guest.kernel}")
        with guest_stage, key_named("guest.kernel"):
            guest_kernel = materialised(scenario.guest.kernel, cache, progress, "gues")
    with progress.stage("images"):
        disk = _guest_disk(scenario, guest_kernel, cache)
        return Prepared(
            kernels=kernels,
            hosts={
                arm: images.host_image(kernel, scenario.host.suite, cache)
                for arm, kernel in kernels.items()
            },
            guest_kernel=guest_kernel,
            payload=images.payload_image(None if disk else guest_kernel, cache),
            guest_disk=disk,
            accel=accel,
            accel_reason=reason,
        )


def _guest_disk(scenario: Scenario, kernel: KernelBundle | None, cache: Cache) -> GuestDisk | None:
    if kernel is None or scenario.guest is None or scenario.guest.boot != "disk":
        return None
    cmdline = guest_cmdline(scenario.guest)
    with key_named("guest.cmdline"):
        grub_config(kernel.release, cmdline)
    with key_named("guest.kernel"):
        return guest_disk(kernel, cmdline, cache)


def _has_backend(kernel: KernelBundle, scenario: Scenario) -> None:
    room = "map" if scenario.workload == "map" else "guest"
    backend = getattr(getattr(scenario, room), "backend", "type1")
    if backend == "iommufd" and not kernel.has_module("iommufd"):
        raise ScenarioError(
            f'{room}.backend = "iommufd", and the kernel {kernel.release} has no iommufd',
            hint=f'CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV; or {room}.backend = "type1"',
            reason="kernel-lacks-module",
        )


def plan_facts(scenario: Scenario, prepared: Prepared) -> dict[str, Any]:
    """plan.json: the order of the trials, and exactly what they will use."""
    return {
        "schema": 1, "barometer": __version__, "scenario": scenario.name,
        "accel": prepared.accel, "accel_reason": prepared.accel_reason,
        "kernels": {
            arm: {"release": k.release, "source": str(scenario.arms[arm].kernel),
                  "digest": k.digest, "provenance": k.provenance}
            for arm, k in prepared.kernels.items()
        },
        "arm_settings": {arm: scenario.arms[arm].settings for arm in ARMS},
        "guest_kernel": _guest_kernel(scenario, prepared),
        "runner": {"system": platform.platform(), "machine": platform.machine(),
                   "cpus": os.cpu_count()},
        "trials": [{"name": t.name, "pair": t.pair, "arm": t.arm, "passes": list(t.passes)}
                   for t in make_plan(scenario)],
    }  # fmt: skip


def _guest_kernel(scenario: Scenario, prepared: Prepared) -> dict[str, Any] | None:
    if prepared.guest_kernel is None or scenario.guest is None:
        return None
    return {"release": prepared.guest_kernel.release, "source": str(scenario.guest.kernel),
            "digest": prepared.guest_kernel.digest,
            "provenance": prepared.guest_kernel.provenance}  # fmt: skip


@dataclass(frozen=True)
class Runner:
    """What every run of one process shares: libvirt's embedded driver opens once in a process."""

    cache: Cache
    state: BenchState
    libvirt: hypervisor.Connection
    progress: Progress
    keep: bool = False
    """Leave the evidence of a trial that is interrupted, and the private folder."""


@contextlib.contextmanager
def runner(cache: Cache, progress: Progress, *, keep: bool = False) -> Iterator[Runner]:
    """This machine, ready to run plans; what they leave outside their folders is gone after."""
    with (
        bench_state(keep=keep) as state,
        hypervisor.embedded(state.folder / "libvirt", cache.folder("libvirt")) as libvirt,
    ):
        yield Runner(cache, state, libvirt, progress, keep)
        if keep:
            progress.note(f"kept: {state.folder}")


@dataclass(frozen=True)
class Bench:
    """What every trial of a run shares."""

    scenario: Scenario
    prepared: Prepared
    run: RunDir
    state: BenchState
    libvirt: hypervisor.Connection
    progress: Progress
    keep: bool = False
    """Leave the evidence of a trial that is interrupted."""
    enough: Enough | None = None
    """With `trials.until`: asked after each block, of the pairs up to it."""
    only: ArmName | None = None
    """Of all trials those of this arm; the others are left for another day."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """The run is interrupted, and what fails now fails because of that."""


def run_plan(
    scenario: Scenario,
    text: str,
    out: Path,
    here: Runner,
    enough: Enough | None = None,
    *,
    only: ArmName | None = None,
) -> bool:
    """Every trial of the plan that is not complete yet, in order; evidence under `out`. With
    `trials.until`, `enough` says after each block whether that was the last. `only`: the trials of
    one arm; to judge, such a run is one that is not complete.

    Goes on after a failed trial; stops when the bench fails twice in a row for the same reason,
    and then returns False. Raises ScenarioError and BenchError for what cannot be prepared.
    """
    with no_space_explained(out), only_run_in(out, here.cache):
        prepared = prepare(scenario, here.cache, here.progress)
        facts = plan_facts(scenario, prepared)
        run = RunDir.create(out, text, facts, prepared.configs())
        return run_trials(
            Bench(
                scenario, prepared, run, here.state, here.libvirt, here.progress, here.keep,
                enough, only,
            )
        )  # fmt: skip


@contextlib.contextmanager
def only_run_in(out: Path, cache: Cache) -> Iterator[None]:
    """Raises ScenarioError when another process writes the same run."""
    lock = cache.lock(f"runs/{digest_of({'out': str(out)})}")
    try:
        lock.acquire(timeout=0)
    except Timeout as exc:
        raise ScenarioError(f"another process is at work in {out}", reason="run-exists") from exc
    try:
        yield
    finally:
        lock.release()


def run_trials(bench: Bench) -> bool:
    """The trials that are not complete, one after the other; with accel exact, whose numbers do
    not depend on what else the machine does, as many at a time as there are CPUs and memory.
    False when the bench failed twice in a row for the same reason, and no more were begun."""
    watch = _BenchWatch(bench)
    plan = [t for t in make_plan(bench.scenario) if bench.only in (None, t.arm)]
    if bench.enough is None:
        return _run_block(bench, plan, watch)
    for pairs in range(2, bench.scenario.trials.most_pairs + 1, 2):
        block = [planned for planned in plan if pairs - 2 < max(planned.pair, 1) <= pairs]
        if not _run_block(bench, block, watch):
            return False
        if bench.enough(bench.run, pairs):
            bench.progress.note(f"enough after {pairs} pairs")
            break
    return True


def _run_block(bench: Bench, block: Sequence[PlannedTrial], stop: _BenchWatch) -> bool:
    """As run_trials, of some of them."""
    pending = []
    for planned in block:
        done = bench.run.trials_path / planned.name
        if done.exists() and not TrialDir.open(done).manifest["outcome"].get("by_bench"):
            bench.progress.note(f"trial {planned.name}: complete already")
            continue
        shutil.rmtree(done, ignore_errors=True)  # the bench failed then: again
        pending.append(planned)
    width = _at_once(bench.scenario) if bench.prepared.accel == "exact" else 1
    if min(width, len(pending)) > 1:
        return _run_at_once(bench, pending, width, stop)
    for planned in pending:
        title = f"trial {planned.name} ({bench.prepared.kernels[planned.boots].release})"
        try:
            with bench.progress.stage(title):
                _run_until_it_counts(bench, planned)
            stop.saw(None)
        except BarometerError as exc:
            bench.progress.note(f"{title}: {exc}")
            if stop.saw(exc):
                return False
    return True


class _BenchWatch:
    """Whether to go on: not when the bench failed twice in a row for the same reason."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._reasons: list[str] = []

    def saw(self, exc: BarometerError | None) -> bool:
        self._reasons = [*self._reasons, exc.reason] if isinstance(exc, BenchError) else []
        last = self._reasons[-_SAME_BENCH_FAILURES:]
        broken = len(last) == _SAME_BENCH_FAILURES and len(set(last)) == 1
        if broken:
            self._bench.progress.note("the bench failed twice for the same reason: stopping here")
        return broken


def _at_once(scenario: Scenario) -> int:
    """How many exact hosts this machine carries: a CPU and their memory (with QEMU's own) each."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    fit = int(available[1]) * 1024 // (scenario.host.memory + 2 * GIB) if available else 1
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def _run_at_once(
    bench: Bench, pending: Sequence[PlannedTrial], width: int, stop: _BenchWatch
) -> bool:
    """A thread for each trial. An interrupt ends their machines, and with them the trials. False
    as of run_trials."""

    def work(planned: PlannedTrial) -> None:
        with bench.progress.lane(planned.name) as lane:
            _run_until_it_counts(replace(bench, progress=lane), planned)

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
                if stop.saw(exc):
                    return False
        except BaseException:
            bench.stopped.set()
            bench.libvirt.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return True


def _run_until_it_counts(bench: Bench, planned: PlannedTrial) -> None:
    """`run_trial`, again where the emulator failed by chance; the manifest has what did."""
    repeated: list[str] = []
    while True:
        try:
            return run_trial(bench, planned, repeated)
        except BenchError as exc:
            repeated.append(exc.reason)
            if (
                exc.reason not in _BY_CHANCE
                or len(repeated) == _ATTEMPTS
                or bench.stopped.is_set()
            ):
                raise
            bench.progress.note(f"trial {planned.name}: {exc.message}: once more")
            shutil.rmtree(bench.run.trials_path / planned.name, ignore_errors=True)


def run_trial(bench: Bench, planned: PlannedTrial, repeated: Sequence[str] = ()) -> None:
    """One host boot with its workload; the trial is complete on disk whatever happened, unless
    the run itself is interrupted. Raises what ended it early. `repeated`: why it was begun again,
    each time."""
    final = bench.run.trials_path / planned.name
    partial = TrialWriter.partial_path(final)
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left of this trial
    bench.state.add(partial=str(partial))
    trial = TrialWriter(final, _trial_facts(bench, planned) | {"repeated": [*repeated]})
    try:
        _climb(bench, planned, trial)
    except BaseException as exc:
        # interrupted, here or beside; or no space: there is nothing to judge
        if bench.stopped.is_set() or isinstance(exc, KeyboardInterrupt | OSError):
            if not bench.keep:
                shutil.rmtree(trial.path, ignore_errors=True)
            raise
        if isinstance(exc, BarometerError):
            stages = [s["name"] for s in trial.manifest["stages"] if s["outcome"] != "ok"]
            trial.failed(exc, stages[0] if stages else "start")
        else:
            what = f"a bug in barometer: {type(exc).__name__}: {exc}"
            trial.failed(BenchError(what, reason="bug"), "unknown")
        trial.complete()
        raise
    trial.complete()


def _climb(bench: Bench, planned: PlannedTrial, trial: TrialWriter) -> None:
    """Provisioned machine > proven kernel > bound device > workload under its passes."""
    scenario, prepared, progress = bench.scenario, bench.prepared, bench.progress
    kernel, keys = prepared.kernels[planned.boots], RunKeys.make()
    boots_guests = scenario.workload == "guest-boot" and {*planned.passes} != {"counts"}
    with contextlib.ExitStack() as ladder:
        with progress.stage("host: boot"), trial.stage("host-boot"):
            machine = ladder.enter_context(
                running_machine(
                    scenario, planned.boots, kernel, prepared.hosts[planned.boots],
                    prepared.disks(), accel=prepared.accel, keys=keys, state=bench.state,
                    libvirt=bench.libvirt, trial=trial,
                )
            )  # fmt: skip
            host = ladder.enter_context(
                proven_host(
                    machine, kernel, keys=keys, state=bench.state, trial=trial, progress=progress,
                    with_libvirt=boots_guests,
                )
            )  # fmt: skip
        ladder.callback(_save_dmesg, host, trial)
        ladder.enter_context(charged_to_the_arm(host))
        _set(bench, planned.boots, host, trial)
        with progress.stage("host: device"), trial.stage("device"):
            devices = ladder.enter_context(bound_devices(host, scenario.device))
            asked = host.agent("facts", *(device.address for device in devices))
            facts = host.shell.run(asked, doing="reading facts")
            (trial.host / "facts.json").write_text(json.dumps(json.loads(facts.stdout), indent=1))
            if scenario.workload == "guest-boot":
                trial.record(guest_accel="kvm" if host.kvm else "tcg")
        if boots_guests:
            guest_boots(
                host, devices, scenario, planned.passes, keys=keys, trial=trial, progress=progress
            )
        else:
            settle(host, scenario, trial=trial, progress=progress)
            maps(host, devices[0], scenario, planned.passes, trial=trial, progress=progress)
        host.check()
        if scenario.arms[planned.boots].is_set:
            with trial.stage("settings-again"):  # nothing has set them otherwise meanwhile
                _proven(bench, planned.boots, host)


def _set(bench: Bench, arm: ArmName, host: Host, trial: TrialWriter) -> None:
    """What the arms set, where they set anything."""
    if any(bench.scenario.arms[name].is_set for name in ARMS):
        with bench.progress.stage("host: settings"), trial.stage("settings"):
            write_settings(host.shell, bench.scenario, arm)
            trial.record(arm_settings=_proven(bench, arm, host))


def _proven(bench: Bench, arm: ArmName, host: Host) -> dict[str, Any]:
    return prove_settings(host.shell, bench.prepared.kernels[arm], bench.scenario, arm)


def _trial_facts(bench: Bench, planned: PlannedTrial) -> dict[str, Any]:
    scenario, prepared = bench.scenario, bench.prepared
    image = prepared.hosts[planned.boots]
    return {
        "arm": planned.arm, "pair": planned.pair, "number": planned.number,
        "barometer": __version__, "workload": scenario.workload, "accel": prepared.accel,
        "kernel": {"release": prepared.kernels[planned.boots].release,
                   "source": str(scenario.arms[planned.boots].kernel),
                   "digest": prepared.kernels[planned.boots].digest},
        "guest_kernel": _guest_kernel(scenario, prepared),
        "bar": scenario.device.bar, "device_kind": scenario.device.kind,
        "device_count": scenario.device.count, "device_mmap": scenario.device.mmap,
        "host_memory": scenario.host.memory, "host_viommu": scenario.host.viommu,
        "host_viommu_aw_bits": scenario.host.viommu_aw_bits,
        **_workload_facts(scenario), "passes": list(planned.passes),
        "runner_versions": bench.libvirt.version(), "runner": runner_facts(),
        "host_packages": image.packages, "guest_packages": prepared.guest_packages(),
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


def _save_dmesg(host: Host, trial: TrialWriter) -> None:
    if host.shell.alive():
        with contextlib.suppress(BarometerError):
            (trial.host / "dmesg.txt").write_text(host.shell.run("dmesg", timeout=30).stdout)


@contextlib.contextmanager
def no_space_explained(out: Path) -> Iterator[None]:
    """A full disk is said as such, with what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(out) from exc
        raise
