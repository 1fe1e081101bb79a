"""Content of the HTML report, section by section: values for its templates, and its charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, median_low

import tomlkit

from orchestrator.analysis.boot.cost import CostTable, OperationCost, build_cost_table
from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.maps.level import LevelReason
from orchestrator.analysis.maps.theory import find_stride, predict_lookups
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    boots_of,
    find_laws,
    guest_accels,
    merge_findings,
)
from orchestrator.analysis.verdict.effect import (
    ALPHA,
    FEW_FLOOR,
    LEAST_FOR_INTERVAL,
    LEAST_FOR_P,
    Effect,
)
from orchestrator.analysis.verdict.summary import summarize
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.plan import Plan
from orchestrator.formats.units import format_size
from orchestrator.report.html.charts import (
    Figure,
    difference_chart,
    law_chart,
    sample_chart,
    timeline_chart,
)
from orchestrator.report.text.maps_text import inside_maps, law_text, level_text
from orchestrator.report.text.run_text import explain_values
from orchestrator.report.text.timeline_text import cost_cells, explain_difference, text_timeline
from orchestrator.report.words.quantities import format_quantity, p_text, plural, ratio_text
from orchestrator.report.words.samples import Dots, collect_dots, role_values
from orchestrator.report.words.sentence import verdict_sentence
from orchestrator.report.words.variable_words import describe_variable
from orchestrator.report.words.wording import (
    SOURCES,
    TITLES,
    Setup,
    describe_attempts,
    describe_left,
    describe_setup,
    explain_resolution,
)
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.trials import Judgement
from orchestrator.scenario.vocabulary import (
    ARMS,
    AT_POINTS,
    CONTROL,
    WARM_UP,
    ArmName,
    Point,
    Role,
    is_emulated,
)

MOST_TAILS, MOST_PROBLEMS = 20, 200
"""Most trials that do not count: those shown with the end of their evidence, and those shown at
all."""
_TAIL_LINES, _TAIL_WIDTH = 40, 400
MOST_CONFIG = 2000


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
    def constant(self) -> bool:
        """True if every trial has the same value: a chart would add nothing."""
        metric = self.metric
        return len({*metric.baseline, *metric.candidate, *metric.controls}) == 1

    @property
    def ratio(self) -> str:
        return ratio_text(self.metric.ratio)

    @property
    def interval(self) -> str:
        return _interval(self.metric.effect)

    @property
    def p(self) -> str:
        return p_text(self.metric.effect)

    @property
    def why_no_p(self) -> str:
        estimate = self.metric.effect.estimate
        return (
            "no noise" if estimate.basis in ("count", "exact") else plural(estimate.pairs, "pair")
        )

    @property
    def control(self) -> str:
        """The result of the baseline's kernel against itself."""
        effect = self.metric.control
        if effect is None:
            return ""
        between = f" ({_interval(effect)})" if effect.interval else ""
        return f"{effect.verdict}, ratio {ratio_text(effect.ratio)}{between}"


@dataclass(frozen=True)
class Panel:
    """A chart of every sample of a metric, and the same as text."""

    figure: str
    line: Line
    samples: list[Dots]

    @property
    def label(self) -> str:
        texts = [
            f"{dots.role}: median {self.line.value(dots.role)} of {plural(dots.of, 'trial')}"
            for dots in self.samples
        ]
        return f"{self.line.title}: the value of each trial. {'; '.join(texts)}"

    @property
    def thinned(self) -> bool:
        return any(len(dots.dots) < dots.of for dots in self.samples)


@dataclass(frozen=True)
class TracedBoots:
    """The traced guest boots."""

    figure: str
    difference_figure: str
    shown: dict[ArmName, Timeline]
    """One boot of each arm that has any: the one of median length."""
    number: dict[ArmName, int]
    costs: CostTable
    notes: tuple[tuple[ArmName, str, str], ...]
    """Arm, name and text of each note."""

    @property
    def label(self) -> str:
        texts = [
            f"{arm}: {len(boot.phases)} phases, {format_quantity(boot.boot_seconds, boot.unit)} to"
            f" the boot mark, {format_quantity(boot.end_seconds, boot.unit)} to the end"
            for arm, boot in self.shown.items()
        ]
        return f"Phases, maps and unmaps of a guest boot. {'; '.join(texts)}"

    @property
    def difference(self) -> str:
        difference = self.costs.difference
        return "" if difference is None else explain_difference(difference, self.costs.unit)

    def text(self, arm: ArmName) -> str:
        return text_timeline(self.shown[arm])

    def cells(self, cost: OperationCost) -> list[str]:
        return cost_cells(cost, self.costs.unit)


@dataclass(frozen=True)
class Series:
    """The cost of a map or an unmap by its size."""

    figure: str
    name: str
    """Operation, alignment and state: map/1GiB/cold."""
    points: dict[str, dict[ArmName, str]]
    """Cost in each arm, by size."""
    laws: dict[ArmName, str]

    @property
    def label(self) -> str:
        texts = "; ".join(f"{arm}: {law}" for arm, law in self.laws.items())
        return f"Cost of {self.name} by the size of what is mapped. {texts}"


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


@dataclass(frozen=True)
class Problem:
    result: TrialResult
    tail: str
    """The end of the trial's evidence."""


@dataclass(frozen=True)
class Page:
    sentence: str
    variable: str
    """Sentence on the differences between the arms, and on whether those are all."""
    verdict: str
    scenario: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    figures: dict[str, Figure]
    """Figures by the id of their element."""
    lines: list[Line]
    rules: list[str]
    """Rules by which the verdicts are reached."""
    panels: list[Panel]
    boots: TracedBoots | None
    series: list[Series]
    theory: list[Theory]
    levels: list[PartLevel]
    inside: str
    """Text on where the cost of a map and an unmap goes."""
    notes: str
    problems: list[Problem]
    problem_counts: dict[str, int]
    """Number of trials by what went wrong."""
    toml: str
    """The scenario with every key."""
    barometer: str
    """Version of barometer."""
    kernels: dict[str, KernelRecord]
    """Kernels of plan.json, the guest's included."""


def build_page(scenario: Scenario, comparison: Comparison, plan: Plan) -> Page:
    """Return the content of the page. `plan` is plan.json."""
    exact, emulated = plan.accel == "exact", is_emulated(plan.accel)
    maps = scenario.map if scenario.workload == "map" else None
    points = scenario.points() if maps else ()
    lines = list(_lines(points, comparison, emulated=emulated))
    panels = [
        Panel(f"metric-{number}", line, collect_dots(comparison, line.metric))
        for number, line in enumerate(lines)
        if not line.constant
    ]
    figures = {panel.figure: sample_chart(panel.line.metric, panel.samples) for panel in panels}
    boots = _boots(comparison)
    if boots is not None:
        figures[boots.figure] = timeline_chart(boots.shown)
        if (difference := boots.costs.difference) is not None:
            figures[boots.difference_figure] = difference_chart(boots.costs.unit, difference)
    charted = list(_series(scenario.points(), comparison, exact=exact))
    figures |= {series.figure: chart for series, chart in charted}
    bad = [result for result in comparison.results if result.kind != "measured"]
    return Page(
        sentence=verdict_sentence(scenario.device.bar, comparison, plan),
        variable=describe_variable(comparison.variable),
        verdict=comparison.verdict,
        scenario=comparison.scenario,
        facts=list(_facts(describe_setup(scenario, plan), comparison)),
        warnings=list(_warnings(comparison, exact=exact, emulated=emulated)),
        figures=figures,
        lines=lines,
        rules=list(_rules(comparison.judgement, scenario.workload, lines)),
        panels=panels,
        boots=boots,
        series=[series for series, _ in charted],
        theory=list(_theory(scenario.points(), comparison)),
        levels=list(_levels(comparison)),
        inside=inside_maps(comparison, exact=exact),
        notes=explain_values(
            scenario.host, scenario.trace, maps, comparison, emulated=emulated, exact=exact
        ),
        problems=[
            Problem(result, _tail(result.evidence) if number < MOST_TAILS else "")
            for number, result in enumerate(bad[:MOST_PROBLEMS])
        ],
        problem_counts=dict(Counter(f"{r.arm}: {r.kind}, {r.reason}" for r in bad)),
        toml=tomlkit.dumps(scenario.model_dump(mode="json", exclude_none=True)),
        barometer=plan.barometer,
        kernels={arm: plan.kernels[arm] for arm in ARMS}
        | ({"guest": plan.guest_kernel} if plan.guest_kernel else {}),
    )


# head and table -------------------------------------------------------------------------------


def _facts(setup: Setup, comparison: Comparison) -> Iterator[tuple[str, str]]:
    for arm in ARMS:
        kernel = comparison.kernels[arm]
        yield arm, f"{kernel['release']} ({kernel['source']}; {_trials(comparison, arm)})"
    for role in (CONTROL, WARM_UP):
        if comparison.of_arm(role):
            yield role, f"the baseline's kernel ({_trials(comparison, role)})"
    yield "device", setup.device
    yield setup.workload
    yield "host", setup.host


def _trials(comparison: Comparison, role: Role) -> str:
    counts = {kind: comparison.count(role, kind) for kind in ("measured", "failed", "invalid")}
    text = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n) or "no trials"
    again = Counter(
        text for result in comparison.of_arm(role) for text in describe_attempts(result)
    )
    if again:
        text += "; repeated: " + ", ".join(f"{n} x {why}" for why, n in again.items())
    return text


def _warnings(comparison: Comparison, *, exact: bool, emulated: bool) -> Iterator[str]:
    """Yield what a reader must know before any number."""
    if len(comparison.results) < comparison.planned:
        yield f"Not complete: {len(comparison.results)} of {comparison.planned} trials."
    if len(guest_accels(comparison.results)) > 1:
        yield "Not comparable: guests ran under KVM in some trials and were emulated in others."
    if exact:
        yield (
            "Costs are instructions of an emulated machine (Ginsn: 10^9; one is one nanosecond of"
            " its clocks), not times. With the same QEMU they are the same on any machine."
        )
    elif emulated:
        yield "Emulated: compare its seconds with one another, not with hardware's."
    elif any(r.guest_accel == "tcg" for r in comparison.results):
        yield "The guests are emulated: there is no KVM in the host."
    yield from describe_left(comparison.results)


def _lines(points: Sequence[Point], comparison: Comparison, *, emulated: bool) -> Iterator[Line]:
    """Yield the table's lines in the text report's order. `points`: none for guest boots."""
    by_name = {metric.name: metric for metric in comparison.metrics}
    for base, title in TITLES.items():
        source = SOURCES.get(base, "timing")
        at = {base: ""}
        if points and base in AT_POINTS:
            at = {point.metric(base): f", {point.name}" for point in points}
        for name, where in at.items():
            if (metric := by_name.get(name)) is not None:
                unit = "emulated s" if metric.unit == "s" and emulated else metric.unit
                expected = str(comparison.expect.get(name, ""))
                of = "plain" if points and source == "timing" else source
                deciding = name in comparison.deciding
                yield Line(metric, title.strip() + where, unit, of, deciding, expected)


def _interval(effect: Effect) -> str:
    return "" if effect.interval is None else "{:.4g} to {:.4g}".format(*effect.interval)


def _rules(judgement: Judgement, workload: Workload, lines: Sequence[Line]) -> Iterator[str]:
    """Yield the rules for the kinds of metrics that the table has."""
    bases = {line.metric.effect.estimate.basis for line in lines}
    if "trials" in bases:
        yield (
            f"A time is improved or regressed when p is {ALPHA:g} at most and the ratio is"
            f" {judgement.floor:.3g} or more away from 1; equivalent when the 95 % interval is"
            f" within 1 / {1 + judgement.margin:g} and {1 + judgement.margin:g}. p: Wilcoxon's"
            " signed rank of the pairs' log ratios, adjusted for the metrics judged together"
            " (Holm). Ratio and interval: Hodges and Lehmann."
        )
    if "few" in bases:
        yield (
            f"With fewer than {LEAST_FOR_P} pairs there is no p value, with fewer than"
            f" {LEAST_FOR_INTERVAL} no interval: only a factor of {FEW_FLOOR:g} between arms that"
            " do not overlap is called a difference."
        )
    if "count" in bases:
        yield "A count that is the same in every trial of an arm is compared as it is."
    if "exact" in bases:
        yield explain_resolution(workload)
    if any(line.metric.control for line in lines):
        yield (
            "Control (A/A): the baseline's kernel against itself. A metric in which those differ"
            " is invalid: it is the bench that differs."
        )


# boots ----------------------------------------------------------------------------------------


def _boots(comparison: Comparison) -> TracedBoots | None:
    by_arm = {arm: boots for arm, boots in boots_of(comparison).items() if boots}
    if not by_arm:
        return None
    shown = {}
    for arm, boots in by_arm.items():
        middle = median_low(boot.boot_seconds for boot in boots)
        shown[arm] = next(boot for boot in boots if boot.boot_seconds == middle)
    notes = dict.fromkeys(
        (arm, note.name, note.text)
        for arm, boots in by_arm.items() for boot in boots for note in boot.notes
    )  # fmt: skip
    number = {arm: len(boots) for arm, boots in by_arm.items()}
    return TracedBoots(
        "timeline", "difference", shown, number, build_cost_table(by_arm), tuple(notes)
    )


# maps -----------------------------------------------------------------------------------------


def _series(
    points: Sequence[Point], comparison: Comparison, *, exact: bool
) -> Iterator[tuple[Series, Figure]]:
    """Yield the series that an arm has a law for."""
    by_arm = {arm: find_laws(comparison, arm) for arm in ARMS}
    names = dict.fromkeys(name for laws in by_arm.values() for name in laws)
    for number, name in enumerate(names):
        operation, alignment, state = name.split("/")
        costs: dict[ArmName, list[tuple[int, float]]] = {arm: [] for arm in ARMS}
        unit = "s"
        for point in points:
            metric = comparison.metric(point.metric(f"bar_{operation}_cost"))
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
        series = Series(f"law-{number}", name, sizes, texts)
        yield series, law_chart(costs, laws, unit)


def _theory(points: Sequence[Point], comparison: Comparison) -> Iterator[Theory]:
    for point in points:
        metric = comparison.metric(point.metric("pfn_lookups_per_map"))
        if metric is None:
            continue
        lookups: dict[ArmName, tuple[str, str]] = {}
        for arm in ARMS:
            count = median(role_values(metric, arm))
            lookups[arm] = f"{count:.10g}", find_stride(point.size, count) or ""
        yield Theory(point.name, predict_lookups(point.size), lookups)


def _levels(comparison: Comparison) -> Iterator[PartLevel]:
    sides = {arm: merge_findings(comparison, arm) for arm in ARMS}
    names = dict.fromkeys(level.place for side in sides.values() for level in side.levels)
    for name in names:
        for arm, side in sides.items():
            for level in side.levels:
                if level.place == name:
                    yield PartLevel(name, arm, level_text(level, side), level.reasons)


# trials that do not count --------------------------------------------------------------------


def _tail(evidence: str) -> str:
    lines = evidence.splitlines()[-_TAIL_LINES:]
    return "\n".join(
        line if len(line) <= _TAIL_WIDTH else f"{line[:_TAIL_WIDTH]}..." for line in lines
    )
