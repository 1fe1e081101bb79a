"""The report for terminals and mail: plain text, no colours."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from orchestrator.analysis.comparison import (
    Comparison,
    MetricComparison,
    boots_of,
    guest_accels,
)
from orchestrator.analysis.theory import best_leaf, lookups, pages, stride_of
from orchestrator.analysis.trial import TrialResult
from orchestrator.report.maps import map_sections, plural
from orchestrator.report.timeline import calls_and_cost
from orchestrator.scenario import (
    ARMS,
    AT_POINTS,
    Device,
    Guest,
    Metric,
    Scenario,
    format_size,
)

ROWS: dict[Metric, tuple[str, str]] = {
    "host_boot_seconds": ("host boot, start to SSH", "host"),
    "guest_boot_seconds": ("guest boot, QEMU start to userspace", "plain"),
    "guest_ssh_seconds": ("guest boot, QEMU start to SSH", "plain"),
    "bar_maps_per_boot": ("DMA maps of the BAR, start to exit", "timing"),
    "bar_unmaps_per_boot": ("DMA unmaps of the BAR, start to exit", "timing"),
    "bar_map_seconds": ("one DMA map", "timing"),
    "bar_unmap_seconds": ("one DMA unmap", "timing"),
    "iommu_map_seconds": ("  of a map: iommu_map", "timing"),
    "bar_map_seconds_per_boot": ("all maps, start to exit", "timing"),
    "bar_unmap_seconds_per_boot": ("all unmaps, start to exit", "timing"),
    "pfn_lookups_per_map": ("page lookups in one map", "counts"),
    "pfn_faults_per_map": ("page faults in one map", "counts"),
    "iova_lookups_per_unmap": ("IOMMU lookups in one unmap", "counts"),
}
"""Every metric, what it is called in the table, and the pass it comes from."""

_FEW = 4


def text_report(scenario: Scenario, comparison: Comparison, plan: dict[str, Any]) -> str:
    """The whole report. `plan` is plan.json."""
    emulated, exact = plan["accel"] != "kvm", plan["accel"] == "exact"
    parts = [
        _head(scenario, comparison, plan, emulated=emulated),
        _table(scenario, comparison, emulated=emulated),
        _theory(scenario, comparison),
        _said_of_boots(comparison),
        calls_and_cost(boots_of(comparison)),
        map_sections(comparison, exact=exact),
        notes(scenario, comparison, emulated=emulated, exact=exact),
        _problems(comparison.results),
    ]
    return "\n".join(part for part in parts if part)


def _head(
    scenario: Scenario, comparison: Comparison, plan: dict[str, Any], *, emulated: bool
) -> str:
    accel = f"{plan['accel']}, {plan['accel_reason']}"
    lines = [f"{comparison.scenario}: {comparison.verdict}"]
    judged = [m for name in scenario.expect if (m := comparison.metric(name)) is not None]
    lines += [f"  {m.name}: {m.verdict}, expected: {scenario.expect[m.name]}" for m in judged]
    if len(comparison.results) < comparison.planned:
        lines.append(f"  NOT COMPLETE: {len(comparison.results)} of {comparison.planned} trials")
    if len(guest_accels(comparison.results)) > 1:
        lines.append("  NOT COMPARABLE: guests ran under KVM in some trials, emulated in others")
    lines.append("")
    for arm in ARMS:
        kernel = comparison.kernels[arm]
        trials = ", ".join(
            f"{comparison.count(arm, kind)} {kind}"
            for kind in ("measured", "failed", "invalid")
            if comparison.count(arm, kind)
        )
        again = [reason for r in comparison.of_arm(arm) for reason in r.repeated]
        if again:
            trials += f"; begun again: {', '.join(again)}"
        lines.append(
            f"{arm:<11}{kernel['release']}  ({kernel['source']}; {trials or 'no trials'})"
        )
    lines += [
        f"device     {device_text(scenario.device)}, {scenario.host.viommu} vIOMMU",
        "{:<11}{}".format(*workload_text(scenario, plan)),
        f"host       nested VM, {plural(scenario.host.cpus, 'CPU')}, accel {accel}",
    ]
    if any(r.guest_accel == "tcg" for r in comparison.results) and not emulated:
        lines.append("           its guests are EMULATED: there is no KVM in the host")
    if plan["accel"] == "exact":
        lines.append(
            "           Costs are INSTRUCTIONS of that emulated machine (Ginsn: 10^9), not times"
        )
    elif emulated:
        lines.append(
            "           EMULATED: compare its seconds with one another, not with hardware's"
        )
    return "\n".join(lines) + "\n"


def workload_text(scenario: Scenario, plan: dict[str, Any]) -> tuple[str, str]:
    """Its label, and what it is."""
    if scenario.workload == "map" or scenario.guest is None:
        backend = {"type1": "type1 container", "iommufd": "iommufd"}[scenario.map.backend]
        return "workload", f"map from the host's user space, {backend}"
    guest = plan["guest_kernel"]["release"]
    memory = format_size(scenario.guest.memory)
    return "guest", f"{guest}, {memory}{said_of(scenario.guest)}"


def device_text(device: Device) -> str:
    number = f"{device.count} x " * (device.count > 1)
    return f"{number}{device.kind}, BAR {format_size(device.bar)}" + ", no mmap" * (
        not device.mmap
    )


def said_of(guest: Guest) -> str:
    """What of the guest is not as it is by default."""
    said = {
        "firmware": f", {guest.firmware}",
        "boot": f", booted from a {guest.boot}",
        "backing": f", memory {guest.backing}",
        "viommu": f", {guest.viommu} vIOMMU",
        "backend": f", by {guest.backend}",
        "phys_bits": f", {guest.phys_bits} address bits",
    }
    usual = Guest.model_fields
    return "".join(text for key, text in said.items() if getattr(guest, key) != usual[key].default)


def _table(scenario: Scenario, comparison: Comparison, *, emulated: bool) -> str:
    if not comparison.metrics:
        return ""
    unit = "emulated s" if emulated else "s"
    rows: list[tuple[str, ...]] = [("", "pass", "baseline", "candidate", "ratio", "verdict")]
    for base, (title, source) in ROWS.items():
        group = [m for m in comparison.metrics if m.name.partition("@")[0] == base]
        if not group:
            continue
        of = {"s": f", {unit}", "count": ""}.get(group[0].unit, f", {group[0].unit}")
        if scenario.workload != "map" or base not in AT_POINTS:
            rows += [_row(title + of, source, metric) for metric in group]
            continue
        rows.append((title + of, "", "", "", "", ""))
        by_name = {metric.name: metric for metric in group}
        for point in scenario.points():
            if (found := by_name.get(point.metric(base))) is not None:
                name = f"  {point.name}" + f" ({base})" * point.headline
                rows.append(_row(name, "plain" if source == "timing" else source, found))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        left = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}"
        right = "  ".join(
            f"{cell:>{width}}" for cell, width in zip(row[2:5], widths[2:5], strict=True)
        )
        lines.append(f"{left}  {right}  {row[5]}".rstrip())
    return "\n".join(lines) + "\n"


def _row(title: str, source: str, metric: MetricComparison) -> tuple[str, ...]:
    ratio = "-" if metric.ratio is None else f"{metric.ratio:.4g}"
    return (title, source, *(_quantity(metric.unit, getattr(metric, arm)) for arm in ARMS), ratio,
            metric.verdict)  # fmt: skip


def _quantity(unit: str, samples: Sequence[float]) -> str:
    """The median; with every trial's value (or the range of many) where there are several."""
    text = f"{median(samples):.10g}" if unit == "count" else f"{median(samples):.6g}"
    if 1 < len(samples) <= _FEW:
        text += f" [{' '.join(f'{s:.6g}' for s in samples)}]"
    elif len(set(samples)) > 1:
        text += f" [{min(samples):.6g} .. {max(samples):.6g}]"
    return text


def _theory(scenario: Scenario, comparison: Comparison) -> str:
    metric = comparison.metric("pfn_lookups_per_map")
    if metric is None or scenario.workload == "map":
        return ""
    bar = scenario.device.bar
    lines = [
        f"Lookups in theory: a {format_size(bar)} BAR has {pages(bar)} pages of 4 KiB; with a"
        " stride of",
        "  " + ", ".join(f"{leaf} {n}" for leaf, n in lookups(bar).items()) + ".",
    ]
    for arm in ARMS:
        count = median(getattr(metric, arm))
        stride = stride_of(bar, count)
        found = f"one for each {stride}, exactly" if stride else "no leaf size fits that number"
        lines.append(f"  {arm:<10} {count:.10g}: {found}")
    best = best_leaf(bar)
    if stride_of(bar, median(metric.candidate)) not in (None, best):
        lines.append(f"  The candidate's lookups do not have the best stride, {best}.")
    return "\n".join(lines) + "\n"


def _said_of_boots(comparison: Comparison) -> str:
    """Notes on boots that are not what they seem to be."""
    lines: dict[str, None] = {}
    for arm in ARMS:
        for boot in boots_of(comparison)[arm]:
            for note in boot.notes:
                lines.setdefault(f"  {arm:<10} {note.name}: {note.text}")
    return "\n".join(["Notes:", *lines]) + "\n" if lines else ""


def notes(scenario: Scenario, comparison: Comparison, *, emulated: bool, exact: bool) -> str:
    if not comparison.metrics:
        return ""
    lines = [
        "Each value is a trial's: one host boot; what repeats within it is reduced to its median."
    ]
    if scenario.workload == "map":
        lines += [
            "A point is SIZE/ALIGNMENT/STATE: how much of the BAR, how its virtual address is",
            "aligned to it, and whether its page tables were zapped before (cold) or are as the",
            "last map left them (warm). plain: the agent's own clock around each ioctl.",
        ]
        if "counts" in scenario.trace.passes and scenario.map.backend == "type1":
            lines += [
                "counts: in-kernel histograms, checked against minor faults and page-table bytes;",
                "they give no times.",
            ]
    else:
        said = {
            "plain": "plain: untraced boot, from QEMU's start, which is known to 10 ms.",
            "timing": "timing: probes around each map and unmap, none for each page"
            + ("." if exact else "; its clock has steps of 1 us."),
            "counts": "counts: one cold map from the host's user space; it gives no times.",
        }
        lines += [text for which, text in said.items() if which in scenario.trace.passes]
    if exact:
        lines += [
            "Ginsn: the host is emulated, its instructions are counted; one is one nanosecond of",
            "its clocks. With the same QEMU they are the same on any machine, however busy.",
        ]
    elif emulated:
        lines.append("All seconds are emulated: those of a slow machine.")
    return "\n".join(lines) + "\n"


def _problems(results: Sequence[TrialResult]) -> str:
    lines = []
    for result in results:
        if result.kind == "measured":
            continue
        where = f" at {result.stage}" if result.stage else ""
        lines.append(f"{result.name}: {result.kind}{where}: {result.reason}: {result.message}")
        lines += [f"  | {line}" for line in result.evidence.splitlines()[-12:]]
    return "\n".join(["Trials that do not count:", *lines]) + "\n" if lines else ""
