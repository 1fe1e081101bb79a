"""What else changed in the night of a change point: is it the kernel or the machine? Pure.

Conditions are those of the baseline, whose kernel stays: what moves there is the machine, its
programs, the guest or barometer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.analysis.conditions.conditions import ABSENT, ARM, KERNEL
from orchestrator.history.store import Point, Series, Store
from orchestrator.history.trend import ChangePoint, find_changes

_KINDS = (
    ("QEMU", ("qemu",)),
    ("firmware", ("firmware", "ovmf", "seabios", "edk2", "bios")),
    ("microcode", ("microcode",)),
    ("guest kernel", ("guest.kernel.",)),
    ("barometer", ("barometer",)),
    ("libvirt", ("libvirt",)),
)
"""Kinds of conditions by a part of their name, the first that fits."""


@dataclass(frozen=True)
class Move:
    """A condition that differs from that of the night before."""

    index: int
    name: str
    before: str
    after: str

    @property
    def kind(self) -> str:
        """What it is for people: QEMU, firmware, ..., machine."""
        return next(
            (kind for kind, parts in _KINDS if any(part in self.name for part in parts)),
            "machine",
        )


Cause = Literal["machine", "kernel", "both", "unknown"]


@dataclass(frozen=True)
class Change:
    """A change point, and what changed with it."""

    point: ChangePoint
    moves: tuple[Move, ...]
    """Conditions that moved in a night that the change point can be."""
    kernels: tuple[str, str] | None
    """The candidate's kernel before and after; None if it is the same."""

    @property
    def cause(self) -> Cause:
        """machine: only conditions moved. kernel: only the candidate changed. both: it takes the
        old kernel on the machine of today to tell. unknown: nothing that was recorded changed."""
        if self.moves:
            return "machine" if self.kernels is None else "both"
        return "unknown" if self.kernels is None else "kernel"


@dataclass(frozen=True)
class Trend:
    """A series with what changed in it."""

    series: Series
    points: tuple[Point, ...]
    changes: tuple[Change, ...]
    moves: tuple[Move, ...]
    """Every condition that moved, whether the series changed or not."""


def read_trend(store: Store, series: Series, last: int | None = None) -> Trend:
    """Read a series from the store, and find its change points."""
    points = store.points(series, last)
    sets = store.condition_sets(series)
    contents: dict[int, dict[str, str]] = {}

    def conditions(point: Point) -> Mapping[str, str]:
        number = sets[point.run]
        if number not in contents:
            contents[number] = store.condition_set(number)
        return contents[number]

    moves = find_moves(points, [conditions(point) for point in points])
    changes = (explain_change(c, points, moves) for c in find_changes(points, series.unit))
    return Trend(series, tuple(points), tuple(changes), tuple(moves))


def find_moves(points: Sequence[Point], conditions: Sequence[Mapping[str, str]]) -> list[Move]:
    """Return every condition that moved from one night to the next. A condition that only one of
    both nights recorded did not move: an older barometer did not look at it."""
    moves = []
    for index in range(1, len(points)):
        before, after = conditions[index - 1], conditions[index]
        if before is after:
            continue
        moves += [
            Move(index, name, before[name], after[name])
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name] and not name.startswith((KERNEL, ARM))
        ]
        moves += [
            Move(index, name, before.get(name, ABSENT), after.get(name, ABSENT))
            for name in sorted(before.keys() ^ after.keys())
            if (room := _list_of(name)) and _has_list(before, room) and _has_list(after, room)
        ]
    return moves


def _list_of(name: str) -> str:
    """Return the list that a condition is of, such as `host.packages.`; empty if it is of none. A
    list is recorded as a whole."""
    room, found, _ = name.partition(".packages.")
    return room + found if found else ""


def _has_list(conditions: Mapping[str, str], room: str) -> bool:
    return any(name.startswith(room) for name in conditions)


def explain_change(change: ChangePoint, points: Sequence[Point], moves: Sequence[Move]) -> Change:
    within = range(change.earliest, change.latest + 1)
    # of several nights the one before the first, against the last
    before, after = points[change.earliest - 1], points[change.latest]
    is_same = (before.kernel_digest or before.kernel) == (after.kernel_digest or after.kernel)
    return Change(
        change, tuple(move for move in moves if move.index in within),
        None if is_same else (before.kernel, after.kernel),
    )  # fmt: skip
