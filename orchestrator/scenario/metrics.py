"""The words of every metric, in one entry each. Tables, sentences, `--help`, the schema, the
reference pages and `barometer explain` are made from these. No pydantic, no TOML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricKind = Literal["cost", "s", "count"]
"""What a metric measures. A cost is in seconds, or on an exact host in Ginsn (10^9 instructions):
`unit_of`. Its name has no unit, so that an expectation, a bisection and a plot apply to every
accelerator as they are; the unit stands beside each number."""

MetricSource = Literal["", "host", "plain", "timing", "counts"]
"""The pass that a number comes from. host: every trial has it. Empty: the workload has no such
number."""


@dataclass(frozen=True)
class MetricWords:
    name: str
    kind: MetricKind
    title: str
    """Name in tables."""
    meaning: str
    """Explanation in a sentence or two."""
    subject: str
    """Subject of a sentence on the metric. `{bar}` is replaced."""
    noun: str
    """What is counted, as it follows the number; empty for a cost."""
    in_boots: MetricSource
    """The pass of the workload guest-boot that measures it."""
    in_maps: MetricSource = ""
    """The pass of the workload map that measures it, at every point."""
    lower_is_better: bool = True
    """True for every metric so far. A ratio below 1 is an improvement only because of that."""

    @property
    def unit(self) -> str:
        return {
            "cost": "seconds; with accel exact Ginsn, 10^9 instructions",
            "s": "seconds",
            "count": "count",
        }[self.kind]

    @property
    def workload(self) -> str:
        """The workload and the pass that measure it, such as `workload guest-boot, pass plain`.
        Both workloads may."""
        if self.in_boots == "host":
            return "every trial on a nested host with fresh boots, but not with accel exact"
        sources = {"guest-boot": self.in_boots, "map": self.in_maps}
        if self.in_boots == self.in_maps:
            return f"pass {self.in_boots}"
        return " or ".join(f"workload {w}, pass {p}" for w, p in sources.items() if p)


METRIC_WORDS: tuple[MetricWords, ...] = (
    MetricWords(
        "guest_boot_cost", "cost", "guest boot to userspace",
        "From the start of the guest's QEMU to the guest's first line from userspace (the boot"
        " mark), untraced.",
        "the boot of a guest with {bar} to userspace", "", "plain",
    ),
    MetricWords(
        "guest_ssh_cost", "cost", "guest boot to SSH",
        "From the start of the guest's QEMU until the guest's SSH server answers, untraced.",
        "the boot of a guest with {bar} to SSH", "", "plain",
    ),
    MetricWords(
        "host_boot_seconds", "s", "host boot to SSH",
        "From the start of the host's QEMU until the host under test answers over SSH. It is no"
        " cost of VFIO: it tells whether the kernels are alike in all else.",
        "the host's boot to SSH", "", "host",
    ),
    MetricWords(
        "bar_map_cost", "cost", "one DMA map",
        "One VFIO_IOMMU_MAP_DMA (or IOMMU_IOAS_MAP) of the BAR, from the ioctl's entry to its"
        " return. Of a guest boot it is the median of the boot's maps.",
        "one DMA map of {bar}", "", "timing", "plain",
    ),
    MetricWords(
        "bar_unmap_cost", "cost", "one DMA unmap",
        "One VFIO_IOMMU_UNMAP_DMA (or IOMMU_IOAS_UNMAP) of the BAR, from the ioctl's entry to its"
        " return. Of a guest boot it is the median of the boot's unmaps.",
        "one DMA unmap of {bar}", "", "timing", "plain",
    ),
    MetricWords(
        "bar_maps_per_boot", "count", "BAR maps until exit",
        "How often QEMU maps a BAR of the device for DMA, from its start to its exit.",
        "one guest boot", " DMA maps of {bar}", "timing",
    ),
    MetricWords(
        "bar_unmaps_per_boot", "count", "BAR unmaps until exit",
        "How often QEMU unmaps a BAR of the device, from its start to its exit. QEMU's end unmaps"
        " what is left.",
        "one guest boot", " DMA unmaps of {bar}", "timing",
    ),
    MetricWords(
        "bar_map_cost_per_boot", "cost", "all maps until exit",
        "The sum of all maps of the BAR, from QEMU's start to its exit.",
        "mapping {bar} in one guest boot", "", "timing",
    ),
    MetricWords(
        "bar_unmap_cost_per_boot", "cost", "all unmaps until exit",
        "The sum of all unmaps of the BAR, from QEMU's start to its exit.",
        "unmapping {bar} in one guest boot", "", "timing",
    ),
    MetricWords(
        "pfn_lookups_per_map", "count", "page lookups in a map",
        "How often one map asks for the page frame of an address: one for each page of 4 KiB"
        ' before "vfio/type1: Use mapping page mask for pfnmaps" (v6.15), one for each leaf of'
        " the page table since. A count by in-kernel histograms, with a cold BAR.",
        "one DMA map of {bar}", " page lookups", "counts", "counts",
    ),
    MetricWords(
        "pfn_faults_per_map", "count", "page faults in a map",
        "How often one map has to install a leaf of the process's page table first: none if the"
        " BAR's page tables are warm. A count by in-kernel histograms.",
        "one DMA map of {bar}", " page faults", "counts", "counts",
    ),
    MetricWords(
        "iova_lookups_per_unmap", "count", "IOMMU walks in an unmap",
        "How often one unmap walks the IOMMU's page table (iommu_iova_to_phys) to find the pages"
        " to release. A count by in-kernel histograms.",
        "one DMA unmap of {bar}", " IOMMU walks", "counts", "counts",
    ),
    MetricWords(
        "iommu_map_cost", "cost", "iommu_map in a map",
        "The part of one map that is spent in iommu_map(), which fills the IOMMU's own page"
        " table.",
        "iommu_map in one DMA map of {bar}", "", "timing",
    ),
)  # fmt: skip
"""Every metric, in the order of a table."""

WORDS = {words.name: words for words in METRIC_WORDS}


def metric_json(words: MetricWords) -> dict[str, object]:
    """Return a metric as `barometer explain --json` prints it."""
    return {
        "name": words.name, "title": words.title, "meaning": words.meaning, "unit": words.unit,
        "kind": words.kind, "measured_by": words.workload, "at_points": bool(words.in_maps),
        "lower_is_better": words.lower_is_better,
    }  # fmt: skip


def explain_metric(words: MetricWords) -> str:
    """Return what `barometer explain METRIC` prints."""
    better = "lower" if words.lower_is_better else "higher"
    lines = [
        f"{words.name}: {words.title}",
        words.meaning,
        f"unit: {words.unit}; {better} is better",
        f"measured by: {words.workload}",
    ]
    if words.in_maps:
        lines.append(
            f"at a point of a map: {words.name}@SIZE/ALIGNMENT/STATE, such as"
            f" {words.name}@full/1GiB/cold"
        )
    return "\n".join(lines)
