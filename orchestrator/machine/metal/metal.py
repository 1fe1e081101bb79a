"""The metal kind of host: an existing machine over SSH, changed for a while and put back.

lease > put back what an earlier run left > stage kernels > boots, each proven by a new boot id,
the release and a token on its command line > put all back, prove the machine's own kernel
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ArmFailedError, BarometerError, BenchError, key_named
from orchestrator.base.process import tail
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialWriter
from orchestrator.evidence.manifest import HostKindFacts
from orchestrator.formats.kernelreports import BROKEN, reports_in
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.host.changes import VFIO
from orchestrator.machine.host.console import Console
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host, explained_by_the_host, panic_reason
from orchestrator.machine.host.kernelwatch import KernelWatch, watch_of_machine, watching_kernel
from orchestrator.machine.host.machine import Machine
from orchestrator.machine.host.modules import prove_modules
from orchestrator.machine.metal.boots import TRANSIENT, Boots, Running, read_running_kernel
from orchestrator.machine.metal.consoles import following_dmesg
from orchestrator.machine.metal.keeper import Image, JournaledChanges
from orchestrator.machine.metal.leasing import HeldMachine, restored_machine
from orchestrator.machine.metal.passthrough import (
    bind_hostdev,
    choose_function,
    list_notes,
    survey_devices,
)
from orchestrator.machine.metal.staging import (
    Staged,
    check_drivers,
    check_initramfs_tool,
    check_room,
    folder_of,
    link_modules,
    mount_modules,
    put_files,
    stage_kernel,
)
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.images import GUESTS, PayloadFiles, guest_files
from orchestrator.machine.tracing.armer import TRACEFS
from orchestrator.machine.tracing.profiler import INSTANCE
from orchestrator.machine.transport import remote
from orchestrator.machine.transport.shell import Shell
from orchestrator.machine.vm.hypervisor import Connection, Deadlines, over_ssh
from orchestrator.scenario.machines import Guest, HostDevice, MetalHost
from orchestrator.scenario.vocabulary import ArmName

_log = logging.getLogger("barometer.metal")

_GUESTS = Deadlines(end=60.0)
"""`end` is libvirt's own limit (40 s, and more for each device) with a margin. The keeper has the
guest in its journal and ends it if it takes longer."""
_ENDS_BY_ITSELF = ("panic=10", "rd.shell=0", "rd.emergency=reboot")
"""Command-line words by which a machine restarts itself into its default kernel. A kernel that
panics first has ten seconds for its last messages. An initramfs that finds no root file system
restarts, too: initramfs-tools obeys the first word, dracut the others (dracut.cmdline(7))."""
_NOT_HANDED_ON = (
    "BOOT_IMAGE", "initrd", "barometer.token", "panic", "rd.shell", "rd.emergency", "crashkernel",
)  # fmt: skip
"""Words of the machine's own command line that the kernels under test do not get. With
`crashkernel` the machine's kdump service may load a crash kernel, and a panic would boot that
kernel instead of restarting the machine."""


@dataclass(frozen=True)
class MetalSurvey:
    """Facts of a metal host before anything on it is changed."""

    device: str
    """Address of the PCI function that the scenario selects."""
    notes: tuple[str, ...]
    """Notes for the user about the function."""


def survey_metal(shell: Shell, spec: MetalHost, device: HostDevice) -> MetalSurvey:
    """Examine a metal host. Raises BenchError if it is this machine, or if it cannot spare the
    device that the scenario selects."""
    if read_running_kernel(shell).boot_id == _own_boot_id():
        raise BenchError(
            f"{spec.address} is this machine: a run does not survive the boot of another"
            " kernel under it",
            hint="run barometer on another machine, and reach this one over SSH",
            reason=Reason.HOST_IS_RUNNER,
        )
    survey = survey_devices(shell)
    function = choose_function(device, survey)
    return MetalSurvey(function.address, list_notes(survey, function))


def _own_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def check_kernels(shell: Shell, kernels: Mapping[ArmName, KernelBundle]) -> None:
    """Raise ScenarioError for a kernel that cannot start the machine, BenchError if the machine
    cannot make an initramfs."""
    check_initramfs_tool(shell)
    for arm, kernel in kernels.items():
        with key_named(f"arms.{arm}.kernel"):
            check_drivers(shell, kernel)


@dataclass
class Session:
    """One boot of a kernel under test; consecutive trials of its arm share it."""

    arm: ArmName
    token: str
    running: Running
    seconds: float
    """Seconds from the request to boot until SSH answered."""
    console_start: int
    """Number of bytes of the console's output before this boot."""
    broken: bool = False


def _cut_to_boot(console: str, token: str) -> str:
    """Return the part of a console's output that belongs to the boot with that token: from its
    first message to that of the next boot. Return all of it if that boot is not found."""
    boots = re.split(r"(?m)^(?=.*\bLinux version )", console)
    return next((boot for boot in boots if f"barometer.token={token}" in boot), console)


@dataclass(frozen=True, kw_only=True)
class RealHost(Host):
    """A metal host that runs a kernel under test."""

    is_ours: ClassVar[bool] = False
    boots: Boots
    boot_id: str
    ssh: Path
    """Program of an SSH client for libvirt's connection."""

    def is_alive(self) -> bool:
        return self.shell.alive() or self.boots.reach().boot_id == self.boot_id

    def libvirt(self) -> AbstractContextManager[Connection]:
        return over_ssh(self.ssh, "host", deadlines=_GUESTS, is_stopped=self.is_libvirt_stopped)


class MetalMachine(Machine):
    """A leased machine, and what the run has staged on it."""

    def __init__(
        self,
        spec: MetalHost,
        device: HostDevice,
        machine: HeldMachine,
        scratch: Path,
        progress: Progress,
    ) -> None:
        """`scratch`: a private folder on the runner."""
        self.spec, self._device = spec, device
        self.boots, self.lease, self.keeper = machine.boots, machine.lease, machine.boots.keeper
        self._accel, self.change = machine.accel, JournaledChanges(self.keeper)
        self._scratch, self._progress = scratch, progress
        self.staged: dict[ArmName, Staged] = {}
        self._session: Session | None = None
        self._kernels: Mapping[ArmName, KernelBundle] = {}
        self._guest = PayloadFiles({}, {})
        self._may_be_changed = False

    @property
    def name(self) -> str:
        return self.spec.address

    @property
    def shell(self) -> Shell:
        return self.boots.link.shell()

    @cached_property
    def _survey(self) -> MetalSurvey:
        return survey_metal(self.shell, self.spec, self._device)

    def survey(self) -> Sequence[str]:
        return f"device: {self._survey.device}", *self._survey.notes

    def choose_accel(self) -> tuple[Accel, str]:
        return self._accel

    def provide(
        self, kernels: Mapping[ArmName, KernelBundle], guest: Guest | None,  # noqa: ARG002
        guest_kernel: KernelBundle | None, cache: Cache,
    ) -> None:  # fmt: skip
        check_kernels(self.shell, kernels)
        self._kernels, self._guest = kernels, guest_files(guest_kernel, cache)

    def install(self, cache: Cache) -> None:
        self.begin_changes()
        self.stage(self._kernels, {"agents": GUESTS / "agents", **self._guest.files}, cache)

    def begin_changes(self) -> None:
        """Record the machine's own kernel, and arm the dead man's switch. From now on the machine
        is put back when it is given back. Raises BenchError if it has no way to boot a kernel
        under test."""
        self._may_be_changed = True
        self.boots.choose_way()
        self.keeper.original()
        try:
            self.keeper.deadman(max(60, self.spec.deadline // 3))
        except BenchError as exc:
            if exc.reason != Reason.NO_SYSTEMD:
                raise
            self._progress.note(
                "host: no systemd, so nothing restarts it where a kernel has no network"
            )

    def give_back(self) -> None:
        """Put the machine back as it was, if it may be changed, and give its lease back."""
        if self._may_be_changed:
            self.boots.put_back()
            return
        try:
            self.keeper.release()
        except BenchError as exc:
            if exc.reason not in TRANSIENT:
                raise
            # nothing is changed, and the error that ended the run must not be hidden
            self._progress.note(f"host: its lease is left to expire: {exc.message}")

    def trial_facts(self, arm: ArmName) -> HostKindFacts:  # noqa: ARG002
        return {}

    def guest_packages(self) -> dict[str, str]:
        return self._guest.packages

    def bind_devices(self, host: Host, trial: TrialWriter) -> tuple[BoundDevice, ...]:
        return (bind_hostdev(host, self._survey.device, self._device.bar, trial=trial),)

    def stage(
        self, kernels: Mapping[ArmName, KernelBundle], payload: Mapping[str, Path | bytes],
        cache: Cache,
    ) -> None:  # fmt: skip
        """Put kernels, agents and the guest onto the machine. Raises BenchError."""
        check_room(self.shell, kernels.values())
        for arm, kernel in kernels.items():
            with self._progress.stage(f"host: staging the {arm}'s kernel"):
                self.lease.check()
                folder = f"{folder_of(self.keeper.token)}/{arm}"
                self.staged[arm] = stage_kernel(self.shell, folder, kernel, cache)
        with self._progress.stage("host: staging agents"):
            self.lease.check()
            put_files(self.shell, self._payload, payload)

    @property
    def _payload(self) -> str:
        return f"{folder_of(self.keeper.token)}/payload"

    @contextmanager
    def boot(
        self, arm: ArmName, words: Sequence[str], trial: TrialWriter, *,
        progress: Progress | None = None, with_libvirt: bool = True,  # noqa: ARG002
    ) -> Iterator[Host]:  # fmt: skip
        """Boot as `Machine.boot` does, unless the machine still runs that kernel from the trial
        before. `words` are added to the machine's own words on the kernel's command line. Raises
        ArmFailedError if the machine is back on its own kernel, BenchError if it is lost."""
        session = self._session
        if session is None or session.arm != arm or not self._still(session):
            self._session = None
            session = self._session = self._boot(arm, words, trial)
        trial.record(
            token=session.token, boot_id=session.running.boot_id,
            release=session.running.release, host_cmdline=session.running.cmdline,
            host_session_seconds=round(session.seconds, 3),
        )  # fmt: skip
        session.broken = True  # until the trial has ended well
        with self._console(trial, session) as (console, kernel):
            host = self._host(session, console, kernel)
            mount_modules(self.keeper, self.staged[arm])
            with explained_by_the_host(host):
                host = replace(host, kvm=self._load_modules())
                prove_modules(self.shell, self.staged[arm].kernel)
            try:
                yield host
            finally:
                is_clean = self._put_back_volatile(host)
        session.broken = not is_clean

    def _still(self, session: Session) -> bool:
        if session.broken or self.spec.fresh_boots:
            return False
        with contextlib.suppress(BarometerError):
            return read_running_kernel(self.shell).boot_id == session.running.boot_id
        return False

    def _put_back_volatile(self, host: Host) -> bool:
        """Put back the changes that the next boot would undo anyway; True if that worked. Never
        raises: if it fails, the machine is booted for the next trial."""
        if not host.shell.alive():
            return False
        try:
            failed = self.keeper.putback(volatile=True).failed
        except BarometerError as exc:
            _log.debug("not put back: %s", exc.message)
            return False
        if failed:
            _log.debug("not put back: %s", failed)
        return not failed

    def _boot(self, arm: ArmName, words: Sequence[str], trial: TrialWriter) -> Session:
        """Boot the kernel of an arm and prove that it runs. Raises as `boot`."""
        staged, token = self.staged[arm], uuid.uuid4().hex[:12]
        self.boots.reach()
        self.lease.check()
        means = self.keeper.detect()
        if self.boots.way == "kexec" and not means["kexec"]["usable"]:
            self._progress.note("host: this kernel cannot kexec; by way of its own")
            self.boots.go_home()
            means = self.keeper.detect()
        link_modules(self.keeper, staged)
        image = Image(
            staged.vmlinuz, staged.sha256[staged.vmlinuz],
            staged.initramfs, staged.sha256[staged.initramfs],
        )  # fmt: skip
        start = self.boots.begin_console()
        began = time.monotonic()
        running = self.boots.into(
            self.boots.way, image, self._cmdline(words, token),
            self._watchdog(means["watchdogs"], staged.kernel),
        )  # fmt: skip
        seconds = time.monotonic() - began
        is_up = running.token == token
        words = (
            ""
            if is_up
            else _cut_to_boot(self.boots.read_console(start), token) or self._last_words()
        )
        self.boots.confirm()
        if not is_up:
            (trial.host / "console.log").write_text(words)
            raise _no_boot(staged.kernel, running, words)
        if running.release != staged.kernel.release:
            raise BenchError(
                f"{self.spec.address} runs {running.release}, planned was {staged.kernel.release}",
                hint="the image and its release string disagree", reason=Reason.WRONG_KERNEL,
            )  # fmt: skip
        return Session(arm, token, running, seconds, start)

    def _watchdog(
        self, watchdogs: list[dict[str, Any]], kernel: KernelBundle
    ) -> tuple[str, int]:  # fmt: skip
        """Return the device and the timeout of a free watchdog, or "" and 0 if there is none. The
        new kernel must have its driver, because a kernel that cannot stop the watchdog would be
        restarted even if it works. Only kexec needs a watchdog: a boot loader is reached by a
        reset, which resets the watchdog as well."""
        if self.boots.way != "kexec":
            return "", 0
        free = [watchdog for watchdog in watchdogs if not watchdog["why"]]
        for watchdog in free:
            if kernel.has_module(watchdog["driver"]):
                return watchdog["device"], self.spec.deadline // 2
        for watchdog in free:
            self._progress.note(
                f"host: no watchdog over this boot: {kernel.release} has no {watchdog['driver']}"
            )
        return "", 0

    def _cmdline(self, words: Sequence[str], token: str) -> str:
        """Return the kernel's command line: the machine's original words and those that are
        added."""
        own = [
            word
            for word in str(self.keeper.original()["cmdline"]).split()
            if word.partition("=")[0] not in _NOT_HANDED_ON
        ]
        added = [*_ENDS_BY_ITSELF, f"barometer.token={token}", *words, *self.spec.cmdline.split()]
        return " ".join([*own, *added])

    def _last_words(self) -> str:
        with contextlib.suppress(BarometerError):
            return self.keeper.last_words()
        return ""

    def _load_modules(self) -> bool:
        """Load the modules of VFIO and of KVM; True if the host has KVM. Raises BenchError."""
        self.keeper.modules([VFIO, "vfio_iommu_type1"])
        flags = self.shell.run("grep -m1 -E '^flags' /proc/cpuinfo").stdout.split()
        kvm = [name for flag, name in (("svm", "kvm_amd"), ("vmx", "kvm_intel")) if flag in flags]
        for name in ("iommufd", *kvm):
            try:
                self.keeper.modules([name])
            except BenchError as exc:
                _log.debug("%s: %s", name, exc.message)
        return self.shell.run(["test", "-c", "/dev/kvm"], check=False).code == 0

    def _host(self, session: Session, console: Console, kernel: KernelWatch) -> Host:
        return RealHost(
            shell=self.shell, release=session.running.release, kvm=False,
            cpus=int(self.shell.run(["nproc"]).stdout), accel=self._accel[0],
            payload=self._payload, console=console, kernel=kernel, scratch=self._scratch,
            change=self.change, boots=self.boots, boot_id=session.running.boot_id,
            ssh=remote.client_program(self.boots.endpoint, self._scratch),
        )  # fmt: skip

    @contextmanager
    def _console(
        self, trial: TrialWriter, session: Session
    ) -> Iterator[tuple[Console, KernelWatch]]:
        """Provide the machine's console while the block runs: its serial console if `host.console`
        has a command that prints it, else the kernel's messages over SSH, which end with the
        connection."""
        path, start = trial.host / "console.log", session.console_start
        with contextlib.ExitStack() as stack:
            if self.boots.console is not None:
                console = Console(self.boots.console.path, start)
                stack.callback(lambda: path.write_text(self.boots.read_console(start)))
            else:
                console = Console(path)
                stack.enter_context(following_dmesg(self.shell, path))
            kernel = watch_of_machine(console, self.lease.read_busy_seconds)
            kernel.on_hang(self.shell.drop)
            stack.enter_context(watching_kernel(kernel))
            yield console, kernel


def _no_boot(kernel: KernelBundle, running: Running, words: str) -> ArmFailedError:
    """Return the error for a machine that answers again, but runs another kernel than it was told
    to boot."""
    broken = next((report for report in reports_in(words) if report.kind in BROKEN), None)
    return ArmFailedError(
        f"the host's kernel {kernel.release} does not boot"
        + (f": {broken.message}" if broken else f"; the machine is back on {running.release}"),
        evidence=tail(words, 25),
        hint="" if words else "host.console gives its last words",
        reason=panic_reason(broken) if broken else Reason.HOST_NO_BOOT,
    )


@contextmanager
def leased_machine(
    spec: MetalHost, device: HostDevice, purpose: str, scratch: Path, progress: Progress
) -> Iterator[MetalMachine]:
    """Lease the machine for this run alone while the block runs. What an earlier run left on it is
    put back first; all that the block changes is put back after it, whatever ended it.

    Raises BenchError if somebody else holds the machine for longer than `host.wait`, or if it
    could not be put back.
    """
    with restored_machine(spec, purpose, scratch, progress) as lease:
        machine = MetalMachine(spec, device, lease, scratch, progress)
        try:
            _check_unprofiled(machine)
            yield machine
        finally:
            machine.give_back()


def _check_unprofiled(machine: MetalMachine) -> None:
    """Raise BenchError while `barometer profile` is at work on the machine: a boot would end
    it."""
    traced = f"{TRACEFS}/instances/{INSTANCE}"
    if not machine.shell.run(["test", "-e", traced], check=False).code:
        raise BenchError(
            f"{machine.spec.address}: `barometer profile` is at work there: {traced}",
            hint="wait for its end; what a killed one left: barometer profile --clear",
            reason=Reason.LEASE_HELD,
        )
