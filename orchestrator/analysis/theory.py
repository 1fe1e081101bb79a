"""What a kernel must do to map a BAR, by arithmetic."""

from __future__ import annotations

PAGE = 4096
LEAVES = {"4 KiB page": PAGE, "2 MiB leaf": 2 << 20, "1 GiB leaf": 1 << 30}
"""The page sizes of x86-64's page tables: PTE, PMD, PUD."""


def pages(bar: int) -> int:
    """Base pages of a BAR of `bar` bytes: the lookups of a kernel that walks page by page."""
    return bar // PAGE


def lookups(bar: int) -> dict[str, int]:
    """Lookups of one DMA map with a stride of each leaf size that fits into the BAR.

    Before "vfio/type1: Use mapping page mask for pfnmaps" (v6.15) the stride is always a page;
    since then it is the leaf that maps the address.
    """
    return {name: bar // size for name, size in LEAVES.items() if size <= bar}


def stride_of(bar: int, count: float) -> str | None:
    """The leaf size whose theory `count` equals exactly, or None."""
    return next((name for name, expected in lookups(bar).items() if expected == count), None)
