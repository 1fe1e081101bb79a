"""The plot of a series as static SVG: nights, levels, change points, and what moved."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from orchestrator.history.moves import Trend
from orchestrator.history.store import Point
from orchestrator.report.html.svg import Axis, axis_of, chart, element, line, text
from orchestrator.report.words.quantities import format_quantity

_HEIGHT = 260.0
_TOP, _BOTTOM = 26.0, _HEIGHT - 24
_FREE = 0.1
"""Share of the plot that is left free of data at its left, for the values of the axis."""


def value_of(point: Point, unit: str) -> float | None:
    """Return what is plotted: of a count the candidate's value, else the ratio."""
    return point.candidate if unit == "count" else point.ratio


def series_plot(trend: Trend) -> Markup | None:
    """Draw a series; None if it has no value."""
    unit, points = trend.series.unit, trend.points
    values = [value for p in points if (value := value_of(p, unit)) is not None]
    if not values:
        return None
    up = axis_of([*values, *([] if unit == "count" else [1.0])])
    last = max(1, len(points) - 1)
    across = Axis(-_FREE * last, last + 0.5)
    parts = [*_grid(up, unit), *_moves(trend, across), *_levels(trend, across, up)]
    for index, point in enumerate(points):
        value = value_of(point, unit)
        if value is not None:
            parts += _night(point, across.x(index), value, up, unit)
    parts.append(text(across.x(0), _HEIGHT - 6, points[0].started[:10], "faint small"))
    parts.append(text("100%", _HEIGHT - 6, points[-1].started[:10], "faint small", "end"))
    label = (
        f"{trend.series.metric}: {len(points)} nights, {len(trend.changes)} changes of level;"
        f" the last value is {_number(values[-1], unit)}"
    )
    return chart(_HEIGHT, label, *parts, name="series")


def _number(value: float, unit: str) -> str:
    return format_quantity(value, unit) if unit == "count" else f"{value:.4g}"


def _grid(up: Axis, unit: str) -> Iterator[Markup]:
    for tick in up.ticks(5):
        y = up.y(tick, _TOP, _BOTTOM)
        yield line("0", y, "100%", y, "one" if unit != "count" and tick == 1 else "grid")
        yield text("0", y - 3, _number(tick, unit), "faint small")


def _moves(trend: Trend, across: Axis) -> Iterator[Markup]:
    """Draw a line between the nights where conditions moved; what moved is its title."""
    by_night: dict[int, dict[str, None]] = {}
    for move in trend.moves:
        by_night.setdefault(move.index, {})[move.kind] = None
    for index, kinds in by_night.items():
        title = f"{trend.points[index].started[:10]}: {', '.join(kinds)}"
        x = across.x(index - 0.5)
        yield element(
            "line", element("title", title), x1=x, x2=x, y1=_TOP - 8, y2=_BOTTOM, class_="moved"
        )
        yield text(x, _TOP - 12, ", ".join(kinds), "faint small", "middle")


def _levels(trend: Trend, across: Axis, up: Axis) -> Iterator[Markup]:
    """Draw the level between changes, and a mark at each change."""
    changes = [change.point for change in trend.changes]
    for number, change in enumerate(changes):
        end = changes[number + 1].index if number + 1 < len(changes) else len(trend.points)
        y = up.y(change.after, _TOP, _BOTTOM)
        yield line(across.x(change.index - 0.5), y, across.x(end - 0.5), y, "level")
        if not number:
            y = up.y(change.before, _TOP, _BOTTOM)
            yield line(across.x(0), y, across.x(change.index - 0.5), y, "level")
        x = across.x(change.index - 0.5)
        yield line(x, _TOP, x, _BOTTOM, "mark")


def _night(point: Point, x: str, value: float, up: Axis, unit: str) -> Iterator[Markup]:
    if unit != "count" and point.low is not None and point.high is not None:
        low, high = (min(max(end, up.low), up.high) for end in (point.low, point.high))
        yield line(x, up.y(low, _TOP, _BOTTOM), x, up.y(high, _TOP, _BOTTOM), "interval")
    title = f"{point.started[:16]}: {_number(value, unit)}, {point.verdict}, {point.kernel}"
    yield element(
        "circle", element("title", title), cx=x, cy=up.y(value, _TOP, _BOTTOM), r=3.0,
        class_=f"night {point.verdict}",
    )  # fmt: skip
