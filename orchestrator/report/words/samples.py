"""Every trial's value of a metric, in the order in which the trials ran; thinned if there are too
many to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison
from orchestrator.scenario.vocabulary import ARMS, CONTROL, Role

MOST = 2000
"""Most dots in one report, for all metrics together. Each metric has an equal share, but at least
_LEAST for each role."""
_LEAST = 4


@dataclass(frozen=True)
class Dot:
    at: int
    """Position among all trials of the run, from 1."""
    trial: str
    value: float


@dataclass(frozen=True)
class Dots:
    """The dots of one metric and role."""

    role: Role
    dots: tuple[Dot, ...]
    of: int
    """Number of trials that have a value. If it exceeds the number of dots, the dots are the
    extremes."""


def collect_dots(comparison: Comparison, metric: MetricComparison) -> list[Dots]:
    """Return the dots of both arms and of the control, if they have any."""
    most = max(_LEAST, MOST // len(comparison.metrics) // 3)
    by_role: dict[Role, list[Dot]] = {role: [] for role in (*ARMS, CONTROL)}
    for at, result in enumerate(comparison.results, 1):
        if result.kind == "measured" and result.arm in by_role:
            value = result.value(metric.name)
            if value is not None:
                by_role[result.arm].append(Dot(at, result.name, value))
    return [Dots(role, thin(dots, most), len(dots)) for role, dots in by_role.items() if dots]


def thin(dots: Sequence[Dot], most: int) -> tuple[Dot, ...]:
    """Return at most `most` dots (`most` is even). The run is cut into spans of equal length, and
    the lowest and the highest dot of each span are kept, so that neither an outlier nor a drift is
    lost."""
    if len(dots) <= most:
        return tuple(dots)
    spans = most // 2
    kept: list[Dot] = []
    for number in range(spans):
        span = dots[number * len(dots) // spans : (number + 1) * len(dots) // spans]
        ends = {min(span, key=lambda d: d.value), max(span, key=lambda d: d.value)}
        kept += sorted(ends, key=lambda d: d.at)
    return tuple(kept)


def role_values(metric: MetricComparison, role: Role) -> Sequence[float]:
    """Return the metric's values from the trials of one role that count."""
    return {"baseline": metric.baseline, "candidate": metric.candidate}.get(role, metric.controls)
