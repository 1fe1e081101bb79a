from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.theory import lookups, pages, stride_of
from orchestrator.scenario import GIB, MIB


def test_lookups_of_a_32_gib_bar() -> None:
    assert pages(32 * GIB) == 8388608
    assert lookups(32 * GIB) == {"4 KiB page": 8388608, "2 MiB leaf": 16384, "1 GiB leaf": 32}


def test_leaf_larger_than_the_bar_is_no_theory() -> None:
    assert list(lookups(512 * MIB)) == ["4 KiB page", "2 MiB leaf"]
    assert list(lookups(MIB)) == ["4 KiB page"]


@given(st.integers(20, 40))
def test_every_theory_is_recognised_exactly(power: int) -> None:
    bar = 1 << power
    for leaf, count in lookups(bar).items():
        assert stride_of(bar, count) == leaf
        assert stride_of(bar, count + 0.5) is None


@pytest.mark.parametrize("count", [0, 2, 31, 33, 16385])
def test_count_that_fits_no_leaf_is_none(count: int) -> None:
    assert stride_of(32 * GIB, count) is None
