"""The outcome of a comparison: its verdict, and beside it everything that a reader of the verdict
must not miss. Every report takes its words from here, so that none hides what another says. Pure.

It is made once for a comparison (`Comparison.outcome`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from orchestrator.analysis.statistics.sequential import LEAST_FOR_P
from orchestrator.analysis.verdict.effect import Effect, Rule, Verdict
from orchestrator.scenario.metrics import METRIC_WORDS
from orchestrator.scenario.vocabulary import ARMS, ArmName, Metric, is_emulated

if TYPE_CHECKING:
    from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison

_MOST_PAIRS = 1000
"""Estimates beyond this are told as more than it: no run makes so many."""

WITH_REGRESSIONS = ", with regressions"
_OPEN: tuple[Verdict, ...] = ("improved", "equivalent", "inconclusive")
"""Verdicts that do not tell by themselves whether something regressed."""

Emulation = Literal["", "emulated", "guests emulated"]


@dataclass(frozen=True)
class MetricGroup:
    """Those points of one metric that came out alike. A metric without points is a group of its
    own."""

    base: Metric
    """Name of the metric without a point."""
    metrics: tuple[MetricComparison, ...]
    """The metric at each of these points, the largest change for the worse first."""
    of: int
    """Number of points at which both arms have the metric."""

    @property
    def worst(self) -> MetricComparison:
        return self.metrics[0]

    @property
    def names(self) -> list[Metric]:
        return [metric.name for metric in self.metrics]


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    deciding: tuple[MetricComparison, ...]
    """Metrics that decide the verdict, in the scenario's order."""
    not_measured: tuple[Metric, ...]
    """Metrics that decide the verdict and were not measured in both arms."""
    regressed: tuple[MetricGroup, ...]
    """All metrics that regressed, the worst first."""
    besides: tuple[MetricGroup, ...]
    """Those of them that do not decide."""
    undecided: tuple[MetricGroup, ...]
    """Metrics whose verdict is inconclusive, the largest rise first."""
    pairs_to_decide: int | None
    """Estimate of the pairs that would decide what is undecided. None if nothing is, or if more
    pairs would not."""
    not_looked_at: tuple[Metric, ...]
    """Metrics that barometer knows and this run did not measure in both arms. The host's own boot
    is left out: it is no cost of VFIO."""
    trials: dict[ArmName, int]
    """Number of measured trials in each arm."""
    emulation: Emulation

    @property
    def has_regressions(self) -> bool:
        """True if the verdict does not say that something regressed, and something did."""
        return bool(self.besides) and self.verdict in _OPEN

    @property
    def title(self) -> str:
        """The verdict in words, such as `improved, with regressions`."""
        return self.verdict + WITH_REGRESSIONS * self.has_regressions


def find_outcome(comparison: Comparison) -> Outcome:
    deciding = [m for name in comparison.deciding if (m := comparison.metric(name)) is not None]
    regressed = [m for m in comparison.metrics if m.verdict == "regressed"]
    besides = [m for m in regressed if m.name not in comparison.deciding]
    undecided = [m for m in comparison.metrics if m.verdict == "inconclusive"]
    bases = {metric.name.partition("@")[0] for metric in comparison.metrics}
    rule = Rule(comparison.judgement.margin, comparison.judgement.floor, comparison.levels)
    number = max(1, len(deciding))
    # of two nights, more trials of each decide nothing: they share the night
    paired = undecided if comparison.paired else []
    needed = [pairs_to_decide(metric.effect, rule, number) for metric in paired]
    return Outcome(
        verdict=comparison.verdict,
        deciding=tuple(deciding),
        not_measured=tuple(n for n in comparison.deciding if comparison.metric(n) is None),
        regressed=group_metrics(regressed, comparison.metrics),
        besides=group_metrics(besides, comparison.metrics),
        undecided=group_metrics(undecided, comparison.metrics),
        pairs_to_decide=max((pairs for pairs in needed if pairs is not None), default=None),
        not_looked_at=tuple(
            words.name
            for words in METRIC_WORDS
            if words.name not in bases and words.in_boots != "host"
        ),
        trials={arm: comparison.count(arm, "measured") for arm in ARMS},
        emulation=_emulation(comparison),
    )


def join_titles(outcomes: Iterable[Outcome | None], verdict: Verdict) -> str:
    """Return the title of several outcomes together, whose worst verdict is `verdict`. None is a
    run that was not made."""
    has_regressions = verdict in _OPEN and any(o.besides for o in outcomes if o is not None)
    return verdict + WITH_REGRESSIONS * has_regressions


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """Return the outcome as comparison.json has it."""

    def listed(groups: Iterable[MetricGroup]) -> list[dict[str, object]]:
        return [{"metric": m.name, "ratio": m.ratio} for group in groups for m in group.metrics]

    return {
        "title": outcome.title,
        "regressed": listed(outcome.regressed),
        "undecided": listed(outcome.undecided),
        "pairs_to_decide": outcome.pairs_to_decide,
        "not_looked_at": list(outcome.not_looked_at),
        "trials": outcome.trials,
        "emulation": outcome.emulation or None,
    }


def group_metrics(
    metrics: Sequence[MetricComparison], every: Sequence[MetricComparison]
) -> tuple[MetricGroup, ...]:
    """Return the metrics as groups, by their names without a point. The metric with the largest
    rise is first, in each group and of all groups. `every`: all metrics of the comparison."""

    def rank(metric: MetricComparison) -> tuple[float, bool]:
        rise = math.inf if metric.ratio is None else metric.ratio
        return -round(rise, 3), "@" in metric.name  # of equal ones the plain name is the clearest

    by_base: dict[Metric, list[MetricComparison]] = {}
    for metric in sorted(metrics, key=rank):
        by_base.setdefault(metric.name.partition("@")[0], []).append(metric)
    return tuple(
        MetricGroup(base, tuple(of_base), sum(m.name.partition("@")[0] == base for m in every))
        for base, of_base in by_base.items()
    )


def pairs_to_decide(effect: Effect, rule: Rule, deciding: int) -> int | None:
    """Return the number of pairs, in all, that would probably give the effect a clear verdict, or
    None if pairs would not. `deciding`: number of metrics that are tested together.

    Without an interval it is the least number with which a p can be small enough. With one, it is
    the number with which, the interval narrowing as the root of the number of pairs, either the
    change becomes significant or the interval fits within the margin.
    """
    estimate, levels = effect.estimate, rule.levels
    if estimate.basis in ("count", "exact") or estimate.ratio is None or not estimate.ratio:
        return None
    least = max(LEAST_FOR_P, math.ceil(math.log2(2 * deciding / levels.difference)))
    if estimate.interval is None or min(estimate.interval) <= 0:
        return least
    low, high = (math.log(end) for end in estimate.interval)
    half, change = (high - low) / 2, abs(math.log(estimate.ratio))
    within = math.log(1 + rule.margin)
    growth = [math.inf]
    if change:
        growth.append(half / change * _quantile(levels.difference / 2) / _quantile(levels.error))
    if change < within:
        growth.append(half / (within - change))
    pairs = estimate.pairs * min(growth) ** 2
    return max(least, min(_MOST_PAIRS, math.ceil(pairs)))


def _quantile(tail: float) -> float:
    """Return the deviations beyond which the normal distribution has this much on one side."""
    return -NormalDist().inv_cdf(tail)


def _emulation(comparison: Comparison) -> Emulation:
    if is_emulated(comparison.accel):
        return "emulated"
    by_guests = any(r.kind == "measured" and r.guest_accel == "tcg" for r in comparison.results)
    return "guests emulated" if by_guests else ""
