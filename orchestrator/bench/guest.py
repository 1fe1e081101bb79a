"""One boot of the guest that owns the device, through the host's own libvirt."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from orchestrator.bench.cpio import pack_files
from orchestrator.bench.device import LIST_DEVICES, BoundDevice
from orchestrator.bench.domain import Disk, GuestDomain, guest_xml
from orchestrator.bench.guestdisk import KEYS_SERIAL, SYSTEM_SERIAL, keys_disk
from orchestrator.bench.host import PANIC, Host
from orchestrator.bench.hypervisor import Connection
from orchestrator.bench.keys import RunKeys
from orchestrator.bench.shell import ConnectionLostError, Shell, connected
from orchestrator.bench.tracer import MARKER, UNTIL_KERNEL
from orchestrator.bench.waiting import Stall, until
from orchestrator.command import tail
from orchestrator.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.evidence import TrialWriter
from orchestrator.progress import Progress
from orchestrator.scenario import GIB, Guest, Scenario, parse_size

log = logging.getLogger("barometer.console")

BOOT_MARK = "barometer: boot mark"
_CRAWL, _SPEED_SECONDS = 0.1, 3.0
"""An exact host that works runs at 0.7 of its seconds or more in one of the runner's."""
_INITRAMFS, _KEYS = "/run/barometer/guest.initramfs", "/run/barometer/guest.keys"
GUEST_SERIAL = "guest"
"""The host's disk that a guest boots from."""
# What systemd knows of its own boot: microseconds of the guest's CLOCK_MONOTONIC, and in words.
_SYSTEMD = (
    "command -v systemctl > /dev/null && systemctl show | grep -E"
    " '^(Kernel|InitRD|Userspace|Finish)TimestampMonotonic=' && systemd-analyze time"
)
# QEMU's own trace events: why it ended in every pass (a triple fault is a "guest-reset"), and
# where the boot is traced what happened to the devices' memory, and what made it happen. The same
# names in QEMU 9 to 11; a QEMU that does not know one warns of it and goes on.
_END_EVENT = "qemu_system_shutdown_request"
_BOOT_EVENTS = (
    "qemu_anon_ram_alloc", "vfio_attach_device", "vfio_pci_reset", "vm_state_notify",
    "fw_cfg_select", "pci_cfg_write", "vfio_pci_write_config",
    "pci_update_mappings_add", "pci_update_mappings_del", "vfio_region_mmap",
    "vfio_listener_region_add_ram", "vfio_listener_region_del",
    "vfio_listener_region_add_iommu", "vfio_listener_region_add_no_dma_map",
    "vtd_switch_address_space",
)  # fmt: skip
_HOUR = 3600.0
_IDLE_SECONDS = 45.0
_IDLE_SHARE = 0.2
_NO_SSH_SECONDS = {True: 90.0, False: 30.0}


class Watched:
    """What the watch agent says about one guest boot, as it comes; saved as marks.txt and
    console.log line by line, so that it is there whatever happens to the host."""

    def __init__(self, lines: Iterator[str], folder: Path) -> None:
        self._lines = lines
        self._events: dict[str, str] = {}
        self._console: list[str] = []
        self.console_bytes = 0
        self._cpu: deque[tuple[float, float]] = deque(maxlen=60)
        self.ended = False
        self.error: Exception | None = None
        """What kept the reader from going on: a full disk here, a garbled line from there."""
        self._marks: IO[str] = (folder / "marks.txt").open("w")
        self._log: IO[str] = (folder / "console.log").open("w")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for line in self._lines:
                self._take(line)
        except (TimeoutError, EOFError):
            pass
        except (OSError, ValueError) as exc:
            self.error = exc
        finally:
            self.ended = True

    def _take(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        at, _, rest = rest.partition(" ")
        self._marks.write(line + "\n")
        if kind == "C":
            text = json.loads(rest)
            self._console.append(text)
            self._log.write(text + "\n")
            log.debug("guest| %s", text)
            self.console_bytes += len(text) + 1
        elif kind == "E":
            name, _, detail = rest.partition(" ")
            self._events.setdefault(name, detail)
        elif kind == "P":
            self._cpu.append((int(at) / 1e9, int(rest.split()[0]) / 1e9))
        self._marks.flush()
        self._log.flush()

    def event(self, name: str) -> str | None:
        """The detail of an event that has happened ("" where it has none)."""
        return self._events.get(name)

    def text(self) -> str:
        return "\n".join(self._console)

    def last_line(self) -> str:
        return self._console[-1][:100] if self._console else ""

    def idle(self, seconds: float) -> bool:
        """Whether QEMU has used next to no CPU for that long, on the host's clock."""
        samples = list(self._cpu)
        recent = [s for s in samples if s[0] >= samples[-1][0] - seconds] if samples else []
        if not recent or recent[-1][0] - recent[0][0] < seconds * 0.8:
            return False
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]) < _IDLE_SHARE

    def close(self) -> None:
        self._thread.join(5)
        self._marks.close()
        self._log.close()


def boot_guest(
    host: Host,
    libvirt: Connection,
    devices: Sequence[BoundDevice],
    scenario: Scenario,
    *,
    index: int,
    traced: bool,
    keys: RunKeys,
    trial: TrialWriter,
    progress: Progress,
) -> None:
    """Boot the guest, SSH into it, read its own timing, shut it down. Evidence in guest-INDEX/.

    Raises ArmFailedError when the guest panics, hangs, ends or cannot be reached: the host's
    kernel is proven, so that is a finding about its arm.
    """
    guest = scenario.guest
    assert guest is not None  # the scenario's own rule for guest boots
    folder = trial.guest(index)
    folder.mkdir()
    name = f"guest-{index}"
    with _reserved(host, guest), _watching(host, name, folder, traced=traced) as watched:
        ports = json.loads(
            until(lambda: watched.event("ports"), within=60, waiting_for="watch agent on the host")
        )
        spec = GuestDomain(
            name=name, uuid=str(uuid.uuid4()), kvm=host.kvm,
            memory=guest.memory, cpus=guest.cpus,
            **_boots_from(host, guest),
            console_port=ports["console"], ssh_port=ports["ssh"],
            devices=tuple(device.address for device in devices), mmap=scenario.device.mmap,
            firmware=guest.firmware, backing=guest.backing, viommu=guest.viommu,
            phys_bits=guest.phys_bits, iommufd=guest.backend == "iommufd",
            pinned=_pinned(host, guest),
            # written to the trace itself, where each gets a time of the trace clock
            trace_events=(_END_EVENT, *(_BOOT_EVENTS if traced else ())),
            trace_log=MARKER if traced else "",
        )  # fmt: skip
        xml = guest_xml(spec)
        (folder / "domain.xml").write_text(xml)
        try:
            with libvirt.running(xml) as domain:
                limits = _Limits(host, watched, scenario.device.bar * scenario.device.count)
                with _crawling_is_the_benchs(host):
                    with progress.stage(f"{name}: boot"):
                        _wait(limits, "mark", f"boot mark on the {name}'s console", progress)
                    (folder / "domain.xml").write_text(domain.xml() or xml)
                    with progress.stage(f"{name}: SSH"):
                        _wait_for_ssh(host, limits, progress)
                        _interview(host, ports["ssh"], keys, folder)
                    with progress.stage(f"{name}: shutdown"):
                        _wait(limits, "exit", f"end of the {name}'s QEMU", progress)
        finally:
            _save_qemu_log(host, name, folder)


@contextmanager
def _crawling_is_the_benchs(host: Host) -> Iterator[None]:
    """Under QEMU's instruction counter a machine with a guest in it was seen to all but stand
    still, one boot in four: its clock went on by 2 s in two minutes. No kernel is to blame."""
    try:
        yield
    except ArmFailedError as exc:
        if host.accel == "exact" and _speed(host) < _CRAWL:
            raise BenchError(
                f"the exact host crawls, and its guest was given up: {exc.message}",
                evidence=exc.evidence, reason="exact-crawl",
                hint="run it again with the same --out: trials that the bench failed are repeated",
            ) from exc  # fmt: skip
        raise


def _speed(host: Host) -> float:
    """Seconds of the host's clock in a second of the runner's; 0 where it does not answer."""
    try:
        started, before = time.monotonic(), _uptime(host)
        time.sleep(_SPEED_SECONDS)
        return (_uptime(host) - before) / (time.monotonic() - started)
    except BarometerError:
        return 0.0


def _uptime(host: Host) -> float:
    return float(host.shell.run(["cat", "/proc/uptime"], timeout=20).stdout.split()[0])


def _pinned(host: Host, guest: Guest) -> tuple[int, ...]:
    """Where the guest's CPUs stay on an emulated host; CPU 0 is left to what watches.

    QEMU's emulation of SVM loses track of a guest whose CPU moves between the host's: unpinned,
    one guest in four (from a host's second guest on) triple-faulted or spun on one nested page
    fault with the host's own instruction pointer. A real host's guests are left alone.
    """
    if not host.emulated or not host.kvm:
        return ()
    cpus = list(range(host.cpus))[1:] or [0]
    return tuple(cpus[vcpu % len(cpus)] for vcpu in range(guest.cpus))


@contextmanager
def _watching(host: Host, name: str, folder: Path, *, traced: bool) -> Iterator[Watched]:
    more = (MARKER, *UNTIL_KERNEL) if traced else ()
    argv = host.agent("watch", f"/run/libvirt/qemu/{name}.pid", BOOT_MARK, *more)
    # an hour without a word, progress lines included, means that the host is gone
    with contextlib.ExitStack() as stack, host.shell.stream(argv, timeout=_HOUR) as lines:
        watched = Watched(lines, folder)
        # on the outer stack, so after the stream: its end is what ends the reader
        stack.callback(watched.close)
        yield watched


class _Limits:
    """Deadlines by progress: a guest may take as long as it gets anywhere.

    An unpatched kernel maps the BAR a dozen times in silence, at up to half a second for each
    GiB where it is emulated, so silence is allowed in proportion to the BAR. A guest that is
    silent and uses no CPU has hung.
    """

    def __init__(self, host: Host, watched: Watched, bar: int) -> None:
        self.host, self.watched = host, watched
        base, for_each_gib = (120.0, 12.0) if host.slow else (30.0, 2.0)
        self.silent_seconds = base + for_each_gib * bar / GIB
        self._stall = Stall()

    def check(self, waiting_for: str, *, stall: bool = True) -> None:
        """Raises what ended the boot; with `stall`, also when it gets nowhere."""
        self.host.check()
        console = self.watched.text()
        if (found := PANIC.search(console)) is not None:
            raise self.failed(f"the guest's kernel is broken: {found[0]}", "guest-panic")
        if self.watched.event("exit") is not None:
            raise self.failed(f"the guest ended while waiting for: {waiting_for}", "guest-ended")
        if isinstance(self.watched.error, OSError):
            raise self.watched.error
        if self.watched.ended:
            raise ConnectionLostError("the host stopped reporting", reason="host-ssh-lost")
        silent = self._stall.seconds(self.watched.console_bytes)
        if not stall:
            return
        if silent > _IDLE_SECONDS and self.watched.idle(_IDLE_SECONDS):
            raise self.failed(
                f"the guest hangs, idle: no console line for {silent:.0f} s and no CPU used, "
                f"waiting for: {waiting_for}", "guest-hang",
            )  # fmt: skip
        if silent > self.silent_seconds:
            raise self.failed(
                f"the guest hangs, busy: no console line for {silent:.0f} s, "
                f"waiting for: {waiting_for}", "guest-hang",
            )  # fmt: skip

    def failed(self, message: str, reason: str) -> ArmFailedError:
        return ArmFailedError(message, evidence=tail(self.watched.text(), 25), reason=reason)


def _wait(limits: _Limits, event: str, waiting_for: str, progress: Progress) -> None:
    def happened() -> str | None:
        progress.detail(limits.watched.last_line())
        if (detail := limits.watched.event(event)) is not None:
            return detail
        try:
            limits.check(waiting_for)
        except ArmFailedError:
            # it may have happened while the rest was looked at; the end of QEMU is an end to both
            if limits.watched.event(event) is None:
                raise
        return None

    until(happened, within=4 * _HOUR, every=0.1, waiting_for=waiting_for,
          error=ArmFailedError, reason="guest-hang")  # fmt: skip


def _wait_for_ssh(host: Host, limits: _Limits, progress: Progress) -> None:
    def ready() -> str | None:
        progress.detail(limits.watched.last_line())
        if limits.watched.event("ssh") is None:
            # a guest that waits for connections is idle: here the deadline is a time
            limits.check("the guest's SSH server", stall=False)
        return limits.watched.event("ssh")

    until(ready, within=_NO_SSH_SECONDS[host.slow], every=0.1,
          waiting_for="SSH server in the guest", error=ArmFailedError, reason="guest-no-ssh",
          last_seen=lambda: tail(limits.watched.text(), 25))  # fmt: skip


def _interview(host: Host, port: int, keys: RunKeys, folder: Path) -> None:
    """SSH into the guest through the host's connection, read its own timing, ask it to end."""
    try:
        with connected(
            "guest", host.shell.channel_to(port, timeout=60), key=keys.runner,
            host_key=keys.guest, error=ArmFailedError,
        ) as shell:  # fmt: skip
            (folder / "dmesg.txt").write_text(shell.run("dmesg").stdout)
            (folder / "pci.txt").write_text(shell.run(LIST_DEVICES).stdout)
            systemd = shell.run(_SYSTEMD, check=False, doing="asking systemd").stdout
            if systemd:
                (folder / "systemd.txt").write_text(systemd)
            facts = shell.run("cat /run/boot-mark-uptime; uname -r; cat /proc/cmdline").stdout
            uptime, release, cmdline = [*facts.splitlines(), "", "", ""][:3]
            (folder / "facts.json").write_text(
                json.dumps({"uptime_at_boot_mark": uptime, "release": release,
                            "cmdline": cmdline}, indent=1)
            )  # fmt: skip
            _power_off(shell)
    except BenchError as exc:
        raise ArmFailedError(exc.message, evidence=exc.evidence, reason="guest-no-ssh") from exc


def _power_off(shell: Shell) -> None:
    """A clean end, so that the last unmap is part of the trace."""
    shell.run("(sleep 0.2; poweroff -f) >/dev/null 2>&1 </dev/null &", doing="shutting down")


def _save_qemu_log(host: Host, name: str, folder: Path) -> None:
    with contextlib.suppress(BarometerError):  # the host may be gone: that is what is reported
        (folder / "qemu.log").write_text(host.shell.read(f"/var/log/libvirt/qemu/{name}.log"))


@contextmanager
def _reserved(host: Host, guest: Guest) -> Iterator[None]:
    """Huge pages for the guest's memory, set aside while it runs. Raises ArmFailedError when the
    host cannot find as many: its kernel is proven."""
    if not guest.backing.startswith("hugetlb-"):
        yield
        return
    size = parse_size(guest.backing.removeprefix("hugetlb-"))
    wanted = guest.memory // size
    path = f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/nr_hugepages"
    found = host.shell.run(
        f"[ -e {path} ] || {{ echo 0; exit 0; }};"
        f" echo 1 > /proc/sys/vm/compact_memory; echo {wanted} > {path}; cat {path}",
        doing="setting huge pages aside",
    ).stdout  # fmt: skip
    try:
        if int(found) < wanted:
            raise ArmFailedError(
                f"the host found {found.strip()} of {wanted} huge pages for guest.backing ="
                f' "{guest.backing}"',
                hint="host.cmdline can set them aside at boot: hugepagesz=1G hugepages=N",
                reason="no-huge-pages",
            )
        yield
    finally:
        host.undo(f"echo 0 > {path}")


def guest_cmdline(guest: Guest) -> str:
    """The kernel command line of a guest."""
    return " ".join(filter(None, ["console=ttyS0 panic=-1", guest.cmdline]))


def _boots_from(host: Host, guest: Guest) -> dict[str, Any]:
    if guest.boot == "direct":
        return {"kernel": f"{host.payload}/guest/vmlinuz", "initramfs": _INITRAMFS,
                "cmdline": guest_cmdline(guest), "disks": ()}  # fmt: skip
    found = host.shell.run(
        "for d in /sys/block/vd*; do"
        f" [ \"$(cat $d/serial)\" != {GUEST_SERIAL} ] || echo /dev/${{d##*/}}; done",
        doing="looking for the guest's disk",
    ).stdout.strip()  # fmt: skip
    disks = (Disk(Path(found), SYSTEM_SERIAL, block=True), Disk(Path(_KEYS), KEYS_SERIAL))
    return {"kernel": "", "initramfs": "", "cmdline": "", "disks": disks}


def stage_guest(host: Host, guest: Guest, keys: RunKeys) -> None:
    """Put what is of this run alone onto the host, once: the guest's initramfs with the keys
    behind it, or a disk with the keys."""
    if guest.boot == "direct":
        script = f"cat {host.payload}/guest/initramfs - > {_INITRAMFS}"
        content = pack_files(keys.for_guest())
    else:
        script, content = f"cat > {_KEYS}", keys_disk(keys)
    host.shell.run(
        f"mkdir -p /run/barometer && {script}", stdin=content, doing="staging the guest"
    )
