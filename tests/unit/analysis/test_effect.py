from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations, product
from statistics import median

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.statistics.ranks import (
    rank_sum_index,
    signed_rank_below,
    signed_rank_index,
    signed_rank_p,
)
from orchestrator.analysis.statistics.sequential import ALPHA, ERROR, LEAST_FOR_P
from orchestrator.analysis.verdict.effect import (
    FEW_FLOOR,
    LEAST_FOR_INTERVAL,
    OF_MAPS,
    Effect,
    Rule,
    adjust_holm,
    estimate_ratio,
    is_precise,
    judge_effect,
)

SECONDS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=30)
COUNTS = st.lists(st.integers(0, 2**24).map(float), min_size=1, max_size=4)
GINSN = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=5)
OF_UNIT = st.one_of(
    *(st.tuples(st.just(unit), values, values)
      for unit, values in (("s", SECONDS), ("count", COUNTS), ("Ginsn", GINSN)))
)  # fmt: skip
TURNED = {"improved": "regressed", "regressed": "improved"}


def effect(
    baseline: Sequence[float], candidate: Sequence[float], unit: str = "s", *,
    paired: bool = True, rule: Rule | None = None,
) -> Effect:  # fmt: skip
    pairs = list(zip(baseline, candidate, strict=False)) if paired else None
    estimate = estimate_ratio(unit, baseline, candidate, pairs)
    tail_p = None if estimate.tail is None else estimate.tail.p
    return judge_effect(estimate, rule or Rule(), estimate.p, tail_p)


def noisy(n: int, ratio: float = 1.0, cv: float = 0.01, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [ratio * math.exp(draw.gauss(0, cv)) for _ in range(n)]


@pytest.mark.parametrize(
    ("unit", "baseline", "candidate", "verdict"),
    [
        ("count", [8388608], [32], "improved"),
        ("count", [32], [33], "regressed"),
        ("count", [12, 12], [12, 12], "equivalent"),
        ("count", [0], [0], "equivalent"),
        ("count", [0], [3], "regressed"),
        ("count", [12, 13], [12, 13], "inconclusive"),
        ("count", [12, 12], [11, 12], "inconclusive"),
        ("count", [32, 32], [33, 34], "regressed"),
        ("count", [1000] * 12, [1005, 1006] * 6, "regressed"),
        ("count", [5, 5], [0, 0], "improved"),
        ("s", [2.0], [0.19], "improved"),
        ("s", [2.0, 2.1], [0.9, 1.0], "improved"),
        # a single pair differs by a factor of two now and then
        ("s", [2.0], [0.9], "inconclusive"),
        ("s", [1.0], [9.9], "inconclusive"),
        ("s", [1.0], [10.1], "regressed"),
        ("s", [2.0], [1.01], "inconclusive"),
        ("s", [1.0], [1.0], "inconclusive"),
        ("s", [9, 10, 11, 12], [1, 2, 3, 9.5], "inconclusive"),
        ("s", [1.0] * 9, [0.9] * 9, "inconclusive"),
        ("s", noisy(10), noisy(10, 0.9, seed=1), "improved"),
        ("s", noisy(10), noisy(10, 1.1, seed=1), "regressed"),
        ("s", noisy(10), noisy(10, seed=1), "equivalent"),
        ("s", noisy(10, cv=0.2), noisy(10, cv=0.2, seed=1), "inconclusive"),
        # a change that is certain, but too small to call
        ("s", noisy(30, cv=0.001), noisy(30, 1.005, 0.001, seed=1), "equivalent"),
    ],
)
def test_verdict(unit: str, baseline: list[float], candidate: list[float], verdict: str) -> None:
    assert effect(baseline, candidate, unit).verdict == verdict


@pytest.mark.parametrize(
    ("baseline", "candidate", "verdict"),
    [
        ([1.0], [OF_MAPS.ratio - 1e-6], "equivalent"),
        ([1.0], [OF_MAPS.ratio + 1e-6], "equivalent"),
        ([1.0], [1.0099], "equivalent"),
        ([1.0], [1.0101], "regressed"),
        ([1.0101], [1.0], "improved"),
        ([1e-6], [1e-6 + OF_MAPS.ginsn * 0.99], "inconclusive"),
        ([1e-6], [1e-6 + OF_MAPS.ginsn * 1.01], "regressed"),
        ([1.0, 1.01], [1.005, 1.02], "equivalent"),
        ([1.0, 1.02], [1.01, 1.04], "inconclusive"),
        ([1.0, 1.0001], [1.0, 1.3], "equivalent"),
        ([1.0, 1.0001], [1.02, 1.3], "regressed"),
        ([10.0], [10.0], "equivalent"),
        ([10.0], [10.004], "equivalent"),
        ([10.0], [9.996], "equivalent"),
        ([10.0], [10.11], "regressed"),
        ([10.0], [9.89], "improved"),
        # 400 instructions are an allocation that took another path; of 10000 these are more than
        # the margin, so that only the same number is equivalent
        ([10_000e-9], [10_399e-9], "inconclusive"),
        ([10_000e-9], [10_100e-9], "inconclusive"),
        ([10_000e-9], [10_000e-9], "equivalent"),
        ([20_000e-9], [20_399e-9], "equivalent"),
        ([10_000e-9], [10_500e-9], "regressed"),
        ([10_000e-9], [9_500e-9], "improved"),
        ([10.0, 10.001, 10.002], [9.9, 9.95, 10.0005], "equivalent"),
        ([10.0, 10.02], [9.0, 10.01], "inconclusive"),
        ([10.04, 10.0417], [0.000118, 0.000117], "improved"),
        ([0.0], [1.0], "regressed"),
        ([1.0], [0.0], "improved"),
        ([0.0], [0.0], "equivalent"),
    ],
)
def test_instructions_are_judged_by_equality_and_difference(
    baseline: list[float], candidate: list[float], verdict: str
) -> None:
    measured = effect(baseline, candidate, "Ginsn")
    assert measured.verdict == verdict
    assert (measured.interval, measured.estimate.p) == (None, None)


@given(OF_UNIT, st.booleans())
def test_verdict_turns_round_with_the_arms(
    of: tuple[str, list[float], list[float]], paired: bool
) -> None:
    unit, first, other = of
    forth, back = (effect(*arms, unit, paired=paired) for arms in ((first, other), (other, first)))
    tail = forth.estimate.tail
    if tail is None or tail.p > ALPHA:  # a faster arm that is slow at times is not improved
        assert back.verdict == TURNED.get(forth.verdict, forth.verdict)
    if forth.interval is not None and forth.ratio is not None:
        assert forth.interval[0] <= forth.ratio <= forth.interval[1]
        assert back.interval is not None
        assert back.interval == pytest.approx(tuple(1 / x for x in reversed(forth.interval)))
        assert back.estimate.p == pytest.approx(forth.estimate.p)


@given(SECONDS, st.booleans())
def test_times_against_themselves_are_never_a_difference(values: list[float], p: bool) -> None:
    assert effect(values, values, paired=p).verdict in ("equivalent", "inconclusive")


@given(OF_UNIT)
@example(("s", [164.0], [2.0, 163.0]))
def test_few_trials_are_a_difference_only_if_they_do_not_overlap_and_their_medians_are_far(
    of: tuple[str, list[float], list[float]],
) -> None:
    unit, baseline, candidate = of
    if unit == "Ginsn":  # these differ by their resolution
        return
    for paired in (False, True):
        measured = effect(baseline, candidate, unit, paired=paired)
        if measured.verdict == "improved" and measured.estimate.basis == "few":
            assert max(candidate) < min(baseline)
            assert median(candidate) * FEW_FLOOR <= median(baseline)


@given(st.floats(0.001, 1000), st.lists(st.floats(0.5, 2), min_size=1, max_size=12))
def test_effect_does_not_depend_on_the_units_of_the_clock(
    scale: float, values: list[float]
) -> None:
    other = [value * 1.3 for value in reversed(values)]
    plain = effect(values, other)
    scaled = effect([v * scale for v in values], [v * scale for v in other])
    assert scaled.ratio == pytest.approx(plain.ratio)


def test_few_trials_have_no_interval_and_no_p() -> None:
    assert effect(noisy(5), noisy(5, seed=1)).interval is None
    assert effect(noisy(6), noisy(6, seed=1)).interval is not None
    measured = effect(noisy(9), noisy(9, 0.9, seed=1))
    assert (measured.estimate.basis, measured.estimate.p) == ("few", None)


def test_pairs_see_through_what_drifts() -> None:
    drift = [1.0 + 0.1 * i for i in range(20)]
    baseline = [d * v for d, v in zip(drift, noisy(20), strict=True)]
    candidate = [d * v for d, v in zip(drift, noisy(20, 1.03, seed=1), strict=True)]
    assert effect(baseline, candidate).verdict == "regressed"
    assert effect(baseline, candidate, paired=False).verdict == "inconclusive"


def test_one_wild_trial_changes_little() -> None:
    before, after = noisy(20), noisy(20, 1.05, seed=1)
    wild = [*after[:-1], 50.0]
    assert effect(before, wild).verdict == "regressed"
    assert effect(before, wild).ratio == pytest.approx(effect(before, after).ratio or 0, rel=0.01)


@pytest.mark.parametrize("n", [*range(LEAST_FOR_INTERVAL, 14)])
def test_interval_of_pairs_covers_what_enumeration_of_all_signs_says(n: int) -> None:
    """The order statistics i from both ends miss the truth if the signed rank is i or less."""
    index, misses = signed_rank_index(n, ERROR), 0
    assert index is not None
    for signs in product((0, 1), repeat=n):
        rank_sum = sum(rank for rank, sign in enumerate(signs, 1) if sign)
        misses += rank_sum <= index
    assert 0.95 <= 1 - 2 * misses / 2**n <= 0.97
    # the next one would cover less than 95 %
    below = signed_rank_below(n)
    assert below[index] <= ERROR < below[index + 1]


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 9), (7, 7), (8, 6)])
def test_interval_without_pairs_covers_what_enumeration_says(n: int, m: int) -> None:
    index, misses, all_ways = rank_sum_index(n, m, ERROR), 0, 0
    assert index is not None
    for ranks in combinations(range(n + m), n):
        u = sum(rank - i for i, rank in enumerate(ranks))
        misses += u <= index
        all_ways += 1
    assert 0.95 <= 1 - 2 * misses / all_ways <= 0.97


@pytest.mark.parametrize("n", [60, 61, 200])
def test_index_of_many_pairs_goes_on_from_that_of_few(n: int) -> None:
    total = n * (n + 1) / 2
    normal = total / 2 - 1.96 * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    assert signed_rank_index(n, ERROR) == pytest.approx(normal, abs=2)
    assert rank_sum_index(n, n, ERROR) == pytest.approx(
        n * n / 2 - 1.96 * math.sqrt(n * n * (2 * n + 1) / 12), abs=2
    )


@pytest.mark.parametrize("n", [LEAST_FOR_P, 13, 14, 50, 51])
@pytest.mark.parametrize("steps", [2, 1_000_000], ids=["ties and zeros", "neither"])
def test_p_of_pairs_is_scipys(n: int, steps: int) -> None:
    draw = random.Random(n)
    d = np.array([float(round(draw.gauss(0.5, 1) * steps)) for _ in range(n)])
    by_scipy = stats.wilcoxon(d, zero_method="zsplit").pvalue
    assert signed_rank_p(d) == pytest.approx(by_scipy, rel=1e-9)


def test_smallest_numbers_of_trials_can_be_significant_and_fewer_cannot() -> None:
    assert 2 / 2**LEAST_FOR_P <= ALPHA < 2 / 2 ** (LEAST_FOR_P - 1)
    assert effect(noisy(6), noisy(6, 0.9, seed=1), paired=False).estimate.p is None
    assert effect(noisy(7), noisy(7, 0.9, seed=1), paired=False).verdict == "improved"


def test_margin_and_floor_are_the_scenarios() -> None:
    before, after = noisy(20), noisy(20, 1.02, seed=1)
    assert effect(before, after).verdict == "regressed"
    assert effect(before, after, rule=Rule(floor=0.03)).verdict == "equivalent"
    assert effect(before, after, rule=Rule(margin=0.021, floor=0.021)).verdict == "inconclusive"


def test_p_values_are_adjusted_by_holm() -> None:
    assert adjust_holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0]
    assert adjust_holm([]) == []


@given(st.lists(st.none() | st.floats(0, 1), max_size=9))
def test_adjusted_p_is_never_smaller_and_keeps_the_order(ps: list[float | None]) -> None:
    adjusted = adjust_holm(ps)
    known = [(p, a) for p, a in zip(ps, adjusted, strict=True) if p is not None and a is not None]
    assert all(p <= a <= 1 for p, a in known)
    assert [a for _, a in sorted(known)] == sorted(a for _, a in known)


def test_precise_is_narrow_and_clear() -> None:
    assert is_precise(effect([7], [7], "count"), 0.02)
    assert is_precise(effect([1.0], [1.1], "Ginsn"), 0.02)
    assert not is_precise(effect([10.0], [1.0]), 0.02)  # clear, but there is no interval
    assert is_precise(effect(noisy(22), noisy(22, seed=1)), 0.02)
    assert not is_precise(effect(noisy(22), noisy(22, seed=1)), 0.001)
    # equivalent, but a fifth of slow boots would not have shown
    assert effect(noisy(20), noisy(20, seed=1)).verdict == "equivalent"
    assert not is_precise(effect(noisy(20), noisy(20, seed=1)), 0.02)
    # narrow, but neither a difference nor equivalent
    unclear = effect(noisy(10), noisy(10, 1.03, seed=3))
    assert unclear.half_width is not None
    assert not is_precise(effect(noisy(8), noisy(8, 1.06, seed=1)), 0.02)
    # a difference once there are enough pairs for a p
    small = effect(noisy(6, cv=0.002), noisy(6, 1.02, 0.002, seed=1))
    assert small.verdict == "inconclusive"
    assert not is_precise(small, 0.02)
    # the interval of a large effect is narrow, relative to the baseline
    assert is_precise(effect(noisy(10, 100), noisy(10, 0.001, 0.3, seed=1)), 0.02)


def test_times_of_nothing_have_no_logs() -> None:
    measured = effect([0.0, 0.0], [0.0, 0.0])
    assert (measured.ratio, measured.verdict) == (1.0, "equivalent")
    assert effect([0.0] * 2, [1.0] * 2).ratio is None
    assert effect([0.0] * 2, [1.0] * 2).verdict == "regressed"
    assert effect([1.0] * 2, [0.0] * 2).verdict == "improved"
