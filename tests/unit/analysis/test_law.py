from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.maps.scaling import Law, fit_scaling_law
from orchestrator.formats.abi import LEAVES
from orchestrator.formats.units import GIB, MIB

SIZES = st.lists(
    st.integers(1, 2**14).map(lambda n: n * 2 * MIB), min_size=3, max_size=6, unique=True
)


def law(points: list[tuple[int, float]], unit: str = "1GiB") -> Law:
    fitted = fit_scaling_law(points, unit)
    assert fitted is not None
    return fitted


def line(
    fixed: float, each: float, unit: str, sizes: tuple[int, ...] = (GIB, 2 * GIB, 32 * GIB)
) -> list[tuple[int, float]]:
    return [(size, fixed + each * size / LEAVES[unit]) for size in sizes]


@pytest.mark.parametrize(
    ("each", "unit", "kind"),
    [
        (1197e-9, "4KiB", "linear"),  # a lookup, unpatched
        (3046e-9, "2MiB", "linear"),  # a lookup and a fault of 2 MiB, patched
        (3600e-9, "1GiB", "flat"),
        # a cheap lookup is still repeated for each leaf
        (1e-9, "4KiB", "linear"),
    ],
)
def test_cost_is_of_the_unit_that_is_walked(each: float, unit: str, kind: str) -> None:
    fitted = law(line(2e-6, each, unit), unit)
    assert (fitted.kind, fitted.unit) == (kind, unit)
    assert fitted.per_unit == pytest.approx(each, abs=1e-15)
    assert fitted.fixed == pytest.approx(2e-6, abs=1e-10)
    assert fitted.residual < 1e-6


def test_lab_numbers_have_their_laws() -> None:
    unpatched = [(4 * GIB, 1.2553), (16 * GIB, 5.0209), (32 * GIB, 10.0418)]
    assert law(unpatched, "4KiB").kind == "linear"
    assert law(unpatched, "4KiB").per_unit == pytest.approx(1197e-9, rel=1e-3)
    patched = [(4 * GIB, 29.3e-6), (16 * GIB, 67.2e-6), (32 * GIB, 117.9e-6)]
    assert law(patched).kind == "flat"


@pytest.mark.parametrize(
    "points",
    [[], [(GIB, 1.0)], [(GIB, 1.0), (2 * GIB, 2.0)], [(GIB, 1.0), (GIB, 1.1), (2 * GIB, 2.0)]],
)
def test_fewer_than_three_sizes_have_no_law(points: list[tuple[int, float]]) -> None:
    assert fit_scaling_law(points, "1GiB") is None


def test_residual_is_the_largest_deviation_as_a_share_of_the_cost() -> None:
    fitted = law([(GIB, 1.0), (2 * GIB, 2.0), (3 * GIB, 3.3)])
    off = {size: abs(fitted.at(size) - cost) / cost for size, cost in
           [(GIB, 1.0), (2 * GIB, 2.0), (3 * GIB, 3.3)]}  # fmt: skip
    assert fitted.residual == max(off.values())
    assert fitted.residual == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("costs", [(3.0, 2.0, 1.0), (1.0, 1.0, 1.0)])
def test_cost_that_does_not_grow_with_the_size_has_no_law(costs: tuple[float, ...]) -> None:
    points = list(zip((GIB, 2 * GIB, 3 * GIB), costs, strict=True))
    assert fit_scaling_law(points, "1GiB") is None


@pytest.mark.parametrize(("middle", "is_law"), [(5.0, True), (7.0, True), (7.5, False)])
def test_line_that_misses_a_cost_by_a_fifth_is_no_law(middle: float, is_law: bool) -> None:
    points = [(GIB, 4.0), (2 * GIB, middle), (3 * GIB, 6.0)]
    line_of_it = fit_scaling_law(points, "1GiB")
    assert (line_of_it is not None) == is_law
    assert line_of_it is None or line_of_it.residual <= 0.2


@given(SIZES, st.floats(0, 1e-3), st.floats(1e-7, 1e-5), st.sampled_from(list(LEAVES)))
def test_law_of_a_line_says_what_it_was_made_of(
    sizes: list[int], fixed: float, each: float, unit: str
) -> None:
    points = [(size, fixed + each * size / (2 * MIB)) for size in sizes]
    fitted = law(points, unit)
    assert fitted.unit == unit
    assert fitted.kind == ("flat" if unit == "1GiB" else "linear")
    for size, cost in points:
        assert fitted.at(size) == pytest.approx(cost, rel=1e-6)
