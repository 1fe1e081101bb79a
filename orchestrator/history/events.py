"""What changed: the entries of the feed and of the mail. Nights that are as the one before make
none. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby, pairwise
from typing import NamedTuple

from orchestrator.base.hashing import digest_of
from orchestrator.history.moves import Change, Trend
from orchestrator.history.rows import NightRow, RunRow
from orchestrator.history.wording import (
    describe_cause,
    describe_night,
    describe_size,
    describe_sureness,
)

_OPEN = ("inconclusive", "invalid")
"""Verdicts that say nothing new about the kernels."""
_STEP = " step"
"""End of the key of a change of level."""
_NEAR = 3
"""Days by which one change of level may be apart in several metrics, or when more nights come."""


@dataclass(frozen=True)
class Event:
    at: str
    """Start of the night, ISO 8601."""
    key: str
    """What changed. Of several events of one key those of about one night are the same."""
    title: str
    lines: tuple[str, ...]
    folder: str
    """Run that shows it; empty if there is none."""

    @property
    def id(self) -> str:
        """Name of the event in a feed. A reader that has it is not told again."""
        return digest_of({"at": self.at, "key": self.key})

    def is_same(self, other: Event | Known) -> bool:
        """True if both tell of one thing. A step's night may move a little when more nights
        come."""
        apart = abs(_day(self.at) - _day(other.at)).days
        return self.key == other.key and apart <= (_NEAR if self.key.endswith(_STEP) else 0)


class Known(NamedTuple):
    """An event that an earlier page had."""

    at: str
    key: str


def _day(at: str) -> date:
    return date.fromisoformat(at[:10])


def settle(events: Iterable[Event], known: Sequence[Known]) -> tuple[list[Event], list[Event]]:
    """Return all events, those that are known with their known night, and those that are new."""
    settled, new = [], []
    for event in events:
        before = next((one for one in known if event.is_same(one)), None)
        settled.append(event if before is None else replace(event, at=before.at))
        if before is None:
            new.append(event)
    return settled, new


def find_events(
    trends: Iterable[Trend], runs: Sequence[RunRow], nights: Sequence[NightRow]
) -> list[Event]:
    """Return every event of the history, the newest first."""
    events = [*_list_steps(trends), *_list_verdicts(runs), *_list_nights(nights, runs)]
    return sorted(events, key=lambda event: (event.at, event.title), reverse=True)


def _list_steps(trends: Iterable[Trend]) -> Iterator[Event]:
    """Yield an event for each night in which metrics of a scenario on a machine changed. What
    changes a map changes a boot, too, so that they are told together."""

    def place(step: tuple[Trend, Change]) -> tuple[str, str, str]:
        series = step[0].series
        return series.machine, series.scenario, series.accel

    def night(step: tuple[Trend, Change]) -> str:
        return step[0].points[step[1].point.index].started

    steps = [(trend, change) for trend in trends for change in trend.changes]
    for (machine, scenario, accel), group in groupby(sorted(steps, key=place), place):
        left = sorted(group, key=night)
        while left:
            first = _day(night(left[0]))
            near = [step for step in left if (_day(night(step)) - first).days <= _NEAR]
            left = left[len(near) :]
            # the clearest one tells the night and the cause
            trend, change = min(near, key=lambda step: step[1].point.alarms)
            name = f"{machine} {scenario}/{accel}"
            size = f"{trend.series.metric} {describe_size(change, trend.series.unit)}"
            more = f", and {len(near) - 1} more" if len(near) > 1 else ""
            others = (
                f"{other.series.metric}: {describe_size(step, other.series.unit)},"
                f" {describe_sureness(step)}"
                for other, step in near
            )
            lines = (f"since {describe_night(trend, change)}: {describe_cause(change)}", *others)
            point = trend.points[change.point.index]
            yield Event(point.started, f"{name}{_STEP}", f"{name}: {size}{more}", lines,
                        point.folder)  # fmt: skip


def _list_verdicts(runs: Sequence[RunRow]) -> Iterator[Event]:
    """Yield an event for each run whose verdict is another than that of the decided run before."""

    def series(run: RunRow) -> tuple[str, str, str]:
        return run.machine, run.scenario, run.accel

    for (machine, scenario, accel), group in groupby(sorted(runs, key=series), series):
        decided = sorted((run for run in group if run.verdict not in _OPEN),
                         key=lambda run: run.started)  # fmt: skip
        for before, after in pairwise(decided):
            if before.title != after.title:
                kernel = f"candidate {after.candidate_kernel} ({after.candidate_source})"
                title = f"{machine} {scenario}/{accel}: {after.title}, was {before.title}"
                yield Event(after.started, title, title, (kernel,), after.folder)


def _list_nights(nights: Sequence[NightRow], runs: Sequence[RunRow]) -> Iterator[Event]:
    """Yield an event where nights begin to fail, or end to, and for each machine that is not as it
    was."""

    def place(night: NightRow) -> tuple[str, str]:
        return night.machine, night.scenario

    went_well = (
        NightRow(run.machine, run.scenario, run.started, run.folder, run.exit_code, "", "", None,
                 None)
        for run in runs
    )  # fmt: skip
    every = sorted([*nights, *went_well], key=place)
    for (machine, scenario), group in groupby(every, place):
        before = ""
        for night in sorted(group, key=lambda night: night.started):
            name = f"{machine} {scenario}"
            if night.put_back is False:
                title = f"{machine}: the machine is not as it was"
                yield Event(night.started, title, title, (night.message,), "")
            if night.reason != before:
                title = f"{name}: " + (f"no run, {night.reason}" if night.reason else "runs again")
                yield Event(night.started, title, title, (night.message,), "")
            before = night.reason


def format_mail(events: Sequence[Event], link: str = "") -> str:
    """Return the text of a mail about these events; empty if there are none. `link`: address of
    the page."""
    if not events:
        return ""
    lines = [f"Barometer: {len(events)} change{'s' * (len(events) != 1)}", ""]
    for event in events:
        lines += [
            f"{event.at[:10]}  {event.title}",
            *(f"  {line}" for line in event.lines if line),
        ]
        lines += [f"  run: {event.folder}"] * bool(event.folder) + [""]
    return "\n".join([*lines, link]).rstrip("\n") + "\n"
