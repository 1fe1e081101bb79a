"""The text report's parts about maps from the host's user space: level and reason, scaling law,
cost of looking, and where the instructions go."""

from __future__ import annotations

from orchestrator.analysis.maps.breakdown import Breakdown, measured_whole
from orchestrator.analysis.maps.level import Level, LevelReason
from orchestrator.analysis.maps.maps import Place
from orchestrator.analysis.maps.probe_overhead import ProbeCost, compute_probe_costs
from orchestrator.analysis.maps.scaling import Law
from orchestrator.analysis.tracefs.trace import Operation
from orchestrator.analysis.trial import Findings
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    find_laws,
    merge_findings,
    subtract_profiles,
)
from orchestrator.formats.units import format_size
from orchestrator.report.words.columns import wrap_text
from orchestrator.report.words.profile_words import describe_profile
from orchestrator.report.words.quantities import format_quantity, plural
from orchestrator.scenario.vocabulary import ARMS

_NO_LOOKING = (
    "Cost of looking: not measured in this run; the map workload with accel exact and the passes"
    " plain, timing and counts does\n"
)
_MOST_FUNCTIONS = 14
_LEAST_SHARE = 0.02


def map_sections(comparison: Comparison, *, exact: bool) -> str:
    """Return the sections on single maps, which follow the table; empty if there were no maps. An
    arm's levels and parts are those of its first measured trial; medians are of all its trials."""
    shown = {arm: merge_findings(comparison, arm) for arm in ARMS}
    parts = [
        _levels(shown["baseline"], shown["candidate"]),
        _laws(comparison, exact=exact),
        inside_maps(comparison, exact=exact),
    ]
    return "\n".join(part for part in parts if part)


def inside_maps(comparison: Comparison, *, exact: bool, names_missing: bool = True) -> str:
    """Report what the probes cost, and where the cost of a map and an unmap goes.
    `names_missing`: name the run that measures what the probes cost, if this one mapped and did
    not measure it."""
    shown = {arm: merge_findings(comparison, arm) for arm in ARMS}
    names_missing = names_missing and any(side.passes or side.levels for side in shown.values())
    parts = [
        _looking(shown["baseline"], shown["candidate"], exact=exact)
        or _NO_LOOKING * names_missing,
        _parts(shown["baseline"], shown["candidate"], exact=exact),
        *(_breakdown(arm, b, shown[arm]) for arm in ARMS for b in shown[arm].breakdowns),
        _differences(comparison),
    ]
    return "\n".join(part for part in parts if part)


def _cost_text(seconds: float, *, exact: bool) -> str:
    return format_quantity(seconds, "Ginsn" if exact else "s")


# level and reason -----------------------------------------------------------------------------


def _levels(baseline: Findings, candidate: Findings) -> str:
    names = list(
        dict.fromkeys(level.place for side in (baseline, candidate) for level in side.levels)
    )
    if not names:
        return ""
    lines = ["Mapping level (BAR in the process; each lookup), and why not the best:"]
    shown: set[tuple[str, LevelReason]] = set()
    for name in names:
        lines.append(f"  {name}")
        for arm, side in zip(ARMS, (baseline, candidate), strict=True):
            for level in side.levels:
                if level.place == name:
                    lines.append(f"    {arm:<10} {level_text(level, side)}")
                    for reason in level.reasons:
                        again = (arm, reason) in shown
                        text = "as above" if again else reason.text
                        lines.append(f"    {'':<10} - {reason.name}: {text}")
                        shown.add((arm, reason))
    return "\n".join(lines) + "\n"


def level_text(level: Level, side: Findings) -> str:
    """Describe one level of an arm."""
    counted = side.passes.get("counts")
    places = counted.places if counted else ()
    place = next((p for p in places if p.name == level.place), None)
    if place is None:
        aligned = all(
            r.name in ("too-small", "misaligned", "qemu-unaligned") for r in level.reasons
        )
        source = "at most, from where QEMU put it" if aligned else "by QEMU's page tables"
        words = f"leaves of {level.leaf} {source}"
    elif place.dma_buf:
        words = "exported as a dma-buf: no page table is walked"
    else:
        counts = place.counts
        assert counts is not None, "a place of the counts pass"
        words = (
            f"{_leaves(level, place)}, {plural(counts.installed, 'fault')};"
            f" {plural(sum(counts.lookups.values()), 'lookup')}"
            f"{f' of {level.stride}' if level.stride and len(place.leaves or ()) < 2 else ''};"
            f" {counts.iova_walks} IOMMU walks on unmap"
        )
    best = level.best and place is not None
    return words + (" (best)" if best else "")


def _leaves(level: Level, place: Place) -> str:
    if place.leaves and len(place.leaves) > 1:
        return "leaves: " + ", ".join(f"{n} of {name}" for name, n in place.leaves.items())
    return f"leaves of {level.leaf}"


# scaling law ----------------------------------------------------------------------------------


def _laws(comparison: Comparison, *, exact: bool) -> str:
    by_arm = {arm: find_laws(comparison, arm) for arm in ARMS}
    names = list(dict.fromkeys(name for laws in by_arm.values() for name in laws))
    if not names:
        return ""
    lines = ["Scaling law: how the cost grows with the size of what is mapped"]
    for name in names:
        lines.append(f"  {name}")
        lines += [
            f"    {arm:<10} {law_text(by_arm[arm][name], exact=exact)}"
            for arm in ARMS
            if name in by_arm[arm]
        ]
    return "\n".join(lines) + "\n"


def law_text(law: Law, *, exact: bool) -> str:
    each = _cost_text(law.per_unit, exact=exact)
    fixed = _cost_text(law.fixed, exact=exact)
    if law.kind == "flat":
        words = f"flat: {fixed} + {each} per GiB"
    else:
        unit = "page" if law.unit == "4KiB" else law.unit
        words = f"linear: {fixed} + {each} per {unit}"
    low, high = law.exponent_interval
    return (
        f"{words} (residual {law.residual:.2g}; grows with size^{law.exponent:.2f}"
        f" [{low:.2f}, {high:.2f}], {format_size(law.smallest)} to {format_size(law.largest)})"
    )


# cost of looking ------------------------------------------------------------------------------


def _looking(baseline: Findings, candidate: Findings, *, exact: bool) -> str:
    lines = []
    for arm, side in zip(ARMS, (baseline, candidate), strict=True):
        for cost in compute_probe_costs(side.passes):
            lines += _cost(arm, cost, exact=exact)
    if not lines:
        return ""
    head = "Cost of looking: the same maps without probes and with them"
    if not exact:
        head += " (measured in noisy time: accel exact gives exact figures)"
    return "\n".join([head, *lines]) + "\n"


def _share(value: float) -> str:
    return f"{value:.2%}" if value >= 1e-4 else "under 0.01%"


def _cost(arm: str, cost: ProbeCost, *, exact: bool) -> list[str]:
    def change(value: float, base: float) -> str:
        return f"{value / base - 1:+.2%}" if abs(value / base - 1) >= 5e-5 else "+0.00%"

    clock, call = cost.instrument / cost.plain_map, cost.call / cost.plain_map
    lines = [
        f"  {arm} {cost.point}: map {_cost_text(cost.plain_map, exact=exact)}, unmap"
        f" {_cost_text(cost.plain_unmap, exact=exact)}; of the map, the clock's own"
        f" {_cost_text(cost.instrument, exact=exact)} ({_share(clock)}), an"
        f" empty ioctl {_cost_text(cost.call, exact=exact)}"
        f" ({_share(call)})"
    ]
    for which, (mapped, unmapped) in cost.passes.items():
        lines.append(
            f"    {which:<8} map {change(mapped, cost.plain_map)}"
            f" ({_cost_text(mapped - cost.plain_map, exact=exact)}),"
            f" unmap {change(unmapped, cost.plain_unmap)}"
        )
    return lines


# parts and functions --------------------------------------------------------------------------


def _parts(baseline: Findings, candidate: Findings, *, exact: bool) -> str:
    lines = []
    for arm, side in zip(ARMS, (baseline, candidate), strict=True):
        for kind in ("map", "unmap"):
            traced = [o for o in side.traced if o.kind == kind]
            if traced:
                lines.append(f"  {arm:<10} {kind:<6} {_operation(traced[-1], exact=exact)}")
    if not lines:
        return ""
    return "\n".join(["Parts of the last map and unmap of the timing pass:", *lines]) + "\n"


def _operation(operation: Operation, *, exact: bool) -> str:
    parts = {
        "pinning (vfio_pin_pages_remote)": operation.pin_seconds,
        "iova_to_phys walk": operation.walk_seconds,
        "iommu_map" if operation.kind == "map" else "iommu_unmap_fast": operation.iommu_seconds,
        "unpinning": operation.unpin_seconds,
    }
    known = {name: value for name, value in parts.items() if value is not None}
    known["other"] = operation.seconds - sum(known.values())
    return f"{_cost_text(operation.seconds, exact=exact)}: " + ", ".join(
        f"{name} {value / operation.seconds:.1%}" for name, value in known.items()
    )


def _differences(comparison: Comparison) -> str:
    lines = [
        line for difference in subtract_profiles(comparison)
        for line in wrap_text(f"  {describe_profile(difference)}", then="    ")
    ]  # fmt: skip
    return "\n".join(["Where the arms' instructions differ:", *lines]) + "\n" if lines else ""


def _breakdown(arm: str, breakdown: Breakdown, findings: Findings) -> str:
    lines = [f"Where the instructions of one {breakdown.operation} go: {arm},"
             f" {breakdown.state}, the whole BAR"]  # fmt: skip
    total = breakdown.total
    plain = findings.passes.get("plain")
    if plain is not None and (whole := measured_whole(breakdown, plain)) is not None:
        lines.append(
            f"  {_cost_text(total / 1e9, exact=True)} by function; without a log"
            f" {_cost_text(whole / 1e9, exact=True)} were measured, interrupts included:"
            f" {total / whole:.2%}"
        )
    lines.append("   itself  with all it calls")
    rows = [
        (own / total, breakdown.within(name) / total, name)
        for name, own in breakdown.by_function()
    ]
    shown = [row for row in rows if row[0] >= _LEAST_SHARE][:_MOST_FUNCTIONS]
    lines += [f"  {own:7.1%}  {inside:7.1%}  {name}" for own, inside, name in shown]
    left = 1 - sum(own for own, _, _ in shown)
    lines.append(f"  {left:7.1%}           {len(rows) - len(shown)} other functions")
    how = (
        "every instruction was logged"
        if breakdown.logged
        else "from logs of small maps, linear in pages, and of the beginning of a large unmap"
    )
    lines.append(f"  (QEMU's log of each instruction; {how})")
    return "\n".join(lines) + "\n"
