"""Who says how often the BARs were mapped while a guest booted: the accounts have to agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.analysis.boottrace import BootTrace
from orchestrator.analysis.theory import pages
from orchestrator.analysis.timeline import Note
from orchestrator.analysis.trace import Operation
from orchestrator.command import tail
from orchestrator.errors import EvidenceError


@dataclass(frozen=True)
class Account:
    """The maps and unmaps of the large BARs in one boot, proven complete."""

    maps: tuple[Operation, ...]
    unmaps: tuple[Operation, ...]
    """With those at the exit of QEMU."""
    notes: tuple[Note, ...] = ()


def account_of(
    boot: BootTrace, bar: int, *, mmap: bool, viommu: bool, qemu_log: str, iommufd: bool = False
) -> Account:
    """What happened to the BARs of `bar` bytes. `mmap`: QEMU was to map them (no x-no-mmap);
    `viommu`: the guest has an IOMMU of its own; `iommufd`: QEMU does not use VFIO's container;
    `qemu_log`: what QEMU said besides its trace.

    Raises EvidenceError when a map was refused or is not of the whole BAR, when the ioctls, QEMU's
    own account (vfio_listener_region_add_ram) and the kernel's tracepoint iommu:map do not agree,
    and when there is no map for no known reason. A refused map does not fail the boot: QEMU warns
    once, and the boot is fast.
    """
    if iommufd:
        return Account((), (), (_by_iommufd(qemu_log),))
    # by their places too: a piece of RAM may be as large as a BAR
    at = {place.start for _, place in boot.bar_places if place.size == bar}
    of_bars = [o for o in boot.operations if o.size == bar and o.iova in at]
    maps = [o for o in of_bars if o.kind == "map"]
    # QEMU also unmaps where nothing is mapped, as when a guest's own IOMMU takes over
    unmaps = [o for o in of_bars if o.kind != "map" and o.unmapped in (None, bar)]
    notes = _taken_over(boot) if viommu else ()
    _regions_agree(boot, viommu=viommu)
    if not maps:
        return Account((), (), (_why_not_mapped(boot, mmap=mmap, viommu=viommu, said=qemu_log),))
    if not mmap:
        raise EvidenceError(
            f"QEMU was told not to map the BARs (x-no-mmap), and mapped one {len(maps)} times",
            reason="mapped-anyway",
        )
    refused = [o for o in maps if o.result != 0]
    if refused:
        raise EvidenceError(
            f"{len(refused)} of {len(maps)} maps of the BAR were refused"
            f" (VFIO_IOMMU_MAP_DMA returned {refused[0].result})",
            reason="map-refused",
        )
    short = [o.pages for o in maps if o.pages not in (None, pages(bar))]
    if short:
        raise EvidenceError(
            f"vfio_pin_pages_remote returned {short[0]} pages for a BAR of {pages(bar)}",
            reason="partial-map",
        )
    by_qemu = sum(region.size == bar and region.start in at for region in boot.regions)
    by_iommu = sum(size == bar and iova in at for iova, size in boot.iommu_maps)
    # each IOMMU domain of the container is mapped; devices share one as long as they can
    if by_qemu != len(maps) or by_iommu == 0 or by_iommu % len(maps):
        raise EvidenceError(
            f"the BAR was mapped {len(maps)} times by ioctl, {by_qemu} times by QEMU's account, "
            f"{by_iommu} times by the iommu:map tracepoint",
            reason="maps-disagree",
        )
    if len(unmaps) != len(maps) or any(o.result != 0 for o in unmaps):
        raise EvidenceError(
            f"{len(maps)} maps of the BAR, {len(unmaps)} unmaps (with the release at exit), "
            f"results {sorted({o.result for o in unmaps})}",
            reason="unmaps-disagree",
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
    """What QEMU says that it has mapped, RAM included, is what was asked of the kernel; but for
    what it maps on behalf of the guest's own IOMMU."""
    asked = Counter((o.iova, o.size) for o in boot.operations if o.kind == "map")
    said = Counter((region.start, region.size) for region in boot.regions)
    if asked == said or (viommu and said <= asked):
        return
    (start, size), _ = next(iter(((asked - said) or (said - asked)).items()))
    raise EvidenceError(
        f"QEMU added {said.total()} regions, {asked.total()} were mapped by ioctl; the first that"
        f" differs is {size:#x} bytes at {start:#x}: {said[start, size]} added,"
        f" {asked[start, size]} mapped",
        reason="maps-disagree",
    )


def _by_iommufd(said: str) -> Note:
    """QEMU asks iommufd to map a BAR by its address, is refused (-EFAULT: no pages to pin), warns
    of it and goes on. Raises EvidenceError when it did not: there is a dma-buf then, and nothing
    here traces how that is mapped."""
    if "IOMMU_IOAS_MAP failed" in said or "PCI BAR?" in said:
        return Note("iommufd-without-dma-buf", "the BARs were never mapped for DMA: iommufd takes"
                    " one only as a dma-buf (QEMU 11.1, Linux v6.19)")  # fmt: skip
    raise EvidenceError(
        "QEMU maps by iommufd, and was not refused: how it maps a BAR there is not traced",
        evidence=tail(said, 8), reason="iommufd-not-traced",
    )  # fmt: skip


def _why_not_mapped(boot: BootTrace, *, mmap: bool, viommu: bool, said: str) -> Note:
    """A boot without one map of a BAR is fast, and is not what it seems to be.

    Raises EvidenceError where nothing that was asked for explains it."""
    if not mmap:
        return Note("no-mmap", "the BARs were never mapped for DMA: QEMU was told so (x-no-mmap);"
                    " the guest's every access to them ends in QEMU")  # fmt: skip
    if viommu and _guest_iommu_took_over(boot):
        return Note("guest-viommu", "the BARs were never mapped for DMA: behind the guest's own"
                    " IOMMU a device sees only what the guest maps for it")  # fmt: skip
    raise EvidenceError(
        "the BAR was never mapped while the guest booted",
        evidence=f"{boot.events} events in the trace\n{tail(said, 8)}",
        reason="bar-not-mapped",
    )
