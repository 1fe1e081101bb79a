"""What a plan can find is what its runs then find; plans that can call nothing are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import compare_trials
from orchestrator.analysis.verdict.power import (
    FOUND,
    check_power,
    compute_power,
    find_shift,
    measure_noise,
)
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.scenarios import map_scenario, scenario

MAPS = "bar_map_cost"


@pytest.mark.parametrize("pairs", [10, 14, 30])
def test_plan_finds_what_it_says_in_as_many_runs_as_it_says(pairs: int) -> None:
    spread = 0.02
    chosen = scenario(f"trials.pairs={pairs}", f"expect.{MAPS}=not-regressed")
    change = compute_power(chosen).find_change(spread)
    assert change is not None
    draw, found, runs = np.random.default_rng(7), 0, 200
    for _ in range(runs):
        values = np.exp(draw.normal(0, spread, (2, pairs)))
        results = [
            TrialResult(
                f"{pair}-{arm}", arm, "measured", pair=pair,
                samples={MAPS: (float(values[number, pair]) * (1 + change * number),)},
            )
            for pair in range(pairs) for number, arm in enumerate(ARMS)
        ]  # fmt: skip
        found += compare_trials(chosen, {}, results, len(results), "kvm").verdict == "regressed"
    assert FOUND - 0.05 < found / runs <= 1.0


@given(st.integers(10, 40), st.sampled_from([0.002, 0.001, 0.0005]))
def test_more_pairs_find_less_and_more_metrics_need_more(pairs: int, level: float) -> None:
    fewer, more = find_shift(pairs, level), find_shift(pairs + 4, level)
    if fewer is not None:
        assert more is not None
        assert more < fewer
        stricter = find_shift(pairs, level / 2)
        assert stricter is None or stricter >= fewer
    assert (fewer is None) == (2 / 2**pairs > level)


def test_simulated_and_normal_powers_meet() -> None:
    simulated, normal = find_shift(60, 0.002), find_shift(61, 0.002)
    assert simulated == pytest.approx(normal, rel=0.08)


BOTH = ("expect.guest_boot_cost=not-regressed", f"expect.{MAPS}=not-regressed")


@pytest.mark.parametrize(
    "overrides",
    [
        ("trials.pairs=10", *BOTH),
        ("trials.pairs=11", *BOTH, "expect.bar_unmap_cost=not-regressed"),
        # consecutive trials share boots: fewer independent pairs
        ("trials.pairs=12", "host.fresh_boots=false", BOTH[0]),
        ("trials.until={max_pairs=10}", *BOTH, "expect.bar_unmap_cost=improved"),
        ("trials.pairs=9", f"expect.{MAPS}=equivalent"),
        (f"expect.{MAPS}=equivalent",),
    ],
)
def test_plan_that_can_call_nothing_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ScenarioError) as error:
        check_power(scenario("host.accel=tcg", *overrides))
    assert error.value.reason == Reason.POWERLESS


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trials.pairs=3", *BOTH),
        ("trials.pairs=10", BOTH[0], "expect.pfn_lookups_per_map=improved"),
        ("trials.pairs=11", *BOTH),
        ("trials.until={}", *BOTH),
        ("trials.until={}", "host.fresh_boots=false", BOTH[0]),
        ("trials.pairs=10", f"expect.{MAPS}=equivalent"),
    ],
)
def test_plan_that_can_call_something_is_not(overrides: tuple[str, ...]) -> None:
    check_power(scenario("host.accel=tcg", *overrides))


def test_exact_maps_need_no_pairs() -> None:
    chosen = map_scenario("host.accel=exact", f"expect.{MAPS}=equivalent")
    check_power(chosen)
    assert compute_power(chosen).metrics == ()


@given(st.floats(0.001, 0.2), st.integers(12, 40))
def test_noise_is_measured_in_the_pairs_whatever_the_night_does(spread: float, pairs: int) -> None:
    draw = np.random.default_rng(pairs)
    noise = np.exp(draw.normal(0, spread, (2, pairs)))
    results = [
        TrialResult(
            f"{pair}-{arm}", arm, "measured", pair=pair, started=f"2026-11-{1 + pair % 9:02d}",
            # it gets a tenth slower from pair to pair, which is no noise
            samples={MAPS: (float(noise[number, pair]) * 1.1**pair * (1 + number),)},
        )
        for pair in range(pairs) for number, arm in enumerate(ARMS)
    ]  # fmt: skip
    comparison = compare_trials(scenario(), {}, results, len(results), "kvm")
    [(metric, night)] = measure_noise(comparison, shares_boots=False)
    assert (metric, night.at, night.trials) == (MAPS, "2026-11-01", 2 * pairs)
    assert night.spread == pytest.approx(spread, rel=0.75)
    assert math.log(night.ratio / 2) == pytest.approx(0, abs=2 * spread)


def test_few_pairs_are_not_remembered() -> None:
    results = [
        TrialResult(f"{pair}-{arm}", arm, "measured", pair=pair, started="2026-11-01",
                    samples={MAPS: (1.0 + pair,)})
        for pair in range(5) for arm in ARMS
    ]  # fmt: skip
    comparison = compare_trials(scenario(), {}, results, len(results), "kvm")
    assert measure_noise(comparison, shares_boots=False) == []
