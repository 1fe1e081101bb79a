"""The phases of a guest boot, recognized by those actions of QEMU and the guest that the host can
see.

| phase | begins with |
| --- | --- |
| QEMU start | its exec |
| machine init | the first memory it allocates for the guest, or the first device it attaches |
| QEMU waits to be started | its last event before the guest runs: libvirt starts it with its CPUs stopped |
| firmware: entry | the first instruction of the guest (vm_state_notify: running) |
| firmware: PCI enumeration | its first write to a bus number or a BAR |
| firmware: hand-over | the end of its last such write, or of the last that mapped or unmapped a BAR; option ROMs, the boot device and the kernel's loading follow |
| boot loader | its first line on the console (a guest that boots from a disk) |
| kernel: entry | the boot CPU's first write to EFER after that. SeaBIOS enters a kernel in 32-bit mode: it enables long mode by this write, and then unpacks itself. A UEFI kernel is entered in long mode: its EFI stub and its unpacking count as hand-over |
| kernel: init | its first line on the console |
| kernel: PCI enumeration, ... | the line of a bus, then of each device on it |
| kernel: BAR sizing, ... | the first write to a device's command register or BARs, to the end of the last |
| kernel: PCI resources | lines on windows and assignments, after the enumeration |
| userspace | `Run /init as init process` |
| userspace: systemd | systemd's start on the guest's clock, laid on the trace clock by the boot mark |
| userspace: to SSH | the boot mark |
| guest is up | the SSH server's banner |
| shutdown | QEMU's request to end |

A guest without KVM shows no write to EFER: its kernel's entry counts as hand-over, up to the
kernel's first line.
"""  # noqa: E501  # a table

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.boot.qemu import HOST_BRIDGES, ConfigWrite, QemuEvent
from orchestrator.analysis.boot.timeline import Phase

_EFER = 0xC0000080
_MEMORY_EVENTS = {"qemu_anon_ram_alloc", "vfio_attach_device", "vfio_listener_region_add_ram"}
_PRINTK = re.compile(r"\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])? (.*)")
_LOADER = re.compile(
    r"barometer: boot loader|GRUB|systemd-boot|Booting `|Loading Linux|ISOLINUX|SYSLINUX"
)
_FIRST = "Linux version "
_BUS = re.compile(r"PCI host bridge to bus (\S+)")
_DEVICE = re.compile(r"pci [0-9a-f]{4,8}:(\S+): \[[0-9a-f]{4}:[0-9a-f]{4}\] type")
_PCI = re.compile(r"(pci|pci_bus|acpiphp|pci_hotplug|pciehp)\b")
_RESOURCES = re.compile(r"pci(_bus)? .*(bridge window|PCI bridge to|BAR \d+|resource \d+)")
_INIT = re.compile(r"Run (\S+) as init process")


@dataclass(frozen=True)
class BootEvents:
    """The events that phases are made of. Times are seconds of the trace clock."""

    exec: float
    qemu: Sequence[QemuEvent]
    writes: Sequence[ConfigWrite]
    ends: Mapping[float, float]
    """Time of a configuration write -> time at which the last map or unmap that it caused was
    done."""
    operation_ends: Sequence[float]
    """Ends of maps and unmaps."""
    console: Sequence[tuple[float, str]]
    """Lines up to the boot mark, which is the last."""
    msrs: Sequence[tuple[float, int, int, int]]
    mark: float
    ssh: float | None
    exit: float
    systemd: float | None = None
    """Start of the guest's systemd."""


def find_phases(boot: BootEvents) -> list[Phase]:
    """Return the phases in order, without gaps, from QEMU's exec to its end."""
    run = next((e.time for e in boot.qemu if e.name == "vm_state_notify"), None)
    starts = [(boot.exec, "QEMU start"), *_machine(boot, run)]
    first = next((at for at, line in boot.console if _FIRST in line), None)
    if run is not None:
        starts += _firmware(boot, run, first if first is not None else boot.mark)
    if first is not None:
        starts += _kernel(boot, first)
    if boot.systemd is not None and boot.systemd < boot.mark:
        starts.append((boot.systemd, "userspace: systemd"))
    starts.append((boot.mark, "userspace: to SSH"))
    if boot.ssh is not None:
        starts.append((boot.ssh, "guest is up"))
    starts += [(e.time, "shutdown") for e in boot.qemu if "shutdown_request" in e.name][:1]
    starts.sort(key=lambda start: start[0])
    ends = [at for at, _ in starts[1:]] + [max(boot.exit, starts[-1][0])]
    return [
        Phase(name, at, round(end - at, 9))
        for (at, name), end in zip(starts, ends, strict=True)
        if end > at
    ]


def _machine(boot: BootEvents, run: float | None) -> list[tuple[float, str]]:
    first = next((e.time for e in boot.qemu if e.name in _MEMORY_EVENTS), None)
    if first is None:
        return []
    # QEMU's last event before the guest runs may have begun something long: a map of RAM
    last = max((e.time for e in boot.qemu if run is not None and e.time < run), default=first)
    done = max([last, *(end for end in boot.operation_ends if run is not None and end <= run)])
    waits = [(done, "QEMU waits to be started")] if run is not None else []
    return [(first, "machine init"), *waits]


def _firmware(boot: BootEvents, run: float, until: float) -> list[tuple[float, str]]:
    """Return the phases of firmware, boot loader and kernel entry, from `run` to `until`."""
    starts = [(run, "firmware: entry")]
    entry = _entry(boot, run, until)
    end = until if entry is None else entry
    in_firmware = [w for w in boot.writes if run <= w.time < end and w.device not in HOST_BRIDGES]
    placing = [w for w in in_firmware if _places(w)]
    if placing:
        # enabling a device after that belongs to the enumeration if it maps or unmaps a BAR
        last = max(w.time for w in in_firmware if _places(w) or w.time in boot.ends)
        starts.append((placing[0].time, "firmware: PCI enumeration"))
        starts.append((max(last, boot.ends.get(last, last)), "firmware: hand-over"))
    loader = next((t for t, line in boot.console if t < end and _LOADER.search(line)), None)
    if loader is not None:
        starts.append((loader, "boot loader"))
    if entry is not None:
        starts.append((entry, "kernel: entry"))
    return starts


def _entry(boot: BootEvents, run: float, until: float) -> float | None:
    """Return the time of the kernel's entry, or None. The boot CPU is the one that places the
    BARs. Its first write to EFER after the first placement is the kernel's; firmware that enters
    long mode does so before it places BARs."""
    placing = [w for w in boot.writes if run <= w.time < until and _places(w)]
    after = placing[0].time if placing else run
    threads = {w.thread for w in placing}
    return next(
        (at for at, thread, register, _ in boot.msrs
         if register == _EFER and after < at < until and (not threads or thread in threads)),
        None,
    )  # fmt: skip


def _places(write: ConfigWrite) -> bool:
    """True if a bus number, a BAR, a ROM or a bridge's window is written."""
    return 0x10 <= write.offset < 0x3C and write.device not in HOST_BRIDGES


def _kernel(boot: BootEvents, first: float) -> list[tuple[float, str]]:
    starts = [(first, "kernel: init")]
    devices: list[tuple[float, str]] = []
    where = "init"
    enumerated = False
    for at, line in boot.console:
        if at < first or (match := _PRINTK.match(line)) is None:
            continue
        text = match[1]
        if (bus := _BUS.search(text)) is not None:
            where, enumerated = "bus", True
            starts.append((at, f"kernel: PCI enumeration, bus {bus[1]}"))
        elif where == "bus" and (device := _DEVICE.match(text)) is not None:
            devices.append((at, device[1]))
            starts.append((at, f"kernel: PCI enumeration, {device[1]}"))
        elif where == "bus" and not _PCI.match(text):
            where = "init"
            starts.append((at, "kernel: init"))
            devices.append((at, ""))
        elif where == "init" and enumerated and _RESOURCES.match(text):
            where = "resources"
            starts.append((at, "kernel: PCI resources"))
        elif where == "resources" and not _PCI.match(text):
            where = "init"
            starts.append((at, "kernel: init"))
        elif _INIT.match(text):
            starts.append((at, "userspace"))
            break
    ends = [*[at for at, _ in devices[1:]], boot.mark][: len(devices)]
    spans = zip(devices, ends, strict=True)
    for (at, address), end in spans:
        starts += _sizing(boot, address, at, end)
    return starts


def _sizing(boot: BootEvents, address: str, start: float, end: float) -> list[tuple[float, str]]:
    """Return when the sizing of a device's BARs or windows begins (its first write) and when the
    device's enumeration goes on (the end of the last)."""
    writes = [
        w for w in boot.writes
        if w.address == address and start <= w.time < end and (w.offset == 4 or _places(w))
    ]  # fmt: skip
    if not any(_places(w) for w in writes):
        return []
    last = writes[-1].time
    return [
        (writes[0].time, f"kernel: BAR sizing, {address}"),
        (max(last, boot.ends.get(last, last)), f"kernel: PCI enumeration, {address}"),
    ]
