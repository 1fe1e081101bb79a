"""Account of a guest boot's maps and unmaps of the BARs, on which all sources have to agree."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from dataclasses import dataclass

from orchestrator.analysis.boot.boottrace import BootTrace
from orchestrator.analysis.boot.timeline import Note
from orchestrator.analysis.maps.theory import count_pages
from orchestrator.analysis.tracefs.trace import Operation
from orchestrator.base.errors import EvidenceError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason

_IOAS_MAP = re.compile(r"IOMMU_IOAS_MAP failed: ([^\n,]+)")


@dataclass(frozen=True)
class Account:
    """The maps and unmaps of the large BARs in one boot, proven complete."""

    maps: tuple[Operation, ...]
    unmaps: tuple[Operation, ...]
    """Includes the unmaps at the exit of QEMU."""
    notes: tuple[Note, ...] = ()


def build_account(
    boot: BootTrace, bar: int, *, mmap: bool, viommu: bool, qemu_log: str, iommufd: bool = False
) -> Account:
    """Return the maps and unmaps of the BARs of `bar` bytes. `mmap`: QEMU was configured to map
    them (no x-no-mmap); `viommu`: the guest has an IOMMU of its own; `iommufd`: QEMU does not use
    VFIO's container; `qemu_log`: QEMU's messages besides its trace.

    Raises EvidenceError if a map was refused or does not cover the whole BAR, if the ioctls,
    QEMU's own account (vfio_listener_region_add_ram) and the kernel's tracepoint iommu:map
    disagree, and if there is no map and no setting explains why. A refused map does not fail the
    boot: QEMU warns once, and the boot is fast.
    """
    if iommufd:
        return Account((), (), (_by_iommufd(qemu_log),))
    # matched by address, too: a piece of RAM may be as large as a BAR
    at = {place.start for _, place in boot.bar_places if place.size == bar}
    of_bars = [o for o in boot.operations if o.size == bar and o.iova in at]
    maps = [o for o in of_bars if o.kind == "map"]
    # QEMU also unmaps ranges that are not mapped, as when a guest's own IOMMU takes over
    unmaps = [o for o in of_bars if o.kind != "map" and o.unmapped in (None, bar)]
    notes = _taken_over(boot) if viommu else ()
    _regions_agree(boot, viommu=viommu)
    if not maps:
        return Account(
            (), (), (_why_not_mapped(boot, mmap=mmap, viommu=viommu, qemu_log=qemu_log),)
        )
    if not mmap:
        raise EvidenceError(
            f"QEMU was told not to map the BARs (x-no-mmap), and mapped one {len(maps)} times",
            reason=Reason.MAPPED_ANYWAY,
        )
    refused = [o for o in maps if o.result != 0]
    if refused:
        raise EvidenceError(
            f"{len(refused)} of {len(maps)} maps of the BAR were refused"
            f" (VFIO_IOMMU_MAP_DMA returned {refused[0].result})",
            reason=Reason.MAP_REFUSED,
        )
    short = [o.pages for o in maps if o.pages not in (None, count_pages(bar))]
    if short:
        raise EvidenceError(
            f"vfio_pin_pages_remote returned {short[0]} pages for a BAR of {count_pages(bar)}",
            reason=Reason.PARTIAL_MAP,
        )
    by_qemu = sum(region.size == bar and region.start in at for region in boot.regions)
    by_iommu = sum(size == bar and iova in at for iova, size in boot.iommu_maps)
    # a map goes into each IOMMU domain of the container; devices share a domain if they can
    if by_qemu != len(maps) or by_iommu == 0 or by_iommu % len(maps):
        raise EvidenceError(
            f"the BAR was mapped {len(maps)} times by ioctl, {by_qemu} times by QEMU's account, "
            f"{by_iommu} times by the iommu:map tracepoint",
            reason=Reason.MAPS_DISAGREE,
        )
    if len(unmaps) != len(maps) or any(o.result != 0 for o in unmaps):
        raise EvidenceError(
            f"{len(maps)} maps of the BAR, {len(unmaps)} unmaps (with the release at exit), "
            f"results {sorted({o.result for o in unmaps})}",
            reason=Reason.UNMAPS_DISAGREE,
        )
    return Account(tuple(maps), tuple(unmaps), notes)


def _taken_over(boot: BootTrace) -> tuple[Note, ...]:
    if not _guest_iommu_took_over(boot):
        return ()
    return (
        Note("guest-viommu", "the guest's own IOMMU took over while it booted: from then on the"
             " devices see only what the guest maps for them, until it gives its IOMMU up"),
    )  # fmt: skip


def _guest_iommu_took_over(boot: BootTrace) -> bool:
    return any(e.name == "vfio_listener_region_add_iommu" for e in boot.qemu)


def _regions_agree(boot: BootTrace, *, viommu: bool) -> None:
    """Raise EvidenceError unless the regions that QEMU reports as mapped, RAM included, are those
    that it requested from the kernel. With `viommu` it may request more, on behalf of the guest's
    own IOMMU."""
    mapped = Counter((o.iova, o.size) for o in boot.operations if o.kind == "map")
    announced = Counter((region.start, region.size) for region in boot.regions)
    if mapped == announced or (viommu and announced <= mapped):
        return
    (start, size), _ = next(iter(((mapped - announced) or (announced - mapped)).items()))
    raise EvidenceError(
        f"QEMU added {announced.total()} regions, {mapped.total()} were mapped by ioctl; the"
        f" first that differs is {size:#x} bytes at {start:#x}: {announced[start, size]} added,"
        f" {mapped[start, size]} mapped",
        reason=Reason.MAPS_DISAGREE,
    )


def _by_iommufd(qemu_log: str) -> Note:
    """Return the note on a BAR that iommufd does not map. QEMU requests the map by the BAR's
    address, is refused (-EFAULT: no pages to pin), warns and goes on (iommufd_backend_map_dma()).
    Raises EvidenceError if it was refused for another reason, or not at all: then there is a
    dma-buf, and nothing here traces how that is mapped."""
    refusals = _IOAS_MAP.findall(qemu_log)
    others = [why for why in refusals if not why.startswith(os.strerror(errno.EFAULT))]
    if others:
        raise EvidenceError(
            f"iommufd refused a map: {others[0].strip()}", evidence=tail(qemu_log, 8),
            reason=Reason.MAP_REFUSED,
        )  # fmt: skip
    if refusals or "PCI BAR?" in qemu_log:
        return Note("iommufd-without-dma-buf", "the BARs were never mapped for DMA: iommufd takes"
                    " one only as a dma-buf (QEMU 11.1, Linux v6.19)")  # fmt: skip
    raise EvidenceError(
        "QEMU maps by iommufd, and was not refused: how it maps a BAR there is not traced",
        evidence=tail(qemu_log, 8), reason=Reason.IOMMUFD_NOT_TRACED,
    )  # fmt: skip


def _why_not_mapped(boot: BootTrace, *, mmap: bool, viommu: bool, qemu_log: str) -> Note:
    """Return the note that explains why no BAR was mapped. Such a boot is fast, and misleads.

    Raises EvidenceError if none of the settings explains it.
    """
    if not mmap:
        return Note("no-mmap", "the BARs were never mapped for DMA: QEMU was told so (x-no-mmap);"
                    " the guest's every access to them ends in QEMU")  # fmt: skip
    if viommu and _guest_iommu_took_over(boot):
        return Note("guest-viommu", "the BARs were never mapped for DMA: behind the guest's own"
                    " IOMMU a device sees only what the guest maps for it")  # fmt: skip
    raise EvidenceError(
        "the BAR was never mapped while the guest booted",
        evidence=f"{boot.events} events in the trace\n{tail(qemu_log, 8)}",
        reason=Reason.BAR_NOT_MAPPED,
    )
