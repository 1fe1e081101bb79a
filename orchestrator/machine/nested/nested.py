"""The nested kind of host: a VM of the runner, started through libvirt's embedded driver."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from orchestrator.base.bounded import CONSOLE_BYTES, FACTS_BYTES, LOG_BYTES
from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.process import tail
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import Stall, until
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.host.changes import RememberedChanges
from orchestrator.machine.host.console import Console, read_excerpt
from orchestrator.machine.host.host import (
    Host,
    evidence,
    explained_by_the_host,
    find_standstill,
    panic_reason,
    qemu_crashed,
)
from orchestrator.machine.host.kernelwatch import KernelWatch, read_activity, watching_kernel
from orchestrator.machine.host.modules import prove_modules
from orchestrator.machine.nested.marks import sshd_mark, start_failure
from orchestrator.machine.nested.saved import SavedHost, reserve_space
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.filelimits import limited_files
from orchestrator.machine.runner.images import FIRST, PAYLOAD, HostImage
from orchestrator.machine.runner.state import BenchState, end_machines, qemu_processes
from orchestrator.machine.runner.tsc import find_tsc_word
from orchestrator.machine.tracing.instructions import INSTRUCTIONS, INSTRUCTIONS_BYTES
from orchestrator.machine.transport.keys import RunKeys, make_tar
from orchestrator.machine.transport.shell import Shell, connected
from orchestrator.machine.transport.ssh_client import write_client_config
from orchestrator.machine.vm.domain import Disk, HostDomain, host_xml
from orchestrator.machine.vm.hypervisor import Connection, Deadlines, Domain, over_ssh
from orchestrator.scenario.machines import EmulatedDevice, NestedHost
from orchestrator.scenario.vocabulary import ArmName, is_emulated

_ENVIRONMENT = re.compile(r"(PATH|HOME|USER|LOGNAME|XDG_\w+)=")
_SENDER = re.compile(r"(terminating on signal \d+ from pid \d+) \(.*\)")
_ENDED = re.compile(r"shutting down, reason=(\w+)")
# info usernet: `  TCP[HOST_FORWARD]  12       127.0.0.1 43643       10.0.2.15    22`
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b")
# A host whose console is silent for this long has hung. Emulated kernels are slow, but print
# often.
_SILENT_SECONDS: dict[Accel, float] = {"kvm": 20.0, "tcg": 90.0, "exact": 90.0}
_BOOT_SECONDS = 900.0
_FASTEST = 1.3
"""Most seconds of an emulated host's clock in a second of the runner's."""
_GUESTS = Deadlines(end=30.0, hurried=1.0)
"""A guest that takes longer is not waited for: it ends with its host."""


@dataclass(frozen=True)
class BootSpec:
    """Everything that determines the boot of a nested host, and the arm that it belongs to."""

    arm: ArmName
    host: NestedHost
    device: EmulatedDevice
    words: tuple[str, ...]
    """The arm's words for the kernel's command line, in addition to `host.cmdline`."""
    kernel: KernelBundle
    image: HostImage
    payload: tuple[Disk, ...]
    accel: Accel
    with_libvirt: bool
    """True: libvirtd is started on the host, for guests."""
    pluggable: bool = False
    """True: keys and devices are plugged into the running host, which can be saved before that,
    and restored."""

    def is_alike(self, other: BootSpec) -> bool:
        """True if a host that was booted for one may be used for the other. The kernels only need
        the same content; the rest is proven on the host."""
        return (
            self.kernel.digest == other.kernel.digest
            and replace(self, kernel=other.kernel) == other
        )

    def cmdline(self, token: str) -> str:
        """Return the kernel's command line. The token is unique to a boot."""
        iommu = (
            "intel_iommu=on"
            if self.host.viommu == "intel"
            # without interrupt remapping type1 refuses a device unless this allows it
            else "vfio_iommu_type1.allow_unsafe_interrupts=1"
        )
        # panic=-1: reboot at once, which ends the machine; its console has the reason.
        # tsc=reliable: emulated processors share one TSC, but the kernel does not know that and
        # would use the HPET. no_timer_check: check_timer() counts ticks during a busy loop. A QEMU
        # that does not get the CPU delivers none, and the kernel would panic. (Under KVM Linux
        # skips that check by itself.)
        clock = (
            ["tsc=reliable", "no_timer_check", *find_tsc_word(self.accel)]
            if is_emulated(self.accel)
            else []
        )
        # The kernel then reports a task that waits after 60 to 70 s, not 120 to 240. With less
        # than 60 s it would report the map of a large BAR, too. An exact host keeps the defaults,
        # because the work of every timer is counted.
        hung_task = (
            []
            if self.accel == "exact"
            else ["sysctl.kernel.hung_task_timeout_secs=60",
                  "sysctl.kernel.hung_task_check_interval_secs=10"]
        )  # fmt: skip
        words = [
            # the first disk; an initramfs finds its root disk by itself
            "root=/dev/vda",
            "ro",
            f"init={FIRST}",
            "console=ttyS0",
            "panic=-1",
            iommu,
            *clock,
            *hung_task,
            f"barometer.token={token}",
            "barometer.keys=later" if self.pluggable else "",
            # before host.cmdline, which may end with words for init
            *self.words,
            self.host.cmdline,
        ]
        return " ".join(filter(None, words))


@dataclass
class StartedVm:
    """A started VM whose kernel is not proven yet."""

    domain: Domain
    console: Console
    kernel: KernelWatch
    token: str
    """Token on the kernel command line and in the machine's marks, unique to this boot."""
    started: float
    """time.monotonic() of the runner, just before it was started."""
    accel: Accel
    cpus: int
    log: Path
    """The log of libvirt and QEMU for this machine."""
    folder: Path
    """A private folder on the runner, which is removed at the end of the run."""
    description: HostDomain
    """What its domain was made from."""


@dataclass(frozen=True, kw_only=True)
class VmHost(Host):
    """A nested host, its kernel proven."""

    is_ours: ClassVar[bool] = True
    vm: StartedVm
    ssh: Path
    """Program of an SSH client for libvirt's connection."""

    def is_alive(self) -> bool:
        return self.vm.domain.active()

    def crash(self) -> str:
        return _crash(self.vm.log)

    def libvirt(self) -> AbstractContextManager[Connection]:
        return over_ssh(
            self.ssh, "host", deadlines=_GUESTS, keep_alive=self.accel != "exact",
            is_lost=lambda: not self.shell.alive(),
            # a look would wake an exact host at a time that depends on the runner
            is_stopped=lambda: self.accel != "exact" and self.is_libvirt_stopped(),
        )  # fmt: skip

    def monitor(self, command: str) -> str:
        return self.vm.domain.monitor(command)


def machine_folder(state: BenchState, token: str) -> Path:
    """Return the private folder of the machine with that token; its console and its domain's XML
    are in it."""
    return state.folder / token


def _name(state: BenchState, token: str) -> str:
    return f"barometer-{state.token}-{token}"


def _log(state: BenchState, token: str) -> Path:
    return state.folder / f"libvirt/log/qemu/{_name(state, token)}.log"


def describe_domain(
    spec: BootSpec, token: str, state: BenchState, saved: SavedHost | None = None
) -> HostDomain:
    """Return the domain of the machine with that token: to boot it, or to restore it from a saved
    host, with the disks and the command line that are in use there."""
    name, folder = _name(state, token), machine_folder(state, token)
    modules = Disk(saved.modules if saved else spec.image.modules, "modules")
    keys = () if spec.pluggable else (Disk(folder / "keys", "keys"),)
    return HostDomain(
        name=name, uuid=str(uuid.uuid4()), accel=spec.accel,
        memory=spec.host.memory, cpus=spec.host.cpus, phys_bits=spec.host.phys_bits,
        kernel=spec.kernel.vmlinuz, initramfs=spec.image.initramfs,
        cmdline=spec.cmdline(saved.token if saved else token),
        console=folder / "console.log",
        disks=(Disk(spec.image.root, "root"), modules, *spec.payload, *keys),
        viommu=spec.host.viommu, viommu_aw_bits=spec.host.viommu_aw_bits,
        device=spec.device.kind, bar=spec.device.bar,
        shm_names=tuple(f"{name}-{i}" for i in range(spec.device.count)),
        reserve=reserve_space(spec.host, spec.device) if spec.pluggable else 0,
        restored=saved is not None,
    )  # fmt: skip


@contextmanager
def running_machine(
    spec: BootSpec, token: str, *, keys: RunKeys, state: BenchState, libvirt: Connection,
    saved: SavedHost | None = None,
) -> Iterator[StartedVm]:  # fmt: skip
    """Run the VM with the kernel and the device while the block runs; if it is to be restored, it
    waits for the state of the saved host. After the block it is gone, with its shared memory and
    its keys. Raises BenchError if libvirt cannot start it."""
    folder = machine_folder(state, token)
    folder.mkdir(mode=0o700)
    secret = folder / "keys"
    domain_spec = describe_domain(spec, token, state, saved)
    xml = host_xml(domain_spec)
    (folder / "domain.xml").write_text(xml)
    state.add(domains=domain_spec.uuid)
    for shm_name in domain_spec.shm_names:
        state.add(shm=shm_name)
    try:
        secret.touch(mode=0o600)
        if saved is not None:
            shutil.copyfile(saved.console, domain_spec.console)
        if not spec.pluggable:
            secret.write_bytes(make_tar(keys.for_host()))
        started = time.monotonic()
        limits = {
            domain_spec.console: CONSOLE_BYTES, _log(state, token): CONSOLE_BYTES,
            folder / INSTRUCTIONS: INSTRUCTIONS_BYTES,
        }  # fmt: skip
        with (
            limited_files(limits, lambda: end_machines([domain_spec.uuid])),
            libvirt.running(xml, paused=saved is not None) as domain,
        ):
            (folder / "domain.xml").write_text(domain.xml() or xml)
            qemu = next(iter(qemu_processes([domain_spec.uuid])), 0)
            console = Console(domain_spec.console)
            kernel = KernelWatch(console, lambda: read_activity(qemu))
            # whatever waits for the machine, libvirt included, sees its end
            kernel.on_hang(lambda: end_machines([domain_spec.uuid]))
            with watching_kernel(kernel):
                yield StartedVm(
                    domain, console, kernel, saved.token if saved else token, started,
                    spec.accel, spec.host.cpus, _log(state, token), folder, domain_spec,
                )  # fmt: skip
    finally:
        secret.unlink(missing_ok=True)
        # libvirt leaves them behind when the domain ends
        for shm_name in domain_spec.shm_names:
            state.remove_shm(shm_name)


def save_machine(state: BenchState, token: str, evidence: Path) -> None:
    """Copy the files of a machine that exist by now: console.log, domain.xml, qemu.log."""
    for name in ("console.log", "domain.xml"):
        with contextlib.suppress(FileNotFoundError):
            (evidence / name).write_bytes(
                read_excerpt(machine_folder(state, token) / name, CONSOLE_BYTES)
            )
    with contextlib.suppress(FileNotFoundError):
        log = read_excerpt(_log(state, token), LOG_BYTES).decode(errors="replace")
        # libvirt also logs the runner's environment there, which must not become public
        lines = log.splitlines(keepends=True)
        kept = "".join(line for line in lines if not _ENVIRONMENT.match(line))
        (evidence / "qemu.log").write_text(_SENDER.sub(r"\1", kept))


@contextmanager
def proven_host(
    machine: StartedVm, kernel: KernelBundle, *, keys: RunKeys, progress: Progress
) -> Iterator[tuple[VmHost, str]]:
    """Wait until the planned kernel is proven to run. Yield the host, for `prepare_host`, and its
    boot id.

    Raises BenchError if the machine hangs, cannot be reached by SSH or runs another kernel;
    ArmFailedError if the planned kernel panics or floods its console while it boots.
    """
    # keepalive messages would wake an exact host at times that depend on the runner
    keepalive = 0 if machine.accel == "exact" else 10
    with contextlib.ExitStack() as stack:
        with standstill_named(machine):
            wait_for_mark(machine, kernel, sshd_mark(machine.token), "sshd on the host", progress)
            port = _forwarded_port(machine.domain)
            shell = stack.enter_context(
                connected(
                    "host", ("127.0.0.1", port), key=keys.runner, host_key=keys.host,
                    keepalive=keepalive,
                )
            )  # fmt: skip
            machine.kernel.on_hang(shell.drop)
            boot_id = prove_kernel(shell, machine.token, kernel)
            if machine.accel == "tcg" and not machine.description.restored:
                _check_clock(shell, machine.started)
        ssh = write_client_config(
            machine.folder, port=port, key=keys.runner, host_key=keys.host, keepalive=keepalive
        )
        try:
            yield VmHost(
                shell=shell, release=kernel.release, kvm=False,
                cpus=machine.cpus, accel=machine.accel, payload=PAYLOAD, console=machine.console,
                kernel=machine.kernel, scratch=machine.folder,
                change=RememberedChanges(shell, PAYLOAD), vm=machine, ssh=ssh,
            ), boot_id  # fmt: skip
        finally:
            # libvirt sends SIGTERM first and waits 10 s, although a stopped QEMU cannot react
            if not shell.alive():
                end_machines([machine.domain.uuid])


@contextmanager
def standstill_named(machine: StartedVm) -> Iterator[None]:
    """If the block fails because the machine stands still, raise the error that says so."""
    try:
        yield
    except BenchError as exc:
        if (standstill := find_standstill(machine.kernel, machine.console)) is not None:
            raise standstill from exc
        raise


def _check_clock(shell: Shell, started: float) -> None:
    """Raise BenchError if the clock of an emulated host runs too fast: if the host has been up for
    longer than its QEMU."""
    uptime = float(shell.read("/proc/uptime").split()[0])
    seconds = time.monotonic() - started
    if uptime > seconds * _FASTEST:
        raise BenchError(
            f"the emulated host's clock runs too fast: its kernel has been up {uptime:.0f} s, and"
            f" its QEMU {seconds:.0f} s",
            reason=Reason.HOST_CLOCK,
        )


def prepare_host(host: Host, spec: BootSpec) -> Host:
    """Load the modules that a host needs. Raises BenchError if a module is not the planned one,
    and ArmFailedError if the kernel panics."""
    with explained_by_the_host(host):
        loaded = _load_modules(host.shell, with_libvirt=spec.with_libvirt)
        prove_modules(host.shell, spec.kernel)
    return replace(host, kvm="kvm" in loaded)


def _load_modules(shell: Shell, *, with_libvirt: bool) -> list[str]:
    """Load the modules that every host needs. "kvm" is among the returned words if the host has
    KVM. Raises BenchError, with the kernel's message, if the kernel refuses a parameter's value,
    and ArmFailedError if it refuses a module."""
    script = (
        "modprobe vfio-pci && modprobe vfio_iommu_type1 && { modprobe -q iommufd || :; } && "
        "{ grep -qw svm /proc/cpuinfo && modprobe kvm_amd; "
        "  grep -qw vmx /proc/cpuinfo && modprobe kvm_intel; test -c /dev/kvm && echo kvm; "
        # libvirtd starts after KVM is loaded: started before, it would remember that KVM is
        # missing
        + ("libvirtd --daemon </dev/null >/run/libvirtd.log 2>&1" if with_libvirt else "true")
        + "; }"
    )
    loaded = shell.run(script, check=False)
    if loaded.code:
        # parse_args() in kernel/params.c
        refused = shell.run("dmesg | grep -E '(invalid|too large) for parameter'", check=False)
        message = f"host: loading modules failed with exit code {loaded.code}"
        answer = tail(refused.stdout + loaded.stderr)
        if refused.stdout:
            raise BenchError(message, evidence=answer, reason=Reason.SETTING_REFUSED)
        raise ArmFailedError(message, evidence=answer, reason=Reason.MODULES_REFUSED)
    return loaded.stdout.split()


def _crash(log: Path) -> str:
    """Return QEMU's last output if libvirt saw it crash (an assertion of its own, a signal, or a
    log that outgrew its limit); else empty."""
    ended = until(
        lambda: _ENDED.search(read_excerpt(log, LOG_BYTES).decode(errors="replace")), within=10,
        waiting_for="libvirt's word on how the host's QEMU ended",
    )  # fmt: skip
    return tail(ended.string, 6) if ended[1] == "crashed" else ""


def _is_on_console(text: str, machine: StartedVm, kernel: KernelBundle) -> bool:
    """True if the console shows that the planned kernel runs: its release, and the token of this
    boot. A panic after that is charged to the kernel, because the other arm's kernel has the same
    bench."""
    return f"Linux version {kernel.release} " in text and machine.token in text


def wait_for_mark(
    machine: StartedVm, kernel: KernelBundle, mark: re.Pattern[str], waiting_for: str,
    progress: Progress,
) -> re.Match[str]:  # fmt: skip
    """Wait until a line of the host's console matches `mark`; return the match. Raises the errors
    of `proven_host`."""
    stall, failure = Stall(), start_failure(machine.token)
    search, search_failure = mark.search, failure.search

    def booted() -> re.Match[str] | None:
        console = machine.console
        # checked first, so that all output of an ended machine is read below
        ended = not machine.domain.active()
        if found := console.first(search):
            return found
        progress.detail(console.last_line())
        if failed := console.first(search_failure):  # a panic follows
            raise _host_error(
                machine, f"the host did not start: {failed[1]}", reason=Reason.HOST_START
            )
        if (panic := machine.kernel.broken()) is not None:
            if _is_on_console(console.text(), machine, kernel):
                raise ArmFailedError(
                    f"the host's kernel {kernel.release} does not boot: {panic.message}",
                    evidence=evidence(panic, machine.console), reason=panic_reason(panic),
                )  # fmt: skip
            raise _host_error(
                machine, "the host's kernel panicked before it was proven",
                reason=Reason.UNPROVEN_PANIC,
            )  # fmt: skip
        if (standstill := find_standstill(machine.kernel, machine.console)) is not None:
            raise standstill
        if flood := console.flood:
            message = f"the host floods its console while it boots: {flood}"
            if _is_on_console(console.text(), machine, kernel):
                raise ArmFailedError(message, evidence=console.tail(), reason=Reason.CONSOLE_FLOOD)
            raise _host_error(machine, message, reason=Reason.CONSOLE_FLOOD)
        if ended and (words := _crash(machine.log)):
            raise qemu_crashed(words)
        if ended:
            raise _host_error(
                machine, "the host's machine ended while it booted", reason=Reason.HOST_ENDED
            )
        silent = stall.seconds(machine.console.size())
        if silent > _SILENT_SECONDS[machine.accel]:
            raise _host_error(
                machine, f"the host hangs: no word on its console for {silent:.0f} s",
                reason=Reason.HOST_HANG,
            )  # fmt: skip
        return None

    return until(booted, within=_BOOT_SECONDS, waiting_for=waiting_for, reason=Reason.HOST_HANG,
                 last_seen=machine.console.tail)  # fmt: skip


def _host_error(machine: StartedVm, message: str, *, reason: Reason) -> BenchError:
    return BenchError(message, evidence=machine.console.tail(), reason=reason)


def _forwarded_port(domain: Domain) -> int:
    answer = domain.monitor("info usernet")
    match = _FORWARD.search(answer)
    if match is None:
        raise BenchError(
            "QEMU forwards no port to the host", evidence=answer, reason=Reason.HOST_NO_SSH
        )
    return int(match[1])


def prove_kernel(shell: Shell, token: str, kernel: KernelBundle) -> str:
    """Prove that the host runs the planned kernel, in the boot with the token. Return the boot id.
    Raises BenchError."""
    answer = shell.run(
        "uname -r; cat /proc/sys/kernel/random/boot_id /proc/cmdline",
        doing="proving the kernel",
        limit=FACTS_BYTES,
    ).stdout.splitlines()
    release, boot_id, cmdline = [*answer, "", "", ""][:3]
    if release != kernel.release:
        raise BenchError(
            f"the host runs {release}, planned was {kernel.release}",
            hint="the image and its release string disagree; see host/console.log",
            reason=Reason.WRONG_KERNEL,
        )
    if f"barometer.token={token}" not in cmdline.split():
        raise BenchError(
            "the host that answers is another: its token is not that of this boot",
            evidence=cmdline, reason=Reason.WRONG_HOST,
        )  # fmt: skip
    return boot_id
