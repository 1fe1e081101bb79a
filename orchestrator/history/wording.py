"""Change points in words: for the terminal, the page, the feed and the mail."""

from __future__ import annotations

from orchestrator.history.moves import Change, Move, Trend
from orchestrator.history.store import Series

_MOST_MOVES = 4
"""Conditions that a sentence names."""
_CAUSES = {
    "machine": "the machine, not the kernel",
    "kernel": "the kernel",
    "both": "the machine or the kernel: both changed",
    "unknown": "nothing that is recorded changed with it",
}


def describe_size(change: Change, unit: str) -> str:
    """Return how large a change is: `+3.1 %` of a ratio, `12 -> 13` of a count."""
    point = change.point
    if unit == "count":
        return f"{point.before:g} -> {point.after:g}"
    return f"{100 * (point.after / point.before - 1):+.3g} %"


def describe_sureness(change: Change) -> str:
    """Return how sure it is that there is a step at all."""
    alarms = change.point.alarms
    if alarms == 0:
        return "exact"
    return "by chance in less than 1 of 1000 histories" if alarms < 1e-3 else (
        f"by chance in {alarms:.1g} of histories")  # fmt: skip


def describe_night(trend: Trend, change: Change) -> str:
    """Return the night, with the range that it can be: `2026-01-12 (2026-01-11 .. 2026-01-13)`."""
    point = change.point
    night, first, last = (
        trend.points[i].started[:10] for i in (point.index, point.earliest, point.latest)
    )
    return night if first == last else f"{night} ({first} .. {last})"


def describe_cause(change: Change) -> str:
    """Return whether it is the kernel or the machine, with what changed."""
    text = _CAUSES[change.cause]
    if change.moves:
        named = [describe_move(move) for move in change.moves[:_MOST_MOVES]]
        more = len(change.moves) - len(named)
        text += f" ({'; '.join(named)}{f'; {more} more' if more else ''})"
    if change.kernels is not None:
        text += f"; kernel {change.kernels[0]} -> {change.kernels[1]}"
    return text


def describe_move(move: Move) -> str:
    return f"{move.name} {move.before} -> {move.after}"


def name_series(series: Series) -> str:
    return f"{series.machine} {series.scenario}/{series.accel} {series.metric}"


def format_trend(trend: Trend) -> str:
    """Return a line for a series, and a few for each of its changes."""
    nights = f"{len(trend.points)} nights"
    lines = [f"{name_series(trend.series)}: {nights}, {len(trend.changes)} changes"]
    for change in trend.changes:
        size = describe_size(change, trend.series.unit)
        lines += [
            f"  {describe_night(trend, change)}: {size}, {describe_sureness(change)}",
            f"    {describe_cause(change)}",
        ]
    return "\n".join(lines)


def trend_json(trend: Trend) -> dict[str, object]:
    return {
        **trend.series._asdict(),
        "nights": len(trend.points),
        "changes": [
            {
                "night": trend.points[change.point.index].started,
                "earliest": trend.points[change.point.earliest].started,
                "latest": trend.points[change.point.latest].started,
                "before": change.point.before, "after": change.point.after,
                "factor": change.point.factor, "alarms": change.point.alarms,
                "cause": change.cause,
                "kernels": change.kernels and list(change.kernels),
                "moves": [
                    {"name": move.name, "before": move.before, "after": move.after}
                    for move in change.moves
                ],
                "run": trend.points[change.point.index].folder,
            }
            for change in trend.changes
        ],
    }  # fmt: skip
