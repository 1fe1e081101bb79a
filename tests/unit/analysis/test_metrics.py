"""What the values of a metric are paired to: trials, boots that trials share, nights; and what a
single pair needs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import MetricComparison, compare_trials
from orchestrator.analysis.verdict.effect import FEW_FLOOR, ONE_PAIR_FLOOR, clock_step
from orchestrator.analysis.verdict.metrics import average_boots, pair_boots
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import ARMS, ArmName, Metric
from tests.unit.scenarios import map_scenario, scenario

MAPS: Metric = "bar_map_cost"
BOOTS = st.lists(st.floats(0.01, 100), min_size=2, max_size=30).flatmap(
    lambda values: st.sampled_from(ARMS).map(lambda first: alternate(values, first))
)


def alternate(values: Sequence[float], first: ArmName) -> list[tuple[ArmName, float]]:
    order = ARMS if first == "baseline" else ARMS[::-1]
    return [(order[i % 2], value) for i, value in enumerate(values)]


@given(BOOTS)
def test_no_boot_is_in_two_pairs_and_each_pair_has_both_arms(
    boots: list[tuple[ArmName, float]],
) -> None:
    pairs = pair_boots(boots)
    assert len(pairs) == max(1, len(boots) // 3)
    if len(boots) > 2:
        for number, pair in enumerate(pairs):
            three = boots[3 * number : 3 * number + 3]
            [alone] = [v for arm, v in three if arm == three[1][0]]
            beside = math.exp(fmean(math.log(v) for arm, v in three if arm != three[1][0]))
            sides = (alone, beside) if three[1][0] == "baseline" else (beside, alone)
            assert pair == pytest.approx(sides)


@given(st.integers(3, 30), st.floats(-0.1, 0.1), st.sampled_from(ARMS))
def test_steady_drift_cancels_in_pairs_of_boots(number: int, drift: float, first: ArmName) -> None:
    boots = alternate([math.exp(drift * i) for i in range(number)], first)
    assert [after / before for before, after in pair_boots(boots)] == pytest.approx(
        [1.0] * (number // 3)
    )


def test_consecutive_trials_of_an_arm_are_one_boot() -> None:
    order: list[ArmName] = ["baseline", "candidate", "candidate", "baseline", "baseline"]
    results = [
        TrialResult(str(i), arm, "measured", pair=1 + i // 2, samples={MAPS: (2.0**i,)})
        for i, arm in enumerate(order)
    ]
    results.insert(2, TrialResult("control", "control", "measured", samples={MAPS: (99.0,)}))
    results.insert(3, TrialResult("bad", "candidate", "invalid", samples={MAPS: (99.0,)}))
    boots = average_boots(results, MAPS)
    assert [arm for arm, _ in boots] == ["baseline", "candidate", "baseline"]
    assert [value for _, value in boots] == pytest.approx([1.0, math.sqrt(8), math.sqrt(128)])


def test_boot_is_the_unit_where_trials_share_it() -> None:
    """What a boot adds is five times as large as the noise: 200 nights without a difference."""
    chosen = map_scenario("host.accel=tcg", "host.fresh_boots=false", "trials.pairs=30")
    plan, covered, calls, nights = make_plan(chosen), 0, 0, 200
    for seed in range(nights):
        draw = random.Random(seed)
        results, running, of_boot = [], "", 0.0
        for planned in plan:
            if planned.boots != running:
                running, of_boot = planned.boots, draw.gauss(0, 0.1)
            value = math.exp(of_boot + draw.gauss(0, 0.02))
            results.append(
                TrialResult(
                    planned.name, planned.arm, "measured", pair=planned.pair,
                    samples={MAPS: (value,)},
                )
            )  # fmt: skip
        [metric] = compare_trials(chosen, {}, results, len(results), "tcg").metrics
        low, high = metric.effect.interval or (0.0, math.inf)
        covered += low <= 1 <= high
        calls += metric.verdict in ("improved", "regressed")
        assert metric.control is None  # it shares its boots with the baseline
    assert calls <= 0.01 * nights
    assert covered >= 0.92 * nights


def judge_pair(ratio: float, count: float | None = None, pairs: int = 1) -> MetricComparison:
    results = []
    for pair in range(1, pairs + 1):
        for arm, time, lookups in zip(ARMS, (1.0, ratio), (1000.0, count), strict=True):
            samples = {MAPS: (time * (1 + pair / 100),)}
            if count is not None and lookups is not None:
                samples["pfn_lookups_per_map"] = (lookups,)
            results.append(
                TrialResult(f"{pair}-{arm}", arm, "measured", pair=pair, samples={**samples})
            )
    found = compare_trials(scenario(), {}, results, len(results), "tcg").metric(MAPS)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("ratio", "count", "pairs", "verdict"),
    [
        (3.0, None, 1, "inconclusive"),
        (1 / 3, None, 1, "inconclusive"),
        (1.01 * ONE_PAIR_FLOOR, None, 1, "regressed"),
        (0.99 / ONE_PAIR_FLOOR, None, 1, "improved"),
        # another pair confirms it
        (3.0, None, 2, "regressed"),
        # a count of what it is spent on proves it
        (1 / 3, 10.0, 1, "improved"),
        (3.0, 8000.0, 1, "regressed"),
        # one that is the same, or that went the other way, does not
        (1 / 3, 1000.0, 1, "inconclusive"),
        (1 / 3, 8000.0, 1, "inconclusive"),
        (0.9 * FEW_FLOOR, 8000.0, 1, "inconclusive"),
    ],
)
def test_single_pair_is_confirmed_unless_a_count_proves_it(
    ratio: float, count: float | None, pairs: int, verdict: str
) -> None:
    metric = judge_pair(ratio, count, pairs)
    assert metric.verdict == verdict
    far = max(ratio, 1 / ratio) >= FEW_FLOOR
    assert metric.effect.estimate.unconfirmed == (far and verdict == "inconclusive")


@given(
    st.integers(1, 10**7), st.lists(st.integers(1, 10**4), min_size=2, max_size=20, unique=True)
)
def test_clock_step_divides_every_value(step: int, ticks: list[int]) -> None:
    found = clock_step([step * tick * 1e-9 for tick in ticks])
    assert round(found * 1e9) == step * math.gcd(*ticks)


def test_coarse_clock_widens_the_interval() -> None:
    def width(step: float) -> float:
        draw = random.Random(3)
        results = [
            TrialResult(
                f"{pair}-{arm}", arm, "measured", pair=pair,
                samples={MAPS: (max(step, round(draw.gauss(0.1, 0.001) / step) * step),)},
            )
            for pair in range(1, 21) for arm in ARMS
        ]  # fmt: skip
        [metric] = compare_trials(scenario(), {}, results, len(results), "kvm").metrics
        low, high = metric.effect.interval or (0.0, math.inf)
        return high - low

    fine, ticks, coarse = width(1e-9), width(0.004), width(0.1)
    assert fine < 0.02
    # a tick is 4 % of the time: nothing is known to less than that
    assert 0.03 < ticks < 0.2
    assert coarse >= 1.0
