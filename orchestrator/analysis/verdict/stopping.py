"""Stop rule of a run with `trials.until`. Pure, so that judging finds where the run stopped.

The rule is applied after each block, to the trials so far. They are enough if every metric that
decides has an interval as narrow as required and a clear verdict. Looking often and stopping at
will finds differences where there are none; therefore noisy metrics are looked at after some
blocks only, and more strictly than once (statistics/sequential.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.statistics.sequential import choose_looks
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import compare_trials, count_more_failures
from orchestrator.analysis.verdict.effect import is_precise
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import ARMS, ArmName

_FAILURES = 2
"""With this many more failures than the baseline's, a candidate is regressed, whatever its times
are."""


def count_planned(scenario: Scenario, results: Sequence[TrialResult], accel: str) -> int:
    """Return the number of trials of the complete run, as far as `results` tell."""
    plan = make_plan(scenario)
    if scenario.trials.until is None:
        return len(plan)
    names = {result.name for result in results}
    for pairs in range(2, scenario.trials.most_pairs + 1, 2):
        block = {trial.name for trial in plan if trial.pair <= pairs}
        if not block <= names:
            break
        seen = [result for result in results if result.pair <= pairs]
        if is_enough(scenario, seen, accel):
            return len(block)
    return len(plan)


def is_enough(scenario: Scenario, results: Sequence[TrialResult], accel: str) -> bool:
    """True if more trials are of no use. `results`: all trials of some blocks."""

    def count(arm: ArmName, kind: str) -> int:
        return sum(result.arm == arm and result.kind == kind for result in results)

    if count_more_failures(results) >= _FAILURES:
        return True
    if not all(count(arm, "measured") for arm in ARMS):
        return True  # an arm of which nothing can be measured
    assert scenario.trials.until is not None
    precision = scenario.trials.until.precision
    comparison = compare_trials(scenario, {}, results, len(results), accel)
    metrics = [comparison.metric(name) for name in comparison.deciding]
    pairs = max(result.pair for result in results)
    if pairs not in choose_looks(scenario.trials.most_pairs) and any(
        metric is None or metric.effect.is_noisy for metric in metrics
    ):
        return False
    return all(metric is not None and is_precise(metric.effect, precision) for metric in metrics)
