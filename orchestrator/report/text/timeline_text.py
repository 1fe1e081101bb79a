"""Guest boots' timelines as plain text: one boot for a terminal, and the cost of maps and unmaps
in the boots of both arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from errno import errorcode
from math import floor, log10
from statistics import median
from textwrap import wrap

from orchestrator.analysis.boot.cost import (
    BootDifference,
    BootsByArm,
    CostTable,
    OperationCost,
    OperationCosts,
    OperationKind,
    Row,
    build_cost_table,
)
from orchestrator.analysis.boot.spent import UNEXPLAINED, summarize_spent
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Phase, Timeline, Zap
from orchestrator.formats.units import format_size
from orchestrator.report.words.columns import WIDTH, fit_lines, wrap_text
from orchestrator.report.words.quantities import format_digits, format_quantity, plural

_WIDTH = 100
_BAR_WIDTH = 20
_LEAST = 1e-3
"""Shortest map or unmap, in the timeline's unit, that has a line of its own."""
_MOST_PHASES = 4
_FEWEST_FOLDED = 3
_LEAST_PART = 0.0005
"""Smallest part of a map or unmap that is listed."""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _wrapped(text: str, first: str = "", then: str = "  ") -> list[str]:
    return wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False
    ) or [first.rstrip()]  # fmt: skip


# one boot --------------------------------------------------------------------------------------


def text_timeline(timeline: Timeline) -> str:
    """Return text of at most 100 columns, for terminals. Shares are of the boot up to its mark;
    shares of parts are of their map or unmap."""
    lines = [*_head(timeline), "", *boot_lines(timeline), "", *_foot(timeline)]
    return "\n".join(lines).rstrip() + "\n"


def boot_lines(timeline: Timeline, *, fold: bool = False) -> list[str]:
    """Return lines for the phases, each with its maps, unmaps and zaps, below a line with the
    names of the columns. `fold`: maps, or unmaps, of one size that occur more than twice in a
    phase share a line."""
    lines = [f"{'start':>10}  {'length':>11}  {'share':>7}"]
    for phase, steps, zaps in _placed(timeline):
        lines += _phase(timeline, phase)
        large = [step for step in steps if step.seconds >= _LEAST or step.result]
        for alike in _fold(large) if fold else [[step] for step in large]:
            lines += _step(timeline, alike[0]) if len(alike) == 1 else _alike(timeline, alike)
        small = [step for step in steps if step not in large]
        lines += _together(timeline, small, more=bool(large))
        lines += _zaps(timeline, zaps)
    return lines


def _head(timeline: Timeline) -> list[str]:
    boot = f"{format_digits(timeline.boot_seconds)} {timeline.unit}"
    parts = [
        f"boot {boot} to the boot mark, {_percent(timeline.attributed_share)} of it attributed"
    ]
    if timeline.ssh_seconds is not None:
        parts.append(f"SSH at {format_digits(timeline.ssh_seconds)}")
    parts.append(f"end at {format_digits(timeline.end_seconds)}")
    lines = [f"{timeline.trial} {timeline.guest}, host {timeline.release}", "; ".join(parts)]
    if timeline.invalid:
        lines.insert(0, f"INVALID: {timeline.invalid}")
    if timeline.unit == "Ginsn":
        lines.append("Ginsn: 10^9 instructions of the emulated host, not a time")
    return [line for text in lines for line in _wrapped(text)]


def _foot(timeline: Timeline) -> list[str]:
    texts = [_account(timeline)]
    if timeline.mark_source:
        bound = timeline.mark_bound
        late = {None: "an unknown time", 0.0: "a reading of the trace clock at most"}.get(
            bound, f"{format_quantity(bound or 0.0, timeline.unit)} at most"
        )
        texts.append(f"marks: a line's time is from {timeline.mark_source}; late by {late}")
    before = [line for at, line in timeline.console if at <= timeline.boot_seconds]
    if before:
        characters = sum(map(len, before))
        texts.append(
            f"serial console: {characters} characters in {len(before)} lines up to the boot mark;"
            " the guest waits for each"
        )
    if timeline.systemd:
        times = ", ".join(
            f"{name} {format_quantity(s, 's')}" for name, s in timeline.systemd.items()
        )
        texts.append(f"systemd-analyze, by the guest's own clock: {times}")
    texts += [f"note {note.name}: {note.text}" for note in timeline.notes]
    return [line for text in texts for line in _wrapped(text)]


def _account(timeline: Timeline) -> str:
    """Return where the whole boot went, the largest cost first."""
    costs = summarize_spent(timeline)
    rest = costs.pop(UNEXPLAINED)
    texts = [
        f"{name} {format_quantity(cost, timeline.unit)} ({_percent(_share(timeline, cost))})"
        for name, cost in costs.items()
        if _share(timeline, cost) >= _LEAST_PART
    ]
    return f"account: {'; '.join(texts)}; {UNEXPLAINED} {_percent(_share(timeline, rest))}"


def _placed(timeline: Timeline) -> Iterator[tuple[Phase | None, list[DmaStep], list[Zap]]]:
    """Yield each phase with the steps and zaps that began in it, in order of time. Last, with None
    for the phase, come those in no phase: if there are any, or if more than a thousandth of the
    boot is in no phase."""
    phases = timeline.phases

    def owner(item: DmaStep | Zap) -> Phase | None:
        # A phase's name may occur twice: take the last one of that name that had begun.
        named = [phase for phase in phases if phase.name == item.phase]
        begun = [phase for phase in named if phase.start <= item.start]
        return next(iter(begun[-1:] or named), None)

    steps = [(step, owner(step)) for step in sorted(timeline.steps, key=lambda s: s.start)]
    zaps = [(zap, owner(zap)) for zap in sorted(timeline.zaps, key=lambda z: z.start)]
    for phase in (*phases, None):
        began = [s for s, own in steps if own is phase], [z for z, own in zaps if own is phase]
        if phase is not None or any(began) or timeline.attributed_share < 0.999:
            yield phase, *began


def _share(timeline: Timeline, counted: float) -> float:
    return counted / timeline.boot_seconds if timeline.boot_seconds else 0.0


def _columns(timeline: Timeline, start: float | None, length: float, counted: float) -> str:
    """Return the columns: start, length, and share of the boot. `counted`: the part of the length
    that counts for the share."""
    when = "" if start is None else f"{start:.3f}"
    share = _percent(_share(timeline, counted)) if counted else "-"
    return f"{when:>10}  {format_quantity(length, timeline.unit):>11}  {share:>7}  "


def _line(
    timeline: Timeline, items: Sequence[DmaStep | Zap], text: str, *, start: bool
) -> list[str]:
    """Return the line of some maps, unmaps or zaps. Those that began before the boot mark count
    for the share."""
    columns = _columns(
        timeline,
        items[0].start if start else None,
        sum(item.seconds for item in items),
        sum(item.seconds for item in items if item.start < timeline.boot_seconds),
    )
    return _wrapped(text, f"{columns}  ", " " * (len(columns) + 4))


def _phase(timeline: Timeline, phase: Phase | None) -> list[str]:
    if phase is None:
        rest = (1 - timeline.attributed_share) * timeline.boot_seconds
        name, counted, columns = "in no phase", rest, _columns(timeline, None, rest, rest)
    else:
        name, counted = phase.name, timeline.before_mark(phase)
        columns = _columns(timeline, phase.start, phase.seconds, counted)
    width = _WIDTH - len(columns) - _BAR_WIDTH - 2
    [first, *more] = wrap(name, width, break_on_hyphens=False) or [""]
    bar = "#" * round(_BAR_WIDTH * _share(timeline, counted))
    return [f"{columns}{first:<{width}}  {bar}".rstrip(), *(" " * len(columns) + m for m in more)]


def _step(timeline: Timeline, step: DmaStep) -> list[str]:
    operation = f"{step.kind} of {step.bar} ({format_size(step.size)})"
    parts = [operation, *filter(None, [step.cause])]
    if step.faults is not None:
        parts.append(plural(step.faults, "fault"))
    if step.result:
        parts.append(f"FAILED: {errorcode.get(-step.result, step.result)}")
    text = ", ".join(parts)
    if step.parts and step.seconds:
        rest = 1 - step.attributed_share
        shares = {name: seconds / step.seconds for name, seconds in step.parts.items()}
        shown = {
            n: share for n, share in {**shares, "other": rest}.items() if share >= _LEAST_PART
        }
        text += ": " + ", ".join(f"{name} {_percent(share)}" for name, share in shown.items())
    return _line(timeline, [step], text, start=True)


def _fold(steps: Sequence[DmaStep]) -> list[list[DmaStep]]:
    """Return the steps in groups: those of a kind and a size if there are more than two, else each
    by itself. The groups are in the order of their first steps."""

    def key(step: DmaStep) -> tuple[object, ...]:
        whose = step.bar if step.bar in (RAM, IOVA) else "BAR"
        return step.kind, whose, step.size, step.cause, step.result

    counts = Counter(map(key, steps))
    groups: dict[object, list[DmaStep]] = {}
    for index, step in enumerate(steps):
        groups.setdefault(key(step) if counts[key(step)] >= _FEWEST_FOLDED else index, []).append(
            step
        )
    return list(groups.values())


def _alike(timeline: Timeline, steps: Sequence[DmaStep]) -> list[str]:
    """Return the line of steps that differ in their time and their BAR alone."""
    first, bars = steps[0], list(dict.fromkeys(step.bar for step in steps))
    of = bars[0] if len(bars) == 1 else f"{len(bars)} BARs"
    one = format_quantity(median(step.seconds for step in steps), timeline.unit)
    text = f"{plural(len(steps), first.kind)} of {of} ({format_size(first.size)}), {one} each"
    if first.cause:
        text += f", {first.cause}"
    if first.result:
        text += f", FAILED: {errorcode.get(-first.result, first.result)}"
    whole = sum(step.seconds for step in steps)
    parts: Counter[str] = Counter()
    for step in steps:
        parts.update({**step.parts, "other": step.other})
    shown = {n: s / whole for n, s in parts.items() if whole and s / whole >= _LEAST_PART}
    text += ": " * bool(shown) + ", ".join(f"{n} {_percent(share)}" for n, share in shown.items())
    return _line(timeline, steps, text, start=True)


def _together(timeline: Timeline, steps: Sequence[DmaStep], *, more: bool) -> list[str]:
    if not steps:
        return []
    counts = Counter((step.kind, step.bar) for step in steps)
    kinds = ", ".join(f"{plural(n, kind)} of {bar}" for (kind, bar), n in counts.items())
    number = f"{len(steps)} more" if more else f"{len(steps)}"
    text = f"{number} under {format_quantity(_LEAST, timeline.unit)}, total: {kinds}"
    return _line(timeline, steps, text, start=False)


def _zaps(timeline: Timeline, zaps: Sequence[Zap]) -> list[str]:
    causes: dict[str, list[Zap]] = {}
    for zap in zaps:
        causes.setdefault(zap.cause, []).append(zap)
    return [
        line
        for cause, of_cause in causes.items()
        for line in _line(
            timeline, of_cause, f"{plural(len(of_cause), 'zap')}, {cause}", start=True
        )
    ]


# both arms -------------------------------------------------------------------------------------


def calls_and_cost(timelines: BootsByArm) -> str:
    """Report the cost of maps and unmaps in the boots of each arm (medians if there are several),
    and where the arms' difference comes from; empty if no arm has a boot. For mail."""
    table = build_cost_table(timelines)
    if not table.boots:
        return ""
    lines = wrap_text(
        f"Maps and unmaps in one guest boot, up to the boot mark, {table.unit}"
        " (one: the median call; share: of the boot):",
        then="  ",
    )
    lines += _table(table)
    if table.difference is not None:
        lines += ["", *wrap_text(explain_difference(table.difference, table.unit), then="  ")]
    return fit_lines("\n".join(lines)) + "\n"


COST_COLUMNS = ["calls", "one", "total", "share"]
_INDENT = "  "
_BETWEEN = "   "
Body = list[tuple[str, OperationCosts]]
"""Rows: a text, and the arms' costs below it, which may be empty."""


def _table(table: CostTable) -> list[str]:
    """Return the text of each row, and below it the arms' numbers side by side."""
    body = _body(table)
    titles = [
        f"{arm}, {f'{len(boots)} boots' if len(boots) > 1 else 'boot'}"
        f" of {format_quantity(median(boots), table.unit)}"
        for arm, boots in table.boots.items()
    ]
    groups = [
        COST_COLUMNS,
        *(cost_cells(c, table.unit) for _, costs in body for c in costs.values()),
    ]
    widths = [max(map(len, column)) for column in zip(*groups, strict=True)]
    least = len(titles) * (sum(widths) + len(widths) - 1) + len(_INDENT + _BETWEEN)
    apart = " " * (2 if least + len(titles) * (len(widths) - 1) <= WIDTH else 1)
    whole = max(sum(widths) + len(apart) * (len(widths) - 1), *map(len, titles))

    def line(groups: Iterable[Sequence[str]]) -> str:
        arms = (
            apart.join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            for cells in groups
        )
        return _INDENT + _BETWEEN.join(f"{cells:>{whole}}" for cells in arms)

    lines = [_INDENT + _BETWEEN.join(f"{title:^{whole}}" for title in titles)]
    lines.append(line(COST_COLUMNS for _ in titles))
    for text, costs in body:
        lines += wrap_text(text, then="    ")
        if costs:
            lines.append(line(cost_cells(costs[arm], table.unit) for arm in table.boots))
    return [line.rstrip() for line in lines]


def _body(table: CostTable) -> Body:
    def operations(rows: Sequence[Row]) -> Body:
        return [(_named(row.operation), row.costs) for row in rows]

    body = operations(table.rows)
    if table.small:
        body.append((f"{table.small} others", table.others))
    body += [("", {}), *((f"all {name}", of) for name, of in table.totals.items())]
    if table.after:
        body += [("", {}), ("After the boot mark:", {}), *operations(table.after)]
    return body


def _named(operation: OperationKind) -> str:
    kind, bar, phase, cause = operation
    return ", ".join(filter(None, [f"{kind} {bar}", phase, cause]))


def cost_cells(cost: OperationCost, unit: str) -> list[str]:
    if cost.one is None:
        return ["-"] * len(COST_COLUMNS)
    return [f"{cost.calls:g}", format_quantity(cost.one, unit), format_quantity(cost.total, unit),
            "" if cost.share is None else f"{cost.share:.1%}"]  # fmt: skip


def explain_difference(difference: BootDifference, unit: str) -> str:
    """Explain the difference between the arms' boots: how much each part changes from the baseline
    to the candidate. All numbers have as many decimals as give the longer boot four digits. Each
    is rounded by itself, so the last digits need not add up."""
    longer = max(difference.baseline, difference.candidate)
    decimals = max(0, 3 - floor(log10(longer))) if longer else 0
    short = "Ginsn" if unit == "Ginsn" else "s"

    def number(value: float, sign: str = "") -> str:
        return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # never -0.0

    boots = f"{number(difference.baseline)} -> {number(difference.candidate)}"
    if not round(difference.whole, decimals):
        return f"The boots of both arms are equally long ({boots} {unit})."
    operations = sorted(difference.operations.items(), key=lambda of: -abs(of[1]))
    parts = [f"{name} {number(v, '+')} {short}" for name, v in operations if round(v, decimals)]
    largest = dict([*difference.phases.items()][:_MOST_PHASES])
    largest["others"] = difference.rest - sum(largest.values())
    phases = [f"{number(v, '+')} in {name}" for name, v in largest.items() if round(v, decimals)]
    rest = f"all else {number(difference.rest, '+')} {short}"
    how = "shorter" if difference.whole < 0 else "longer"
    return (
        f"The candidate's boot is {number(abs(difference.whole))} {unit} {how} ({boots}):"
        f" {'; '.join([*parts, rest])}{': ' if phases else ''}{', '.join(phases)}."
    )
