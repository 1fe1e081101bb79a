"""The verdict in one sentence, as somebody would quote it."""

from __future__ import annotations

import re
from statistics import median

from orchestrator.analysis.comparison import Comparison, MetricComparison, guest_accels
from orchestrator.analysis.effect import LEAST_FOR_P, Effect
from orchestrator.report.maps import plural
from orchestrator.report.timeline import quantity
from orchestrator.scenario import ARMS, ArmName, Metric, Scenario, format_size

# What takes so many seconds, or so many of what.
_SUBJECTS: dict[Metric, tuple[str, str]] = {
    "host_boot_seconds": ("a boot of the host", ""),
    "guest_boot_seconds": ("a guest boot with {bar}", ""),
    "guest_ssh_seconds": ("a guest boot with {bar}, up to SSH,", ""),
    "bar_maps_per_boot": ("one guest boot", " DMA maps of {bar}"),
    "bar_unmaps_per_boot": ("one guest boot", " DMA unmaps of {bar}"),
    "bar_map_seconds": ("one DMA map of {bar}", ""),
    "bar_unmap_seconds": ("one DMA unmap of {bar}", ""),
    "iommu_map_seconds": ("iommu_map in one DMA map of {bar}", ""),
    "bar_map_seconds_per_boot": ("mapping {bar} in one guest boot", ""),
    "bar_unmap_seconds_per_boot": ("unmapping {bar} in one guest boot", ""),
    "pfn_lookups_per_map": ("one DMA map of {bar}", " page lookups"),
    "pfn_faults_per_map": ("one DMA map of {bar}", " page faults"),
    "iova_lookups_per_unmap": ("one DMA unmap of {bar}", " IOMMU lookups"),
}
_VERSION = re.compile(r"\d+(?:\.\d+)+(?:-rc\d+)?")


def verdict_sentence(scenario: Scenario, comparison: Comparison, accel: str) -> str:
    """What came out, of which number, and how well it is known. `accel`: of the plan."""
    old, new = _names(comparison)
    verdict = comparison.verdict
    if verdict == "invalid":
        return f"{new} and {old} are not comparable by this run: {_flaw(comparison)}."
    failed = {arm: comparison.count(arm, "failed") for arm in ARMS}
    if verdict == "regressed" and failed["candidate"] > failed["baseline"]:
        return f"{new} is regressed from {old}: {_failures(comparison)}."
    said = {
        "improved": f"{new} is improved over {old}",
        "regressed": f"{new} is regressed from {old}",
        "equivalent": f"{new} is equivalent to {old}",
        "inconclusive": f"{new} against {old} is inconclusive",
    }[verdict]
    if len(comparison.results) < comparison.planned:
        said += f" so far, with {len(comparison.results)} of {comparison.planned} trials"
    decided = [m for name in comparison.deciding if (m := comparison.metric(name)) is not None]
    quoted = next((m for m in decided if m.verdict == verdict), decided[0])
    return f"{said}: {_quoted(scenario, quoted, emulated=accel != 'kvm')}."


def shown_value(value: float, unit: str) -> str:
    """`8.635 s`, `119.6 kinsn`; a count with all of its digits."""
    return f"{value:.10g}" if unit == "count" else quantity(value, unit)


def ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.4g}"


def p_text(effect: Effect) -> str:
    """Adjusted for the metrics that are judged together; empty where there is none."""
    p = effect.p_adjusted
    if p is None:
        return ""
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _names(comparison: Comparison) -> tuple[str, str]:
    """Of the baseline's kernel and the candidate's: as short as tells one from the other."""
    full = [comparison.kernels[arm]["release"] for arm in ARMS]
    short = [found[0] if (found := _VERSION.match(name)) else name for name in full]
    for old, new in (short, full):
        if old != new:
            return old, new
    return "the baseline", "The candidate"


def _quoted(scenario: Scenario, metric: MetricComparison, *, emulated: bool) -> str:
    base, _, point = metric.name.partition("@")
    bar = f"a {format_size(scenario.device.bar)} BAR" + f" ({point})" * bool(point)
    subject, what = (text.format(bar=bar) for text in _SUBJECTS[base])
    before, after = (shown_value(median(getattr(metric, arm)), metric.unit) for arm in ARMS)
    if before == after:
        values = f"{after}{what} in both"
    else:
        than = "against" if metric.verdict in ("equivalent", "inconclusive") else "instead of"
        values = f"{after}{what} {than} {before}"
    return f"{subject} takes {values} ({_ground(metric, emulated=emulated)})"


def _ground(metric: MetricComparison, *, emulated: bool) -> str:
    """The ratio, and how well it is known."""
    found = metric.effect.estimate
    # it need not be that of the medians
    of = " of the pairs" * (found.basis in ("trials", "few") and found.pairs > 1)
    said = ["no ratio to 0" if found.ratio is None else f"ratio{of} {found.ratio:.3g}"]
    if found.interval is not None:
        said.append("95 % interval {:.4g} to {:.4g}".format(*found.interval))
    if p := p_text(metric.effect):
        said.append(f"p {p}" if p.startswith("<") else f"p = {p}")
    if metric.unit == "s" and emulated:
        said.append("emulated seconds")
    if found.basis == "exact":
        said.append("instructions of an emulated host, not time")
    elif found.basis == "count":
        said.append("the same in every trial")
    elif found.basis == "trials":
        said.append(plural(found.pairs, "pair"))
    else:
        few = found.pairs < LEAST_FOR_P
        said.append(plural(found.pairs, "pair") + f", {'too few for a' if few else 'no'} p value")
    return ", ".join(said)


def _failures(comparison: Comparison) -> str:
    candidate, baseline = (
        [r for r in comparison.of_arm(arm) if r.kind == "failed"] for arm in reversed(ARMS)
    )
    reasons = ", ".join(sorted({r.reason for r in candidate}))
    return (
        f"{len(candidate)} of its {plural(len(comparison.of_arm('candidate')), 'trial')} failed"
        f" ({reasons}), of the baseline's {len(baseline)} of"
        f" {len(comparison.of_arm('baseline'))}"
    )


def _flaw(comparison: Comparison) -> str:
    """Why the run is invalid."""
    for arm in ARMS:
        if not comparison.count(arm, "measured"):
            return _unmeasured(comparison, arm)
    if len(guest_accels(comparison.results)) > 1:
        return "guests ran under KVM in some trials and were emulated in others"
    for name in comparison.deciding:
        metric = comparison.metric(name)
        if metric is None:
            return f"{name}, which decides, was not measured in both arms"
        if metric.verdict == "invalid" and metric.control is not None:
            ratio = ratio_text(metric.control.ratio)
            return (
                "the bench finds a difference between the baseline's kernel and itself"
                f" ({name}: ratio {ratio} of control to baseline)"
            )
    return "no metric was measured in both arms" if not comparison.metrics else "see below"


def _unmeasured(comparison: Comparison, arm: ArmName) -> str:
    trials = comparison.of_arm(arm)
    if not trials:
        return f"the {arm} has no trial"
    reasons = ", ".join(sorted({r.reason for r in trials}))
    return f"of the {arm}'s {plural(len(trials), 'trial')} none was measured ({reasons})"
