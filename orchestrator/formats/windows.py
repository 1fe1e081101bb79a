"""Where a guest's firmware puts large BARs: what a number of address bits has room for.

Each device is behind a root port of its own, whose window is as large as the sum of the device's
64-bit BARs, rounded up to the largest of them, and aligned to it (PCI-to-PCI Bridge Architecture
Specification 1.2, 3.2.5.9; pci_bios_check_devices() of SeaBIOS, src/fw/pciinit.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.formats.units import GIB, TIB

Firmware = Literal["seabios", "ovmf"]
Vendor = Literal["intel", "amd"]
LEAST_BITS, MOST_BITS = 32, 52
"""Physical address bits that an x86-64 processor can have (AMD64 Architecture Programmer's Manual,
volume 2, 5.1: 52 at most)."""
DEFAULT_BITS = 40
"""Bits of a named CPU model of QEMU without phys-bits (TCG_PHYS_ADDR_BITS, target/i386/cpu.h).
`-cpu host` has the host's bits (host_cpu_max_instance_init(), target/i386/host-cpu.c)."""
_Q35_LOW, _Q35_SPLIT = 2 * GIB, 0xB0000000
"""Memory below 4 GiB of a q35 machine with more memory than `_Q35_SPLIT` (pc_q35_init())."""
_SEABIOS_BITS = 44
"""SeaBIOS uses no more bits in a guest with less than 1 TiB above 4 GiB (pci_setup(); "limit
address space used for pci devices, part two", 2024; before that 46, and before 2023 all)."""
_OVMF_BITS = 46
"""OVMF uses no more bits (PlatformAddressWidthFromCpuid(), OvmfPkg/Library/PlatformInitLib)."""
_OVMF_TRUSTED: dict[Vendor, tuple[int, ...]] = {"intel": (36, 39), "amd": (40,)}
"""Bits of 40 or fewer that OVMF believes, because processors of that vendor have them. Other
values may be QEMU's default (the same function)."""
_OVMF_BELIEVED = 41
_OVMF_CLASSIC = 32 * GIB
"""Size of OVMF's window if it does not believe the bits (PcdPciMmio64Size, OvmfPkg*.dsc)."""
OVMF_SHARES = (8, 4)
"""OVMF's window is this part of the address space: an eighth, and since August 2026 a quarter
(PlatformDynamicMmioWindow(); edk2 pull request 12997, "Set dynamic MMIO window size to 1/4 of
total address space")."""


@dataclass(frozen=True)
class Window:
    """Range of guest addresses for 64-bit BARs."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return max(0, self.end - self.start)


def align_up(value: int, to: int) -> int:
    return -(-value // to) * to


def find_port_window(bars: Sequence[int]) -> tuple[int, int]:
    """Return size and alignment of the window of a device with these 64-bit BARs."""
    largest = max(bars)
    return align_up(sum(bars), largest), largest


def find_window(
    firmware: Firmware,
    bits: int,
    memory: int,
    devices: Sequence[Sequence[int]],
    *,
    vendor: Vendor | None = None,
    share: int = OVMF_SHARES[0],
    size: int | None = None,
) -> Window:
    """Return the window in which the firmware of a guest with `memory` bytes puts the BARs of its
    devices. `vendor`: the CPU's; None: not known, taken for one whose bits OVMF does not believe.
    `share`: OVMF's (OVMF_SHARES). `size`: the window's size if the machine's owner set one
    (opt/ovmf/X-PciMmio64Mb)."""
    above = 4 * GIB + _memory_above(memory)
    if firmware == "seabios":
        return _find_seabios_window(bits, above, devices)
    return _find_ovmf_window(bits, above, vendor, share, size)


def _memory_above(memory: int) -> int:
    """Return the bytes of memory that are above 4 GiB."""
    return memory - _Q35_LOW if memory >= _Q35_SPLIT else 0


def _find_seabios_window(bits: int, above: int, devices: Sequence[Sequence[int]]) -> Window:
    """Follow pci_bios_map_devices(): at the top of the address space, or above the memory if that
    is higher. SeaBIOS refuses nothing; what ends beyond the address space is of no use."""
    top = 1 << bits
    if bits > _SEABIOS_BITS and above - 4 * GIB < TIB:
        top = 1 << _SEABIOS_BITS
    ports = [find_port_window(bars) for bars in devices]
    needed = align_up(sum(port for port, _ in ports), GIB)
    if above > 4 * GIB:
        needed = align_up(needed, top >> 3)
    start = max(above, top - needed)
    alignment = max((alignment for _, alignment in ports), default=GIB)
    return Window(align_up(align_up(start, alignment), GIB), 1 << bits)


def _find_ovmf_window(
    bits: int, above: int, vendor: Vendor | None, share: int, size: int | None
) -> Window:
    """Follow PlatformGetFirstNonAddress() and PlatformDynamicMmioWindow()."""
    classic = align_up(size or _OVMF_CLASSIC, GIB)
    natural = 1 << (classic.bit_length() - 1)
    start = align_up(above, natural)
    if bits >= _OVMF_BELIEVED or (vendor and bits in _OVMF_TRUSTED[vendor]):
        space = 1 << min(bits, _OVMF_BITS)
        dynamic = space // share
        if classic < dynamic and start + dynamic < space:
            return Window(space - dynamic, space)
    return Window(start, min(start + classic, 1 << bits))


def choose_placed(window: Window, devices: Sequence[Sequence[int]]) -> list[bool]:
    """Return for each device whether its BARs have room in the window. Larger windows of ports
    come first, as both firmwares sort them."""
    placed = [False] * len(devices)
    at = window.start
    order = sorted(range(len(devices)), key=lambda index: -find_port_window(devices[index])[1])
    for index in order:
        size, alignment = find_port_window(devices[index])
        start = align_up(at, alignment)
        if start + size <= window.end:
            placed[index], at = True, start + size
    return placed


def find_least_bits(
    firmware: Firmware,
    memory: int,
    devices: Sequence[Sequence[int]],
    *,
    vendor: Vendor | None = None,
    share: int = OVMF_SHARES[0],
    size: int | None = None,
) -> int | None:
    """Return the fewest address bits with which the firmware places all devices, and with more of
    which it still does; None if no number does."""
    least = None
    for bits in range(MOST_BITS, LEAST_BITS - 1, -1):
        window = find_window(
            firmware, bits, memory, devices, vendor=vendor, share=share, size=size
        )
        if not all(choose_placed(window, devices)):
            break
        least = bits
    return least
