"""One boot of the guest that owns the device, through the host's own libvirt."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.base.bounded import CONSOLE_BYTES, FACTS_BYTES, LOG_BYTES
from orchestrator.base.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.evidence.layout import TrialWriter
from orchestrator.formats.units import parse_size
from orchestrator.machine.guest.guestdisk import KEYS_SERIAL, SYSTEM_SERIAL, keys_disk
from orchestrator.machine.guest.watching import (
    LIBVIRT_STOPPED,
    Limits,
    Watched,
    wait_for,
    wait_for_ssh,
    watching,
)
from orchestrator.machine.host.device import LIST_DEVICES, BoundDevice
from orchestrator.machine.host.host import RUN_AGAIN, Host
from orchestrator.machine.runner.cpio import pack_files
from orchestrator.machine.tracing.probes import MARKER
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.transport.shell import Shell, connected
from orchestrator.machine.vm.domain import Disk, GuestDomain, guest_xml
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.machines import Device, Guest

_CRAWL, _SPEED_SECONDS = 0.1, 3.0
"""An exact host crawls if its clock advances by less than `_CRAWL` seconds in a second of the
runner's clock. This is measured over `_SPEED_SECONDS`. The clock of a host that works advances by
0.7 s or more."""
_INITRAMFS, _KEYS = "/run/barometer/guest.initramfs", "/run/barometer/guest.keys"
GUEST_SERIAL = "guest"
"""Serial of the host's disk that a guest boots from."""
# systemd's own times of the boot, in microseconds of the guest's CLOCK_MONOTONIC and in words.
_SYSTEMD = (
    "command -v systemctl > /dev/null && systemctl show | grep -E"
    " '^(Kernel|InitRD|Userspace|Finish)TimestampMonotonic=' && systemd-analyze time"
)
# QEMU's own trace events. In every pass they tell why QEMU ended (a triple fault is a
# "guest-reset"); if the boot is traced, also what happened to the devices' memory, and what caused
# it. The names are the same in QEMU 9 to 11. A QEMU that does not know one warns and goes on.
_END_EVENT = "qemu_system_shutdown_request"
_BOOT_EVENTS = (
    "qemu_anon_ram_alloc", "vfio_attach_device", "vfio_pci_reset", "vm_state_notify",
    "fw_cfg_select", "pci_cfg_write", "vfio_pci_write_config",
    "pci_update_mappings_add", "pci_update_mappings_del", "vfio_region_mmap",
    "vfio_listener_region_add_ram", "vfio_listener_region_del",
    "vfio_listener_region_add_iommu", "vfio_listener_region_add_no_dma_map",
    "vtd_switch_address_space",
)  # fmt: skip


def boot_guest(
    host: Host,
    libvirt: Connection,
    devices: Sequence[BoundDevice],
    guest: Guest,
    spec: Device,
    *,
    index: int,
    traced: bool,
    keys: RunKeys,
    trial: TrialWriter,
    progress: Progress,
    visit: Callable[[Shell], None] = lambda _shell: None,
) -> None:
    """Boot the guest, SSH into it, read its own timing, shut it down. The evidence goes into
    guest-INDEX/. `visit` is called with a shell on the guest before its end.

    Raises ArmFailedError if the guest panics, hangs, ends or cannot be reached: the host's kernel
    is proven by then, so it may be the cause.
    """
    folder = trial.guest(index)
    folder.mkdir()
    name = f"barometer-guest-{index}"
    host.change.files(_qemu_log(name))
    with (
        _reserved_huge_pages(host, guest),
        watching(host, name, folder, token=keys.guest_token, traced=traced) as watched,
    ):
        detail = until(
            lambda: watched.event("ports"), within=60, waiting_for="watch agent on the host"
        )
        with parsing("the watch agent's ports", detail):
            ports = {name: int(port) for name, port in json.loads(detail).items()}
            console_port, ssh_port = ports["console"], ports["ssh"]
        domain_spec = GuestDomain(
            name=name, uuid=str(uuid.uuid4()), kvm=host.kvm,
            memory=guest.memory, cpus=guest.cpus,
            **_find_boot_source(host, guest),
            console_port=console_port, ssh_port=ssh_port,
            devices=tuple(device.address for device in devices), mmap=spec.mmap,
            firmware=guest.firmware, backing=guest.backing, viommu=guest.viommu,
            phys_bits=guest.phys_bits, iommufd=guest.backend == "iommufd",
            pinned=_choose_pinning(host, guest),
            unconfined=() if host.is_ours else libvirt.security_models(),
            # written to the trace itself, so that each gets a time of the trace clock
            trace_events=(_END_EVENT, *(_BOOT_EVENTS if traced else ())),
            trace_log=MARKER if traced else "",
        )  # fmt: skip
        xml = guest_xml(domain_spec)
        (folder / "domain.xml").write_text(xml)
        host.change.guest(domain_spec.uuid)
        try:
            with libvirt.running(xml) as domain, _given_up_if_stopped(libvirt, watched):
                limits = Limits(host, watched, spec.bar * spec.count)
                with _blaming_a_crawl(host):
                    with progress.stage(f"{name}: boot"):
                        wait_for(limits, "mark", f"boot mark on the {name}'s console", progress)
                    (folder / "domain.xml").write_text(domain.xml() or xml)
                    with progress.stage(f"{name}: SSH"):
                        wait_for_ssh(host, limits, progress)
                        _interview(host, ssh_port, keys, folder, visit)
                    limits.is_ending = True
                    with progress.stage(f"{name}: shutdown"):
                        wait_for(limits, "exit", f"end of the {name}'s QEMU", progress)
        finally:
            _save_qemu_log(host, name, folder)


@contextmanager
def _given_up_if_stopped(libvirt: Connection, watched: Watched) -> Iterator[None]:
    """If the block fails, do not wait for a libvirt that the watch agent has seen stopped."""
    try:
        yield
    except BarometerError:
        if watched.event(LIBVIRT_STOPPED) is not None:
            libvirt.drop()
        raise


@contextmanager
def _blaming_a_crawl(host: Host) -> Iterator[None]:
    """Raise BenchError in place of the block's ArmFailedError if an exact host crawls: no kernel
    is to blame. Under QEMU's instruction counter about one guest boot in four stalls: the host's
    clock advanced by 2 s in two minutes."""
    try:
        yield
    except ArmFailedError as exc:
        if host.accel == "exact" and _measure_speed(host) < _CRAWL:
            raise BenchError(
                f"the exact host crawls, and its guest was given up: {exc.message}",
                evidence=exc.evidence, reason=Reason.EXACT_CRAWL,
                hint=RUN_AGAIN,
            ) from exc  # fmt: skip
        raise


def _measure_speed(host: Host) -> float:
    """Measure how many seconds the host's clock advances in a second of the runner's clock. Return
    0 if the host does not answer."""
    try:
        started, before = time.monotonic(), _read_uptime(host)
        time.sleep(_SPEED_SECONDS)
        return (_read_uptime(host) - before) / (time.monotonic() - started)
    except BarometerError:
        return 0.0


def _read_uptime(host: Host) -> float:
    return float(host.shell.run(["cat", "/proc/uptime"], timeout=20).stdout.split()[0])


def _choose_pinning(host: Host, guest: Guest) -> tuple[int, ...]:
    """Return the host's CPU that each CPU of the guest is pinned to; empty unless the host is
    emulated and its guests run under its KVM: other guests are not pinned. CPU 0 is left to the
    agents that watch, if the host has another CPU.

    QEMU's emulation of SVM loses track of a guest whose CPU moves between the host's: without
    pinning, one guest in four (from a host's second guest on) triple-faulted or spun on one nested
    page fault with the host's own instruction pointer.
    """
    if not host.emulated or not host.kvm:
        return ()
    cpus = list(range(host.cpus))[1:] or [0]
    return tuple(cpus[vcpu % len(cpus)] for vcpu in range(guest.cpus))


def _interview(
    host: Host, port: int, keys: RunKeys, folder: Path, visit: Callable[[Shell], None]
) -> None:
    """SSH into the guest through the host's connection, read its own timing, let somebody visit
    it, power it off."""
    try:
        with connected(
            "guest", host.shell.channel_to(port, timeout=60), key=keys.runner,
            host_key=keys.guest, error=ArmFailedError,
        ) as shell:  # fmt: skip
            (folder / "dmesg.txt").write_text(shell.run("dmesg", limit=CONSOLE_BYTES).stdout)
            (folder / "pci.txt").write_text(shell.run(LIST_DEVICES, limit=FACTS_BYTES).stdout)
            systemd = shell.run(
                _SYSTEMD, check=False, doing="asking systemd", limit=FACTS_BYTES
            ).stdout
            if systemd:
                (folder / "systemd.txt").write_text(systemd)
            facts = shell.run(
                "cat /run/boot-mark-uptime; uname -r; cat /proc/cmdline", limit=FACTS_BYTES
            ).stdout
            uptime, release, cmdline = [*facts.splitlines(), "", "", ""][:3]
            (folder / "facts.json").write_text(
                json.dumps({"uptime_at_boot_mark": uptime, "release": release,
                            "cmdline": cmdline}, indent=1)
            )  # fmt: skip
            visit(shell)
            _power_off(shell)
    except BenchError as exc:
        reason = Reason.OUTPUT_FLOOD if exc.reason == Reason.OUTPUT_FLOOD else Reason.GUEST_NO_SSH
        raise ArmFailedError(exc.message, evidence=exc.evidence, reason=reason) from exc


def _power_off(shell: Shell) -> None:
    """Shut the guest down cleanly, so that the last unmap is part of the trace."""
    shell.run("(sleep 0.2; poweroff -f) >/dev/null 2>&1 </dev/null &", doing="shutting down")


def _qemu_log(name: str) -> str:
    return f"/var/log/libvirt/qemu/{name}.log"


def _save_qemu_log(host: Host, name: str, folder: Path) -> None:
    with contextlib.suppress(BarometerError):  # the host may be gone, which another error reports
        last = ["tail", "-c", str(LOG_BYTES), _qemu_log(name)]
        log = host.shell.run(last, timeout=20, doing="reading QEMU's log", limit=LOG_BYTES)
        (folder / "qemu.log").write_text(log.stdout)


@contextmanager
def _reserved_huge_pages(host: Host, guest: Guest) -> Iterator[None]:
    """Reserve huge pages for the guest's memory while the block runs, if the free ones do not
    suffice (host.cmdline may have reserved some). Raises ArmFailedError if the host cannot find
    enough: its kernel is proven by then."""
    if not guest.backing.startswith("hugetlb-"):
        yield
        return
    size = parse_size(guest.backing.removeprefix("hugetlb-"))
    needed = guest.memory // size
    folder = f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB"
    path = f"{folder}/nr_hugepages"
    counts = host.shell.run(
        "echo 1 > /proc/sys/vm/compact_memory;"
        f" cat {path} {folder}/free_hugepages {folder}/resv_hugepages",
        check=False,
    )
    # without these files there are no pages of that size
    before, free, promised = (0, 0, 0) if counts.code else map(int, counts.stdout.split())
    available = free - promised
    try:
        if available < needed and not counts.code:
            host.change.write(path, str(before + needed - available))
            available += int(host.shell.read(path)) - before
        if available < needed:
            raise ArmFailedError(
                f"the host found {available} of {needed} huge pages for guest.backing ="
                f' "{guest.backing}"',
                hint="host.cmdline can set them aside at boot: hugepagesz=1G hugepages=N",
                reason=Reason.NO_HUGE_PAGES,
            )
        yield
    finally:
        host.undo(f"echo {before} > {path}")


def guest_cmdline(guest: Guest) -> str:
    """Return the guest's kernel command line."""
    return " ".join(filter(None, ["console=ttyS0 panic=-1", guest.cmdline]))


def _find_boot_source(host: Host, guest: Guest) -> dict[str, Any]:
    if guest.boot == "direct":
        return {"kernel": f"{host.payload}/guest/vmlinuz", "initramfs": _INITRAMFS,
                "cmdline": guest_cmdline(guest), "disks": ()}  # fmt: skip
    disk = host.shell.run(
        "for d in /sys/block/vd*; do"
        f" [ \"$(cat $d/serial)\" != {GUEST_SERIAL} ] || echo /dev/${{d##*/}}; done",
        doing="looking for the guest's disk",
    ).stdout.strip()  # fmt: skip
    if not disk:
        raise BenchError(
            "the host has no disk for the guest to boot from", reason=Reason.NO_GUEST_DISK
        )
    disks = (Disk(Path(disk), SYSTEM_SERIAL, block=True), Disk(Path(_KEYS), KEYS_SERIAL))
    return {"kernel": "", "initramfs": "", "cmdline": "", "disks": disks}


def stage_guest(host: Host, guest: Guest, keys: RunKeys) -> None:
    """Put the run's own part of the guest onto the host, once: the initramfs with the keys
    appended, or a disk with the keys."""
    if guest.boot == "direct":
        script = f"cat {host.payload}/guest/initramfs - > {_INITRAMFS}"
        content = pack_files(keys.for_guest())
    else:
        script, content = f"cat > {_KEYS}", keys_disk(keys)
    host.shell.run(
        f"mkdir -p /run/barometer && {script}", stdin=content, doing="staging the guest"
    )
