"""The block to paste under a patch: numbers, configuration, and a tag if one is due."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison, guest_accels
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.evidence.plan import Plan
from orchestrator.report.words.columns import wrap_text
from orchestrator.report.words.quantities import arm_text, change_text, explain_spreads
from orchestrator.report.words.sentence import explain_invalid
from orchestrator.report.words.variable_words import describe_differing
from orchestrator.report.words.wording import (
    TITLES,
    Setup,
    cost_label,
    metric_title,
)
from orchestrator.scenario.vocabulary import ARMS, Metric, is_emulated

_BEGIN = "---8<--- to paste under a patch ---8<---"
_END = "--->8---"
_HEADLINES: tuple[Metric, ...] = (
    "bar_map_cost", "guest_boot_cost", "bar_unmap_cost", "pfn_lookups_per_map",
)  # fmt: skip
_MOST = 3


def format_trailer(setup: Setup, comparison: Comparison, plan: Plan, tester: str | None) -> str:
    """Return the block. `plan` is plan.json; `tester` is `Name <mail>`, or None if git knows no
    user."""
    lines = [_BEGIN]
    for text in (
        *_numbers(comparison, plan),
        *_configuration(setup, comparison, plan),
        "",
        _tag(comparison, tester),
    ):
        lines += wrap_text(text, then="  ")
    return "\n".join([*lines, _END]) + "\n"


def find_worse(comparison: Comparison) -> list[MetricComparison]:
    """Return the metrics that regressed, apart from those that decide the verdict. A metric with
    several points appears once: with the point of the plain name if that one regressed, else with
    the point that regressed most."""
    by_base: dict[str, list[MetricComparison]] = {}
    for metric in comparison.metrics:
        if metric.verdict == "regressed" and metric.name not in comparison.deciding:
            by_base.setdefault(metric.name.partition("@")[0], []).append(metric)
    return [
        max(by_base[base], key=lambda m: (m.name == base, m.ratio or 0.0))
        for base in TITLES if base in by_base
    ]  # fmt: skip


def _numbers(comparison: Comparison, plan: Plan) -> Iterator[str]:
    """Yield two or three lines: deciding metrics and headlines. A metric that got worse is never
    left out."""
    names = dict.fromkeys((*comparison.deciding, *_HEADLINES))
    shown = [m for name in names if (m := comparison.metric(name)) is not None][:_MOST]
    bad = find_worse(comparison)
    if bad and not any(metric in shown for metric in bad):
        shown = [*shown[: _MOST - 1], bad[0]]
    accels = guest_accels(comparison.results)
    for metric in shown:
        arms = " -> ".join(arm_text(metric.unit, getattr(metric, arm)) for arm in ARMS)
        kind = cost_label(metric, plan.accel, accels)
        yield f"{metric_title(metric.name)}: {arms}{kind}, {change_text(metric.effect)}"
    explained = [
        f"+-: {s}" for s in explain_spreads(getattr(m, arm) for m in shown for arm in ARMS)
    ]
    if any(metric.effect.interval for metric in shown):
        by = "by pairs, " * comparison.paired
        explained.append(f"change: {by}with its 95 % interval")
    if explained:
        yield f"({'; '.join(explained)})"


def _configuration(setup: Setup, comparison: Comparison, plan: Plan) -> Iterator[str]:
    old, new = (comparison.kernels[arm]["release"] for arm in ARMS)
    emulated = ", emulated" * is_emulated(plan.accel)
    yield f"host: {old} -> {new}, accel {plan.accel}{emulated}"
    if variable := comparison.variable:
        apart = [d for d in variable.differs if d.kind == "setting" or old == new]
        if apart:
            yield f"arms differ in: {describe_differing(apart)}"
    yield f"device: {setup.device}; {': '.join(setup.workload)}"
    trials = " + ".join(str(comparison.count(arm, "measured")) for arm in ARMS)
    versions = ", ".join(
        f"{version} ({room})" for room in ("runner", "host")
        if (version := _condition(comparison, f"{room}.qemu"))
    )  # fmt: skip
    yield (
        f"barometer {plan.barometer}"
        + f", {trials} trials"
        + f"; QEMU {versions}" * bool(versions)
    )


def _condition(comparison: Comparison, name: str) -> str:
    """Return the different values of a condition in all trials, joined by "and"."""
    values = (result.conditions.get(name) for result in comparison.results)
    return " and ".join(dict.fromkeys(filter(None, values)))


def _tag(comparison: Comparison, tester: str | None) -> str:
    """Return the tag with the name of the person who vouches for the result, or the reason why
    there is no tag."""
    reason = _no_tag(comparison)
    if reason:
        return f"(no Tested-by: {reason})"
    by = tester or "(set git's user.name and user.email, then `barometer report`)"
    return f"{'Reported-by' if comparison.verdict == 'regressed' else 'Tested-by'}: {by}"


def _no_tag(comparison: Comparison) -> str:
    """Return the reason why there is no tag; empty if there is one."""
    baseline, candidate = (comparison.kernels[arm] for arm in ARMS)
    if comparison.verdict == "invalid":
        return f"the run is invalid: {explain_invalid(comparison)}"
    if baseline == candidate:
        return "both arms ran the same kernel"
    if not comparison.paired:
        return "the trials are of two runs"
    if comparison.verdict == "inconclusive":
        return "the run is inconclusive"
    if comparison.verdict != "regressed" and choose_exit_code(comparison) != 0:
        return f"the run is {comparison.verdict}, which is not what the scenario expects"
    return ""
