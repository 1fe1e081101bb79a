"""Theory of a kernel's work to map a BAR, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.formats.abi import LEAVES, PAGE


def count_pages(size: int) -> int:
    """Return the base pages of `size` bytes: the lookups of a kernel that walks page by page."""
    return size // PAGE


def predict_lookups(bar: int) -> dict[str, int]:
    """Return leaf size -> lookups of one DMA map with that stride, for each leaf that fits into
    the BAR.

    Before "vfio/type1: Use mapping page mask for pfnmaps" (v6.15) the stride is always a page;
    since then it is the leaf that maps the address.
    """
    return {name: bar // size for name, size in LEAVES.items() if size <= bar}


def find_stride(bar: int, count: float) -> str | None:
    """Return the leaf size whose number of lookups `count` equals exactly, or None."""
    return next(
        (name for name, expected in predict_lookups(bar).items() if expected == count), None
    )


def best_leaf(size: int) -> str:
    """Return the largest leaf that fits into `size` bytes."""
    return max((n for n, leaf in LEAVES.items() if leaf <= size), key=lambda n: LEAVES[n])


def iommu_blocks(iova: int, physical: int, size: int) -> int:
    """Return the number of blocks, whose sizes are powers of two, by which an IOMMU that has every
    page size maps a range (AMD's v1 page table, virtio-iommu): each is as large as the alignment
    of both addresses and the rest of the range allow. On unmap, kernels before v6.16 walk such a
    domain once for each block."""
    blocks = 0
    while size:
        both = iova | physical
        aligned = both & -both if both else size
        block = min(aligned, 1 << (size.bit_length() - 1))
        iova, physical, size, blocks = iova + block, physical + block, size - block, blocks + 1
    return blocks


@dataclass(frozen=True)
class Mapping:
    """A mapping of a BAR in a process: addresses and size in bytes."""

    address: int
    physical: int
    size: int

    def leaves(self, largest: str = "1GiB") -> dict[str, int]:
        """Return how many leaves of each size map it, none of them larger than `largest`.

        A leaf needs its whole range inside the mapping, and virtual and physical address alike
        modulo its size (vfio_pci_mmap_huge_fault).
        """
        sizes = [n for n in reversed(LEAVES) if LEAVES[n] <= LEAVES[largest]]
        return self._split(self.address, self.address + self.size, sizes)

    def _split(self, start: int, end: int, levels: list[str]) -> dict[str, int]:
        if start >= end:
            return {}
        level, *smaller = levels
        size = LEAVES[level]
        first, last = -(-start // size) * size, end // size * size
        if (self.address - self.physical) % size or first >= last:
            return self._split(start, end, smaller)
        counts = {level: (last - first) // size}
        for a, b in ((start, first), (last, end)):
            for name, count in self._split(a, b, smaller).items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def table_bytes(self, largest: str = "1GiB") -> int:
        """Return the page-table bytes (VmPTE) that the leaves need below the top levels: a page
        for each 2 MiB that has 4 KiB leaves, and one for each 1 GiB that has leaves smaller than
        1 GiB."""
        leaves = self.leaves(largest)
        huge, large = leaves.get("1GiB", 0), leaves.get("2MiB", 0)
        lowest = self._slots(LEAVES["2MiB"]) - large - huge * (LEAVES["1GiB"] // LEAVES["2MiB"])
        return PAGE * (lowest + self._slots(LEAVES["1GiB"]) - huge)

    def _slots(self, slot: int) -> int:
        """Return how many aligned ranges of `slot` bytes the mapping touches."""
        return (self.address + self.size - 1) // slot - self.address // slot + 1
