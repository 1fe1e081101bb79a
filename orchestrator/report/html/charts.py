"""The charts of the page as static SVG (svg.py).

The colours of data are those of Okabe and Ito (2008), which the colour-blind can distinguish too,
and which stand out from a light and from a dark background. No colour carries a meaning alone: a
symbol, dash, row or text carries it, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from markupsafe import Markup

from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Phase, Timeline
from orchestrator.analysis.maps.scaling import Law
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import MetricComparison
from orchestrator.formats.units import format_size
from orchestrator.report.html.svg import (
    Axis,
    axis_of,
    chart,
    element,
    labelled_rect,
    line,
    rect,
    text,
)
from orchestrator.report.words.quantities import change_text, format_quantity, plural
from orchestrator.report.words.samples import Dots, role_values
from orchestrator.report.words.wording import metric_title
from orchestrator.scenario.trials import Judgement
from orchestrator.scenario.vocabulary import ARMS, ArmName, Role

# boots ----------------------------------------------------------------------------------------

FAMILIES = {
    "QEMU": "qemu", "firmware": "firmware", "boot loader": "loader", "kernel": "kernel",
    "userspace": "userspace", "guest is up": "up", "shutdown": "shutdown",
}  # fmt: skip
"""What runs in a phase -> its class."""
_HEAD, _LABEL, _BAR, _MARK, _GAP, _AXIS = 17.0, 18.0, 20.0, 17.0, 12.0, 34.0
"""Heights in pixels: an arm's head, a row's label, a bar, the mark's label, the room below."""
_BLOCK = _HEAD + 3 * (_LABEL + _BAR) + _MARK + _GAP
MOST_STEPS = 300
"""Most maps or unmaps of an arm in a chart; the longest ones are kept."""
_LEAST = 0.0005
"""Least width of a bar as a share of the axis: a browser does not draw a bar without a width."""
_CHARACTER = 6.6 / 1100
"""Width of a character as a share of a wide chart."""
Name = TypeVar("Name", bound=str)


def boots_chart(boots: Mapping[Name, Timeline], mark: str = "userspace") -> Markup:
    """Draw a boot of each arm, or of each name, on one axis: its phases, and under them its maps
    and unmaps. `mark`: what is at the boot mark."""
    axis = Axis(0.0, max(boot.end_seconds for boot in boots.values()) or 1.0)
    unit = next(iter(boots.values())).unit
    parts: list[Markup] = []
    for number, (arm, boot) in enumerate(boots.items()):
        parts += _boot(arm, boot, axis, number * _BLOCK, mark)
    bottom = len(boots) * _BLOCK
    for tick in axis.ticks(8):
        parts.append(line(axis.x(tick), bottom - 6, axis.x(tick), bottom - 1, "tick"))
        words, anchor = f"{tick:g}", _anchor(axis, tick)
        parts.append(text(axis.x(tick), bottom + 12, words, "faint", anchor))
    parts.append(text("100%", bottom + 27, f"{unit} since QEMU's exec", "faint", "end"))
    label = "; ".join(_describe_boot(arm, boot, mark) for arm, boot in boots.items())
    return chart(bottom + _AXIS, f"Guest boots on one axis. {label}", *parts, name="boots")


def _anchor(axis: Axis, value: float) -> str:
    """Return the anchor of a text at a value, so that it stays within the chart."""
    share = axis.share(value)
    return "start" if share < 0.05 else "end" if share > 0.95 else "middle"


def _describe_boot(arm: str, boot: Timeline, mark: str) -> str:
    return (
        f"{arm}: {len(boot.phases)} phases, {format_quantity(boot.boot_seconds, boot.unit)} to"
        f" {mark}, {format_quantity(boot.end_seconds, boot.unit)} to the end"
    )


def _boot(
    arm: str, boot: Timeline, axis: Axis, top: float, name_of_mark: str
) -> Iterator[Markup]:  # fmt: skip
    name = element("tspan", arm, class_="strong")
    yield element("text", name, f"  {boot.release}", x=axis.x(0.0), y=top + 12)
    y = top + _HEAD
    yield text(axis.x(0.0), y + 13, "phases", "faint small")
    for phase in boot.phases:
        yield _phase(boot, phase, axis, y + _LABEL)
    for kind in ("map", "unmap"):
        y += _LABEL + _BAR
        steps = [s for s in boot.steps if s.kind == kind]
        yield text(axis.x(0.0), y + 13, _row_label(kind, steps, boot), "faint small")
        yield line(axis.x(0.0), y + _LABEL + _BAR, axis.x(boot.end_seconds), y + _LABEL + _BAR,
                   "tick")  # fmt: skip
        for step in sorted(steps, key=lambda s: -s.seconds)[:MOST_STEPS]:
            yield _step(boot, step, axis, y + _LABEL)
    mark, bottom = boot.boot_seconds, y + _LABEL + _BAR
    yield line(axis.x(mark), top + _HEAD + _LABEL - 4, axis.x(mark), bottom + 5, "mark")
    anchor = "end" if axis.share(mark) > 0.5 else "start"
    words = f"{name_of_mark} after {format_quantity(mark, boot.unit)}"
    yield text(axis.x(mark), bottom + _MARK - 1, words, "strong", anchor)


def _row_label(kind: str, steps: Sequence[DmaStep], boot: Timeline) -> str:
    bars = [s for s in steps if s.bar not in (RAM, IOVA)]
    if not bars:
        return f"DMA {kind}s"
    largest = max(s.size for s in bars)
    large = [s for s in bars if s.size == largest]
    total = format_quantity(sum(s.seconds for s in large), boot.unit)
    return f"DMA {kind}s: {len(large)} of a {format_size(largest)} BAR take {total}"


def _phase(boot: Timeline, phase: Phase, axis: Axis, y: float) -> Markup:
    family = phase.name.partition(":")[0]
    title = (
        f"{phase.name}: {format_quantity(phase.seconds, boot.unit)},"
        f" from {format_quantity(phase.start, boot.unit)}"
    )
    name = f"phase {FAMILIES.get(family, 'qemu')}"
    x, width = axis.x(phase.start), axis.width(phase.start, phase.end)
    short = phase.name.removeprefix(f"{family}: ")
    if phase.seconds / axis.high > _CHARACTER * (len(short) + 2):
        return labelled_rect(x, y, width, _BAR, name, title, short)
    return rect(x, y, width, _BAR, name, title)


def _step(boot: Timeline, step: DmaStep, axis: Axis, y: float) -> Markup:
    parts = [
        f"{step.kind} of {step.bar} ({format_size(step.size)}):"
        f" {format_quantity(step.seconds, boot.unit)}",
        step.cause,
        f"at {format_quantity(step.start, boot.unit)}",
    ]
    kinds = {RAM: "ram", IOVA: "iova"}
    name = f"step {kinds.get(step.bar, step.kind)}"
    # RAM is lower than a BAR, so that the two can be told apart without colours
    inset = 7.0 if step.bar in kinds else 0.0
    return rect(
        axis.x(step.start), y + inset,
        axis.width(step.start, max(step.start + step.seconds, step.start + axis.high * _LEAST)),
        _BAR - inset, name, ", ".join(filter(None, parts)),
    )  # fmt: skip


def strip_chart(boots: Mapping[ArmName, Timeline], longest: float, label: str) -> Markup:
    """Draw two thin bars, a boot of each arm, on an axis that several strips share."""
    axis = Axis(0.0, longest or 1.0)
    parts: list[Markup] = []
    for number, boot in enumerate(boots.values()):
        y = 16.0 * number + 1
        parts.append(rect(axis.x(0.0), y, axis.width(0.0, boot.boot_seconds), 12, "phase qemu"))
        parts += [
            rect(axis.x(s.start), y, axis.width(s.start, s.start + s.seconds), 12,
                 f"step {s.kind}")
            for s in boot.steps_before_mark()
            if s.bar not in (RAM, IOVA) and s.seconds > longest / 1000
        ]  # fmt: skip
    return chart(16 * len(boots) + 1, label, *parts, name="strip")


# trials ---------------------------------------------------------------------------------------

_LOG_FROM = 10.0
"""The axis is logarithmic if the largest value is more than this many times the smallest."""
_HEIGHT = 170.0
_FREE = 0.22
"""Share of a small chart that is left free of data at its left."""
_TOP, _BOTTOM = 10.0, _HEIGHT - 26


def _value_grid(axis: Axis, unit: str, top: float, bottom: float) -> Iterator[Markup]:
    """Draw a line for each tick of an axis from bottom to top, with its value above it."""
    for tick in axis.ticks(4):
        y = axis.y(tick, top, bottom)
        yield line("0", y, "100%", y, "grid")
        yield text("0", y - 3, format_quantity(tick, unit), "faint small")


def _symbol(role: Role, x: str, y: float, size: float, title: str) -> Markup:
    """Draw a role's symbol: a disc, a diamond or a ring."""
    inside = element("title", title)
    if role == "candidate":
        path = f"M0 {-size}L{size} 0L0 {size}L{-size} 0Z"
        shape = element("path", inside, d=path, class_="dot candidate")
        return element("svg", shape, x=x, y=y, style="overflow:visible")
    return element("circle", inside, cx=x, cy=y, r=size - 0.8, class_=f"dot {role}")


def sample_chart(metric: MetricComparison, shown: Sequence[Dots]) -> Markup:
    """Draw a symbol for each trial and a line for each median."""
    last = max(dots.dots[-1].at for dots in shown)
    across = Axis(-_FREE * last, last + 1.0)  # the values' names stand at the left
    values = [dot.value for dots in shown for dot in dots.dots]
    up = axis_of(values, _LOG_FROM)
    size = 5.0 if len(values) < 100 else 2.5
    parts = [*_value_grid(up, metric.unit, _TOP, _BOTTOM)]
    labels = []
    for dots in shown:
        parts += [
            _symbol(dots.role, across.x(dot.at), up.y(dot.value, _TOP, _BOTTOM), size,
                    f"{dot.trial}: {format_quantity(dot.value, metric.unit)}")
            for dot in dots.dots
        ]  # fmt: skip
        middle = summarize(metric.unit, role_values(metric, dots.role)).middle
        y = up.y(middle, _TOP, _BOTTOM)
        parts.append(line(across.x(0.3), y, across.x(last + 0.7), y, f"median {dots.role}"))
        labels.append(
            f"{dots.role}: median {format_quantity(middle, metric.unit)} of"
            f" {plural(dots.of, 'trial')}"
        )
    parts.append(text("0", _HEIGHT - 6, "first trial", "faint small"))
    parts.append(text("100%", _HEIGHT - 6, "last trial", "faint small", "end"))
    label = f"{metric_title(metric.name)}: the value of each trial. {'; '.join(labels)}"
    return chart(_HEIGHT, label, *parts)


# both arms ------------------------------------------------------------------------------------


def arms_chart(lines: Sequence[tuple[str, MetricComparison]]) -> Markup:
    """Draw a row for each metric, all of one unit, on one logarithmic axis: a line from the
    baseline's median to the candidate's."""
    medians = {
        metric.name: [summarize(metric.unit, role_values(metric, arm)).middle for arm in ARMS]
        for _, metric in lines
    }
    unit = lines[0][1].unit
    axis = axis_of([value for values in medians.values() for value in values], 1.0)
    height = _ROW * len(lines)
    parts = []
    for tick in axis.ticks(6):
        parts.append(line(axis.x(tick), 0, axis.x(tick), height, "grid"))
        words = format_quantity(tick, unit)
        parts.append(text(axis.x(tick), height + 13, words, "faint small", _anchor(axis, tick)))
    for number, (title, metric) in enumerate(lines):
        before, after = medians[metric.name]
        y = number * _ROW + 24
        change = element("tspan", change_text(metric.effect), class_=f"effect {metric.verdict}")
        parts.append(element("text", f"{title}  ", change, x="0", y=y - 10))
        parts.append(line(axis.x(before), y, axis.x(after), y, f"effect {metric.verdict}"))
        parts += [
            _symbol(arm, axis.x(value), y, 5.0, f"{arm}: {format_quantity(value, unit)}")
            for arm, value in zip(ARMS, (before, after), strict=True)
        ]
    texts = (f"{title} {change_text(metric.effect)}" for title, metric in lines)
    return chart(height + 18, f"Costs of both arms: {'; '.join(texts)}", *parts)


# effects --------------------------------------------------------------------------------------

LEAST_PAIRS = 6
"""Least number of pairs for the chart of effects: with fewer there are no intervals."""
_ROW = 36.0
_WIDEST = 0.5
"""A ratio that is farther from 1 than this share is drawn at the edge, with its number: otherwise
the metrics that matter would all be one point."""


def forest_chart(metrics: Sequence[MetricComparison], judgement: Judgement) -> Markup:
    """Draw the ratio of each metric with its interval. The margin, within which arms are
    equivalent, and the floor, below which no difference is called, are shaded."""
    margin, floor = judgement.margin, judgement.floor
    ends = [
        abs(math.log(end)) for m in metrics
        for end in (*(m.effect.interval or ()), m.ratio or 0.0)
        if end > 0 and abs(math.log(end)) <= math.log1p(_WIDEST)
    ]  # fmt: skip
    reach = math.exp(max([*ends, 2 * math.log1p(margin)]) * 1.05)
    axis = Axis(1 / reach, reach, is_log=True)
    height = _ROW * len(metrics) + 8
    parts = [
        rect(axis.x(1 / (1 + share)), 0, axis.width(1 / (1 + share), 1 + share), height, name)
        for share, name in ((margin, "margin"), (floor, "floor"))
    ]
    parts.append(line(axis.x(1.0), 0, axis.x(1.0), height, "one"))
    for number, metric in enumerate(metrics):
        parts += _effect(metric, axis, number * _ROW)
    for ratio in (1 / (1 + margin), 1.0, 1 + margin):
        words = "no change" if ratio == 1 else f"{100 * (ratio - 1):+.1f}%"
        parts.append(text(axis.x(ratio), height + 14, words, "faint small", "middle"))
    parts.append(text("0", height + 30, "cheaper", "faint small"))
    parts.append(text("100%", height + 30, "costs more", "faint small", "end"))
    labels = (f"{metric_title(m.name)} {change_text(m.effect)}, {m.verdict}" for m in metrics)
    return chart(height + 36, f"Change of each metric: {'; '.join(labels)}", *parts)


def _effect(metric: MetricComparison, axis: Axis, top: float) -> Iterator[Markup]:
    words = f"{metric_title(metric.name)} {change_text(metric.effect)}"
    yield text("0", top + 12, words)
    y, ratio, role = top + 23, metric.ratio or 0.0, f"effect {metric.verdict}"
    if metric.effect.interval is not None:
        low, high = metric.effect.interval
        yield line(axis.x(max(low, axis.low)), y, axis.x(max(high, axis.low)), y, role)
    if axis.low < ratio < axis.high:
        yield element("circle", cx=axis.x(ratio), cy=y, r=5.0, class_=role)
    else:
        arrow, end = ("\u25c0", "start") if ratio < 1 else ("\u25b6", "end")
        yield text("0" if ratio < 1 else "100%", y + 5, arrow, role, end)


# scaling law ----------------------------------------------------------------------------------

Points = Mapping[ArmName, Sequence[tuple[int, float]]]
"""Points of each arm: the bytes, and their median cost."""
_PIECES = 12
"""Straight pieces of which a law is drawn: with a fixed part it is curved on logarithmic axes."""


def law_chart(points: Points, laws: Mapping[ArmName, Law], unit: str, label: str) -> Markup:
    """Draw the cost of each size and, if there is one, the law, on logarithmic axes."""
    sizes = sorted({size for arm in ARMS for size, _ in points[arm]})
    costs = [cost for arm in ARMS for _, cost in points[arm]]
    whole = sizes[-1] / sizes[0]
    across = Axis(sizes[0] / whole**_FREE, sizes[-1] * whole**0.08, is_log=True)
    up = axis_of(costs, 1.5)
    parts = [*_value_grid(up, unit, _TOP + 8, _BOTTOM)]
    for arm in ARMS:
        law = laws.get(arm)
        if law is not None and (covered := [s for s, _ in points[arm] if law.covers(s)]):
            ends = min(covered), max(covered)
            steps = [ends[0] * (ends[1] / ends[0]) ** (n / _PIECES) for n in range(_PIECES + 1)]
            places = [
                (across.x(s), up.y(law.at(s), _TOP + 8, _BOTTOM)) for s in steps if law.at(s) > 0
            ]
            parts += [
                line(*first, *second, f"law {arm}") for first, second in itertools.pairwise(places)
            ]
        parts += [
            _symbol(arm, across.x(size), up.y(cost, _TOP + 8, _BOTTOM), 5.0,
                    f"{arm}, {format_size(size)}: {format_quantity(cost, unit)}")
            for size, cost in points[arm]
        ]  # fmt: skip
    for size in sizes:
        words, anchor = format_size(size), _anchor(across, size)
        parts.append(text(across.x(size), _HEIGHT - 8, words, "faint small", anchor))
    return chart(_HEIGHT, label, *parts)


def change_bar(axis: Axis, start: float, end: float, name: str) -> Markup:
    """Draw one row of a waterfall: a bar from one length to another."""
    low, high = sorted((start, end))
    bar = rect(axis.x(low), 3, axis.width(low, high), 14, f"fall {name}")
    return element("svg", bar, width="100%", height=20.0, aria_hidden="true")
