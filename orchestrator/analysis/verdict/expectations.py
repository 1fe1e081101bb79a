"""Judge a comparison by the scenario's expectations: each metric's outcome, and the exit code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from orchestrator.analysis.statistics.ranks import find_median_interval
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    has_more_failures,
)
from orchestrator.analysis.verdict.effect import LEAST_FOR_EQUIVALENCE, Verdict
from orchestrator.scenario.fields import Bound, Expectation
from orchestrator.scenario.vocabulary import ARMS, METRICS, ArmName, Metric

ExpectationOutcome = Literal["met", "not met", "not known"]
"""Outcome of an expectation."""


def judge_expectations(comparison: Comparison) -> dict[Metric, ExpectationOutcome]:
    """Return whether each metric that decides came out as the scenario expects. A metric without
    an expectation must not regress. Before the run is complete, only a regression is known. If the
    cause of a failure is undecided, an expectation may be `not met`, but never `met`."""
    return {
        name: judge_expectation(comparison, name, comparison.expect.get(name))
        for name in comparison.deciding
    }


def judge_expectation(
    comparison: Comparison, name: Metric, expectation: Expectation | None,
    arm: ArmName = "candidate",
) -> ExpectationOutcome:  # fmt: skip
    """Return whether a metric came out as expected, as `judge_expectations` does. `arm`: the one
    whose own number a bound limits."""
    metric = comparison.metric(name)
    if metric is None or comparison.verdict == "invalid":
        return "not known"
    if expectation is not None:
        outcome = _met(metric, expectation, comparison.judgement.margin, arm)
    else:
        by_verdict: dict[Verdict, ExpectationOutcome] = {
            "improved": "met", "equivalent": "met", "regressed": "not met",
        }  # fmt: skip
        outcome = by_verdict.get(metric.verdict, "not known")
    if len(comparison.results) >= comparison.planned and not (
        outcome == "met" and comparison.has_undecided
    ):
        return outcome
    return outcome if metric.verdict == "regressed" and outcome == "not met" else "not known"


def choose_exit_code(comparison: Comparison) -> int:
    """Return 0 if the expectation is met, 1 if not, 3 if the bench failed, 4 if the run is invalid
    or inconclusive."""
    unmeasured = [arm for arm in ARMS if not comparison.count(arm, "measured")]
    if unmeasured and comparison.verdict != "regressed":
        by_bench = not comparison.has_undecided and all(
            r.by_bench for arm in unmeasured for r in comparison.of_arm(arm)
        )
        return 3 if by_bench and any(r.by_bench for r in comparison.results) else 4
    outcomes = {*judge_expectations(comparison).values()}
    if "not met" in outcomes or has_more_failures(comparison):
        return 1
    return 0 if outcomes == {"met"} else 4


def _met(
    metric: MetricComparison, expectation: Expectation, margin: float, arm: ArmName
) -> ExpectationOutcome:
    if metric.verdict == "invalid":
        return "not known"
    if isinstance(expectation, Bound):
        if expectation.bounded(METRICS[metric.name.partition("@")[0]]) == "ratio":
            return _within(metric, expectation)
        values = metric.candidate if arm == "candidate" else metric.baseline
        return judge_bound(metric, values, expectation)
    accepted = {"not-regressed": ("improved", "equivalent")}.get(expectation, (expectation,))
    if metric.verdict in accepted:
        return "met"
    if metric.verdict != "inconclusive":
        return "not met"
    is_below = expectation == "not-regressed" and _is_clearly_not_worse(metric, margin)
    return "met" if is_below else "not known"


def _is_clearly_not_worse(metric: MetricComparison, margin: float) -> bool:
    """True if the interval ends below the margin, in enough pairs, and no slow trials of the
    candidate speak against that."""
    estimate = metric.effect.estimate
    if estimate.interval is None or estimate.pairs < LEAST_FOR_EQUIVALENCE:
        return False
    return not _is_slow_at_times(metric) and estimate.interval[1] < 1 + margin


def _is_slow_at_times(metric: MetricComparison) -> bool:
    """True if the candidate has so many slow trials more that no interval of the ratio, which is
    that of its usual trials, can speak for it."""
    tail = metric.effect.estimate.tail
    return tail is not None and tail.is_worse and not tail.permits_equivalence


def _within(metric: MetricComparison, bound: Bound) -> ExpectationOutcome:
    """Return whether the whole interval of the ratio is on the right side of the bound (met), or
    on the wrong one (not met)."""
    estimate = metric.effect.estimate
    ratio = math.inf if estimate.ratio is None else estimate.ratio
    low, high = estimate.interval or ((1.0, 1.0) if estimate.same else (ratio, ratio))
    if estimate.interval is None:
        if not (estimate.apart or estimate.same):
            return "not known"
        if estimate.basis == "few":
            low, high = ratio / estimate.floor, ratio * estimate.floor
    if bound.holds(low) and bound.holds(high):
        return "not known" if bound.limits_above and _is_slow_at_times(metric) else "met"
    return "not known" if bound.holds(low) or bound.holds(high) else "not met"


def judge_bound(
    metric: MetricComparison, values: Sequence[float], bound: Bound
) -> ExpectationOutcome:
    """Return whether the numbers of one arm's trials keep a bound. Numbers without noise are one
    number; a count that breaks the bound in any trial has a cause. Noisy numbers keep it (or break
    it) if all do, or if the whole 95 % interval of their median does."""
    if metric.unit == "count":
        return "met" if all(map(bound.holds, values)) else "not met"
    if not metric.effect.is_noisy:
        return "met" if bound.holds(summarize(metric.unit, values).middle) else "not met"
    ends = find_median_interval(values) or (min(values), max(values))
    kept = {bound.holds(value) for value in ends}
    return "not known" if len(kept) > 1 else "met" if kept == {True} else "not met"
