"""Level of the page tables that a DMA map of the BAR really used, and why it is not the best one.

The evidence is counts, never a version: the order of the faults shows the leaves of the process,
the return values of the lookups show the stride by which the kernel walked them, the pages of the
IOMMU's tables show the leaves that the device got. Possible causes are checked in the order in
which they take effect; a level that none of them explains is `unexplained`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as MappingType
from dataclasses import dataclass

from orchestrator.analysis.maps.maps import MapPass, Place
from orchestrator.analysis.maps.theory import Mapping, best_leaf, count_pages
from orchestrator.evidence.facts import Settings
from orchestrator.formats.abi import LEAVES, PAGE

_BEST = "1GiB"
_QEMU_TABLES = 8 << 20
"""Upper limit, in bytes, of the page tables that QEMU needs for itself: 1.3 MiB was seen."""


@dataclass(frozen=True)
class LevelReason:
    name: str
    """Short and stable: misaligned, thp-sysfs, thp-prctl, thp-madvise, no-huge-pfnmap, no-series,
    too-small, disable-hugepages, iommu-no-superpages, qemu-unaligned, unexplained."""
    text: str


@dataclass(frozen=True)
class Level:
    place: str
    """SIZE/ALIGNMENT"""
    leaf: str | None
    """Leaf that maps most of the BAR in the process: 1GiB, 2MiB, 4KiB; None: not known."""
    stride: str | None
    """Range that one lookup covers."""
    iommu: str | None
    """4KiB if the IOMMU's tables grew as by 4 KiB leaves; None: larger, or not known."""
    reasons: tuple[LevelReason, ...]
    """Why a leaf is not 1 GiB, in the process or in the IOMMU, or why a lookup does not cover a
    leaf."""

    @property
    def best(self) -> bool:
        return not self.reasons


NO_HUGE_PFNMAP = LevelReason(
    "no-huge-pfnmap",
    "the kernel maps BARs by 4 KiB pages only: it has no vfio_pci_mmap_huge_fault (v6.12)",
)


def find_level(place: Place, counted: MapPass, settings: Settings) -> Level:
    """Return the level of one place. `settings`: those of the host's facts.json."""
    if place.dma_buf:
        return Level(place.name, None, None, None, ())
    size = place.mapping.size
    leaves = place.leaves
    leaf = _most(leaves) if leaves is not None else "4KiB"
    stride = _stride(place)
    iommu = _iommu_leaf(place, size)
    reasons = _leaf_reasons(place, counted, leaf, huge_pfnmap=leaves is not None)
    single = place.counts is not None and set(place.counts.pins) == {1}
    disabled = settings.get("vfio_disable_hugepages") in ("Y", "1")
    if single and disabled and size > PAGE:
        reasons.append(
            LevelReason(
                "disable-hugepages",
                "vfio_iommu_type1.disable_hugepages=Y: each page is pinned and mapped by itself",
            )
        )
    elif stride == "4KiB" and leaf != "4KiB":
        reasons.append(
            LevelReason(
                "no-series",
                f"a stride of one page over leaves of {leaf}, as without"
                ' "vfio/type1: Use mapping page mask for pfnmaps" (v6.15)',
            )
        )
    if iommu == "4KiB" and not (single and disabled):
        reasons.append(_iommu_reason(settings))
    return Level(place.name, leaf, stride, iommu, tuple(reasons))


def _most(leaves: MappingType[str, int]) -> str | None:
    """Return the leaf size that maps most of the bytes."""
    return max(leaves, key=lambda name: leaves[name] * LEAVES.get(name, 0), default=None)


def _stride(place: Place) -> str | None:
    if place.counts is None or not place.counts.lookups:
        return None
    count = sum(place.counts.lookups.values())
    if place.leaves and count == sum(place.leaves.values()):
        return _most(place.leaves)
    return "4KiB" if count == count_pages(place.mapping.size) else None


def _iommu_leaf(place: Place, size: int) -> str | None:
    grown = max((s.iommu_table_pages or 0 for s in place.samples), default=0)
    by_pages = size // LEAVES["2MiB"]  # a table for each 2 MiB
    return "4KiB" if by_pages >= 16 and grown >= by_pages else None


def _leaf_reasons(
    place: Place, counted: MapPass, leaf: str | None, *, huge_pfnmap: bool
) -> list[LevelReason]:
    """Return why the process's leaves are not 1 GiB."""
    if leaf is None or leaf == _BEST:
        return []
    if not huge_pfnmap:
        return [NO_HUGE_PFNMAP]
    reasons = alignment_reasons(place.mapping)
    allowed = _most(place.mapping.leaves()) or leaf
    if LEAVES.get(leaf, 0) < LEAVES[allowed]:  # a leaf of another order has no name
        reasons.append(_thp_reason(place, counted, leaf))
    return reasons


def alignment_reasons(mapping: Mapping) -> list[LevelReason]:
    """Return why leaves of 1 GiB cannot map this mapping on any kernel."""
    fits, reasons = best_leaf(mapping.size), []
    if fits != _BEST:
        text = f"{_size(mapping.size)} is less than a leaf of {_BEST}"
        reasons.append(LevelReason("too-small", text))
    off = (mapping.address - mapping.physical) % LEAVES[fits]
    if off:
        reasons.append(
            LevelReason(
                "misaligned",
                f"the virtual address is {_size(off)} off the BAR's, modulo {fits}:"
                f" {mapping.address:#x} for {mapping.physical:#x}",
            )
        )
    return reasons


def find_guest_level(
    place: str,
    mapping: Mapping,
    page_table_bytes: int | None,
    guest_memory: int,
    qemu: str,
    settings: Settings,
) -> Level:
    """Return the best level at which the guest's QEMU can map the BAR, given where QEMU mapped it.
    The leaf is 4KiB if QEMU's page tables (VmPTE at the boot mark) are as large as 4 KiB leaves of
    the BAR need, and if that is more than QEMU itself and the guest's memory can need."""
    leaf = _most(mapping.leaves())
    reasons = alignment_reasons(mapping)
    if any(r.name == "misaligned" for r in reasons):
        version = tuple(int(part) for part in qemu.split(".") if part.isdecimal())
        known = "9.2 and later do" if version < (9, 2) else "9.2 and later should"
        text = f"QEMU {qemu} did not align the mapping; {known}"
        if not version:  # it did not tell its version, as cloud-hypervisor does not
            text = "the program that runs the guest did not align the mapping; QEMU 9.2 does"
        reasons.append(LevelReason("qemu-unaligned", text))
    by_pages = mapping.table_bytes("4KiB")
    others = _QEMU_TABLES + guest_memory // (LEAVES["2MiB"] // PAGE)
    if leaf != "4KiB" and (page_table_bytes or 0) >= by_pages > others:
        leaf = "4KiB"
        reasons.append(
            policy_reason(settings.get("transparent_hugepage") or "", advised=False)
            or LevelReason("unexplained", "QEMU's page tables are those of 4 KiB leaves")
        )
    return Level(place, leaf, None, None, tuple(reasons))


def _thp_reason(place: Place, counted: MapPass, leaf: str) -> LevelReason:
    if counted.thp_off_in_process:
        return LevelReason("thp-prctl", "the process has PR_SET_THP_DISABLE")
    if "nh" in place.vm_flags:
        return LevelReason("thp-madvise", "the mapping has MADV_NOHUGEPAGE")
    if counted.thp_enabled is None:
        return LevelReason(
            "no-huge-pfnmap", "the kernel has no transparent huge pages, which huge pfnmaps need"
        )
    by_policy = policy_reason(counted.thp_enabled or "", advised="hg" in place.vm_flags)
    return by_policy or LevelReason(
        "unexplained", f"nothing that is known keeps the leaves at {leaf}"
    )


def policy_reason(enabled: str, *, advised: bool) -> LevelReason | None:
    """Return the reason if the policy of transparent huge pages (`enabled`) keeps huge pages from
    a mapping, which may be `advised` (MADV_HUGEPAGE)."""
    policy = re.search(r"\[(\w+)\]", enabled)
    if policy and (policy[1] == "never" or (policy[1] == "madvise" and not advised)):
        return LevelReason(
            "thp-sysfs",
            f"/sys/kernel/mm/transparent_hugepage/enabled is {policy[1]}, which kernels like"
            " v6.12 apply to BARs too",
        )
    return None


def _iommu_reason(settings: Settings) -> LevelReason:
    cmdline = settings.get("cmdline") or ""
    options = re.findall(r"\b(?:intel_iommu|amd_iommu)=(\S+)", cmdline)
    off = [word for option in options for word in option.split(",")
           if word in ("sp_off", "nohugepages")]  # fmt: skip
    why = f"the kernel's command line has {off[0]}" if off else "its capabilities or its driver"
    return LevelReason(
        "iommu-no-superpages", f"the IOMMU's page tables have leaves of 4 KiB: {why}"
    )


def _size(size: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"
