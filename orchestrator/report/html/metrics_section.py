"""The page's sections on the metrics: the table, the effects, the trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.analysis.statistics.sequential import LEAST_FOR_P
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison
from orchestrator.analysis.verdict.effect import LEAST_FOR_INTERVAL
from orchestrator.report.html.charts import LEAST_PAIRS, arms_chart, forest_chart, sample_chart
from orchestrator.report.words.quantities import change_text, format_quantity, p_text
from orchestrator.report.words.samples import Dots, collect_dots, role_values
from orchestrator.report.words.wording import explain_few_pairs, explain_resolution
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.metrics import METRIC_WORDS
from orchestrator.scenario.trials import Judgement
from orchestrator.scenario.vocabulary import AT_POINTS, Point, Role

_MOST_ROWS = 16
"""Most rows of the chart of both arms: more do not fit a screen."""
LEAST_FOR_DOTS = 3
"""Least number of an arm's trials for a chart of them: one or two dots tell less than the
table."""


@dataclass(frozen=True)
class Line:
    """A line of the table of metrics."""

    metric: MetricComparison
    title: str
    unit: str
    source: str
    """The pass that the metric comes from."""
    deciding: bool
    expected: str

    def value(self, role: Role) -> str:
        return format_quantity(
            summarize(self.metric.unit, role_values(self.metric, role)).middle, self.metric.unit
        )

    def range(self, role: Role) -> str:
        """Return the smallest and the largest value; empty if all values are the same."""
        values = role_values(self.metric, role)
        low, high = (format_quantity(end(values), self.metric.unit) for end in (min, max))
        return "" if low == high else f"{low} to {high}"

    @property
    def is_constant(self) -> bool:
        """True if every arm has the same value in all its trials: a chart would add nothing."""
        metric = self.metric
        arms = (metric.baseline, metric.candidate, metric.controls)
        return all(len({*values}) < 2 for values in arms)

    @property
    def change(self) -> str:
        return change_text(self.metric.effect)

    @property
    def p(self) -> str:
        return p_text(self.metric.effect)

    @property
    def is_same(self) -> bool:
        """True for a line that may be folded away: it does not decide, and nothing changed."""
        return self.metric.verdict == "equivalent" and not self.deciding

    @property
    def control(self) -> str:
        """The result of the baseline's kernel against itself."""
        effect = self.metric.control
        return "" if effect is None else f"{effect.verdict}, {change_text(effect)}"


@dataclass(frozen=True)
class Panel:
    """A chart of every sample of a metric, and the same as text."""

    chart: Markup
    line: Line
    samples: list[Dots]

    @property
    def is_thinned(self) -> bool:
        return any(len(dots.dots) < dots.of for dots in self.samples)


def list_panels(comparison: Comparison, lines: Sequence[Line]) -> list[Panel]:
    """Return a chart of each metric that varies; none with one or two trials of an arm."""
    panels = []
    for line in lines:
        metric = line.metric
        if min(len(metric.baseline), len(metric.candidate)) >= LEAST_FOR_DOTS:
            dots = collect_dots(comparison, metric)
            if not line.is_constant:
                panels.append(Panel(sample_chart(metric, dots), line, dots))
    return panels


def draw_arms(points: Sequence[Point], lines: Sequence[Line]) -> Markup | None:
    """Draw what maps and unmaps cost in both arms, at the largest size. None without points: a
    guest boot has pictures of its own."""
    if not points:
        return None
    largest = max(point.size for point in points)
    names = {
        point.metric(words.name) for words in METRIC_WORDS for point in points
        if words.in_maps and words.kind == "cost" and point.size == largest
    }  # fmt: skip
    shown = [
        (line.title, line.metric) for line in lines
        if line.metric.name in names and min(*line.metric.baseline, *line.metric.candidate) > 0
    ]  # fmt: skip
    return arms_chart(shown[:_MOST_ROWS]) if shown else None


def draw_effects(lines: Sequence[Line], judgement: Judgement) -> Markup | None:
    """Draw the changes of the metrics that have an interval, or return None with too few pairs."""
    metrics = [
        line.metric for line in lines
        if line.metric.effect.interval is not None
        and line.metric.effect.estimate.pairs >= LEAST_PAIRS
    ]  # fmt: skip
    return forest_chart(metrics, judgement) if metrics else None


def list_lines(points: Sequence[Point], comparison: Comparison, *, emulated: bool) -> list[Line]:
    """Return the lines of the table: first those that decide, then those that regressed, then the
    others, each part in the order of the text report. `points`: none for guest boots."""
    lines = [*_lines(points, comparison, emulated=emulated)]
    return sorted(lines, key=lambda line: (not line.deciding, line.metric.verdict != "regressed"))


def _lines(points: Sequence[Point], comparison: Comparison, *, emulated: bool) -> Iterator[Line]:
    by_name = {metric.name: metric for metric in comparison.metrics}
    for words in METRIC_WORDS:
        at = {words.name: ""}
        if points and words.name in AT_POINTS:
            at = {point.metric(words.name): f", {point.name}" for point in points}
        for name, where in at.items():
            if (metric := by_name.get(name)) is not None:
                unit = "emulated s" if metric.unit == "s" and emulated else metric.unit
                expected = str(comparison.expect.get(name, ""))
                source = words.in_maps if points else words.in_boots
                deciding = name in comparison.deciding
                yield Line(metric, words.title + where, unit, source, deciding, expected)


def list_rules(comparison: Comparison, workload: Workload, lines: Sequence[Line]) -> Iterator[str]:
    """Yield the rules for the kinds of metrics that the table has."""
    judgement = comparison.judgement
    bases = {line.metric.effect.estimate.basis for line in lines}
    if "trials" in bases:
        yield (
            f"A time is improved or regressed when p is {comparison.levels.difference:.2g} at"
            f" most and the ratio is {judgement.floor:.3g} or more away from 1; equivalent when"
            f" the 95 % interval is within 1 / {1 + judgement.margin:g} and"
            f" {1 + judgement.margin:g}. p: Wilcoxon's signed rank of the pairs' log ratios,"
            " adjusted for the metrics judged together (Holm). Ratio and interval: Hodges and"
            " Lehmann."
        )
    if "few" in bases:
        yield (
            f"With fewer than {LEAST_FOR_P} pairs there is no p value, with fewer than"
            f" {LEAST_FOR_INTERVAL} no interval: {explain_few_pairs()}"
        )
    if "count" in bases:
        yield "A count that is the same in every trial of an arm is compared as it is."
    if any(line.metric.unit == "Ginsn" for line in lines):
        yield explain_resolution(workload)
    if any(line.metric.control for line in lines):
        yield (
            "Control (A/A): the baseline's kernel against itself. A metric in which those differ"
            " is invalid: it is the bench that differs."
        )
