"""Parse map.json, which has the map agent's results and the kernel's own counts, and check that
they agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping as MappingType
from dataclasses import dataclass

from orchestrator.analysis.maps.theory import Mapping, count_pages, iommu_blocks
from orchestrator.analysis.tracefs.hist import parse_hist
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.maps import PassRecord
from orchestrator.formats.abi import ORDERS, PAGE, VM_FAULT_NOPAGE
from orchestrator.scenario.vocabulary import is_headline

_WARM_UP = "warm-up"
EVENTS = ("lookup", "pin", "fault", "iova_walk")
"""Probes of the counts pass. Each has a histogram."""
IOVA = 1 << 36
"""Address at which the map agent maps."""
_LEAF_OF_ORDER = {order: name for name, order in ORDERS.items()}


@dataclass(frozen=True)
class Counts:
    """The kernel's work for one map and one unmap, from its own histograms."""

    lookups: Counter[int]
    """Return value of vaddr_get_pfns -> calls."""
    pins: Counter[int]
    """Return value of vfio_pin_pages_remote -> calls."""
    faults: Counter[tuple[int, ...]]
    """(order, result) -> faults of the BAR; (result,) before huge pfnmaps (v6.12)."""
    iova_walks: int
    """iommu_iova_to_phys calls, on unmap."""

    def __sub__(self, before: Counts) -> Counts:
        return Counts(
            self.lookups - before.lookups, self.pins - before.pins, self.faults - before.faults,
            self.iova_walks - before.iova_walks,
        )  # fmt: skip

    @property
    def leaves(self) -> dict[str, int] | None:
        """Leaf size -> how many were installed; None if the kernel does not tell."""
        if any(len(key) != 2 for key in self.faults):
            return None
        leaves: dict[str, int] = {}
        for (order, result), count in self.faults.items():
            if result & VM_FAULT_NOPAGE:
                leaves[_LEAF_OF_ORDER.get(order, f"order {order}")] = count
        return leaves

    @property
    def installed(self) -> int:
        """Faults that installed a mapping."""
        return sum(n for key, n in self.faults.items() if key[-1] & VM_FAULT_NOPAGE)


NOTHING = Counts(Counter(), Counter(), Counter(), 0)


@dataclass(frozen=True)
class Sample:
    """One map and unmap. Seconds of the host's CLOCK_MONOTONIC, around each ioctl."""

    state: str
    """cold, warm; prime: the cold map before the first warm one, if only warm was requested."""
    map_seconds: float
    unmap_seconds: float
    unmapped_bytes: int
    minor_faults: int
    """Minor faults of the thread in the map."""
    page_table_bytes: int
    """Growth of the process's page tables (VmPTE) in the map."""
    iommu_table_pages: int | None
    """Growth of the machine's IOMMU page tables (nr_iommu_pages) in the map."""
    counts: Counts | None


@dataclass(frozen=True)
class Place:
    """One size at one alignment, and its samples in order."""

    name: str
    """SIZE/ALIGNMENT, as the scenario spells them."""
    mapping: Mapping
    vm_flags: tuple[str, ...]
    dma_buf: bool
    samples: tuple[Sample, ...]
    upper_tables: int = 0
    """Page tables of the PUD level that the mapping needs in addition: one for each 512 GiB range
    that it touches and in which the process has mapped nothing else."""

    def of_state(self, state: str) -> list[Sample]:
        return [s for s in self.samples if s.state == state]

    @property
    def counts(self) -> Counts | None:
        """Counts of the first sample that has them."""
        return next((s.counts for s in self.samples if s.counts is not None), None)

    @property
    def leaves(self) -> dict[str, int] | None:
        """Leaf size -> number of such leaves that map this place in the process's page tables.
        From the faults of the first map; None if the kernel does not tell."""
        first = next((s.counts for s in self.samples if s.counts and s.state != "warm"), None)
        return first.leaves if first else None


@dataclass(frozen=True)
class MapPass:
    """Results of the agent in one pass."""

    backend: str
    bar_bytes: int
    thp_enabled: str | None
    """/sys/kernel/mm/transparent_hugepage/enabled"""
    thp_off_in_process: bool
    """prctl(PR_GET_THP_DISABLE)"""
    clock_seconds: tuple[float, ...]
    """Two readings of the clock with nothing between them."""
    empty_seconds: tuple[float, ...]
    """An ioctl that does nothing, measured like a map."""
    places: tuple[Place, ...]

    @property
    def whole(self) -> Place | None:
        """Place of the whole BAR at its best alignment, which gives the headline numbers. None if
        the whole BAR was not mapped."""
        return next(
            (
                place for place in self.places
                if is_headline(f"{place.name}/warm", whole=place.mapping.size == self.bar_bytes)
            ),
            None,
        )  # fmt: skip


def read_pass(answer: PassRecord) -> MapPass:
    """Read one pass of map.json. Raises EvidenceError for incomplete histograms."""
    before = NOTHING
    places = []
    for point in answer.points:
        samples = []
        for raw in point.samples:
            counts = None
            if raw.snapshots:
                total = _counts(raw.snapshots)
                counts, before = total - before, total
            samples.append(
                Sample(
                    raw.state, raw.map_ns / 1e9, raw.unmap_ns / 1e9, raw.unmapped_bytes,
                    raw.minor_faults, raw.page_table_bytes, raw.iommu_table_pages, counts,
                )
            )  # fmt: skip
        mapping = Mapping(point.address, answer.bar_address, point.size)
        places.append(
            Place(point.name, mapping, point.vm_flags, point.dma_buf, tuple(samples),
                  point.upper_tables)
        )  # fmt: skip
    return MapPass(
        answer.backend, answer.bar_bytes, answer.thp.enabled,
        answer.thp.process_disabled == 1,  # -1: not known
        tuple(ns / 1e9 for ns in answer.instrument.clock_ns),
        tuple(ns / 1e9 for ns in answer.instrument.empty_ioctl_ns),
        tuple(p for p in places if p.name != _WARM_UP),
    )  # fmt: skip


def _counts(snapshots: MappingType[str, str]) -> Counts:
    if lacking := [event for event in EVENTS if event not in snapshots]:
        raise EvidenceError(
            f"map.json: a sample has no histogram of {', '.join(lacking)}",
            reason=Reason.MISSING_EVIDENCE,
        )
    tables = {
        event: parse_hist(snapshots[event], ("ret",) * (event == "fault")) for event in EVENTS
    }
    if lost := {name: table.dropped for name, table in tables.items() if table.dropped}:
        raise EvidenceError(f"histograms dropped hits: {lost}", reason=Reason.LOST_EVENTS)
    return Counts(
        Counter({keys[0]: n for keys, n in tables["lookup"].rows}),
        Counter({keys[0]: n for keys, n in tables["pin"].rows}),
        Counter(dict(tables["fault"].rows)),
        tables["iova_walk"].hits,
    )


def check_alike(headline: MapPass, counted: MapPass) -> None:
    """Raise EvidenceError if the maps of another pass differ from those that were counted: in
    their points, in the backend, or in the faults of a state (a warm map that faulted, say)."""
    _equal("map.json", "backend", headline.backend, "backend of the counts pass", counted.backend)
    names = {place.name: place for place in counted.places}
    for place in headline.places:
        if place.name not in names:
            raise EvidenceError(
                f"{place.name} was measured and never counted", reason=Reason.COUNTS_DISAGREE
            )
        for number, sample in enumerate(place.samples):
            where = f"{place.name}/{sample.state} (sample {number + 1})"
            _equal(where, "bytes unmapped", sample.unmapped_bytes, "bytes mapped",
                   place.mapping.size)  # fmt: skip
            same = names[place.name].of_state(sample.state)
            if same:
                _equal(where, "minor faults of the thread", sample.minor_faults,
                       "in the counts pass", same[0].minor_faults)  # fmt: skip


def check_counts(counted: MapPass) -> None:
    """Raise EvidenceError, with the two numbers, if independent sources disagree about a map, or
    if counts are not exactly those of theory."""
    for place in counted.places:
        for number, sample in enumerate(place.samples):
            if sample.counts is None:
                raise EvidenceError(
                    f"{place.name}: a sample of the counts pass has no histograms",
                    reason=Reason.MISSING_EVIDENCE,
                )
            where = f"{place.name}/{sample.state} (sample {number + 1})"
            _check_sample(where, counted, place, sample, sample.counts, first=number == 0)


def _check_sample(
    where: str, counted: MapPass, place: Place, sample: Sample, counts: Counts, *, first: bool
) -> None:
    size = place.mapping.size
    _equal(where, "bytes unmapped", sample.unmapped_bytes, "bytes mapped", size)
    if place.dma_buf:  # its pages are those of a buffer: nothing is looked up, nothing faults
        _equal(where, "lookups, faults and walks",
               (sum(counts.lookups.values()), counts.installed, counts.iova_walks),
               "of a dma-buf", (0, 0, 0))  # fmt: skip
    if counted.backend != "type1":
        return
    looked_up = sum(ret * n for ret, n in counts.lookups.items())
    pinned = sum(ret * n for ret, n in counts.pins.items())
    _equal(where, "pages that lookups covered", looked_up, "pages of the map", count_pages(size))
    _equal(where, "pages that vfio_pin_pages_remote returned", pinned, "pages of the map",
           count_pages(size))  # fmt: skip
    _equal(where, "faults that installed a mapping", counts.installed,
           "minor faults of the thread", sample.minor_faults)  # fmt: skip
    if counts.iova_walks != iommu_blocks(IOVA, place.mapping.physical, size):
        _equal(where, "iommu_iova_to_phys calls", counts.iova_walks, "pages of the unmap",
               count_pages(size))  # fmt: skip
    if place.leaves is not None:
        least = sum(place.leaves.values())
        lookups = sum(counts.lookups.values())
        if lookups != least:  # not leaf by leaf: then it has to be page by page
            _equal(where, "lookups", lookups, f"pages of the map (its leaves are {least})",
                   count_pages(size))  # fmt: skip
    leaves = counts.leaves
    if sample.state == "warm":
        _equal(where, "faults of a warm map", counts.installed, "none", 0)
    elif leaves is not None:
        largest = _largest(leaves)
        theory = place.mapping.leaves(largest)
        _equal(where, "leaves installed", leaves, f"theory of leaves up to {largest}", theory)
        if first:
            _equal(
                where, "growth of the page tables (VmPTE)", sample.page_table_bytes,
                f"tables of leaves up to {largest}",
                place.mapping.table_bytes(largest) + PAGE * place.upper_tables,
            )  # fmt: skip
    elif first:
        _equal(where, "growth of the page tables (VmPTE)", sample.page_table_bytes,
               "tables of 4 KiB leaves",
               place.mapping.table_bytes("4KiB") + PAGE * place.upper_tables)  # fmt: skip
    if not first:
        _equal(where, "growth of the page tables (VmPTE)", sample.page_table_bytes,
               "none, they are there", 0)  # fmt: skip


def _largest(leaves: MappingType[str, int]) -> str:
    return next((name for name in reversed(ORDERS) if name in leaves), "4KiB")


def _equal(where: str, name: str, value: object, other: str, expected: object) -> None:
    if value != expected:
        raise EvidenceError(
            f"{where}: {name}: {value}; {other}: {expected}", reason=Reason.COUNTS_DISAGREE
        )
