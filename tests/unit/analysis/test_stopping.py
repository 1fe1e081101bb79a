"""The sequential rule and its effect on false alarms; ci/bench/verdicts.py measures it at
length."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import compare_trials
from orchestrator.analysis.verdict.stopping import count_planned, is_enough
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import Metric
from tests.unit.scenarios import map_scenario

MAPS: Metric = "bar_map_cost"


def night(chosen: Scenario, ratio: float, cv: float, seed: int) -> Iterator[TrialResult]:
    draw = random.Random(seed)
    for planned in make_plan(chosen):
        cost = (ratio if planned.arm == "candidate" else 1.0) * math.exp(draw.gauss(0, cv))
        yield TrialResult(
            planned.name, planned.arm, "measured", samples={MAPS: (cost,)}, pair=planned.pair
        )


def until(*overrides: str) -> Scenario:
    return map_scenario(
        "host.accel=tcg", "trials.until={}", "trials.control=false",
        f"expect.{MAPS}=not-regressed",
        *overrides,
    )  # fmt: skip


def ended(chosen: Scenario, results: list[TrialResult]) -> int:
    """Return the number of pairs at which the run stops."""
    planned = count_planned(chosen, results, "tcg")
    return max(trial.pair for trial in make_plan(chosen)[:planned])


def test_quiet_bench_needs_few_pairs_and_a_noisy_one_all() -> None:
    chosen = until()
    # a fifth of slow boots would have shown
    assert ended(chosen, list(night(chosen, 1.0, 0.002, 1))) == 22
    assert ended(chosen, list(night(chosen, 1.05, 0.002, 1))) == 14
    assert 10 < ended(chosen, list(night(chosen, 1.0, 0.025, 1))) < 30
    assert ended(chosen, list(night(chosen, 1.0, 0.2, 1))) == 30


def test_quiet_bench_calls_a_small_change_as_a_noisy_one_does() -> None:
    chosen = until()
    results = list(night(chosen, 1.02, 0.002, 1))
    assert ended(chosen, results) == 14
    results = results[: count_planned(chosen, results, "tcg")]
    assert compare_trials(chosen, {}, results, len(results), "tcg").verdict == "regressed"


def test_run_is_complete_where_it_stopped_and_not_before() -> None:
    chosen = until()
    results = list(night(chosen, 1.05, 0.002, 1))
    at_stop = count_planned(chosen, results, "tcg")
    assert count_planned(chosen, results[:at_stop], "tcg") == at_stop
    assert count_planned(chosen, results[: at_stop - 1], "tcg") > at_stop


def test_number_of_pairs_is_what_it_says() -> None:
    chosen = map_scenario("trials.pairs=3")
    assert count_planned(chosen, [], "exact") == len(make_plan(chosen))


def test_instructions_need_one_block() -> None:
    chosen = until()
    results = list(night(chosen, 1.3, 0.0, 1))
    block = [r for r in results if r.pair <= 2]
    assert is_enough(chosen, block, "exact")


def test_arm_that_keeps_failing_ends_the_run() -> None:
    chosen = until()

    def failing(result: TrialResult, after: int) -> TrialResult:
        if result.arm != "candidate" or result.pair <= after:
            return result
        return TrialResult(result.name, result.arm, "failed", "guest-panic", pair=result.pair)

    results = list(night(chosen, 1.0, 0.2, 1))
    assert ended(chosen, [failing(r, 0) for r in results]) == 2
    # 4 of 8 against 0 of 8: no chance by Fisher's test
    assert ended(chosen, [failing(r, 4) for r in results]) == 8


@pytest.mark.parametrize(("ratio", "least", "most"), [(1.0, 0.0, 0.01), (1.05, 0.95, 1.0)])
def test_false_alarms_stay_rare_however_often_is_looked(
    ratio: float, least: float, most: float
) -> None:
    chosen, nights, calls, covered = until(), 300, 0, 0
    for seed in range(nights):
        results = list(night(chosen, ratio, 0.02, seed))
        results = results[: count_planned(chosen, results, "tcg")]
        [metric] = compare_trials(chosen, {}, results, len(results), "tcg").metrics
        calls += metric.verdict in ("improved", "regressed")
        low, high = metric.effect.interval or (0.0, math.inf)
        covered += low <= ratio <= high
    assert least <= calls / nights <= most
    assert covered / nights >= 0.92
