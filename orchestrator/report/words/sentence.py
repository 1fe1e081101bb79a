"""The verdict in one sentence, as a maintainer would quote it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.conditions.conditions import Difference
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    attempts_of,
    count_failures,
    find_arm_failed_by_bench,
    guest_accels,
    has_more_failures,
)
from orchestrator.evidence.faults import bench_counts, counts
from orchestrator.evidence.plan import Plan
from orchestrator.formats.units import format_size
from orchestrator.report.words.quantities import change_text, format_quantity, plural
from orchestrator.report.words.wording import cost_label
from orchestrator.scenario.metrics import WORDS
from orchestrator.scenario.vocabulary import ARMS, ArmName


def verdict_sentence(bar: int, comparison: Comparison, plan: Plan) -> str:
    """State the verdict and one number. `bar`: size of the device's BAR; `plan` is plan.json.

    The number is that of the first deciding metric that has the verdict of the run.
    """
    old, new = _kernels(comparison)
    verdict = comparison.verdict
    if verdict == "invalid":
        return f"{new} and {old} cannot be compared by this run: {explain_invalid(comparison)}."
    if verdict == "regressed" and has_more_failures(comparison):
        return f"{new} is regressed: {_failures(comparison)}."
    if comparison.has_undecided and verdict == "inconclusive":
        return f"{new} against {old} is inconclusive: {describe_undecided(comparison)}."
    beginning = {
        "equivalent": f"{new} is equivalent to {old}",
        "inconclusive": f"{new} against {old} is inconclusive",
    }.get(verdict, f"{new} is {verdict}")
    beginning += ", with regressions" * comparison.outcome.has_regressions
    if len(comparison.results) < comparison.planned:
        beginning += f" so far, with {len(comparison.results)} of {comparison.planned} trials"
    decided = [m for name in comparison.deciding if (m := comparison.metric(name)) is not None]
    quoted = next((m for m in decided if m.verdict == verdict), decided[0])
    return f"{beginning}: {_quoted(bar, comparison, quoted, plan.accel)}."


def describe_undecided(comparison: Comparison) -> str:
    """Report the failures that are charged to nobody, with the number of each arm's attempts."""
    if not comparison.undecided:
        return _failed_by_bench(comparison)
    reasons = ", ".join(sorted({result.reason for result in comparison.undecided}))
    (before, of_before), (after, of_after) = (
        counts(attempts_of(comparison.results), arm) for arm in ARMS
    )
    return (
        f"the cause of a failure is not known ({reasons}): {after} of the candidate's"
        f" {plural(of_after, 'attempt')} failed, and {before} of the baseline's {of_before}"
    )


def _failed_by_bench(comparison: Comparison) -> str:
    attempts = attempts_of(comparison.results)
    arm = find_arm_failed_by_bench(comparison.results)
    reasons = {a.reason for a in attempts if a.arm == arm and a.reason and a.charge == "bench"}
    (before, of_before), (after, of_after) = (bench_counts(attempts, arm) for arm in ARMS)
    return (
        f"the bench failed ({', '.join(sorted(reasons))}) in {after} of the candidate's"
        f" {plural(of_after, 'attempt')} and in {before} of the baseline's {of_before}: too"
        f" uneven for chance, so the {arm}'s kernel may have caused it"
    )


def explain_invalid(comparison: Comparison) -> str:
    """Explain why a run is invalid."""
    for arm in ARMS:
        if not comparison.count(arm, "measured"):
            return _unmeasured(comparison, arm)
    if len(guest_accels(comparison.results)) > 1:
        return "guests ran under KVM in some trials and were emulated in others"
    if comparison.conditions is not None and comparison.conditions.unplanned:
        return describe_unplanned(comparison.conditions.unplanned)
    for name in comparison.deciding:
        metric = comparison.metric(name)
        if metric is None:
            return f"{name} decides the verdict and was not measured in both arms"
        if metric.verdict == "invalid" and metric.control is not None:
            return (
                f"the bench finds a difference between a kernel and itself ({name}:"
                f" {change_text(metric.control)})"
            )
    return "no metric was measured in both arms"


def describe_unplanned(differences: Sequence[Difference]) -> str:
    """Name what differs: `runner.qemu (10.0.2 | 10.1.0) and 2 others differ, which was not
    planned`."""
    first, *others = differences
    values = " | ".join(dict.fromkeys(v for of_side in first.values.values() for v in of_side))
    more = f" and {plural(len(others), 'other')} differ" if others else " differs"
    return f"{first.name} ({values}){more}, which was not planned"


def _kernels(comparison: Comparison) -> tuple[str, str]:
    old, new = (comparison.kernels[arm]["release"] for arm in ARMS)
    return (old, new) if old != new else (f"{old} (baseline)", f"{new} (candidate)")


def _quoted(bar_bytes: int, comparison: Comparison, metric: MetricComparison, accel: str) -> str:
    base, _, point = metric.name.partition("@")
    bar = f"a {format_size(bar_bytes)} BAR" + f" ({point})" * bool(point)
    words = WORDS[base]
    subject, noun = (text.format(bar=bar) for text in (words.subject, words.noun))
    before, after = (
        format_quantity(summarize(metric.unit, getattr(metric, arm)).middle, metric.unit)
        for arm in ARMS
    )
    kind = cost_label(metric, accel, guest_accels(comparison.results))
    subject_takes, interval = f"{subject} takes {after}{noun}", metric.effect.interval
    if before == after and metric.verdict == "equivalent" and interval is None:
        return f"{subject_takes} in both{kind}"
    against = "instead of" if metric.verdict in ("improved", "regressed") else "against"
    by = "by pairs " * (interval is not None and comparison.paired)
    return f"{subject_takes} {against} {before}{kind}, {by}{change_text(metric.effect)}"


def _failures(comparison: Comparison) -> str:
    (before, of_before), (after, of_after) = (count_failures(comparison.results, a) for a in ARMS)
    attempts = [a for a in attempts_of(comparison.results) if a.arm == "candidate"]
    reasons = ", ".join(sorted({a.reason for a in attempts if a.reason and a.charge != "bench"}))
    word = "trial" if of_after == len(comparison.of_arm("candidate")) else "attempt"
    return (
        f"{after} of its {plural(of_after, word)} failed ({reasons}), and {before} of the"
        f" baseline's {of_before}"
    )


def _unmeasured(comparison: Comparison, arm: ArmName) -> str:
    trials = comparison.of_arm(arm)
    if not trials:
        return f"the {arm} has no trial"
    reasons = ", ".join(sorted({r.reason for r in trials}))
    return f"none of the {arm}'s {plural(len(trials), 'trial')} was measured ({reasons})"
