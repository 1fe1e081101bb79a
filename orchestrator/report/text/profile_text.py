"""A profile as plain text, for the owner of a slow VM, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from textwrap import wrap

from orchestrator.analysis.boot.cost import CostTable, Row, build_cost_table
from orchestrator.analysis.boot.spent import UNEXPLAINED
from orchestrator.analysis.boot.timeline import timeline_json
from orchestrator.analysis.diagnosis.advice import (
    LEAST_COST_SHARE,
    NO_REMEDY,
    Advice,
    Remedy,
    list_names,
)
from orchestrator.analysis.diagnosis.diagnosis import Profile
from orchestrator.analysis.maps.level import Level
from orchestrator.formats.units import format_size
from orchestrator.report.text.timeline_text import COST_COLUMNS, boot_lines, cost_cells
from orchestrator.report.words.columns import format_table
from orchestrator.report.words.quantities import format_digits, format_quantity

_WIDTH = 100
_LITTLE = 0.05
"""Share of a boot. Small costs are listed one by one until less than this is left."""
_MOST_IN_SENTENCE = 3
_LARGE_SHARE = 0.05
"""Share of a boot. The sentence names no smaller cost, except the largest that has a remedy."""
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
    "start-failed": "ended when the start had failed",
}


def text_profile(profile: Profile) -> str:
    """Return text of at most 100 columns, for terminals."""
    parts = [_wrap(profile_sentence(profile)), _head(profile)]
    if profile.timeline.steps:
        costs = build_cost_table({"baseline": (profile.timeline,)})
        parts += [boot_lines(profile.timeline, fold=True), _costs(costs), _levels(profile)]
    parts += [_advice(profile), _foot(profile)]
    return "\n".join("\n".join(lines) + "\n" for lines in parts if lines)


def profile_sentence(profile: Profile) -> str:
    """Return the answer: what is wrong, else what costs most and what saves it."""
    name, whole = profile.facts.domain, profile.whole_seconds
    wrong = [advice for advice in profile.advice if advice.is_wrong]
    if profile.facts.has_failed:
        causes = wrong[0].problem if wrong else "QEMU ended before the guest ran"
        return f"{name} did not start: {causes}. {_then(wrong[:1])}".rstrip()
    costs = [a for a in profile.advice if not a.is_wrong and a.seconds >= LEAST_COST_SHARE * whole]
    costs.sort(key=lambda advice: advice.is_ordinary)
    curable = [advice for advice in costs if _best(advice) is not None][:_MOST_IN_SENTENCE]
    texts = [
        _name_cost(advice, whole)
        for advice in costs
        if not advice.is_ordinary
        and (advice.seconds >= _LARGE_SHARE * whole or advice in curable[:1])
        and (advice in curable or advice in costs[:2])
    ]
    ordinary = [a for a in costs if a.is_ordinary]
    texts += [_name_cost(advice, whole) for advice in ordinary[:1]]
    head = "".join(f"{advice.problem}. {_then([advice])} " for advice in wrong[:1])
    return f"{name}, {format_digits(whole)} s: {head}{'; '.join(texts)}."


def _then(wrong: Sequence[Advice]) -> str:
    return "".join(
        f"What helps: {advice.remedies[0].text}." for advice in wrong if advice.remedies
    )


def _best(advice: Advice) -> Remedy | None:
    """Return the remedy that saves most; None if no remedy is known to save anything."""
    savers = [remedy for remedy in advice.remedies if remedy.seconds]
    return max(savers, key=lambda remedy: remedy.seconds, default=None)


def _name_cost(advice: Advice, whole: float) -> str:
    """Return `12 % are maps of BARs: at most 7.5 s less with a host kernel v6.15 or later`."""
    verb = "are" if advice.subject.startswith(("maps", "unmaps", "zaps")) else "is"
    what = f"{advice.seconds / whole:.0%} {verb} {advice.subject}"
    best = _best(advice)
    if best is None:
        return what if advice.is_ordinary else f"{what}: {NO_REMEDY}"
    saved = format_quantity(best.seconds, "s")
    return f"{what}: at most {saved} less with {best.short or best.text}"


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
        "sentence": profile_sentence(profile),
        "before_exec_seconds": profile.before_exec,
        "unexplained_seconds": round(profile.unexplained, 9),
        "advice": [asdict(advice) | {"help": advice.help} for advice in profile.advice],
    }  # fmt: skip


def _wrap(text: str, first: str = "", then: str = "") -> list[str]:
    return wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False
    )  # fmt: skip


def _head(profile: Profile) -> list[str]:
    facts, boot = profile.facts, profile.timeline
    beginning = "the reset of its machine" if facts.boot == "reboot" else "QEMU's exec"
    bars = ", ".join(f"{bar.name} {format_size(bar.size)}" for bar in facts.bars)
    length = f"{format_digits(boot.boot_seconds)} s from {beginning} {_ENDS[profile.ended_by]}"
    before = f", {format_quantity(profile.before_exec, 's')} before it" * bool(profile.before_exec)
    return [
        *([] if profile.facts.has_failed else _wrap(f"boot: {length}{before}")),
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
    alike: dict[object, list[Level]] = {}
    for level in profile.levels:
        names = tuple(reason.name for reason in level.reasons)
        alike.setdefault((level.leaf, level.stride, names), []).append(level)
    printed: set[tuple[str, str]] = set()
    for levels in alike.values():
        level = levels[0]
        each = f", {level.stride} a lookup" if level.stride else ""
        best = " (the best there is)" if level.best else ""
        most = "" if level.leaf == "4KiB" else " at most"
        places = list_names(level.place for level in levels)
        lines += _wrap(f"{places}: leaves of {level.leaf}{most}{each}{best}", "  ", "  ")
        for reason in level.reasons:
            text = "as above" if (reason.name, reason.text) in printed else reason.text
            printed.add((reason.name, reason.text))
            lines += _wrap(f"{reason.name}: {text}", "    - ", "      ")
    return lines


def _advice(profile: Profile) -> list[str]:
    """Return every cause with its cost, the largest first, and what helps. When little of the boot
    is left, small costs share a line."""
    whole = profile.whole_seconds
    head = f"Where the {format_digits(whole)} s went" if not profile.facts.has_failed else "Why"
    lines = [f"{head}, and what would help"]
    small = select_small(profile)
    shown = [advice for advice in profile.advice if advice not in small]
    for number, advice in enumerate(shown, 1):
        cost = f" ({_cost(advice.seconds, whole)})" if advice.seconds else ""
        lines += _wrap(f"{advice.problem}{cost}", f"{number:3}. ", "     ")
        for remedy in advice.remedies:
            saved = f" (at most {format_quantity(remedy.seconds, 's')})" * bool(remedy.seconds)
            lines += _wrap(f"{remedy.text}{saved}", "     -> ", "        ")
        if not advice.remedies:
            lines.append(f"     -> {NO_REMEDY}")
    if small:
        names = ", ".join(advice.subject for advice in small)
        rest = sum(advice.seconds for advice in small)
        lines += _wrap(f"less than that: {names} ({_cost(rest, whole)})", "     ", "     ")
    if not profile.facts.has_failed:
        lines.append(f"     {UNEXPLAINED}: {_cost(profile.unexplained, whole)}")
    return lines


def select_small(profile: Profile) -> list[Advice]:
    """Return the costs that are small, and begin when less than 5 % of the boot is left."""
    whole = left = profile.whole_seconds
    small = []
    for advice in profile.advice:
        if not advice.is_wrong:
            if left < _LITTLE * whole and advice.seconds < LEAST_COST_SHARE * whole:
                small.append(advice)
            left -= advice.seconds
    return small


def _cost(seconds: float, whole: float) -> str:
    share = seconds / whole if whole else 0.0
    return f"{format_quantity(seconds, 's')}, {share:.1%}"


def _foot(profile: Profile) -> list[str]:
    facts = profile.facts
    ended = _ENDED[facts.ended].format(until=facts.until)
    is_over = facts.ended in ("domain-ended", "start-failed")
    running = "" if is_over else f"; {facts.domain} is left running"
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
