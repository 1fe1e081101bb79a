"""BARs that the guest never reached: without a place in its address space, claimed on the host, or
not mapped at all. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from orchestrator.analysis.boot.timeline import DmaStep
from orchestrator.analysis.diagnosis.advice import Advice, ProfiledBoot, Remedy, list_names
from orchestrator.analysis.diagnosis.guest import GuestSetup
from orchestrator.evidence.surveys.host_report import DeviceReport, HostReport
from orchestrator.evidence.surveys.profile_facts import ProfileBar
from orchestrator.formats.units import GIB, MIB, format_size
from orchestrator.formats.windows import (
    Vendor,
    choose_placed,
    find_least_bits,
    find_port_window,
    find_window,
)

_LEAST = 64 * MIB
"""Smallest BAR that is missed: smaller ones may lie in the 32-bit window, and QEMU maps none that
is smaller than a page or has its MSI-X table."""
_CANNOT_RESERVE = re.compile(
    r"([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): BAR (\d)[^:]*: can't reserve"
)
"""pci_request_region() of drivers/pci/pci.c."""
_NEWER_OVMF = (
    "OVMF of edk2-stable202211 or later, whose window grows with the address bits"
    " (PlatformDynamicMmioWindow()); the guest has enough of them"
)
_FREE_FRAMEBUFFER = (
    "initcall_blacklist=sysfb_init on the host's kernel command line keeps the firmware's"
    " framebuffer from claiming it (v5.15 and later; before that video=efifb:off), and so does"
    " another graphics adapter as the primary one in the firmware's setup"
)


def list_unreached(boot: ProfiledBoot) -> Iterator[Advice]:
    """Yield an item for each way in which BARs, or addresses, are out of the guest's reach."""
    yield from _beyond_host(boot)
    claimed = find_claimed_bars(boot)
    yield from _claimed(claimed)
    mapped = {step.bar for step in boot.select_bar_steps("map") if not _is_beyond(boot, step)}
    missing = [
        bar for bar in boot.facts.bars
        if bar.size >= _LEAST and bar.name not in mapped and bar.name not in claimed
    ]  # fmt: skip
    if mapped and missing:
        yield _unplaced(boot, missing, mapped)
    elif not mapped and not claimed:
        yield _not_mapped(boot)


def _is_beyond(boot: ProfiledBoot, step: DmaStep) -> bool:
    """True for a map that ends above the guest's address bits: SeaBIOS puts a BAR there if it has
    no other place (pci_bios_map_devices()), and the guest's kernel takes it away."""
    bits = boot.guest.physical_bits
    return bits is not None and step.iova is not None and step.iova + step.size > 1 << bits


def _beyond_host(boot: ProfiledBoot) -> Iterator[Advice]:
    """Yield an item for a guest with more address bits than its host: what firmware puts above the
    host's, KVM cannot map (QEMU warns: `Host physical bits does not match phys-bits property`)."""
    guest, host = boot.guest.physical_bits, boot.report.physical_bits
    if guest is not None and host is not None and guest > host:
        yield Advice(
            "guest-bits", "more address bits than the host has",
            f"the guest's CPU has {guest} address bits ({boot.guest.bits_source}), the host's has"
            f" {host}: what firmware puts above those cannot be reached",
            remedies=(Remedy("guest-bits", tell_bits(boot.guest, host)),), is_wrong=True,
        )  # fmt: skip


def find_claimed_bars(boot: ProfiledBoot) -> dict[str, str]:
    """Return the BARs that were not mapped because something else on the host claims them -> its
    name; empty if the host does not tell it."""
    log = (*boot.report.text("dmesg").splitlines(), *boot.report.new_kernel_log)
    refused = {
        f"{match[1]} BAR {match[2]}" for line in log if (match := _CANNOT_RESERVE.search(line))
    }
    mapped = {step.bar for step in boot.select_bar_steps("map")}
    claimed: dict[str, str] = {}
    for bar in boot.facts.bars:
        device = boot.report.devices.get(bar.device, DeviceReport(bar.device))
        inside = range(bar.start, bar.start + bar.size)
        names = [claim.name for claim in device.claims if claim.start in inside]
        if bar.name not in mapped and (names or bar.name in refused):
            claimed[bar.name] = ", ".join(dict.fromkeys(names))
    return claimed


def _claimed(claimed: dict[str, str]) -> Iterator[Advice]:
    if not claimed:
        return
    who = ", ".join(dict.fromkeys(filter(None, claimed.values()))) or "something else on the host"
    yield Advice(
        "bar-claimed", "a BAR that the host itself claims",
        f"{list_names(claimed)}: claimed by {who}, so that vfio-pci cannot hand it out: QEMU maps"
        " none of it, and each of the guest's accesses ends in QEMU",
        remedies=(Remedy("bar-claimed", _FREE_FRAMEBUFFER),),
        bars=tuple(claimed), is_wrong=True,
    )  # fmt: skip


def _unplaced(
    boot: ProfiledBoot, missing: Sequence[ProfileBar], mapped: Collection[str]
) -> Advice:
    large = [bar for bar in boot.facts.bars if bar.size >= _LEAST]
    sizes = ", ".join(dict.fromkeys(format_size(bar.size) for bar in missing))
    reached = sum(bar.name in mapped for bar in large)
    why = "no place in the guest's address space"
    if boot.guest.physical_bits is not None and not _is_narrow(boot):
        why = "either no place in the guest's address space, or not switched on by the guest"
    beyond = {step.bar for step in boot.select_bar_steps("map") if _is_beyond(boot, step)}
    how = "never mapped"
    if beyond & {bar.name for bar in missing}:
        how += f" within {boot.guest.physical_bits} address bits"
    head = (
        f"{len(missing)} of {len(large)} BARs ({list_names(b.name for b in missing)}, {sizes})"
        f" {'was' if len(missing) == 1 else 'were'} {how}, and {reached}"
        f" {'was' if reached == 1 else 'were'}: {why}"
    )
    return Advice(
        "bar-not-placed", "BARs without a place", f"{head}. {describe_room(boot, reached)}",
        remedies=tuple(_widen(boot)), bars=tuple(bar.name for bar in missing), is_wrong=True,
    )  # fmt: skip


def _group_bars(boot: ProfiledBoot) -> list[tuple[int, ...]]:
    """Return the BARs of each device that firmware puts into its 64-bit window: those that the
    host has above 4 GiB, where a 32-bit BAR cannot be, and all that are large."""
    devices: defaultdict[str, list[int]] = defaultdict(list)
    for bar in boot.facts.bars:
        if bar.start >= 4 * GIB or bar.size >= _LEAST:
            devices[bar.device].append(bar.size)
    return [tuple(sizes) for sizes in devices.values()]


def _read_vendor(report: HostReport) -> Vendor | None:
    if report.is_intel is None:
        return None
    return "intel" if report.is_intel else "amd"


def _find_needed_bits(boot: ProfiledBoot) -> int | None:
    """Return the fewest bits with which the guest's firmware places all BARs."""
    guest = boot.guest
    return find_least_bits(
        guest.firmware or "ovmf", boot.facts.memory, _group_bars(boot),
        vendor=_read_vendor(boot.report), size=guest.window_size,
    )  # fmt: skip


def describe_room(boot: ProfiledBoot, reached: int | None = None) -> str:
    """Return what the guest's bits and its firmware's window have room for, and what it needs.
    `reached`: number of large BARs that did find a place; None: not known."""
    guest, devices = boot.guest, _group_bars(boot)
    whole = format_size(sum(sum(sizes) for sizes in devices))
    if guest.physical_bits is None:
        bits = "How many address bits the guest's CPU has is not recorded"
    else:
        bits = f"The guest's CPU has {guest.physical_bits} address bits ({guest.bits_source})"
    if guest.physical_bits is not None and guest.firmware is not None:
        window = find_window(
            guest.firmware, guest.physical_bits, boot.facts.memory, devices,
            vendor=_read_vendor(boot.report), size=guest.window_size,
        )  # fmt: skip
        count = sum(choose_placed(window, devices))
        # another version of the firmware may have another window: what was seen is told alone
        can = f"has room for {count} of" if reached in (None, count) else "cannot place all"
        bits += (
            f", in which {guest.firmware} {can} {len(devices)} devices"
            if count < len(devices)
            else f", in which {guest.firmware} would have room: others take it, or the guest did"
            " not switch them on"
        )
    hole = guest.hole_size
    small = hole is not None and hole < sum(sum(sizes) for sizes in devices)
    announced = f"; the 64-bit hole (pci-hole64-size) is {format_size(hole or 0)}" * small
    return f"{bits}; the BARs are {whole} together{announced}"


def _widen(boot: ProfiledBoot) -> Iterator[Remedy]:
    least, guest, host = _find_needed_bits(boot), boot.guest, boot.report.physical_bits
    bits = guest.physical_bits
    if least is not None and bits is not None and bits >= least:
        if guest.firmware == "ovmf":
            yield Remedy("firmware", _NEWER_OVMF)
    elif least is not None and (host is None or least <= host):
        yield Remedy("phys-bits", f"{least} address bits would do: {tell_bits(guest, least)}")
    elif least is not None:
        yield Remedy(
            "phys-bits", f"{least} address bits would do, and the host's CPU has {host}: fewer"
            " devices for one guest",
        )  # fmt: skip
    needed = sum(find_port_window(sizes)[0] for sizes in _group_bars(boot))
    size = 1 << needed.bit_length()
    if _can_place(boot, size):
        yield Remedy("window-size", f"or a larger window of OVMF's: {size // MIB} for"
                     " opt/ovmf/X-PciMmio64Mb (fw_cfg)")  # fmt: skip
    if guest.hole_size is not None and guest.hole_size < needed:
        yield Remedy(
            "hole-size",
            f"<pcihole64> (q35-pcihost.pci-hole64-size) of {format_size(size)}, without which the"
            " guest's kernel may not use more",
        )


def _can_place(boot: ProfiledBoot, size: int) -> bool:
    """True if OVMF places all BARs with a window of this size in the bits that the guest has."""
    guest, devices = boot.guest, _group_bars(boot)
    if guest.firmware != "ovmf" or guest.physical_bits is None:
        return False
    window = find_window(
        "ovmf", guest.physical_bits, boot.facts.memory, devices,
        vendor=_read_vendor(boot.report), size=size,
    )  # fmt: skip
    return all(choose_placed(window, devices))


def tell_bits(guest: GuestSetup, bits: int) -> str:
    """Return the setting that gives a guest this many address bits."""
    if not guest.is_libvirts:
        return f"-cpu ...,phys-bits={bits} (of -cpu host: host-phys-bits-limit={bits})"
    if guest.has_host_cpu:
        return f"<cpu><maxphysaddr mode='passthrough' limit='{bits}'/> in the domain's XML"
    return f"<cpu><maxphysaddr mode='emulate' bits='{bits}'/> in the domain's XML"


def _not_mapped(boot: ProfiledBoot) -> Advice:
    names, guest = list_names(bar.name for bar in boot.facts.bars), boot.guest
    problem = f"no BAR was mapped for DMA in this boot (of {names})"
    remedies: tuple[Remedy, ...] = ()
    if guest.has_no_mmap:
        problem += ": QEMU was told so (x-no-mmap); the guest's every access to a BAR ends in QEMU"
        remedies = (Remedy("no-mmap", "take x-no-mmap out of the domain"),)
    elif guest.has_iommufd:
        problem += (
            ": QEMU uses iommufd, which takes a BAR only as a dma-buf (QEMU 11.1, Linux v6.19)"
        )
    elif guest.iommu:
        problem += (
            f": the guest has an IOMMU of its own ({guest.iommu}), behind which a device sees only"
            " what the guest maps for it"
        )
    elif guest.is_known:
        problem += (
            ", and nothing in the guest's definition keeps QEMU from it: its guest did not switch"
            " the device on, or found no place for its BARs"
        )
        remedies = tuple(_widen(boot)) if _is_narrow(boot) else ()
    else:
        problem += "; the guest's definition, which would tell why, is not recorded"
    return Advice(
        "not-mapped", "BARs that are not mapped", problem, remedies=remedies,
        bars=tuple(bar.name for bar in boot.facts.bars), is_wrong=True,
    )  # fmt: skip


def _is_narrow(boot: ProfiledBoot) -> bool:
    """True if the guest's address bits are known, and too few for all BARs."""
    bits, least = boot.guest.physical_bits, _find_needed_bits(boot)
    return bits is not None and (least is None or bits < least)
