"""Flame graphs of where the instructions of a map and an unmap go: each arm's, and their
difference. The first function is on top; what it calls is below it, as wide as its share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from markupsafe import Markup

from orchestrator.analysis.maps.breakdown import Breakdown, ProfileDifference
from orchestrator.report.html.svg import chart, labelled_rect, percent, rect
from orchestrator.report.words.profile_words import describe_per_page, describe_profile
from orchestrator.report.words.quantities import format_quantity
from orchestrator.scenario.vocabulary import ARMS, ArmName

_ROW = 18.0
_MOST_ROWS = 16
_LEAST_SHARE = 0.003
"""Share of the whole below which a function is not drawn: three pixels of a wide page."""
_LEAST_WITH_NAME = 0.02
_MOST_FUNCTIONS = 10
_FAMILIES = {
    "vaddr_get_pfn": "lookup", "follow_": "lookup", "iommu_": "iommu", "vfio_": "vfio",
}  # fmt: skip
"""Beginning of a function's name -> the class of it and of what it calls, unless that begins one
of its own."""


@dataclass
class _Frame:
    """A function, called by those above it."""

    name: str
    own: dict[ArmName, float] = field(default_factory=lambda: dict.fromkeys(ARMS, 0.0))
    """Instructions of the function itself."""
    called: dict[str, _Frame] = field(default_factory=dict)

    def total(self, arm: ArmName) -> float:
        return self.own[arm] + sum(frame.total(arm) for frame in self.called.values())


@dataclass(frozen=True)
class FunctionRow:
    """A function in which the arms differ, without what it calls."""

    name: str
    baseline: str
    candidate: str
    change: str
    per_page: str
    """Instructions for each page of 4 KiB."""
    place: str
    """Whether the function is in a file that the series touches; empty if that is not known."""


@dataclass(frozen=True)
class Flames:
    """The flame graphs of one operation."""

    title: str
    """`one map, warm`"""
    graphs: dict[str, Markup]
    """What a graph is of, with its number -> the graph. The difference is last."""
    summary: str
    """The difference in a sentence; empty if there is none."""
    changes: list[FunctionRow]
    """The functions with the largest changes."""


def build_flames(
    breakdowns: Mapping[ArmName, tuple[Breakdown, ...]], differences: Iterable[ProfileDifference]
) -> list[Flames]:
    """Return the graphs of each operation and state that any arm has a breakdown of.
    `differences`: of those that both have."""
    keys = dict.fromkeys((b.operation, b.state) for of_arm in breakdowns.values() for b in of_arm)
    differing = {(d.operation, d.state): d for d in differences}
    return [_flames(*key, _of_key(breakdowns, *key), differing.get(key)) for key in keys]


def _of_key(
    breakdowns: Mapping[ArmName, tuple[Breakdown, ...]], operation: str, state: str
) -> dict[ArmName, Breakdown]:
    return {
        arm: breakdown for arm, of_arm in breakdowns.items() for breakdown in of_arm
        if (breakdown.operation, breakdown.state) == (operation, state)
    }  # fmt: skip


def _flames(
    operation: str, state: str, by_arm: Mapping[ArmName, Breakdown],
    difference: ProfileDifference | None,
) -> Flames:  # fmt: skip
    root = _Frame("")
    for arm, breakdown in by_arm.items():
        for stack, count in breakdown.stacks.items():
            frame = root
            for name in stack:
                frame = frame.called.setdefault(name, _Frame(name))
            frame.own[arm] += count
    graphs = {}
    for arm, breakdown in by_arm.items():
        whole = breakdown.total
        title = f"{arm}, {_instructions(whole)}"
        graphs[title] = _graph(root, {arm: whole}, f"Flame graph of the {operation}: {title}")
    totals = {arm: breakdown.total for arm, breakdown in by_arm.items()}
    if difference is not None:
        change = totals["candidate"] - totals["baseline"]
        title = f"difference, {'+' * (change > 0)}{_instructions(change)}"
        graphs[title] = _graph(root, totals, f"Flame graph of the {operation}: {title}")
    return Flames(
        f"one {operation} of the whole BAR, {state}", graphs,
        "" if difference is None else describe_profile(difference),
        [] if difference is None else list(_changes(difference)),
    )  # fmt: skip


def _graph(root: _Frame, totals: Mapping[ArmName, float], label: str) -> Markup:
    """Draw the frames of one arm, or with two the difference: a frame is then as wide as its
    instructions in both arms together."""
    whole = sum(totals.values())
    drawn = [*_frames(root, tuple(totals), whole, 0.0, 0)]
    rows = 1 + max((row for row, _ in drawn), default=0)
    return chart(rows * _ROW, label, *(markup for _, markup in drawn), name="flame")


def _frames(
    parent: _Frame,
    arms: tuple[ArmName, ...],
    whole: float,
    start: float,
    row: int,
    family: str = "else",
) -> Iterator[tuple[int, Markup]]:
    """Yield every frame below `parent` with its row. `start`: share of the width at which the
    first one begins. The widest is first."""
    if row >= _MOST_ROWS:
        return
    widths = {
        frame.name: sum(frame.total(arm) for arm in arms) / whole if whole else 0.0
        for frame in parent.called.values()
    }
    for name in sorted(widths, key=lambda n: (-widths[n], n)):
        if (share := widths[name]) < _LEAST_SHARE:
            break
        frame = parent.called[name]
        x, width, y = percent(start), percent(share), row * _ROW
        own = next((kind for head, kind in _FAMILIES.items() if name.startswith(head)), family)
        kind = f"frame {own}" if len(arms) == 1 else _change_class(frame)
        title = _title(frame, arms)
        if share < _LEAST_WITH_NAME:
            yield row, rect(x, y, width, _ROW - 1, kind, title)
        else:
            yield row, labelled_rect(x, y, width, _ROW - 1, kind, title, name)
        yield from _frames(frame, arms, whole, start, row + 1, own)
        start += share


def _title(frame: _Frame, arms: tuple[ArmName, ...]) -> str:
    if len(arms) == 1:
        return f"{frame.name}: {_instructions(frame.total(arms[0]))}"
    before, after = (frame.total(arm) for arm in ARMS)
    change = f"{'+' * (after > before)}{_instructions(after - before)}"
    return f"{frame.name}: {_instructions(before)} -> {_instructions(after)}, {change}"


def _change_class(frame: _Frame) -> str:
    before, after = (frame.total(arm) for arm in ARMS)
    change = (after - before) / (after + before) if after + before else 0.0
    size = "" if abs(change) < 0.005 else " slight" if abs(change) < 0.1 else " clear"
    return f"frame {'more' if change > 0 else 'less'}{size}" if size else "frame same"


def _changes(difference: ProfileDifference) -> Iterator[FunctionRow]:
    for change in difference.functions[:_MOST_FUNCTIONS]:
        if abs(change.difference) < 0.5:
            return  # half an instruction: of an extrapolation
        yield FunctionRow(
            change.function, _instructions(change.baseline), _instructions(change.candidate),
            f"{'+' * (change.difference > 0)}{_instructions(change.difference)}",
            describe_per_page(change),
            {True: "in the series' files", False: "elsewhere", None: ""}[change.in_series],
        )  # fmt: skip


def _instructions(count: float) -> str:
    return format_quantity(count / 1e9, "Ginsn") if count else "0"
