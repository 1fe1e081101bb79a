"""Why the host refused a map, or a device as a whole: the cause with its numbers, from the errno
of the call, the addresses, and what the host says of itself. Pure.

The kernel's checks are those of vfio_dma_do_map() and vfio_iommu_type1_attach_group()
(drivers/vfio/vfio_iommu_type1.c), unless another function is named.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.boot.timeline import RAM, DmaStep
from orchestrator.analysis.diagnosis.advice import Advice, ProfiledBoot, Remedy, list_names
from orchestrator.analysis.diagnosis.messages import find_errno, list_messages, read_log
from orchestrator.analysis.diagnosis.places import find_claimed_bars, tell_bits
from orchestrator.evidence.surveys.host_report import UNLIMITED, ReservedRegion
from orchestrator.formats.units import GIB, format_size

_HT_START = 0xFD00000000
"""Beginning of the range that AMD's IOMMU keeps for HyperTransport (HT_RANGE_START,
amd_iommu_get_resv_regions() of drivers/iommu/amd/iommu.c; AMD_HT_START of QEMU's hw/i386/pc.c)."""
_DEFAULT_ENTRIES = 65535
"""Maps that a container may have unless dma_entry_limit says otherwise (U16_MAX)."""
_LOG_MAP = re.compile(
    r"vfio_(?:legacy_|container_)?dma_map\(\S+ (0x[0-9a-f]+), (0x[0-9a-f]+), \S+\) = -(\d+)"
)
"""QEMU's message of a map that failed (vfio_listener_region_add() of hw/vfio/listener.c): iova,
size, errno."""
_FAILED_MAP = re.compile(r"(VFIO_MAP_DMA|IOMMU_IOAS_MAP) failed: ([A-Z][\w ]+)")
_LOCK_EXCEEDED = re.compile(r"RLIMIT_MEMLOCK \((-?\d+)\) exceeded")
_RMRR = re.compile(
    r"([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]):.*(?:platform RMRR requirement|1:1 IOMMU"
    r" mapping)"
)
"""intel_iommu_attach_device(); since v6.6 __iommu_device_set_domain() ("iommu: Prevent RESV_DIRECT
devices from blocking domains")."""
_GONE = re.compile(
    r"([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): (?:Unable to change power state from \S+ to"
    r" D0, device inaccessible|can't change power state from D3cold to D0|.*stuck in D3)",
    re.IGNORECASE,
)
"""pci_power_up() of drivers/pci/pci.c."""
_GIVEN_UP = re.compile(
    r"([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): not ready \d+ms after [^;]+; giving up"
)
"""pci_dev_wait() of drivers/pci/pci.c."""
_ALL_ONES = re.compile(
    r"[Uu]nknown PCI header type '127' for device '([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])'"
)
"""libvirt's message of a device whose configuration space reads all ones
(virPCIDeviceReadClass(), virPCIGetHeaderType())."""
_FIRMWARE_OPTION = (
    "an option of the firmware's setup that frees it (the shared memory of the controller's"
    " management: HP's `HP Shared Memory features`, `Pre-boot DMA Protection`), newer firmware, or"
    " another slot"
)


@dataclass(frozen=True)
class RefusedMap:
    """A map that failed. None: not recorded."""

    errno: int
    iova: int | None
    size: int | None
    of: str
    """What was mapped: RAM, a BAR."""
    kind: str = "map"
    """map, unmap, or `map or unmap`."""
    count: int = 1
    """Calls that failed in the same way."""


def list_refusals(boot: ProfiledBoot) -> Iterator[Advice]:
    """Yield an item for each kind of refusal: of the devices first, then of maps."""
    causes = [*_devices(boot), *list_messages(boot)]
    yield from causes
    for refusal in _select(boot):
        yield _explain(boot, refusal)


def _select(boot: ProfiledBoot) -> Iterator[RefusedMap]:
    """Yield the failed maps: those of the trace or, without one there, the first of QEMU's log.
    EFAULT of iommufd is none: it says that a BAR has no pages to pin, without a dma-buf, and QEMU
    goes on."""
    failed = [step for step in boot.timeline.steps if step.result]
    for result in dict.fromkeys(step.result for step in failed):
        steps = [step for step in failed if step.result == result]
        kinds = " or ".join(sorted({step.kind for step in steps}))
        yield RefusedMap(
            -result, steps[0].iova, steps[0].size, steps[0].bar, kinds, len(steps)
        )  # fmt: skip
    if failed:
        return
    log = read_log(boot)
    has_no_dma_buf = "IOMMU_IOAS_MAP failed: Bad address" in log
    for match in _LOG_MAP.finditer(log):
        code, iova, size = int(match[3]), int(match[1], 16), int(match[2], 16)
        if not (has_no_dma_buf and code == errno.EFAULT):
            yield RefusedMap(code, iova, size, _find_bar(boot, size))
            return
    for match in _FAILED_MAP.finditer(log):
        named = find_errno(match[2])
        if named is not None and not (has_no_dma_buf and named == errno.EFAULT):
            yield RefusedMap(named, None, None, RAM)
            return


def _find_bar(boot: ProfiledBoot, size: int) -> str:
    return next((bar.name for bar in boot.facts.bars if bar.size == size), RAM)


# maps ------------------------------------------------------------------------------------------


def _explain(boot: ProfiledBoot, refusal: RefusedMap) -> Advice:
    name = errno.errorcode.get(refusal.errno, str(refusal.errno))
    place = "" if refusal.iova is None else f" at {refusal.iova:#x}"
    size = "" if refusal.size is None else f" ({format_size(refusal.size)})"
    first = ", the first" if refusal.count > 1 else ""
    single = f"an {refusal.kind} was" if refusal.kind == "unmap" else f"a {refusal.kind} was"
    several = f"{refusal.count} calls ({refusal.kind}) were"
    calls = single if refusal.count == 1 else several
    calls_text = f"{calls} refused ({name}){first} of {refusal.of}{size}{place}"
    explain = {
        errno.ENOSPC: _no_entries, errno.ENOMEM: _no_memory, errno.EINVAL: _bad_address,
        errno.EPERM: _no_memory, errno.EFAULT: _no_pages, errno.EEXIST: _mapped_before,
    }.get(refusal.errno)  # fmt: skip
    cause, text, remedies = explain(boot, refusal) if explain else ("map-refused", "", ())
    return Advice(
        cause, "a refused map",
        f"{calls_text}{f': {text}' if text else ': the device cannot reach what is not mapped'}",
        remedies=remedies, bars=(refusal.of,) if refusal.of != RAM else (), is_wrong=True,
    )  # fmt: skip


Explanation = tuple[str, str, tuple[Remedy, ...]]
"""Name of the cause, why, and what helps."""


def _no_entries(boot: ProfiledBoot, _refusal: RefusedMap) -> Explanation:
    limit = boot.facts.settings.dma_entry_limit or boot.report.text("type1/dma_entry_limit")
    limit = limit.strip() or f"{_DEFAULT_ENTRIES}, unless it was set"
    made = sum(_count_alive(boot.timeline.steps))
    has = f", and {made} were made" if made else ""
    return (
        "dma-entry-limit",
        f"vfio_iommu_type1.dma_entry_limit is {limit}: the container may have no more maps{has}",
        (Remedy("dma-entry-limit", "take dma_entry_limit out of /etc/modprobe.d and the host's"
                f" command line (without it there are {_DEFAULT_ENTRIES}), or raise it; a guest"
                " with fewer pieces of memory (huge pages, iommu=pt in a guest with an IOMMU of"
                " its own)"),),
    )  # fmt: skip


def _count_alive(steps: Sequence[DmaStep]) -> Iterator[int]:
    """Yield 1 for each map, -1 for each unmap before the first refusal. QEMU then unmaps all."""
    for step in steps:
        if step.result:
            return
        yield 1 if step.kind == "map" else -1


def _no_memory(boot: ProfiledBoot, refusal: RefusedMap) -> Explanation:
    log = "\n".join(boot.report.new_kernel_log)
    exceeded, limit = _LOCK_EXCEEDED.search(log), boot.report.memlock
    size = format_size(boot.facts.memory)
    if refusal.errno == errno.EPERM and exceeded is None:
        return "map-refused", "", ()
    if exceeded is None and limit == UNLIMITED:
        return (
            "host-memory",
            f"QEMU may lock as much memory as it likes, so the host had too little for {size}",
            (Remedy("less-memory", "less memory for the guest, or end what else uses it"),),
        )
    number = int(exceeded[1]) if exceeded else limit
    amount = "a limit that is not recorded" if number is None else _format_bytes(number)
    hard = boot.guest.hard_limit
    needed = f"{size} of memory and the BARs need more"
    return (
        "memlock",
        f"QEMU may lock {amount} of memory (RLIMIT_MEMLOCK)"
        + (f", from <hard_limit> of {_format_bytes(hard)}" if hard else "")
        + f": {needed}",
        (Remedy("memlock", "<memtune><hard_limit unit='GiB'>"
                f"{-(-boot.facts.memory // GIB) + _count_devices(boot)}</hard_limit> in the"
                " domain's XML; without libvirt: ulimit -l unlimited, LimitMEMLOCK=infinity"),),
    )  # fmt: skip


def _no_pages(boot: ProfiledBoot, refusal: RefusedMap) -> Explanation:
    """Explain EFAULT: a page behind the addresses could not be had (pin_user_pages_remote(),
    follow_fault_pfn())."""
    if refusal.of != RAM:
        return (
            "bar-fault",
            "the host's kernel found no page of the BAR: the device does not answer, sleeps, or"
            " has its memory decoding switched off",
            (Remedy("bar-fault", "the host's kernel log from this time; a reset or a power cycle"
                    " of the device"),),
        )  # fmt: skip
    return (
        "host-memory",
        "the kernel could not get all pages behind it: what holds the guest's"
        f" {format_size(boot.facts.memory)} (a file, huge pages) has less room than that, or a"
        " part of it is another device's memory, which has no pages",
        (Remedy("less-memory", "more room where the memory lies (huge pages, /dev/shm, the limit"
                " of the container), or less memory for the guest"),),
    )  # fmt: skip


def _mapped_before(_boot: ProfiledBoot, _refusal: RefusedMap) -> Explanation:
    """Explain EEXIST: a part of the range is mapped already (vfio_find_dma())."""
    return (
        "map-overlap",
        "a part of this range of the guest's addresses is mapped already: two devices, or a"
        " device and memory, have the same guest addresses",
        (Remedy("map-overlap", "that is the work of the program that runs the guest, or of the"
                " guest's firmware: a newer release of it; until then one large device for each"
                " guest, or each behind a root port of its own"),),
    )  # fmt: skip


def _count_devices(boot: ProfiledBoot) -> int:
    """Return GiB to allow for QEMU and its devices, as libvirt does: one, and one for each device
    (qemuDomainGetMemLockLimitBytes())."""
    return 1 + len({bar.device for bar in boot.facts.bars})


def _format_bytes(size: int) -> str:
    return format_size(size) if size else "nothing"


def _bad_address(boot: ProfiledBoot, refusal: RefusedMap) -> Explanation:
    """Explain EINVAL: the range is outside those that the IOMMU translates
    (vfio_iommu_iova_dma_valid())."""
    if refusal.iova is None:
        return "map-refused", "its address is not recorded", ()
    last = refusal.iova + max(refusal.size or 1, 1) - 1
    bits, width = last.bit_length(), boot.report.iommu_bits
    region = _find_reserved(boot, refusal.iova, last)
    if region is not None:
        return _reserved(region)
    if width is not None and bits > width:
        return (
            "address-bits",
            f"it needs {bits} address bits, the IOMMU translates {width}",
            (Remedy("address-bits", f"a guest CPU of {width} bits, so that its firmware puts BARs"
                    f" below: {tell_bits(boot.guest, width)}"),),
        )  # fmt: skip
    if width is None:
        return (
            "address-bits",
            f"it needs {bits} address bits; how many the IOMMU translates is not recorded",
            (Remedy("address-bits", "a guest CPU with the bits of the IOMMU:"
                    f" {tell_bits(boot.guest, min(bits - 1, 39))} if it is one of 39 bits"),),
        )  # fmt: skip
    return (
        "map-refused", f"it needs {bits} address bits and the IOMMU translates {width}, so that is"
        " not why; no reserved range is there either", (),
    )  # fmt: skip


def _find_reserved(boot: ProfiledBoot, first: int, last: int) -> ReservedRegion | None:
    return next(
        (
            region
            for device in boot.report.devices.values()
            for region in device.reserved
            if region.kind != "direct-relaxable" and region.start <= last and first <= region.end
        ),
        None,
    )


def _reserved(region: ReservedRegion) -> Explanation:
    place = f"{region.start:#x}-{region.end:#x}"
    kept = f"the IOMMU keeps {place} ({region.kind}) from every guest"
    if region.start == _HT_START:
        return (
            "reserved-range", f"{kept}: AMD's range for HyperTransport, just below 1 TiB",
            (Remedy("reserved-range", "QEMU 7.1 or later with a machine type of 7.1 or later puts"
                    " memory above 1 TiB instead (it needs more than 40 address bits); or less"
                    " memory for the guest"),),
        )  # fmt: skip
    return (
        "reserved-range", kept,
        (Remedy("reserved-range", "memory and BARs that leave it out: another amount of memory,"
                " another machine type, or another slot for the device"),),
    )  # fmt: skip


# devices ---------------------------------------------------------------------------------------


def _devices(boot: ProfiledBoot) -> Iterator[Advice]:
    own = {bar.device for bar in boot.facts.bars}
    gone = _find_gone(boot) & own
    gone |= {device.address for device in boot.report.devices.values() if device.answers is False}
    if gone:
        yield Advice(
            "device-gone", "a device that does not answer",
            f"{list_names(sorted(gone))} does not answer{_quote_power(boot, gone)}: it fell off"
            " the bus, or does not wake from D3cold",
            remedies=(
                Remedy("device-gone", "a power cycle of the host (a reboot may not do); against"
                       " its sleep: vfio-pci.disable_idle_d3=1, pcie_port_pm=off, and 0 in the"
                       " device's d3cold_allowed"),
            ), bars=tuple(sorted(gone)), is_wrong=True,
        )  # fmt: skip
    locked = {match[1] for match in _RMRR.finditer("\n".join(boot.report.new_kernel_log))} & own
    locked |= {
        device.address for device in boot.report.devices.values()
        if any(region.kind == "direct" for region in device.reserved) and boot.facts.has_failed
    }  # fmt: skip
    if locked:
        ranges = [
            f"{region.start:#x}-{region.end:#x}"
            for device in boot.report.devices.values()
            for region in device.reserved
            if region.kind == "direct"
        ]
        yield Advice(
            "rmrr", "memory that the firmware keeps for a device",
            f"{list_names(sorted(locked))}: the firmware keeps memory mapped for it"
            f"{f' ({list_names(ranges)})' if ranges else ''} (RMRR), and the kernel gives no such"
            " device to a guest",
            remedies=(Remedy("rmrr", _FIRMWARE_OPTION),), bars=tuple(sorted(locked)),
            is_wrong=True,
        )  # fmt: skip


def _find_gone(boot: ProfiledBoot) -> set[str]:
    """Return the devices that do not answer by the kernel's log or libvirt's message. What the
    log said before the boot is about devices only that did not answer later, either."""
    new = "\n".join(boot.report.new_kernel_log)
    awake = {device.address for device in boot.report.devices.values() if device.answers}
    gone = {match[1] for match in _GONE.finditer(boot.report.text("dmesg"))} - awake
    gone |= {match[1] for match in _GONE.finditer(new)}
    if boot.facts.has_failed:
        # in a boot that went on, such a wait is a cost
        gone |= {match[1] for match in _GIVEN_UP.finditer(new)}
        gone |= {match[1] for match in _ALL_ONES.finditer(read_log(boot))}
    return gone


def _quote_power(boot: ProfiledBoot, addresses: Collection[str]) -> str:
    states = [
        f"{device.address}: {device.power_state}"
        for device in boot.report.devices.values()
        if device.address in addresses and device.power_state
    ]
    return f" (power_state of {', '.join(states)})" if states else ""


def describe_failure(boot: ProfiledBoot, causes: Sequence[Advice]) -> Iterator[Advice]:
    """Yield what is left to say of a failed start for which no cause was found: the line of the
    message that is QEMU's."""
    if not boot.facts.has_failed or causes or find_claimed_bars(boot):
        return
    lines = [line.strip() for line in read_log(boot).splitlines() if line.strip()]
    own = [line for line in lines if "qemu" in line and ("vfio" in line or "error" in line)]
    last = (own or [line for line in lines if not _is_dump(line)] or lines or ["nothing"])[-1]
    yield Advice(
        "start-failed", "a failed start",
        f"QEMU ended before the guest ran, and barometer knows no cause for what it said:"
        f" {last[:300]}", is_wrong=True,
    )  # fmt: skip


def _is_dump(line: str) -> bool:
    """True for a line of a register dump, which QEMU prints when KVM fails."""
    return re.match(r"(?:[A-Z0-9]{2,4} ?= ?[0-9a-f]{4,}|Code=)", line) is not None
