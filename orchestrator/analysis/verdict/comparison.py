"""Compare the trials of both arms: a Comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median, median_low

from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.conditions.conditions import Conditions
from orchestrator.analysis.conditions.variable import Variable
from orchestrator.analysis.maps.breakdown import ProfileDifference, subtract_breakdowns
from orchestrator.analysis.maps.level import Level
from orchestrator.analysis.maps.maps import MapPass, Place
from orchestrator.analysis.maps.scaling import Law, fit_scaling_law
from orchestrator.analysis.maps.theory import count_pages
from orchestrator.analysis.statistics.sequential import Levels, levels_at
from orchestrator.analysis.statistics.shapes import Shape, find_edge, find_shapes
from orchestrator.analysis.trial import Findings, TrialResult
from orchestrator.analysis.verdict.effect import (
    Effect,
    Rule,
    Verdict,
    adjust_holm,
    judge_effect,
)
from orchestrator.analysis.verdict.metrics import EstimatedMetric, estimate_metrics
from orchestrator.analysis.verdict.outcome import Outcome, find_outcome
from orchestrator.evidence.faults import (
    Attempt,
    arm_the_bench_fails,
    counts,
    failing_arm,
)
from orchestrator.scenario.fields import Expectation
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.trials import Judgement, Trials
from orchestrator.scenario.vocabulary import (
    ARMS,
    CONTROL,
    ArmName,
    Metric,
    Role,
    metric_at,
)

_WORST_FIRST: tuple[Verdict, ...] = (
    "regressed", "invalid", "inconclusive", "improved", "equivalent",
)  # fmt: skip
_HEADLINES: tuple[Metric, ...] = (
    "bar_map_cost_per_boot", "bar_map_cost", "pfn_lookups_per_map", "guest_boot_cost",
)  # fmt: skip
"""What decides without an expectation: the first of these that was measured. Of a guest boot it is
the sum of its maps: a median of maps that are cold and warm may be at the edge of either."""


@dataclass(frozen=True)
class SlowTrial:
    """A trial that costs far more than trials of both arms usually do."""

    trial: str
    arm: ArmName
    value: float
    level: Level | None
    """Leaves by which its BAR was mapped, with the reasons; None if that is not known."""


@dataclass(frozen=True)
class MetricComparison:
    name: Metric
    unit: str
    baseline: tuple[float, ...]
    """One value for each measured trial, in the order in which they ran."""
    candidate: tuple[float, ...]
    effect: Effect
    control: Effect | None = None
    """Effect between trials of one kernel: baseline against control."""
    controls: tuple[float, ...] = ()
    """Values of the control, which take the place of the candidate's."""
    slow: tuple[SlowTrial, ...] = ()
    """The slow trials of both arms, in the order in which they ran."""
    edges: Mapping[ArmName, Shape] = field(default_factory=dict)
    """The arms whose trials have their median at the edge of two modes."""

    @cached_property
    def shapes(self) -> dict[ArmName, tuple[Shape, ...]]:
        """Shapes of the arms whose times are not one cloud around one value; instructions have
        edges only."""
        by_arm: dict[ArmName, tuple[Shape, ...]] = {}
        for arm in ARMS:
            shapes = find_shapes(getattr(self, arm)) if self.unit == "s" else ()
            shapes += (self.edges[arm],) if arm in self.edges else ()
            if shapes:
                by_arm[arm] = shapes
        return by_arm

    @property
    def verdict(self) -> Verdict:
        """Verdict of the effect; invalid if the bench finds a difference between a kernel and
        itself."""
        if self.control is not None and self.control.verdict in ("improved", "regressed"):
            return "invalid"
        return self.effect.verdict

    @property
    def ratio(self) -> float | None:
        """Candidate / baseline; below 1 the candidate is cheaper. None if the baseline is zero."""
        return self.effect.ratio

    @property
    def bench_resolution(self) -> float | None:
        """Share by which the baseline's kernel may differ from itself here, from the interval of
        its control: "this bench resolves 1.4 %". None if there is no such interval."""
        interval = self.control and self.control.interval
        return max(interval[1], 1 / interval[0]) - 1 if interval and interval[0] > 0 else None


@dataclass(frozen=True)
class Comparison:
    scenario: str
    verdict: Verdict
    results: tuple[TrialResult, ...]
    metrics: tuple[MetricComparison, ...]
    kernels: dict[ArmName, dict[str, str]]
    """Release and source of each arm's kernel."""
    planned: int
    """Number of trials of the plan; fewer results mean that the run is not complete."""
    deciding: tuple[Metric, ...] = ()
    """Metrics that decide the verdict: those with an expectation, else the headline."""
    conditions: Conditions | None = None
    """Conditions under which the arms were measured, and their differences."""
    paired: bool = True
    """False if the arms are of different runs."""
    has_reference: bool = False
    """True if each of these runs is judged by its ratios to the other arm, which is the same in
    both."""
    variable: Variable | None = None
    """The variable: what the arms differ in."""
    expect: Mapping[Metric, Expectation] = field(default_factory=dict)
    """What the scenario expects of the metrics."""
    judgement: Judgement = field(default_factory=Judgement)
    """Settings by which the scenario is judged."""
    accel: str = "none"
    """How the host ran: kvm, tcg, exact, or none for a real machine."""
    levels: Levels = field(default_factory=Levels)
    """What counts at the look at which the run is judged."""
    changed_functions: frozenset[str] | None = None
    """Functions in the kernel's files that the arms' series touch. None if that is not known."""

    @cached_property
    def outcome(self) -> Outcome:
        """The verdict, with all that its reader must not miss."""
        return find_outcome(self)

    @cached_property
    def undecided(self) -> list[TrialResult]:
        """Trials that were not measured because of a failure that is charged to nobody."""
        return undecided_trials(self.results)

    @property
    def has_undecided(self) -> bool:
        """True if there are failures that nobody can be charged with. Then the verdict is neither
        equivalent nor improved."""
        return _has_undecided(self.results)

    def of_arm(self, arm: Role) -> list[TrialResult]:
        return [r for r in self.results if r.arm == arm]

    def count(self, arm: Role, kind: str) -> int:
        return sum(r.kind == kind for r in self.of_arm(arm))

    def metric(self, name: Metric) -> MetricComparison | None:
        return next((m for m in self.metrics if m.name == name), None)


def compare_trials(
    scenario: Scenario,
    kernels: dict[ArmName, dict[str, str]],
    results: Sequence[TrialResult],
    planned: int,
    accel: str,
    conditions: Conditions | None = None,
    *,
    paired: bool = True,
    references: Sequence[TrialResult] = (),
    floors: Callable[[Metric], float | None] | None = None,
) -> Comparison:
    """Return effect and verdict of every metric that both arms have. `planned`: number of trials
    of the complete run. With the accelerator exact, metrics that are otherwise in seconds are in
    Ginsn, 10^9 instructions. `paired`: False if the arms are of different runs, whose same other
    arm has the trials `references` (estimate_metrics). `floors` returns the smallest change of a
    metric that is called one, if that may be larger than the scenario's."""
    levels = _choose_levels(scenario.trials, results) if paired else Levels()
    rule = Rule(scenario.judgement.margin, scenario.judgement.floor, levels)
    estimates = estimate_metrics(
        results, scenario.workload, accel, rule, shares_boots=not scenario.host.fresh_boots,
        paired=paired, references=references,
    )  # fmt: skip
    deciding = _choose_deciding(scenario.expect, [*estimates])
    metrics = _judge_metrics(estimates, rule, deciding, results, floors)
    verdict = _verdict(results, metrics, deciding)
    if len(guest_accels(results)) > 1:
        verdict = "invalid"  # KVM against emulation is no evidence on kernels
    if conditions is not None and conditions.unplanned:
        verdict = "invalid"
    if len(results) < planned and verdict in ("improved", "equivalent"):
        verdict = "inconclusive"
    return Comparison(
        scenario.name, verdict, tuple(results), tuple(metrics), kernels, planned, deciding,
        conditions, paired, has_reference=bool(references), expect=scenario.expect,
        judgement=scenario.judgement, accel=accel, levels=levels,
    )  # fmt: skip


def _choose_levels(trials: Trials, results: Sequence[TrialResult]) -> Levels:
    """Return what counts after the pairs so far."""
    if trials.until is None:
        return Levels()
    pairs = max((result.pair for result in results), default=0)
    return levels_at(pairs, trials.until.max_pairs)


def _judge_metrics(
    estimates: Mapping[Metric, EstimatedMetric],
    rule: Rule,
    deciding: Sequence[Metric],
    results: Sequence[TrialResult],
    floors: Callable[[Metric], float | None] | None,
) -> list[MetricComparison]:
    tails = {name: of.estimate.tail for name, of in estimates.items()}
    ps = _adjust_apart({name: of.estimate.p for name, of in estimates.items()}, deciding)
    tail_ps = _adjust_apart(
        {name: None if tail is None else tail.p for name, tail in tails.items()}, deciding
    )
    metrics = []
    for name, of in estimates.items():
        floor = max(rule.floor, (floors(name) if floors is not None else None) or 0.0)
        effect = judge_effect(of.estimate, replace(rule, floor=floor), ps[name], tail_ps[name])
        metrics.append(_judge_metric(name, of, effect, results))
    return metrics


def _adjust_apart(
    ps: Mapping[Metric, float | None], deciding: Sequence[Metric]
) -> dict[Metric, float | None]:
    """Adjust the p values of the deciding metrics together, and those of the others together."""
    out: dict[Metric, float | None] = {}
    for family in ([n for n in ps if n in deciding], [n for n in ps if n not in deciding]):
        out |= zip(family, adjust_holm([ps[name] for name in family]), strict=True)
    return out


def _judge_metric(
    name: Metric, of: EstimatedMetric, effect: Effect, results: Sequence[TrialResult]
) -> MetricComparison:
    baseline, candidate, control = (tuple(of.values[role].values()) for role in (*ARMS, CONTROL))
    beside = None if of.control is None else judge_effect(of.control, Rule(), of.control.p)
    tail = effect.estimate.tail
    slow = () if tail is None or of.is_ratio else _name_slow_trials(results, name, tail.limit)
    return MetricComparison(
        name, of.unit, baseline, candidate, effect, beside, control, slow,
        _find_edges(results, name) if of.unit != "count" else {},
    )  # fmt: skip


def _find_edges(results: Sequence[TrialResult], name: Metric) -> dict[ArmName, Shape]:
    edges = {
        arm: find_edge(
            result.samples.get(name, ())
            for result in results if result.arm == arm and result.kind == "measured"
        )
        for arm in ARMS
    }  # fmt: skip
    return {arm: edge for arm, edge in edges.items() if edge is not None}


def _name_slow_trials(
    results: Sequence[TrialResult], name: Metric, limit: float
) -> tuple[SlowTrial, ...]:
    place = name.partition("@")[2].rpartition("/")[0]
    return tuple(
        SlowTrial(
            result.name, arm, value,
            next((level for level in result.findings.levels if place in ("", level.place)), None),
        )
        for result in results for arm in ARMS
        if result.arm == arm and result.kind == "measured"
        and (value := result.value(name)) is not None and value > limit
    )  # fmt: skip


def _choose_deciding(
    expect: Mapping[Metric, Expectation], measured: Sequence[Metric]
) -> tuple[Metric, ...]:
    """Return the metrics that the scenario has expectations for, else the first headline of those
    that were measured."""
    if expect or not measured:
        return tuple(expect)
    return (next((h for h in _HEADLINES if h in measured), measured[0]),)


def _verdict(
    results: Sequence[TrialResult],
    metrics: Sequence[MetricComparison],
    deciding: Sequence[Metric],
) -> Verdict:
    """Return the verdict of the whole run: failures first, then the metrics that decide."""
    measured = any(r.arm == "baseline" and r.kind == "measured" for r in results)
    if measured and count_more_failures(results) > 0:
        return "regressed"  # an arm that fails more often is worse, whatever its times are
    by_name = {m.name: m.verdict for m in metrics}
    is_undecided = _has_undecided(results)
    missing: Verdict = "inconclusive" if is_undecided else "invalid"
    if not by_name:
        return missing
    decided = worst_verdict(by_name.get(name, missing) for name in deciding)
    return "inconclusive" if is_undecided and decided in ("improved", "equivalent") else decided


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict of several metrics, or of several comparisons."""
    return min(verdicts, key=_WORST_FIRST.index)


def guest_accels(results: Sequence[TrialResult]) -> set[str]:
    """Return how the guests of the measured trials ran: kvm, tcg."""
    return {r.guest_accel for r in results if r.kind == "measured" and r.guest_accel}


def merge_findings(comparison: Comparison, arm: ArmName) -> Findings:
    """Return the findings of an arm, which are all that it shows besides metrics. Each is from the
    first measured trial that has it (passes can be trials of their own)."""
    of_trials = [r.findings for r in comparison.of_arm(arm) if r.kind == "measured"]
    passes: dict[str, MapPass] = {}
    levels: dict[str, Level] = {}
    for findings in of_trials:
        for name, value in findings.passes.items():
            passes.setdefault(name, value)
        for level in findings.levels:
            levels.setdefault(level.place, level)
    return Findings(
        passes,
        tuple(levels.values()),
        next((f.traced for f in of_trials if f.traced), ()),
        next((f.breakdowns for f in of_trials if f.breakdowns), ()),
    )


def subtract_profiles(comparison: Comparison) -> list[ProfileDifference]:
    """Return how the arms' profiles differ, function by function."""
    before, after = (merge_findings(comparison, arm) for arm in ARMS)
    passes = before.passes.get("plain") or before.passes.get("counts")
    if passes is None:
        return []
    return subtract_breakdowns(
        before.breakdowns, after.breakdowns, passes.bar_bytes, comparison.changed_functions
    )


def boots_of(comparison: Comparison) -> dict[ArmName, list[Timeline]]:
    """Return the traced guest boots of each arm's measured trials."""
    return {
        arm: [
            boot for result in comparison.of_arm(arm) if result.kind == "measured"
            for boot in result.findings.timelines
        ]
        for arm in ARMS
    }  # fmt: skip


def middle_boots(by_arm: Mapping[ArmName, Sequence[Timeline]]) -> dict[ArmName, Timeline]:
    """Return the boot of median length of each arm that has any."""
    shown = {}
    for arm, boots in by_arm.items():
        if boots:
            middle = median_low(boot.boot_seconds for boot in boots)
            shown[arm] = next(boot for boot in boots if boot.boot_seconds == middle)
    return shown


def find_laws(comparison: Comparison, arm: ArmName) -> dict[str, Law]:
    """Return the scaling law of each series of sizes, from the medians: "map/1GiB/cold" -> law.

    The counts show the step by which the kernel walks a map and an unmap. Sizes whose step is not
    that of the largest size are left out of the series. Without counts there is no law.
    """
    shown = merge_findings(comparison, arm)
    counted = shown.passes.get("counts")
    if counted is None:
        return {}
    levels = {level.place: level for level in shown.levels}
    series: dict[str, list[tuple[str, int, float]]] = {}
    for place in counted.places:
        for state in ("cold", "warm"):
            for operation in ("map", "unmap"):
                whole = place.mapping.size == counted.bar_bytes
                point = f"{place.name}/{state}"
                metric = comparison.metric(metric_at(f"bar_{operation}_cost", point, whole=whole))
                unit = find_walk_step(operation, place, levels.get(place.name))
                if metric is not None and unit is not None:
                    name = f"{operation}/{place.name.partition('/')[2]}/{state}"
                    cost = median(getattr(metric, arm))
                    series.setdefault(name, []).append((unit, place.mapping.size, cost))
    fitted = {}
    for name, points in series.items():
        unit = max(points, key=lambda point: point[1])[0]
        law = fit_scaling_law([(size, cost) for u, size, cost in points if u == unit], unit)
        if law is not None:
            fitted[name] = law
    return fitted


def find_walk_step(operation: str, place: Place, level: Level | None) -> str | None:
    """Return the step of a map (of its lookups) or of an unmap (of its walks of the IOMMU's
    tables), or None if it is not known."""
    if place.counts is None or place.dma_buf:
        return "1GiB" if place.dma_buf else None
    if operation == "unmap":
        return "4KiB" if place.counts.iova_walks == count_pages(place.mapping.size) else "1GiB"
    return level.stride if level else None


def has_more_failures(comparison: Comparison) -> bool:
    """True if the candidate's kernel fails more often than the baseline's in a run that is not
    invalid."""
    return comparison.verdict != "invalid" and count_more_failures(comparison.results) > 0


def attempts_of(results: Sequence[TrialResult]) -> list[Attempt]:
    """Return every attempt of the arms' trials; the control's are the baseline's."""
    return [
        attempt for r in results if r.arm in (*ARMS, CONTROL) for attempt in r.attempts
    ]  # fmt: skip


def count_failures(results: Sequence[TrialResult], arm: ArmName) -> tuple[int, int]:
    """Return the number of failed attempts that an arm's kernel is charged with, and of its
    attempts."""
    attempts = attempts_of(results)
    charged = ("arm", "undecided") if failing_arm(attempts) == arm else ("arm",)
    failed = sum(a.arm == arm and a.reason != "" and a.charge in charged for a in attempts)
    return failed, counts(attempts, arm)[1]


def undecided_trials(results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the trials that were not measured because of a failure that nobody is charged with
    yet."""
    charged = failing_arm(attempts_of(results))
    return [
        r for r in results
        if r.arm in (*ARMS, CONTROL) and r.kind != "measured"
        and r.attempts[-1].charge == "undecided" and r.attempts[-1].arm != charged
    ]  # fmt: skip


def find_arm_failed_by_bench(results: Sequence[TrialResult]) -> ArmName | None:
    """Return the arm in whose attempts the bench failed more often than by chance, or None. That
    arm's kernel may have caused it."""
    return arm_the_bench_fails(attempts_of(results))


def _has_undecided(results: Sequence[TrialResult]) -> bool:
    return bool(undecided_trials(results)) or find_arm_failed_by_bench(results) is not None


def count_more_failures(results: Sequence[TrialResult]) -> int:
    """Return how many more attempts the candidate's kernel failed than the baseline's; 0 unless
    these are more in number and also a larger share of its attempts. No statistics are involved:
    one more failure is enough."""
    (before, of_before), (after, of_after) = (count_failures(results, arm) for arm in ARMS)
    return max(0, after - before) if after * of_before > before * of_after else 0
