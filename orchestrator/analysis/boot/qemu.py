"""QEMU's own trace events of a guest boot, in the order in which they happened."""

from __future__ import annotations

import re
from dataclasses import dataclass

# `355@1795390491.422015:vfio_listener_region_add_ram region_add [ram] 0x0 - 0x1fffffff [0x7ff5..]`
_EVENT = re.compile(r"(\d+)@(\d+\.\d+):(\w+) ?(.*)")
_WRITE = re.compile(r"(\S+) ([0-9a-f:.]+) @0x([0-9a-f]+) <- 0x([0-9a-f]+)")
_MAPPING = re.compile(r"(\S+) ([0-9a-f:.]+) (\d+),0x([0-9a-f]+)\+0x([0-9a-f]+)")
_REGION = re.compile(r"region_(?:add|del)(?: \[ram\])? 0x([0-9a-f]+) - 0x([0-9a-f]+)"
                     r"(?: \[(0x[0-9a-f]+)\])?")  # fmt: skip
HOST_BRIDGES = frozenset({"mch", "i440FX"})
"""QEMU's names of the host bridges of q35 and pc. Their registers change the guest's memory."""
_BRIDGE = re.compile(r"port|bridge|ioh3420|upstream|downstream")


@dataclass(frozen=True)
class QemuEvent:
    """One trace event of QEMU. With `-msg timestamp=on` its log backend puts the thread and
    CLOCK_REALTIME before it."""

    name: str
    text: str
    thread: int
    wall: float
    """Seconds of the host's CLOCK_REALTIME, which can be set: never mixed with another clock."""
    time: float = 0.0
    """Seconds of the trace clock, if the event was written to the trace (trace_marker)."""


@dataclass(frozen=True)
class ConfigWrite:
    """A write to a function's PCI configuration space (pci_cfg_write)."""

    device: str
    """QEMU's name for the function's type: vfio-pci, pcie-root-port, mch."""
    address: str
    """Address of the function in the guest: 01:00.0"""
    offset: int
    value: int
    thread: int
    time: float

    @property
    def bridge(self) -> bool:
        return _BRIDGE.search(self.device) is not None


@dataclass(frozen=True)
class Region:
    """A range of the guest's physical addresses that QEMU has VFIO map, or unmap."""

    start: int
    size: int
    """Bytes."""
    address: int | None
    """Its place in QEMU's own memory; None for a region that is deleted."""


@dataclass(frozen=True)
class BarPlace:
    """Place that a BAR of a function was given (pci_update_mappings_add)."""

    device: str
    address: str
    bar: int
    start: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.address} BAR {self.bar}"


def parse_event(text: str, time: float = 0.0) -> QemuEvent | None:
    """Parse one line; return None if it is not a trace event."""
    match = _EVENT.match(text)
    if match is None:
        return None
    thread, wall, name, rest = match.groups()
    return QemuEvent(name, rest, int(thread), float(wall), time)


def parse_config_write(event: QemuEvent) -> ConfigWrite | None:
    match = _WRITE.match(event.text) if event.name == "pci_cfg_write" else None
    if match is None:
        return None
    device, address, offset, value = match.groups()
    return ConfigWrite(
        device, address, int(offset, 16), int(value, 16), event.thread, event.time
    )  # fmt: skip


def parse_region_added(event: QemuEvent) -> Region | None:
    """Return the memory that QEMU has VFIO map, the guest's or a BAR's; None for another event."""
    return _region(event) if event.name == "vfio_listener_region_add_ram" else None


def parse_region_deleted(event: QemuEvent) -> Region | None:
    return _region(event) if event.name == "vfio_listener_region_del" else None


def _region(event: QemuEvent) -> Region | None:
    match = _REGION.search(event.text)
    if match is None:
        return None
    start, last = int(match[1], 16), int(match[2], 16)
    return Region(start, last - start + 1, int(match[3], 16) if match[3] else None)


def parse_bar_place(event: QemuEvent) -> BarPlace | None:
    match = _MAPPING.match(event.text) if event.name == "pci_update_mappings_add" else None
    if match is None:
        return None
    device, address, bar, start, size = match.groups()
    return BarPlace(device, address, int(bar), int(start, 16), int(size, 16))
