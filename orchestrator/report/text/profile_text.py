"""A profile as plain text, for the owner of a slow VM, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from textwrap import wrap

from orchestrator.analysis.boot.cost import CostTable, Row, build_cost_table
from orchestrator.analysis.boot.timeline import timeline_json
from orchestrator.analysis.diagnosis.diagnosis import Profile
from orchestrator.formats.units import format_size
from orchestrator.report.text.timeline_text import COST_COLUMNS, boot_lines, cost_cells
from orchestrator.report.words.columns import format_table
from orchestrator.report.words.quantities import format_digits, format_quantity

_WIDTH = 100
_ENDS = {
    "agent": "to the connection of the guest agent",
    "map": "to the last map, unmap or zap; what the guest did after it is not seen",
    "line": "to the last line feed that the guest sent to its serial port",
}
_ENDED = {
    "quiet": "ended after {until:g} s without a map, an unmap or a line on a serial port",
    "agent": "ended with the connection of the guest agent",
    "domain-ended": "ended when the domain did",
    "limit": "ended after 15 minutes: the domain never came to rest",
}


def text_profile(profile: Profile) -> str:
    """Return text of at most 100 columns, for terminals."""
    costs = build_cost_table({"baseline": (profile.timeline,)})
    parts = [
        _head(profile),
        boot_lines(profile.timeline),
        _costs(costs),
        _levels(profile),
        _advice(profile),
        _foot(profile),
    ]
    return "\n".join("\n".join(lines) + "\n" for lines in parts if lines)


def profile_json(profile: Profile) -> dict[str, object]:
    """Return the document that `barometer profile --json` prints."""
    facts, boot = profile.facts.to_json(), timeline_json(profile.timeline)
    costs = build_cost_table({"baseline": (profile.timeline,)})
    keys = ("barometer", "domain", "uri", "boot", "ended", "release", "qemu", "libvirt", "memory",
            "huge_pages", "bars", "settings", "definition_changed")  # fmt: skip
    return {
        "schema": 1,
        **{key: facts[key] for key in keys},
        "boot_seconds": boot["boot_seconds"], "boot_ends": profile.ended_by,
        **{name: boot[name] for name in ("phases", "operations", "zaps")},
        "totals": {name: asdict(of["baseline"]) for name, of in costs.totals.items()},
        "levels": [
            {"bar": level.place, "leaf": level.leaf, "stride": level.stride,
             "reasons": [asdict(reason) for reason in level.reasons]}
            for level in profile.levels
        ],
        "advice": [asdict(advice) for advice in profile.advice],
    }  # fmt: skip


def _wrap(text: str, first: str = "", then: str = "") -> list[str]:
    return wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False
    )  # fmt: skip


def _head(profile: Profile) -> list[str]:
    facts, boot = profile.facts, profile.timeline
    beginning = "QEMU's exec" if facts.boot == "start" else "the reset of its machine"
    bars = ", ".join(f"{bar.name} {format_size(bar.size)}" for bar in facts.bars)
    return [
        *_wrap(
            f"{facts.domain}: {format_digits(boot.boot_seconds)} s from {beginning}"
            f" {_ENDS[profile.ended_by]}"
        ),
        *_wrap(
            f"host {facts.release}, QEMU {facts.qemu}, libvirt {facts.libvirt},"
            f" {format_size(facts.memory)} of memory"
        ),
        *_wrap(f"devices: {bars}", then="  "),
    ]


def _costs(costs: CostTable) -> list[str]:
    def cells(row: Row) -> list[str]:
        kind, bar, phase, _ = row.operation
        return [f"{kind} {bar}, {phase}", *cost_cells(row.costs["baseline"], costs.unit)]

    rows: list[list[str] | str] = [cells(row) for row in costs.rows]
    if costs.small:
        rows.append([f"{costs.small} others", *cost_cells(costs.others["baseline"], costs.unit)])
    rows += [
        [f"all {name}", *cost_cells(of["baseline"], costs.unit)]
        for name, of in costs.totals.items()
    ]
    return [
        "Maps and unmaps for DMA (one: the median call; share: of the boot)",
        *format_table(["", *COST_COLUMNS], rows),
    ]


def _levels(profile: Profile) -> list[str]:
    if not profile.levels:
        return []
    lines = ["How QEMU has the BARs mapped, and why not by leaves of 1 GiB"]
    printed: set[tuple[str, str]] = set()
    for level in profile.levels:
        each = f", {level.stride} a lookup" if level.stride else ""
        best = " (the best there is)" if level.best else ""
        most = "" if level.leaf == "4KiB" else " at most"
        lines.append(f"  {level.place}: leaves of {level.leaf}{most}{each}{best}")
        for reason in level.reasons:
            text = "as above" if (reason.name, reason.text) in printed else reason.text
            printed.add((reason.name, reason.text))
            lines += _wrap(f"{reason.name}: {text}", "    - ", "      ")
    return lines


def _advice(profile: Profile) -> list[str]:
    if not profile.advice:
        return ["What would help: nothing here costs one part in a hundred of the boot"]
    lines = ["What would help, and the seconds of this boot that it is about"]
    boot_seconds = profile.timeline.boot_seconds
    for number, advice in enumerate(profile.advice, 1):
        share = advice.seconds / boot_seconds if boot_seconds else 0
        cost = f" ({format_quantity(advice.seconds, 's')}, {share:.1%})" if advice.seconds else ""
        lines += _wrap(f"{advice.problem}{cost}", f"{number:3}. ", "     ")
        if advice.help:
            lines += _wrap(advice.help, "     -> ", "        ")
    return lines


def _foot(profile: Profile) -> list[str]:
    facts = profile.facts
    ended = _ENDED[facts.ended].format(until=facts.until)
    running = "" if facts.ended == "domain-ended" else f"; {facts.domain} is left running"
    lines = _wrap(f"The profile {ended}; its probes are gone{running}.")
    if not facts.parts:
        lines += _wrap(
            f"What a map is spent in is not known: return probes of {facts.release} know no"
            " arguments (v6.9)."
        )
    if facts.definition_changed:
        lines += _wrap(
            f"The definition of {facts.domain} is another than before: somebody changed it"
            " meanwhile; barometer does not."
        )
    return lines
