"""Every trial's value of a metric, in the order in which the trials ran; thinned where there are
too many to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.comparison import Comparison, MetricComparison
from orchestrator.scenario import ARMS, CONTROL, Role

MOST = 8000
"""Dots in one report, of all metrics: of each an equal share, but _LEAST of each role."""
_LEAST = 4


@dataclass(frozen=True)
class Dot:
    at: int
    """Of all trials of the run, from 1."""
    trial: str
    value: float


@dataclass(frozen=True)
class Dots:
    """Of one metric and role."""

    role: Role
    dots: tuple[Dot, ...]
    of: int
    """So many trials have a value; if more than there are dots, these are the extremes."""


def samples(comparison: Comparison, metric: MetricComparison) -> list[Dots]:
    """Of both arms and the control, as far as they have any."""
    most = max(_LEAST, MOST // len(comparison.metrics) // 3)
    found: dict[Role, list[Dot]] = {role: [] for role in (*ARMS, CONTROL)}
    for at, result in enumerate(comparison.results, 1):
        if result.kind == "measured" and result.arm in found:
            value = result.value(metric.name)
            if value is not None:
                found[result.arm].append(Dot(at, result.name, value))
    return [Dots(role, thinned(dots, most), len(dots)) for role, dots in found.items() if dots]


def thinned(dots: Sequence[Dot], most: int) -> tuple[Dot, ...]:
    """At most `most` of them (an even number): the lowest and the highest of equal spans of the
    run, so that neither an outlier nor a drift is lost."""
    if len(dots) <= most:
        return tuple(dots)
    spans = most // 2
    kept: list[Dot] = []
    for number in range(spans):
        span = dots[number * len(dots) // spans : (number + 1) * len(dots) // spans]
        ends = {min(span, key=lambda d: d.value), max(span, key=lambda d: d.value)}
        kept += sorted(ends, key=lambda d: d.at)
    return tuple(kept)


def values_of(metric: MetricComparison, role: Role) -> Sequence[float]:
    """One of each trial that counts."""
    return {"baseline": metric.baseline, "candidate": metric.candidate}.get(role, metric.controls)
