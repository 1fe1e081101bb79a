from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.maps.maps import IOVA
from orchestrator.analysis.maps.theory import (
    Mapping,
    best_leaf,
    count_pages,
    find_stride,
    iommu_blocks,
    predict_lookups,
)
from orchestrator.formats.abi import LEAVES, PAGE
from orchestrator.formats.units import GIB, KIB, MIB

BAR = 0x380000000000
ADDRESS = 0x7F0000000000
LEAF = st.sampled_from(list(LEAVES))


def mapped(size: int = 32 * GIB, skew: int = 0) -> Mapping:
    return Mapping(ADDRESS + skew, BAR, size)


def simulated(mapping: Mapping, largest: str) -> list[tuple[int, str]]:
    """Return address and size of each leaf, page by page, as faults occur."""
    leaves = []
    at, end = mapping.address, mapping.address + mapping.size
    levels = [(name, size) for name, size in LEAVES.items() if size <= LEAVES[largest]]
    while at < end:
        for name, size in reversed(levels):
            start = at - at % size
            physical = mapping.physical + start - mapping.address
            if mapping.address <= start and start + size <= end and physical % size == 0:
                leaves.append((start, name))
                at = start + size
                break
    return leaves


def parts(gib: int, huge: int, small: int) -> st.SearchStrategy[int]:
    """Generate sizes with few leaves of each kind, so that the simulation is quick."""
    return st.builds(
        lambda a, b, c: a * GIB + b * 2 * MIB + c * PAGE,
        st.integers(0, gib), st.integers(0, huge), st.integers(0, small),
    )  # fmt: skip


MAPPINGS = st.builds(
    lambda start, size, skew: Mapping(ADDRESS + start + skew, BAR + start, size or PAGE),
    parts(1, 512, 512), parts(3, 600, 600), st.sampled_from([0, 2 * MIB, 514 * MIB]),
) | st.builds(
    lambda start, size, skew: Mapping(ADDRESS + start + skew, BAR + start, size or PAGE),
    parts(0, 2, 512), parts(0, 8, 600), st.integers(1, 1024).map(lambda n: n * PAGE),
)  # fmt: skip


def test_lookups_of_a_32_gib_bar() -> None:
    assert count_pages(32 * GIB) == 8388608
    assert predict_lookups(32 * GIB) == {"4KiB": 8388608, "2MiB": 16384, "1GiB": 32}


def test_leaf_larger_than_the_bar_is_no_theory() -> None:
    assert list(predict_lookups(512 * MIB)) == ["4KiB", "2MiB"]
    assert list(predict_lookups(MIB)) == ["4KiB"]


@given(st.integers(20, 40))
def test_every_theory_is_recognised_exactly(power: int) -> None:
    bar = 1 << power
    for leaf, count in predict_lookups(bar).items():
        assert find_stride(bar, count) == leaf
        assert find_stride(bar, count + 0.5) is None


@pytest.mark.parametrize("count", [0, 2, 31, 33, 16385])
def test_count_that_fits_no_leaf_is_none(count: int) -> None:
    assert find_stride(32 * GIB, count) is None


@pytest.mark.parametrize(
    ("skew", "largest", "leaves", "tables"),
    [
        (0, "1GiB", {"1GiB": 32}, 0),
        (0, "2MiB", {"2MiB": 16384}, 128 * KIB),
        (0, "4KiB", {"4KiB": 8388608}, 65664 * KIB),
        (2 * MIB, "1GiB", {"2MiB": 16384}, 132 * KIB),
        (2 * MIB, "4KiB", {"4KiB": 8388608}, 65668 * KIB),
        (4 * KIB, "1GiB", {"4KiB": 8388608}, 65672 * KIB),
        (4 * KIB, "2MiB", {"4KiB": 8388608}, 65672 * KIB),
        (3 * GIB, "1GiB", {"1GiB": 32}, 0),
    ],
)
def test_leaves_and_tables_of_a_32_gib_bar(
    skew: int, largest: str, leaves: dict[str, int], tables: int
) -> None:
    assert mapped(skew=skew).leaves(largest) == leaves
    assert mapped(skew=skew).table_bytes(largest) == tables


def test_ends_that_do_not_fill_a_leaf_have_smaller_ones() -> None:
    both = Mapping(ADDRESS - 2 * MIB - PAGE, BAR - 2 * MIB - PAGE, GIB + 2 * MIB + 2 * PAGE)
    assert both.leaves() == {"1GiB": 1, "2MiB": 1, "4KiB": 2}
    # a table of pages and one of 2 MiB before the large leaf, and the same after it
    assert both.table_bytes() == 4 * PAGE


def test_bar_below_a_gibibyte_has_leaves_of_2_mib() -> None:
    assert mapped(512 * MIB).leaves() == {"2MiB": 256}
    assert mapped(512 * MIB).table_bytes() == PAGE


@pytest.mark.parametrize(
    ("physical", "size", "blocks"),
    [
        (BAR, 3 * GIB, 2),
        (BAR, 12 * KIB, 2),
        (BAR, 32 * GIB, 1),
        (BAR, PAGE, 1),
        (BAR + PAGE, 32 * MIB, 8192),
        (BAR + 512 * MIB, GIB, 2),
    ],
)
def test_blocks_of_an_iommu_are_as_large_as_both_addresses_allow(
    physical: int, size: int, blocks: int
) -> None:
    assert iommu_blocks(IOVA, physical, size) == blocks


@given(
    st.integers(0, 2**20).map(lambda n: n * PAGE), st.integers(0, 2**20).map(lambda n: n * PAGE),
    st.integers(1, 2**12).map(lambda n: n * PAGE),
)  # fmt: skip
def test_blocks_of_an_iommu_add_up(iova: int, physical: int, size: int) -> None:
    at = blocks = 0
    while at < size:  # the largest power of two that both addresses and the rest allow
        block = PAGE
        while at + 2 * block <= size and not ((iova + at) | (physical + at)) % (2 * block):
            block *= 2
        at, blocks = at + block, blocks + 1
    assert at == size
    assert iommu_blocks(iova, physical, size) == blocks


@given(MAPPINGS, LEAF)
def test_leaves_are_those_that_faults_would_make(mapping: Mapping, largest: str) -> None:
    if mapping.size > 16 * MIB:
        largest = "1GiB" if largest == "4KiB" else largest
    counted = simulated(mapping, largest)
    assert mapping.leaves(largest) == {
        name: n for name in LEAVES if (n := sum(leaf == name for _, leaf in counted))
    }
    lowest = {at // (2 * MIB) for at, name in counted if name == "4KiB"}
    middle = {at // GIB for at, name in counted if name != "1GiB"}
    assert mapping.table_bytes(largest) == PAGE * (len(lowest) + len(middle))


@given(
    st.integers(0, 2**35).map(lambda n: n * PAGE), st.integers(0, 2**30).map(lambda n: n * PAGE),
    st.integers(1, 2**26).map(lambda n: n * PAGE), LEAF,
)  # fmt: skip
def test_leaves_cover_a_mapping_exactly(
    address: int, physical: int, size: int, largest: str
) -> None:
    leaves = Mapping(address, physical, size).leaves(largest)
    assert sum(LEAVES[name] * n for name, n in leaves.items()) == size
    assert all(n > 0 and LEAVES[name] <= LEAVES[largest] for name, n in leaves.items())


@pytest.mark.parametrize(
    ("bar", "leaf"),
    [(32 * GIB, "1GiB"), (GIB, "1GiB"), (512 * MIB, "2MiB"), (2 * MIB, "2MiB"), (MIB, "4KiB"),
     (4 * KIB, "4KiB")],
)  # fmt: skip
def test_best_leaf_is_the_largest_that_fits(bar: int, leaf: str) -> None:
    assert best_leaf(bar) == leaf
