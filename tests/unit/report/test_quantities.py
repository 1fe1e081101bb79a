from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.verdict.effect import Basis, Effect, Estimate
from orchestrator.report.words.quantities import arm_text, change_text, format_quantity, plural


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (140.9281, "s", "140.9 s"),
        (8.43237, "emulated s", "8.432 s"),
        (0.000494, "emulated s", "494 us"),
        (0.0058321, "s", "5.832 ms"),
        (-1.7186, "s", "-1.719 s"),
        (5e-8, "s", "50 ns"),
        (0.99999, "s", "1 s"),
        (0.99994, "s", "999.9 ms"),
        (0, "emulated s", "0 s"),
        (12345.6, "s", "12346 s"),
        (3e-10, "s", "0.3 ns"),
        (12.34567, "Ginsn", "12.35 Ginsn"),
        (0.0058321, "Ginsn", "5.832 Minsn"),
        (4.04e-7, "Ginsn", "404 insn"),
        (4.04e-6, "Ginsn", "4.04 kinsn"),
        (0, "Ginsn", "0 Ginsn"),
    ],
)
def test_quantities_have_four_digits(value: float, unit: str, shown: str) -> None:
    assert format_quantity(value, unit) == shown


def test_counts_have_all_their_digits() -> None:
    assert format_quantity(8388608, "count") == "8388608"


def test_one_is_not_several() -> None:
    assert (plural(1, "pair"), plural(2, "pair")) == ("1 pair", "2 pairs")


@pytest.mark.parametrize(
    ("unit", "values", "shown"),
    [
        ("s", [8.635], "8.635 s"),
        ("s", [8.0, 9.0], "8.5 s +- 5.9%"),
        ("s", [8.0, 8.0], "8 s"),
        ("s", [1.0, 2.0, 3.0, 4.0, 50.0], "3 s +- 33%"),
        ("s", [100.0, 100.6], "100.3 s +- 0.30%"),
        ("Ginsn", [1.0, 1.0000001], "1 Ginsn +- <0.01%"),
        ("count", [12, 12, 12, 12], "12"),
        ("count", [0, 0, 0, 4, 4], "0 +- 2"),
    ],
)
def test_arm_is_told_with_its_spread(unit: str, values: Sequence[float], shown: str) -> None:
    assert arm_text(unit, values) == shown


def effect(
    ratio: float | None, interval: tuple[float, float] | None = None, basis: Basis = "trials"
) -> Effect:
    same = ratio == 1 and basis == "count"
    return Effect(Estimate(basis, 12, ratio, interval, same=same), "inconclusive")


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        (effect(0.951, (0.947, 0.956)), "-4.9% [-5.3, -4.4]"),
        (effect(0.277), "-72.3%"),
        (effect(1.0002, (0.9995, 1.0009)), "+0.02% [-0.05, +0.09]"),
        (effect(1.0004, basis="exact"), "+0.04%"),
        (effect(1.0, basis="exact"), "0.00%"),
        (effect(1.0, basis="count"), "same"),
        (effect(1 / 20151), "1/20151"),
        (effect(0.05, (0.04, 0.0625)), "1/20 [1/25, 1/16]"),
        (effect(2.341, (2.1, 2.6)), "2.34x [2.1, 2.6]"),
        (effect(1.99), "+99.0%"),
        (effect(0.0), "-100.0%"),
        (effect(None), "from 0"),
        (effect(0.05, (0.0, 0.06)), "1/20 [1/inf, 1/16.7]"),
    ],
)
def test_change_is_a_percentage_or_a_factor(measured: Effect, shown: str) -> None:
    assert change_text(measured) == shown


_RATIOS = st.floats(0, 1e300)


@given(st.none() | _RATIOS, st.none() | st.tuples(_RATIOS, _RATIOS), st.sampled_from(
    ["count", "exact", "trials", "few"]
))  # fmt: skip
def test_every_change_is_short(
    ratio: float | None, interval: tuple[float, float] | None, basis: Basis
) -> None:
    if interval is not None and interval[0] > interval[1]:
        interval = interval[::-1]
    assert len(change_text(effect(ratio, interval, basis))) < 50
