"""`barometer profile`: one boot of an existing domain, under the timing pass.

The domain's definition is not changed, and its host needs a POSIX shell only.
orchestrator.evidence.surveys.profile_facts lists what is collected.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from orchestrator import __version__
from orchestrator.base import interrupts
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import Stall, until
from orchestrator.evidence.surveys.collected import make_evidence
from orchestrator.evidence.surveys.profile_facts import (
    AFTER_FILE,
    HOST_FILE,
    DomainFacts,
    HostSettings,
    ProfileBar,
    ProfileEnd,
    ProfileEvidence,
    ProfileFacts,
)
from orchestrator.machine.host.device import LIST_DEVICES, parse_devices
from orchestrator.machine.host.machine import AnyMachine, FoundMachine, ThisMachine
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.tracing import armer, collecting, profiler
from orchestrator.machine.tracing.probes import FAULT
from orchestrator.machine.transport import remote
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.local import LocalShell
from orchestrator.machine.transport.shell import A_DAY, Commands
from orchestrator.machine.vm import hypervisor
from orchestrator.machine.vm.definition import Definition, parse_definition
from orchestrator.scenario.choices import QUIET_SECONDS

_LONGEST = 900.0
_LOOK_SECONDS = 1.0
"""Seconds between two looks at the trace, each of which starts a shell on the host."""
_UNTOUCHED_SECONDS = 60.0
"""Seconds of quiet that end a boot in which nothing was recorded yet: firmware may be slow."""
_SSH = ("qemu+ssh", "qemu+libssh", "qemu+libssh2")
_RELEASE = "/proc/sys/kernel/osrelease"
_SETTINGS = {
    "cmdline": "/proc/cmdline",
    "transparent_hugepage": "/sys/kernel/mm/transparent_hugepage/enabled",
    "clocksource": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "vfio_disable_hugepages": "/sys/module/vfio_iommu_type1/parameters/disable_hugepages",
    "dma_entry_limit": "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
}
_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")


@dataclass(frozen=True)
class ProfileRequest:
    domain: str
    uri: str | None = None
    """URI of libvirt; None: the one that virsh would choose."""
    ssh_config: Path | None = None
    reboot: bool = False
    """True: ask the guest of a running domain to reboot. False: start a domain that does not
    run."""
    until: float | Literal["agent"] = QUIET_SECONDS
    """End of the boot. A number: the boot is over after this many seconds without a new record in
    the trace (a map, unmap or zap, a line on a serial port). "agent": it is over when the guest
    agent connects."""


@dataclass(frozen=True)
class WaitRequest:
    """A profile of the next QEMU that opens VFIO, whoever starts it."""

    name: str = ""
    """Shell pattern of a part of its command line; empty: any."""
    uri: str | None = None
    """URI of the host's libvirt, of which only the address is used; None: this machine."""
    ssh_config: Path | None = None
    until: float = QUIET_SECONDS


def record(request: ProfileRequest, progress: Progress) -> ProfileEvidence:
    """Boot the domain once, traced. It is left running, whatever happens.

    Raises ScenarioError for a domain that does not exist, has no PCI device, or runs although no
    reboot was requested; BenchError if libvirt, the machine or its kernel refuses something.
    """
    with connected_host(request.uri, request.ssh_config) as (machine, connection):
        shell = machine.shell
        domain = connection.lookup(request.domain)
        _check_may_boot(domain, request)
        _check_not_leased(shell)
        xml = domain.definition()
        definition = parse_definition(xml)
        _check_can_be_profiled(definition, request)
        with progress.stage("looking at the host and the domain"):
            before = _read_facts(shell, connection, request, definition)
        spec = profiler.make_profile_spec(
            [bar.size for bar in before.bars], definition.emulator, kvm=before.kvm
        )
        if not before.parts:
            spec = profiler.leave_out_parts(spec)
        host = collecting.read_host_report(shell, definition.devices)
        with contextlib.ExitStack() as ladder:
            with progress.stage("arming the probes"):
                ladder.enter_context(
                    interrupts.duty(
                        f"the probes on {shell.name} are being removed",
                        _build_clear_command(before.uri, request.ssh_config),
                    )
                )
                tracer = ladder.enter_context(armer.armed_probes(shell, spec))
            events = ladder.enter_context(domain.watched())
            try:
                with progress.stage(f"{request.domain}: {before.boot}"):
                    try:
                        _boot(domain, tracer, events, request)
                    except BenchError as exc:
                        if exc.reason != Reason.LIBVIRT_START:
                            raise
                        return _keep_failure(shell, tracer, before, host, xml, exc)
                    pid = _read_pid(shell, request.domain)
                    tracer.focus(pid)
                with progress.stage(f"{request.domain}: boot"):
                    watch = _Watch(tracer, pid, events, request, progress)
                    ended: ProfileEnd = until(
                        watch.find_end, within=2 * _LONGEST, every=0.1,
                        waiting_for="end of the boot",
                    )  # fmt: skip
            except KeyboardInterrupt:
                if domain.active():
                    progress.note(f"{request.domain} is left as it is: running")
                raise
            with progress.stage("reading the trace"):
                process = tracer.process(pid)
                after = collecting.read_after_report(shell, pid, ended, request.domain)
                files = {**tracer.files(), HOST_FILE: host, AFTER_FILE: after}
        facts = ProfileFacts(
            **dict(before), pid=pid, ended=ended, process=process,
            definition_changed=domain.definition() != xml,
        )  # fmt: skip
        return ProfileEvidence(facts, files, xml)


def _keep_failure(
    shell: Commands,
    tracer: armer.ArmedProbes,
    before: DomainFacts,
    host: str,
    xml: str,
    error: BenchError,
) -> ProfileEvidence:
    """Return the evidence of a start that failed: the trace up to QEMU's end, libvirt's and QEMU's
    messages, and the kernel's log."""
    after = collecting.read_after_report(shell, None, "start-failed", before.domain)
    after += f"\n==== barometer error\n{error}\n"
    facts = ProfileFacts(
        **dict(before), pid=0, ended="start-failed", process=None, definition_changed=False
    )
    return ProfileEvidence(facts, {**tracer.files(), HOST_FILE: host, AFTER_FILE: after}, xml)


def _check_not_leased(shell: Commands) -> None:
    """Raise BenchError if a run of barometer's has leased the host, or left it changed."""
    leases = shell.run(f"ls {STATE}/lease-*.json || :", doing="looking for leases")
    if leases.stdout:
        raise BenchError(
            f"{shell.name} is leased to a run of barometer, which may reboot it",
            evidence=leases.stdout.strip(),
            hint="wait for its end; if it was killed: barometer recover HOST",
            reason=Reason.LEASE_HELD,
        )


def _build_clear_command(uri: str, ssh_config: Path | None) -> str:
    config = ["--ssh-config", str(ssh_config)] if ssh_config else []
    return shlex.join(["barometer", "profile", "--clear", "--connect", uri, *config])


def clear_profile(uri: str | None, ssh_config: Path | None) -> None:
    """Undo what a killed profile left on a host."""
    with connected_host(uri, ssh_config) as (machine, _):
        armer.clear_probes(machine.shell, profiler.INSTANCE, profiler.GROUP)


@contextlib.contextmanager
def connected_host(
    uri: str | None, ssh_config: Path | None = None
) -> Iterator[tuple[AnyMachine, hypervisor.Connection]]:
    """Yield the host of a libvirt URI, whose shell is root's, and a connection to its libvirt.
    `ssh_config`: file for ssh -F, which libvirt's connection uses, too.

    Raises ScenarioError unless the URI is that of the system's QEMU, here or over SSH.
    """
    with contextlib.ExitStack() as stack:
        connection = None
        if uri is None:
            connection = stack.enter_context(hypervisor.at(None))
            uri = connection.uri
        machine, endpoint = stack.enter_context(_connected_machine(uri, ssh_config))
        if endpoint is not None and ssh_config is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            program = remote.client_program(endpoint, folder)
            uri = f"qemu+ssh://{endpoint.hostname}/system?command={program}&no_tty=1"
        yield machine, connection or stack.enter_context(hypervisor.at(uri))


@contextlib.contextmanager
def _connected_machine(
    uri: str, ssh_config: Path | None
) -> Iterator[tuple[AnyMachine, remote.Endpoint | None]]:
    """Yield the host of a libvirt URI, whose shell is root's, and its address if it is reached
    over SSH. Raises ScenarioError unless the URI is that of the system's QEMU, here or over
    SSH."""
    parts = urlsplit(uri)
    if parts.path != "/system" or parts.scheme not in ("qemu", "qemu+unix", *_SSH):
        raise ScenarioError(
            f"{uri}: barometer profiles domains of qemu:///system and"
            " qemu+ssh://[USER@]HOST/system",
            hint="name one of these with --connect",
            reason=Reason.BAD_URI,
        )
    if parts.scheme not in _SSH:
        yield ThisMachine(LocalShell()), None
        return
    endpoint = remote.resolve_address(f"ssh://{parts.netloc}", ssh_config)
    for key in parse_qs(parts.query).get("keyfile", []):
        endpoint = replace(endpoint, identity=Path(key))
    with remote.logged_in(endpoint) as shell:
        yield FoundMachine(shell), endpoint


def _check_may_boot(domain: hypervisor.Domain, request: ProfileRequest) -> None:
    if domain.active() and not request.reboot:
        raise ScenarioError(
            f"{request.domain} is running",
            hint="shut it down, or let its guest reboot: --reboot", reason=Reason.DOMAIN_RUNNING,
        )  # fmt: skip
    if request.reboot and not domain.active():
        raise ScenarioError(
            f"{request.domain} is not running and cannot reboot",
            hint="leave --reboot out, and it is started", reason=Reason.DOMAIN_NOT_RUNNING,
        )  # fmt: skip


def _check_can_be_profiled(definition: Definition, request: ProfileRequest) -> None:
    if definition.mediated and not definition.devices:
        raise ScenarioError(
            f"{request.domain} has a mediated device (mdev) and no PCI device of its host: VFIO"
            " maps its RAM and no BAR, which the device's driver emulates",
            hint="`barometer profile --wait-for-qemu` shows what mapping the RAM costs",
            reason=Reason.NO_HOSTDEV,
        )
    if not definition.devices:
        raise ScenarioError(
            f"{request.domain} owns no PCI device of its host (hostdev): VFIO maps nothing",
            reason=Reason.NO_HOSTDEV,
        )
    if definition.iommufd:
        raise ScenarioError(
            f"{request.domain} maps through iommufd, and a profile is of the maps of VFIO's type 1"
            " container: there is nothing to see",
            hint="leave iommufd out of the domain to profile it", reason=Reason.NO_MAPS,
        )  # fmt: skip
    if request.until == "agent" and not definition.agent:
        raise ScenarioError(
            f"--until agent: {request.domain} has no channel for a guest agent",
            hint="give --until SECONDS: the boot ends after that time without a map or unmap",
            reason=Reason.NO_AGENT,
        )


def _read_facts(
    shell: Commands,
    connection: hypervisor.Connection,
    request: ProfileRequest,
    definition: Definition,
) -> DomainFacts:
    """Read what is known before the boot. Raises BenchError if the host's answer is no such
    facts."""
    read = "".join(
        f"printf '{name}\\t'; cat {path} 2> /dev/null || echo;"
        for name, path in {"release": _RELEASE, **_SETTINGS}.items()
    )
    answer = shell.run(read, doing="reading facts").stdout
    settings = dict(line.split("\t", 1) for line in answer.splitlines() if "\t" in line)
    version = shell.run([definition.emulator, "--version"], doing="asking QEMU's version").stdout
    qemu = _VERSION.search(version)
    symbols = shell.run(f"grep -cw {FAULT} /proc/kallsyms", check=False).stdout.strip()
    kvm = shell.run(["test", "-d", f"{armer.TRACEFS}/events/kvm"], check=False).code == 0
    parts, bars = profiler.can_take_return_arguments(shell), _list_bars(shell, definition.devices)
    versions = connection.version()
    with parsing("the host's facts", answer):
        release = settings.pop("release")
        return DomainFacts(
            schema_version=1, barometer=__version__, domain=request.domain,
            uri=request.uri or connection.uri, boot="reboot" if request.reboot else "start",
            until=request.until, release=release,
            settings=HostSettings.model_validate(settings),
            qemu=qemu[1] if qemu else versions["qemu"],
            libvirt=versions["libvirt"],
            memory=definition.memory, huge_pages=definition.huge_pages,
            kvm=definition.kvm and kvm, parts=parts, huge_fault=symbols not in ("", "0"),
            bars=bars,
        )  # fmt: skip


def _list_bars(shell: Commands, addresses: Sequence[str]) -> tuple[ProfileBar, ...]:
    """Return the memory BARs of the devices. Raises BenchError if a device is missing, or if there
    is no BAR."""
    listed = parse_devices(shell.run(LIST_DEVICES, doing="listing PCI devices").stdout)
    if lost := [address for address in addresses if address not in listed]:
        raise BenchError(
            f"{shell.name}: the domain's device {lost[0]} is not there",
            reason=Reason.DEVICE_MISSING,
        )
    bars = tuple(
        ProfileBar(device=address, number=number, start=resource.start, size=resource.size)
        for address in addresses
        for number, resource in enumerate(listed[address][2][:6])
        if resource.size and resource.is_memory
    )
    if not bars:
        raise BenchError(
            f"{shell.name}: {', '.join(addresses)} have no memory BAR", reason=Reason.NO_BAR
        )
    return bars


def _boot(
    domain: hypervisor.Domain,
    tracer: armer.ArmedProbes,
    events: hypervisor.DomainEvents,
    request: ProfileRequest,
) -> None:
    if not request.reboot:
        tracer.mark("start")
        domain.start()
        tracer.mark("run")
        return
    domain.reboot()

    def reset() -> bool | None:
        if not domain.active():
            raise BenchError(
                f"{request.domain} ended instead of a reboot", reason=Reason.DOMAIN_ENDED
            )
        return True if "reset" in events else None

    until(
        reset, within=_LONGEST, every=0.02, waiting_for=f"reboot of {request.domain}'s guest",
        reason=Reason.NO_REBOOT,
    )  # fmt: skip
    tracer.mark("reset")


def _read_pid(shell: Commands, domain: str) -> int:
    """Return QEMU's process id, from the file that libvirt's system daemon keeps."""
    path = f"/run/libvirt/qemu/{domain}.pid"
    return int(shell.run(["cat", path], doing="reading QEMU's process id").stdout)


class _Watch:
    """Observer of a boot that detects its end."""

    def __init__(
        self, tracer: armer.ArmedProbes, pid: int, events: hypervisor.DomainEvents,
        request: ProfileRequest, progress: Progress,
    ) -> None:  # fmt: skip
        self._tracer, self._pid, self._events = tracer, pid, events
        self._request, self._progress = request, progress
        self._first = tracer.records(pid)
        self._stall, self._started, self._looked = Stall(), time.monotonic(), 0.0
        self._agent = False

    def find_end(self) -> ProfileEnd | None:
        if "agent" in self._events and not self._agent:
            self._agent = True
            self._tracer.mark("agent")
            self._progress.note("the guest agent is there")
        if self._agent and self._request.until == "agent":
            return "agent"
        now = time.monotonic()
        if now - self._started > _LONGEST:
            return "limit"
        if now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        records = self._tracer.records(self._pid)
        if records is None:
            return "domain-ended"
        quiet = self._stall.seconds(records)
        self._progress.detail(f"{records} records, the last {quiet:.0f} s ago")
        if self._request.until == "agent":
            return None
        untouched = records == self._first
        enough = max(self._request.until, _UNTOUCHED_SECONDS) if untouched else self._request.until
        return "quiet" if quiet >= enough else None


# somebody else's QEMU --------------------------------------------------------------------------


def record_next(request: WaitRequest, progress: Progress) -> ProfileEvidence:
    """Record the boot of the next QEMU that opens VFIO, whoever starts it. It is left running.

    Raises BenchError if the machine or its kernel refuses something.
    """
    uri = request.uri or "qemu:///system"
    with _connected_machine(uri, request.ssh_config) as (machine, _):
        shell = machine.shell
        _check_not_leased(shell)
        with progress.stage("looking at the host"):
            devices = collecting.list_bar_devices(shell)
            bars = _list_bars(shell, devices)
            can_have_parts = profiler.can_take_return_arguments(shell)
            tracing = _read_tracing(shell, can_have_parts=can_have_parts)
            host = collecting.read_host_report(shell, devices) + tracing
            known = collecting.list_qemus(shell)
            refused = collecting.count_refused(shell)
        spec = profiler.make_profile_spec([b.size for b in bars], "*", kvm="kvm=1" in tracing)
        spec = collecting.watch_any_qemu(spec)
        if not can_have_parts:
            spec = profiler.leave_out_parts(spec)
        with contextlib.ExitStack() as ladder:
            with progress.stage("arming the probes"):
                ladder.enter_context(
                    interrupts.duty(
                        f"the probes on {shell.name} are being removed",
                        _build_clear_command(uri, request.ssh_config),
                    )
                )
                tracer = ladder.enter_context(armer.armed_probes(shell, spec))
            progress.note("armed: start the virtual machine now")
            with progress.stage("waiting for QEMU"):
                pid: int = until(
                    lambda: _find_next(shell, request.name, known, refused), within=A_DAY,
                    every=_LOOK_SECONDS, waiting_for="a QEMU that opens VFIO",
                )  # fmt: skip
            ended: ProfileEnd = "start-failed"
            if pid != _FAILED:
                tracer.focus(pid)
                with progress.stage(f"QEMU {pid}: boot"):
                    quiet = ProfileRequest("", until=request.until)
                    watch = _Watch(tracer, pid, set(), quiet, progress)
                    ended = until(
                        watch.find_end, within=2 * _LONGEST, every=0.1,
                        waiting_for="end of the boot",
                    )  # fmt: skip
                    if ended == "domain-ended" and _has_failed_start(shell, refused):
                        ended = "start-failed"  # as if nobody had seen the QEMU meanwhile
            with progress.stage("reading the trace"):
                after = collecting.read_after_report(shell, pid or None, ended, None)
                files = {**tracer.files(), HOST_FILE: host, AFTER_FILE: after}
        return make_evidence(files, shell.name)


_FAILED = 0
"""In place of a process id: QEMU ended before anybody saw it."""


def _find_next(shell: Commands, name: str, known: Sequence[str], refused: int) -> int | None:
    """Return the process id of the next QEMU, _FAILED if one ended after a map or its device was
    refused, or None if there is none yet. `refused`: devices that were refused before."""
    pid = collecting.find_qemu(shell, name, known)
    if pid is not None:
        return pid
    return _FAILED if _has_failed_start(shell, refused) else None


def _has_failed_start(shell: Commands, refused: int) -> bool:
    """True if a QEMU ended after one of its maps, or its device as a whole, was refused."""
    trace = f"{armer.TRACEFS}/instances/{profiler.INSTANCE}/trace"
    return collecting.has_failed_start(shell, trace) or collecting.count_refused(shell) > refused


def _read_tracing(shell: Commands, *, can_have_parts: bool) -> str:
    """Return the sections about the tracer, as a collecting program writes them."""
    kvm = shell.run(["test", "-d", f"{armer.TRACEFS}/events/kvm"], check=False).code == 0
    symbols = shell.run(f"grep -cw {FAULT} /proc/kallsyms", check=False).stdout.strip()
    words = [f"parts={int(can_have_parts)}", *(["kvm=1"] if kvm else [])]
    words += ["huge_fault=1"] if symbols not in ("", "0") else []
    tracing = "\n".join(words)
    return (
        f"\n==== barometer tracing\n{tracing}\n==== barometer collected\nbarometer={__version__}\n"
    )
