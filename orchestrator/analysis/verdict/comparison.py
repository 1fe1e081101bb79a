"""Compare the trials of both arms: a Comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import NamedTuple

from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.conditions.conditions import Conditions
from orchestrator.analysis.conditions.variable import Variable
from orchestrator.analysis.maps.level import Level
from orchestrator.analysis.maps.maps import MapPass, Place
from orchestrator.analysis.maps.scaling import Law, fit_scaling_law
from orchestrator.analysis.maps.theory import count_pages
from orchestrator.analysis.trial import Findings, TrialResult
from orchestrator.analysis.verdict.effect import (
    OF_BOOTS,
    OF_MAPS,
    OF_MAPS_IN_BOOTS,
    OF_UNMAPS_IN_BOOTS,
    Effect,
    Estimate,
    Resolution,
    Rule,
    Verdict,
    adjust_holm,
    estimate_ratio,
    judge_effect,
)
from orchestrator.analysis.verdict.shapes import Shape, find_shapes
from orchestrator.evidence.faults import (
    Attempt,
    arm_the_bench_fails,
    counts,
    failing_arm,
)
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.fields import Expectation
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.trials import Judgement
from orchestrator.scenario.vocabulary import (
    ARMS,
    CONTROL,
    METRICS,
    ArmName,
    Metric,
    Role,
    metric_at,
)

_WORST_FIRST: tuple[Verdict, ...] = (
    "regressed", "invalid", "inconclusive", "improved", "equivalent",
)  # fmt: skip
_HEADLINES: tuple[Metric, ...] = ("bar_map_cost", "pfn_lookups_per_map", "guest_boot_cost")


@dataclass(frozen=True)
class MetricComparison:
    name: Metric
    unit: str
    baseline: tuple[float, ...]
    """One value for each measured trial, in the order in which they ran."""
    candidate: tuple[float, ...]
    effect: Effect
    control: Effect | None = None
    """Effect between trials of one kernel. In a run: baseline against control. Across two runs:
    the other arm of both."""
    controls: tuple[float, ...] = ()
    """Values of the control, which take the place of the candidate's."""

    @cached_property
    def shapes(self) -> dict[ArmName, tuple[Shape, ...]]:
        """Shapes of the arms whose times are not one cloud around one value. Times only."""
        if self.unit != "s":
            return {}
        by_arm = {arm: find_shapes(getattr(self, arm)) for arm in ARMS}
        return {arm: seen for arm, seen in by_arm.items() if seen}

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
    variable: Variable | None = None
    """The variable: what the arms differ in."""
    expect: Mapping[Metric, Expectation] = field(default_factory=dict)
    """What the scenario expects of the metrics."""
    judgement: Judgement = field(default_factory=Judgement)
    """Settings by which the scenario is judged."""

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
) -> Comparison:
    """Return effect and verdict of every metric that both arms have. `planned`: number of trials
    of the complete run. With the accelerator exact, metrics that are otherwise in seconds are in
    Ginsn, 10^9 instructions. `paired`: False if the arms are of different runs."""
    rule = Rule(scenario.judgement.margin, scenario.judgement.floor)
    estimates = _estimate_metrics(scenario.workload, results, accel, paired=paired)
    deciding = _choose_deciding(scenario.expect, [*estimates])
    metrics = _judge_metrics(estimates, rule, deciding)
    verdict = _verdict(results, metrics, deciding)
    if len(guest_accels(results)) > 1:
        verdict = "invalid"  # KVM against emulation is no evidence on kernels
    if conditions is not None and conditions.unplanned:
        verdict = "invalid"
    if len(results) < planned and verdict in ("improved", "equivalent"):
        verdict = "inconclusive"
    return Comparison(
        scenario.name, verdict, tuple(results), tuple(metrics), kernels, planned, deciding,
        conditions, paired, expect=scenario.expect, judgement=scenario.judgement,
    )  # fmt: skip


def add_control(comparison: Comparison, beside: Comparison) -> Comparison:
    """Return the comparison with a control for each metric: the effect that `beside` has between
    trials of one kernel."""
    metrics = tuple(
        replace(metric, control=control.effect, controls=control.candidate)
        if (control := beside.metric(metric.name)) is not None
        else metric
        for metric in comparison.metrics
    )
    verdict = comparison.verdict
    # as in a run: an arm that fails more often is worse, whatever its times are
    if not has_more_failures(comparison) and any(
        m.verdict == "invalid" for m in metrics if m.name in comparison.deciding
    ):
        verdict = "invalid"
    return replace(comparison, metrics=metrics, verdict=verdict)


class _Estimated(NamedTuple):
    """A metric that both arms have, before its p is adjusted."""

    unit: str
    values: dict[Role, dict[int, float]]
    """Values of each role, by pair."""
    estimate: Estimate
    resolution: Resolution


def _estimate_metrics(
    workload: Workload, results: Sequence[TrialResult], accel: str, *, paired: bool
) -> dict[Metric, _Estimated]:
    estimates: dict[Metric, _Estimated] = {}
    for name in _names(results):
        unit, resolution = unit_of(name, accel), resolution_of(workload, name)
        values = {role: values_by_pair(results, role, name) for role in (*ARMS, CONTROL)}
        before, after = values["baseline"], values["candidate"]
        if before and after:
            pairs = [(before[pair], after[pair]) for pair in before if pair in after]
            estimate = estimate_ratio(
                unit, [*before.values()], [*after.values()], pairs if paired else None, resolution
            )
            estimates[name] = _Estimated(unit, values, estimate, resolution)
    return estimates


def _judge_metrics(
    estimates: Mapping[Metric, _Estimated], rule: Rule, deciding: Sequence[Metric]
) -> list[MetricComparison]:
    ps = _adjust_apart({name: of.estimate.p for name, of in estimates.items()}, deciding)
    return [
        _judge_metric(name, of, judge_effect(of.estimate, rule, ps[name]), rule)
        for name, of in estimates.items()
    ]


def unit_of(name: Metric, accel: str) -> str:
    """Return the metric's unit: count, s, or for a cost on an exact host Ginsn: 10^9
    instructions. That host's clocks advance by 1 ns with each instruction, so a clock that reads
    1 s has counted 1 Ginsn."""
    kind = METRICS[name.partition("@")[0]]
    if kind == "cost":
        return "Ginsn" if accel == "exact" else "s"
    return kind


def resolution_of(workload: Workload, name: Metric) -> Resolution:
    """Return how near two values of a metric in Ginsn must be to be the same number."""
    if workload == "map":
        return OF_MAPS
    if name.startswith("guest_"):
        return OF_BOOTS
    return OF_UNMAPS_IN_BOOTS if name.startswith("bar_unmap") else OF_MAPS_IN_BOOTS


def values_by_pair(results: Sequence[TrialResult], role: Role, name: Metric) -> dict[int, float]:
    """Return the metric's value of each measured trial that has one, by pair."""
    return {
        r.pair: value for r in results
        if r.arm == role and r.kind == "measured" and (value := r.value(name)) is not None
    }  # fmt: skip


def _adjust_apart(
    ps: Mapping[Metric, float | None], deciding: Sequence[Metric]
) -> dict[Metric, float | None]:
    """Adjust the p values of the deciding metrics together, and those of the others together."""
    out: dict[Metric, float | None] = {}
    for family in ([n for n in ps if n in deciding], [n for n in ps if n not in deciding]):
        out |= zip(family, adjust_holm([ps[name] for name in family]), strict=True)
    return out


def _judge_metric(name: Metric, of: _Estimated, effect: Effect, rule: Rule) -> MetricComparison:
    baseline, candidate, control = (tuple(of.values[role].values()) for role in (*ARMS, CONTROL))
    beside = None
    if control:
        against_itself = estimate_ratio(of.unit, baseline, control, None, of.resolution)
        beside = judge_effect(against_itself, rule, against_itself.p)
    return MetricComparison(name, of.unit, baseline, candidate, effect, beside, control)


def _names(results: Sequence[TrialResult]) -> list[Metric]:
    """Return every metric that was measured: in the order of METRICS, then point by point."""
    names = {name: None for result in results for name in result.samples}
    return [name for name in METRICS if name in names] + [n for n in names if "@" in n]


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


def boots_of(comparison: Comparison) -> dict[ArmName, list[Timeline]]:
    """Return the traced guest boots of each arm's measured trials."""
    return {
        arm: [
            boot for result in comparison.of_arm(arm) if result.kind == "measured"
            for boot in result.findings.timelines
        ]
        for arm in ARMS
    }  # fmt: skip


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
        if r.arm in (*ARMS, CONTROL) and r.kind != "measured" and r.charge == "undecided"
        and r.attempts[-1].arm != charged
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
