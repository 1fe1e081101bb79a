"""`barometer profile`: one boot of an existing domain, under the timing pass.

The domain's definition is not changed, and its host needs a POSIX shell only. These files are
collected:

    facts.json    what the host, QEMU and the domain are; QEMU's mappings at the end
    trace.txt     the trace, with clock.txt, stats.txt and profile.txt (bench.profiler)
    domain.xml    the definition
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from orchestrator import __version__, interrupts
from orchestrator.bench import hypervisor, profiler, remote
from orchestrator.bench.definition import Definition, parse_definition
from orchestrator.bench.device import LIST_DEVICES, parse_devices
from orchestrator.bench.local import LocalShell
from orchestrator.bench.shell import Commands
from orchestrator.bench.staging import STATE
from orchestrator.bench.tracer import FAULT
from orchestrator.bench.waiting import Stall, until
from orchestrator.errors import BenchError, ScenarioError
from orchestrator.evidence.layout import write_json
from orchestrator.progress import Progress

QUIET_SECONDS = 20.0
_LONGEST = 900.0
_LOOK_SECONDS = 1.0
"""Seconds between two looks at the trace, each of which starts a shell on the host."""
_UNTOUCHED_SECONDS = 60.0
"""Seconds of quiet that end a boot in which nothing was recorded yet: firmware may be slow."""
_IORESOURCE_MEM = 0x200
"""include/linux/ioport.h"""
_SSH = ("qemu+ssh", "qemu+libssh", "qemu+libssh2")
_SETTINGS = {
    "release": "/proc/sys/kernel/osrelease",
    "cmdline": "/proc/cmdline",
    "transparent_hugepage": "/sys/kernel/mm/transparent_hugepage/enabled",
    "clocksource": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "vfio_disable_hugepages": "/sys/module/vfio_iommu_type1/parameters/disable_hugepages",
    "dma_entry_limit": "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
}
_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")
Ended = Literal["quiet", "agent", "domain-ended", "limit"]


@dataclass(frozen=True)
class Asked:
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
class Recorded:
    facts: dict[str, Any]
    files: dict[str, str]
    xml: str

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "facts.json", self.facts)
        (folder / "domain.xml").write_text(self.xml)
        for name, text in self.files.items():
            if name == "trace.txt":
                (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
            else:
                (folder / name).write_text(text)


def record(asked: Asked, progress: Progress) -> Recorded:
    """Boot the domain once, traced. It is left running, whatever happens.

    Raises ScenarioError for a domain that does not exist, has no PCI device, or runs although no
    reboot was requested; BenchError if libvirt, the machine or its kernel refuses something.
    """
    with reached(asked.uri, asked.ssh_config) as (shell, connection):
        domain = connection.lookup(asked.domain)
        _may_boot(domain, asked)
        _is_nobodys(shell)
        xml = domain.definition()
        definition = parse_definition(xml)
        _can_be_told(definition, asked)
        with progress.stage("looking at the host and the domain"):
            facts = _facts(shell, connection, asked, definition)
        spec = profiler.profile_spec(
            [bar["size"] for bar in facts["bars"]], definition.emulator, kvm=facts["kvm"]
        )
        if not facts["parts"]:
            spec = profiler.without_parts(spec)
        with contextlib.ExitStack() as ladder:
            with progress.stage("arming the probes"):
                ladder.enter_context(
                    interrupts.duty(
                        f"the probes on {shell.name} are being removed",
                        _clear_command(facts["uri"], asked.ssh_config),
                    )
                )
                tracer = ladder.enter_context(profiler.armed(shell, spec))
            happened = ladder.enter_context(domain.watched())
            try:
                with progress.stage(f"{asked.domain}: {facts['boot']}"):
                    _boot(domain, tracer, happened, asked)
                    facts["pid"] = _pid(shell, asked.domain)
                    tracer.focus(facts["pid"])
                with progress.stage(f"{asked.domain}: boot"):
                    watch = _Watch(tracer, facts["pid"], happened, asked, progress)
                    facts["ended"] = until(
                        watch.over, within=2 * _LONGEST, every=0.1, waiting_for="end of the boot"
                    )
            except KeyboardInterrupt:
                if domain.active():
                    progress.note(f"{asked.domain} is left as it is: running")
                raise
            with progress.stage("reading the trace"):
                process = tracer.process(facts["pid"])
                facts["process"] = asdict(process) if process else None
                files = tracer.files()
        facts["definition_changed"] = domain.definition() != xml
        return Recorded(facts, files, xml)


def _is_nobodys(shell: Commands) -> None:
    """Raise BenchError if a run of barometer's has leased the host, or left it changed."""
    leases = shell.run(f"ls {STATE}/lease-*.json || :", doing="looking for leases")
    if leases.stdout:
        raise BenchError(
            f"{shell.name} is leased to a run of barometer's, which boots it as it needs",
            evidence=leases.stdout.strip(),
            hint="wait for its end; what a killed run left: barometer recover HOST",
            reason="lease-held",
        )


def _clear_command(uri: str, ssh_config: Path | None) -> str:
    config = ["--ssh-config", str(ssh_config)] if ssh_config else []
    return shlex.join(["barometer", "profile", "--clear", "--connect", uri, *config])


def clear(uri: str | None, ssh_config: Path | None) -> None:
    """Undo what a killed profile left on a host."""
    with reached(uri, ssh_config) as (shell, _):
        profiler.clear(shell)


@contextlib.contextmanager
def reached(
    uri: str | None, ssh_config: Path | None = None
) -> Iterator[tuple[Commands, hypervisor.Connection]]:
    """Yield a shell on the host of a libvirt URI, as root, and a connection to its libvirt.
    `ssh_config`: file for ssh -F, which libvirt's connection uses, too.

    Raises ScenarioError unless the URI is that of the system's QEMU, here or over SSH.
    """
    with contextlib.ExitStack() as stack:
        connection = None
        if uri is None:
            connection = stack.enter_context(hypervisor.at(None))
            uri = connection.uri
        parts = urlsplit(uri)
        if parts.path != "/system" or parts.scheme not in ("qemu", "qemu+unix", *_SSH):
            raise ScenarioError(
                f"{uri}: barometer profiles domains of qemu:///system and"
                " qemu+ssh://[USER@]HOST/system",
                hint="give the host's with --connect",
                reason="bad-uri",
            )
        shell: Commands = LocalShell()
        if parts.scheme in _SSH:
            endpoint = remote.resolved(f"ssh://{parts.netloc}", ssh_config)
            for key in parse_qs(parts.query).get("keyfile", []):
                endpoint = replace(endpoint, identities=(Path(key), *endpoint.identities))
            shell = stack.enter_context(remote.logged_in(endpoint))
            if ssh_config is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                program = remote.client_program(endpoint, folder)
                uri = f"qemu+ssh://{endpoint.hostname}/system?command={program}&no_tty=1"
        yield shell, connection or stack.enter_context(hypervisor.at(uri))


def _may_boot(domain: hypervisor.Domain, asked: Asked) -> None:
    if domain.active() and not asked.reboot:
        raise ScenarioError(
            f"{asked.domain} is running",
            hint="shut it down, or let its guest reboot: --reboot", reason="domain-running",
        )  # fmt: skip
    if asked.reboot and not domain.active():
        raise ScenarioError(
            f"{asked.domain} is not running, so that it cannot reboot",
            hint="without --reboot it is started", reason="domain-not-running",
        )  # fmt: skip


def _can_be_told(definition: Definition, asked: Asked) -> None:
    if not definition.devices:
        raise ScenarioError(
            f"{asked.domain} has no PCI device of its host's (hostdev), so that VFIO maps nothing",
            reason="no-hostdev",
        )
    if asked.until == "agent" and not definition.agent:
        raise ScenarioError(
            f"--until agent: {asked.domain} has no channel for a guest agent",
            hint="--until SECONDS: so long without a map or unmap",
            reason="no-agent",
        )


def _facts(
    shell: Commands, connection: hypervisor.Connection, asked: Asked, definition: Definition
) -> dict[str, Any]:
    """Return facts.json, as far as it is known before the boot."""
    read = "".join(
        f"printf '{name}\\t'; cat {path} 2> /dev/null || echo;"
        for name, path in _SETTINGS.items()
    )  # fmt: skip
    said = shell.run(read, doing="reading facts").stdout
    settings = dict(line.split("\t", 1) for line in said.splitlines() if "\t" in line)
    version = shell.run([definition.emulator, "--version"], doing="asking QEMU's version").stdout
    found = _VERSION.search(version)
    symbols = shell.run(f"grep -cw {FAULT} /proc/kallsyms", check=False).stdout.strip()
    kvm = shell.run(["test", "-d", f"{profiler.TRACEFS}/events/kvm"], check=False).code == 0
    return {
        "schema": 1, "barometer": __version__,
        "domain": asked.domain, "uri": asked.uri or connection.uri,
        "boot": "reboot" if asked.reboot else "start", "until": asked.until,
        "release": settings.pop("release"), "settings": settings,
        "qemu": found[1] if found else connection.version()["qemu"],
        "libvirt": connection.version()["libvirt"],
        "memory": definition.memory, "huge_pages": definition.huge_pages,
        "kvm": definition.kvm and kvm, "parts": profiler.takes_return_arguments(shell),
        "huge_fault": symbols not in ("", "0"),
        "bars": _bars(shell, definition.devices),
    }  # fmt: skip


def _bars(shell: Commands, addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Return the memory BARs of the devices. Raises BenchError if a device is missing, or if there
    is no BAR."""
    listed = parse_devices(shell.run(LIST_DEVICES, doing="listing PCI devices").stdout)
    if lost := [address for address in addresses if address not in listed]:
        raise BenchError(
            f"{shell.name}: the domain's device {lost[0]} is not there", reason="device-missing"
        )
    bars = [
        {"device": address, "number": number, "start": resource.start, "size": resource.size}
        for address in addresses
        for number, resource in enumerate(listed[address][2][:6])
        if resource.size and resource.flags & _IORESOURCE_MEM
    ]
    if not bars:
        raise BenchError(
            f"{shell.name}: {', '.join(addresses)} have no memory BAR", reason="no-bar"
        )
    return bars


def _boot(
    domain: hypervisor.Domain,
    tracer: profiler.Tracer,
    happened: hypervisor.DomainEvents,
    asked: Asked,
) -> None:
    if not asked.reboot:
        domain.start()
        tracer.mark("run")
        return
    domain.reboot()

    def reset() -> bool | None:
        if not domain.active():
            raise BenchError(f"{asked.domain} ended instead of a reboot", reason="domain-ended")
        return True if "reset" in happened else None

    until(
        reset, within=_LONGEST, every=0.02, waiting_for=f"reboot of {asked.domain}'s guest",
        reason="no-reboot",
    )  # fmt: skip
    tracer.mark("reset")


def _pid(shell: Commands, domain: str) -> int:
    """Return QEMU's process id, from the file that libvirt's system daemon keeps."""
    path = f"/run/libvirt/qemu/{domain}.pid"
    return int(shell.run(["cat", path], doing="reading QEMU's process id").stdout)


class _Watch:
    """Observer of a boot that detects its end."""

    def __init__(
        self, tracer: profiler.Tracer, pid: int, happened: hypervisor.DomainEvents, asked: Asked,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._tracer, self._pid, self._happened = tracer, pid, happened
        self._asked, self._progress = asked, progress
        self._first = tracer.records(pid)
        self._stall, self._started, self._looked = Stall(), time.monotonic(), 0.0
        self._agent = False

    def over(self) -> Ended | None:
        if "agent" in self._happened and not self._agent:
            self._agent = True
            self._tracer.mark("agent")
            self._progress.note("the guest agent is there")
        if self._agent and self._asked.until == "agent":
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
        if self._asked.until == "agent":
            return None
        untouched = records == self._first
        enough = max(self._asked.until, _UNTOUCHED_SECONDS) if untouched else self._asked.until
        return "quiet" if quiet >= enough else None
