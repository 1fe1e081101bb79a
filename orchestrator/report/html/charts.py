"""Charts as plotly figures, in the form of its JSON: dicts with `data` and `layout`. The page's
script adds the colours of text and background.

The colours of data are those of Okabe and Ito (2008), which the colour-blind can distinguish too,
and which stand out from a light and from a dark background. No colour carries a meaning alone: a
symbol, dash, row or text carries it, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

from markupsafe import escape

from orchestrator.analysis.boot.cost import BootDifference
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Phase, Timeline
from orchestrator.analysis.maps.scaling import Law
from orchestrator.analysis.verdict.comparison import MetricComparison
from orchestrator.analysis.verdict.summary import summarize
from orchestrator.formats.units import GIB, format_size
from orchestrator.report.words.printable import escape_unprintable
from orchestrator.report.words.quantities import format_quantity
from orchestrator.report.words.samples import Dots, role_values
from orchestrator.scenario.vocabulary import ARMS, ArmName, Role

Figure = dict[str, object]

_BLUE, _VERMILION, _GREEN, _ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
_SKY, _PURPLE, _YELLOW, _GREY = "#56b4e9", "#cc79a7", "#f0e442", "#999999"
_ROLES: dict[Role, tuple[str, str, str]] = {
    "baseline": (_BLUE, "circle", "solid"),
    "candidate": (_VERMILION, "diamond", "dash"),
    "control": (_GREEN, "x", "dot"),
}
"""Colour, symbol and dash of each role."""
_LOG_FROM = 10.0
"""The axis is logarithmic if the largest value is more than this many times the smallest."""
_SMALL = {"l": 8, "r": 8, "t": 8, "b": 8}


def _text(text: str) -> str:
    """Escape text for plotly, which has a markup of its own, with links."""
    return str(escape(escape_unprintable(text)))


def _values(unit: str, values: Sequence[float]) -> dict[str, object]:
    """Return the axis of values in s, Ginsn or count."""
    log = min(values) > 0 and max(values) > _LOG_FROM * min(values)
    suffix = {"s": "s", "Ginsn": "insn"}.get(unit, "")
    return {
        "type": "log" if log else "linear", "exponentformat": "SI", "minexponent": 0,
        "ticksuffix": suffix, "automargin": True, "nticks": 5,
        **({"dtick": "D2" if max(values) < 100 * min(values) else None} if log else {}),
    }  # fmt: skip


def _whole_step(last: int) -> int:
    """Return the first of 1, 2, 5, 10, ... that makes eight ticks at most."""
    steps = (int(digit * 10**power) for power in itertools.count() for digit in (1, 2, 5))
    return next(step for step in steps if last <= 8 * step)


def _scale(unit: str) -> float:
    """Return the factor from a unit to the one that plotly adds SI prefixes to: instructions for
    Ginsn."""
    return 1e9 if unit == "Ginsn" else 1.0


def sample_chart(metric: MetricComparison, shown: Sequence[Dots]) -> Figure:
    """Draw a dot for each trial and a line for each median. At the right edge, draw the
    candidate's median as the ratio and its interval predict it."""
    scale = _scale(metric.unit)
    last = max(dots.dots[-1].at for dots in shown)
    data: list[Figure] = []
    every = []
    for dots in shown:
        colour, symbol, dash = _ROLES[dots.role]
        every += [dot.value * scale for dot in dots.dots]
        data.append({
            "type": "scatter", "mode": "markers", "name": dots.role,
            "x": [dot.at for dot in dots.dots], "y": [dot.value * scale for dot in dots.dots],
            "marker": {"color": colour, "symbol": symbol, "size": 8 if len(every) < 200 else 4},
            "hovertemplate": "trial %{x}: %{y:.6~g}",
        })  # fmt: skip
    for dots in shown:
        colour, _, dash = _ROLES[dots.role]
        middle = summarize(metric.unit, role_values(metric, dots.role)).middle * scale
        data.append({
            "type": "scatter", "mode": "lines", "name": f"median of {dots.role}",
            "x": [0.5, last + 0.5], "y": [middle, middle],
            "line": {"color": colour, "dash": dash, "width": 1.5},
            "hovertemplate": f"median of {dots.role}: %{{y:.6~g}}<extra></extra>",
        })  # fmt: skip
    between, beside = metric.effect.interval, max(1.0, last * 0.04)
    if between is not None and metric.ratio is not None:
        base = summarize(metric.unit, metric.baseline).middle * scale
        low, high = (base * end for end in between)
        middle = base * metric.ratio
        every += [low, high]
        data.append({
            "type": "scatter", "mode": "markers", "name": "95 % interval",
            "x": [last + beside], "y": [middle],
            "error_y": {"type": "data", "symmetric": False, "array": [high - middle],
                        "arrayminus": [middle - low], "color": _VERMILION, "thickness": 2,
                        "width": 6},
            "marker": {"color": _VERMILION, "symbol": "line-ew-open", "size": 10},
            "hovertemplate": "baseline's median x ratio: %{y:.6~g}",
        })  # fmt: skip
    layout = {
        "height": 210, "margin": _SMALL, "showlegend": False, "hovermode": "closest",
        "xaxis": {"title": {"text": "trial"}, "automargin": True, "zeroline": False,
                  "tick0": 0, "dtick": _whole_step(last),
                  "range": [0.4, last + 0.6 + (2 * beside if between else 0)]},
        "yaxis": _values(metric.unit, every),
    }  # fmt: skip
    return {"data": data, "layout": layout}


# timelines ------------------------------------------------------------------------------------

_FAMILIES = {
    "QEMU": _GREY, "firmware": _PURPLE, "boot loader": _YELLOW, "kernel": _SKY,
    "userspace": _GREEN, "guest is up": _ORANGE, "shutdown": "#777777",
}  # fmt: skip
_ROWS = ("phases", "maps", "unmaps")
_APART = len(_ROWS) + 0.9
"""Distance from one arm's first row to the next arm's first row, in rows."""
Name = TypeVar("Name", bound=str)
MOST_STEPS = 1000
"""Most steps of a kind in a chart; the longest ones are kept."""


def timeline_chart(boots: Mapping[Name, Timeline]) -> Figure:
    """Draw a boot of each arm, or of each name, on one axis: its phases, and under them its maps
    and unmaps."""
    data: list[Figure] = []
    ticks: dict[float, str] = {}
    notes: list[Figure] = []
    for number, (arm, boot) in enumerate(boots.items()):
        top = -number * _APART
        rows = {name: top - row for row, name in enumerate(_ROWS)}
        ticks |= {y: name for name, y in rows.items()}
        data += [*_phase_bars(arm, boot, rows["phases"]), *_step_bars(arm, boot, rows)]
        data.append(_mark(arm, boot, top))
        notes.append({
            "text": f"<b>{arm}</b> {_text(boot.release)}", "showarrow": False,
            "x": 0, "xref": "paper", "xanchor": "left",
            "y": top + 0.42, "yref": "y", "yanchor": "bottom",
        })  # fmt: skip
    unit = next(iter(boots.values())).unit
    named = set()
    for trace in data:  # one entry in the legend for both arms
        trace["showlegend"] = trace["legendgroup"] not in named
        named.add(trace["legendgroup"])
    lowest = -(len(boots) - 1) * _APART - len(_ROWS) + 0.4
    layout = {
        "height": 130 + 145 * len(boots), "barmode": "overlay", "margin": _SMALL,
        "hovermode": "closest", "dragmode": "zoom",
        "uniformtext": {"minsize": 9, "mode": "hide"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        "xaxis": {"title": {"text": f"{unit} since QEMU's exec"}, "rangemode": "tozero",
                  "automargin": True, "zeroline": False},
        "yaxis": {"tickmode": "array", "tickvals": [*ticks], "ticktext": [*ticks.values()],
                  "range": [lowest, 1.1], "fixedrange": True, "automargin": True,
                  "showgrid": False, "zeroline": False},
        "annotations": notes,
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _bars(arm: str, name: str, colour: str, y: float, spans: Sequence[Phase | DmaStep],
          hover: Sequence[str], marker: Figure | None = None) -> Figure:  # fmt: skip
    """Return one trace of bars. `marker` replaces or adds parts of the bars' style."""
    return {
        "type": "bar", "orientation": "h", "name": name, "legendgroup": name, "width": 0.8,
        "y": [y] * len(spans), "base": [span.start for span in spans],
        "x": [span.seconds for span in spans], "hovertext": [_text(text) for text in hover],
        "hovertemplate": f"%{{hovertext}}<extra>{arm}</extra>",
        # the outline has the bar's colour, so a step too short for a bar shows as a line
        "marker": {"color": colour, "line": {"color": colour, "width": 1}} | (marker or {}),
    }  # fmt: skip


def _phase_bars(arm: str, boot: Timeline, y: float) -> list[Figure]:
    families: dict[str, list[Phase]] = {}
    for phase in boot.phases:
        families.setdefault(_family(phase), []).append(phase)
    traces = []
    for name, phases in families.items():
        hover = [
            f"{p.name}: {format_quantity(p.seconds, boot.unit)},"
            f" from {format_quantity(p.start, boot.unit)}"
            for p in phases
        ]
        outline: Figure = {"line": {"color": "#333", "width": 0.5}}
        bars = _bars(arm, name, _FAMILIES.get(name, _GREY), y, phases, hover, outline)
        short = [_text(p.name.removeprefix(f"{name}: ")) for p in phases]
        traces.append({
            **bars, "text": short, "textposition": "inside", "insidetextanchor": "middle",
            "textangle": 0, "textfont": {"color": "#000000"},
        })  # fmt: skip
    return traces


def _family(phase: Phase) -> str:
    family, _, _ = phase.name.partition(":")
    return family if family in _FAMILIES else "QEMU"


def _step_bars(arm: str, boot: Timeline, rows: Mapping[str, float]) -> list[Figure]:
    kinds = {
        ("map", "BAR"): ("maps of BARs", _VERMILION),
        ("unmap", "BAR"): ("unmaps of BARs", _BLUE),
        ("map", RAM): ("RAM", _GREY),
        ("unmap", RAM): ("RAM", _GREY),
        ("map", IOVA): ("guest IOVA", _GREEN),
        ("unmap", IOVA): ("guest IOVA", _GREEN),
    }
    traces = []
    for (kind, bar), (name, colour) in kinds.items():
        steps = [
            s for s in boot.steps
            if s.kind == kind and (s.bar if s.bar in (RAM, IOVA) else "BAR") == bar
        ]  # fmt: skip
        if steps:
            longest = sorted(steps, key=lambda s: -s.seconds)[:MOST_STEPS]
            hover = [_step_hover(step, boot.unit) for step in longest]
            # the pattern distinguishes RAM from QEMU's phases
            pattern: Figure = {"pattern": {"shape": "/", "solidity": 0.3}} if bar == RAM else {}
            traces.append(_bars(arm, name, colour, rows[f"{kind}s"], longest, hover, pattern))
    return traces


def _step_hover(step: DmaStep, unit: str) -> str:
    parts = [
        f"{step.kind} of {step.bar} ({format_size(step.size)}):"
        f" {format_quantity(step.seconds, unit)}",
        step.cause,
        f"at {format_quantity(step.start, unit)}",
    ]
    return ", ".join(filter(None, parts))


def _mark(arm: str, boot: Timeline, top: float) -> Figure:
    mark = boot.boot_seconds
    text = f"boot mark of the {arm}: {format_quantity(mark, boot.unit)}"
    return {
        "type": "scatter", "mode": "lines+markers", "name": "boot mark",
        "legendgroup": "boot mark", "x": [mark, mark],
        "y": [top + 0.5, top - len(_ROWS) + 0.5],
        "line": {"color": _ORANGE, "width": 2, "dash": "dot"},
        "marker": {"symbol": ["triangle-down", "triangle-up"], "size": 9, "color": _ORANGE},
        "hovertemplate": f"{text}<extra></extra>",
    }  # fmt: skip


def difference_chart(unit: str, difference: BootDifference) -> Figure:
    """Draw the steps from the baseline's boot to the candidate's: the operations in which they
    differ."""
    least = 0.001 * max(difference.baseline, difference.candidate)
    steps = {name: value for name, value in difference.operations.items() if abs(value) >= least}
    steps = dict(sorted(steps.items(), key=lambda step: -abs(step[1])))
    steps["all else"] = difference.whole - sum(steps.values())
    texts = [f"{name} {'+' * (s > 0)}{format_quantity(s, unit)}" for name, s in steps.items()]
    data = {
        "type": "waterfall", "orientation": "h", "hoverinfo": "skip",
        "y": [f"baseline {format_quantity(difference.baseline, unit)}", *texts,
              f"candidate {format_quantity(difference.candidate, unit)}"],
        "x": [difference.baseline, *steps.values(), difference.candidate],
        "measure": ["absolute", *["relative"] * len(steps), "total"],
        "increasing": {"marker": {"color": _VERMILION}},
        "decreasing": {"marker": {"color": _GREEN}},
        "totals": {"marker": {"color": _GREY}},
        "connector": {"line": {"color": _GREY, "width": 1}},
    }  # fmt: skip
    layout = {
        "height": 130 + 30 * len(steps), "margin": _SMALL, "showlegend": False,
        "xaxis": {"title": {"text": f"{unit} to the boot mark"}, "automargin": True,
                  "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "automargin": True, "ticksuffix": "  "},
    }  # fmt: skip
    return {"data": [data], "layout": layout}


# scaling law ----------------------------------------------------------------------------------

Points = Mapping[ArmName, Sequence[tuple[int, float]]]
"""Points of each arm: the bytes, and their median cost."""


def law_chart(points: Points, laws: Mapping[ArmName, Law], unit: str) -> Figure:
    """Draw the cost of each size and, if there is one, the law, on logarithmic axes."""
    scale = _scale(unit)
    data: list[Figure] = []
    for arm in ARMS:
        colour, symbol, dash = _ROLES[arm]
        sizes = [size for size, _ in points[arm]]
        data.append({
            "type": "scatter", "mode": "markers", "name": arm,
            "x": [size / GIB for size in sizes], "y": [cost * scale for _, cost in points[arm]],
            "marker": {"color": colour, "symbol": symbol, "size": 9},
            "hovertemplate": "%{x} GiB: %{y:.6~g}",
        })  # fmt: skip
        if (law := laws.get(arm)) is not None and sizes:
            data.append({
                "type": "scatter", "mode": "lines", "name": f"law of {arm}",
                "x": [size / GIB for size in sorted(sizes)],
                "y": [law.at(size) * scale for size in sorted(sizes)],
                "line": {"color": colour, "dash": dash, "width": 1.5}, "hoverinfo": "skip",
            })  # fmt: skip
    every = [cost * scale for arm in ARMS for _, cost in points[arm]]
    layout = {
        "height": 240, "margin": _SMALL, "showlegend": False, "hovermode": "closest",
        "xaxis": {"title": {"text": "GiB mapped"}, "type": "log", "dtick": "D2",
                  "automargin": True},
        "yaxis": _values(unit, every),
    }  # fmt: skip
    return {"data": data, "layout": layout}
