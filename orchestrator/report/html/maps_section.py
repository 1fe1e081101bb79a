"""The page's sections on single maps: scaling law, counts, levels, and where instructions go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from orchestrator.analysis.maps.level import LevelReason
from orchestrator.analysis.maps.theory import find_stride, predict_lookups
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import Comparison, find_laws, merge_findings
from orchestrator.formats.units import format_size
from orchestrator.report.html.charts import law_chart
from orchestrator.report.text.maps_text import law_text, level_text
from orchestrator.report.words.quantities import format_quantity
from orchestrator.report.words.samples import role_values
from orchestrator.scenario.vocabulary import ARMS, ArmName, Point


@dataclass(frozen=True)
class LawSeries:
    """The cost of a map or an unmap by its size."""

    name: str
    """Operation, alignment and state: map/1GiB/cold."""
    chart: Markup
    points: dict[str, dict[ArmName, str]]
    """Cost in each arm, by size."""
    laws: dict[ArmName, str]


@dataclass(frozen=True)
class Theory:
    """Lookups of one map, and the number that arithmetic predicts."""

    where: str
    expected: dict[str, int]
    """Predicted lookups, by the leaf that each covers."""
    found: dict[ArmName, tuple[str, str]]
    """Lookups in each arm, and the leaf that they fit exactly."""


@dataclass(frozen=True)
class PartLevel:
    """The leaves by which one part of the BAR was mapped in one arm."""

    name: str
    arm: ArmName
    level: str
    reasons: tuple[LevelReason, ...]
    """Reasons why the level is not the best."""


def list_series(
    points: Sequence[Point], comparison: Comparison, *, exact: bool
) -> Iterator[LawSeries]:
    """Yield the series that an arm has a law for."""
    by_arm = {arm: find_laws(comparison, arm) for arm in ARMS}
    for name in dict.fromkeys(name for found in by_arm.values() for name in found):
        what, alignment, state = name.split("/")
        costs: dict[ArmName, list[tuple[int, float]]] = {arm: [] for arm in ARMS}
        unit = "s"
        for point in points:
            metric = comparison.metric(point.metric(f"bar_{what}_cost"))
            if (point.alignment, point.state) == (alignment, state) and metric is not None:
                unit = metric.unit
                for arm in ARMS:
                    middle = summarize(metric.unit, role_values(metric, arm)).middle
                    costs[arm].append((point.size, middle))
        laws = {arm: by_arm[arm][name] for arm in ARMS if name in by_arm[arm]}
        sizes: dict[str, dict[ArmName, str]] = {}
        for arm in ARMS:
            for size, cost in costs[arm]:
                sizes.setdefault(format_size(size), {})[arm] = format_quantity(cost, unit)
        texts = {arm: law_text(law, exact=exact) for arm, law in laws.items()}
        label = (
            f"Cost of one {what} by the size of what is mapped, {alignment}, {state}."
            f" {'; '.join(f'{arm}: {law}' for arm, law in texts.items())}"
        )
        yield LawSeries(name, law_chart(costs, laws, unit, label), sizes, texts)


def list_theory(points: Sequence[Point], comparison: Comparison) -> Iterator[Theory]:
    for point in points:
        metric = comparison.metric(point.metric("pfn_lookups_per_map"))
        if metric is None:
            continue
        found: dict[ArmName, tuple[str, str]] = {}
        for arm in ARMS:
            count = median(role_values(metric, arm))
            found[arm] = f"{count:.10g}", find_stride(point.size, count) or ""
        yield Theory(point.name, predict_lookups(point.size), found)


def list_levels(comparison: Comparison) -> Iterator[PartLevel]:
    sides = {arm: merge_findings(comparison, arm) for arm in ARMS}
    names = dict.fromkeys(level.place for side in sides.values() for level in side.levels)
    for name in names:
        for arm, side in sides.items():
            for level in side.levels:
                if level.place == name:
                    yield PartLevel(name, arm, level_text(level, side), level.reasons)
