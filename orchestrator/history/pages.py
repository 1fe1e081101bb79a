"""The pages of a history: an index, and a page for each series. Static files that need nothing
else: no server, no network. Beside them the feed, the mail and the numbers for Prometheus."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from orchestrator.base.hashing import digest_of
from orchestrator.history.events import Event, Known, find_events, format_mail, settle
from orchestrator.history.feed import atom_feed, prometheus_text
from orchestrator.history.moves import Trend, read_trend
from orchestrator.history.plot import series_plot, value_of
from orchestrator.history.rows import NightRow, RunRow
from orchestrator.history.store import KnownRun, Series, Store
from orchestrator.history.wording import (
    describe_cause,
    describe_move,
    describe_night,
    describe_size,
    describe_sureness,
)
from orchestrator.report.html.html import html_page
from orchestrator.report.words.quantities import format_quantity
from orchestrator.report.words.wording import metric_title

STRIP_NIGHTS = 60
"""Nights of a strip."""
SERIES_NIGHTS = 365
"""Nights of a series' page."""
_EVENTS = 20
"""Events that the index lists."""
_SEEN = "events.json"
"""The events that the folder's earlier page had."""


@dataclass(frozen=True)
class StripNight:
    """A night in a strip."""

    day: str
    kind: str
    """Verdict of its run; gap, or none."""
    label: str
    link: str
    """Address of the run's report; empty if there is none."""


@dataclass(frozen=True)
class SeriesLink:
    title: str
    link: str
    number: str
    verdict: str
    changed: str
    """Night of the last change of level; empty without one."""


@dataclass(frozen=True)
class MachineRow:
    """A machine with a scenario."""

    machine: str
    scenario: str
    verdict: str
    title: str
    started: str
    headlines: tuple[str, ...]
    """The metrics that decide, with their intervals."""
    strip: tuple[StripNight, ...]
    series: tuple[SeriesLink, ...]


@dataclass(frozen=True)
class NightLine:
    day: str
    verdict: str
    numbers: tuple[str, ...]
    kernel: str
    link: str


@dataclass(frozen=True)
class ChangeLine:
    night: str
    size: str
    sure: str
    cause: str


@dataclass(frozen=True)
class SeriesPage:
    title: str
    machine: str
    scenario: str
    plot: Markup | None
    changes: tuple[ChangeLine, ...]
    moves: tuple[tuple[str, str], ...]
    """Night and condition."""
    nights: tuple[NightLine, ...]
    """The newest first."""


def write_pages(store: Store, out: Path, link: str = "") -> list[Event]:
    """Write all pages into `out`. `link`: address of the index, for the feed and the mail. Return
    the events that an earlier page of this folder did not have; of the first page, those of the
    last night."""
    (out / "series").mkdir(parents=True, exist_ok=True)
    trends = [read_trend(store, series, SERIES_NIGHTS) for series in store.series()]
    runs, nights = store.runs(), store.nights()
    found = find_events(trends, [run.row for run in runs], nights)
    known = _read_known(out / _SEEN)
    events, new = settle(found, known or [])
    if known is None:  # the first page: what is long ago is no news
        new = [event for event in events if event.at[:10] == events[0].at[:10]]
    for trend in trends:
        page = _build_series_page(trend, out / "series")
        _write(out / _series_file(trend.series), html_page("history_series.html.jinja", page=page))
    rows = _build_rows(store, runs, nights, trends, out)
    index = html_page(
        "history.html.jinja", rows=rows,
        events=[(event.at[:10], event.title, event.lines) for event in events[:_EVENTS]],
    )  # fmt: skip
    _write(out / "feed.xml", atom_feed(events, link))
    _write(out / "mail.txt", format_mail(new, link))
    _write(out / "metrics.prom", prometheus_text(trends, nights))
    _write(out / "index.html", index)
    # last: whoever is killed before tells of the same events again
    seen = [{"at": event.at, "key": event.key} for event in events]
    _write(out / _SEEN, json.dumps({"schema": 1, "events": seen}, indent=1) + "\n")
    return new


def _write(path: Path, content: str) -> None:
    """Write a file under another name and rename it, so that a reader sees the old or the new."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(content, "utf-8")
    beside.rename(path)


def _read_known(path: Path) -> list[Known] | None:
    """Return the events of the folder's earlier page; None if there is none."""
    try:
        return [
            Known(str(event["at"]), str(event["key"]))
            for event in json.loads(path.read_text("utf-8"))["events"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _series_file(series: Series) -> str:
    """Return the file of a series' page. Its name is that of the series as far as a file can have
    it; the digest tells those apart that differ in the rest."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(series[:4]))[:120]
    return f"series/{words}-{digest_of(series._asdict())[:6]}.html"


def _report_link(folder: str, beside: Path) -> str:
    """Return the address of a run's report, relative to the page's folder; empty if there is
    none."""
    report = Path(folder) / "report.html"
    return os.path.relpath(report, beside) if folder and report.is_file() else ""


# index -------------------------------------------------------------------------------------------


def _build_rows(
    store: Store, runs: Sequence[KnownRun], nights: Sequence[NightRow], trends: Sequence[Trend],
    out: Path,
) -> list[MachineRow]:  # fmt: skip
    last_day = max(
        (night[:10] for night in (*(r.row.started for r in runs), *(n.started for n in nights))),
        default="",
    )

    def place(run: KnownRun) -> tuple[str, str, str]:
        return run.row.machine, run.row.scenario, run.row.accel

    by_place = {key: [*group] for key, group in groupby(sorted(runs, key=place), place)}
    rows = []
    for (machine, scenario, accel), of_place in by_place.items():
        own = [night for night in nights if (night.machine, night.scenario) == (machine, scenario)]
        last = of_place[-1]
        of_series = [t for t in trends if t.series[:3] == (machine, scenario, accel)]
        rows.append(
            MachineRow(
                machine, f"{scenario}/{accel}", last.row.verdict, last.row.title,
                last.row.started[:16].replace("T", " "),
                tuple(_headlines(store, last)),
                tuple(_strip([run.row for run in of_place], own, last_day, out)),
                tuple(_series_link(trend) for trend in of_series),
            )
        )  # fmt: skip
    known = {(machine, scenario) for machine, scenario, _ in by_place}
    for key in sorted({(n.machine, n.scenario) for n in nights} - known):
        own = [night for night in nights if (night.machine, night.scenario) == key]
        strip = tuple(_strip([], own, last_day, out))
        last_reason = own[-1].reason or "no run"
        rows.append(MachineRow(*key, "invalid", last_reason, own[-1].started[:16], (), strip, ()))
    return rows


def _headlines(store: Store, run: KnownRun) -> Iterator[str]:
    for effect in store.effects(run.id):
        if effect.deciding:
            numbers = (
                f"{format_quantity(effect.baseline, effect.unit)} ->"
                f" {format_quantity(effect.candidate, effect.unit)}"
            )
            ratio = "" if effect.ratio is None else f", {effect.ratio:.4g}x"
            interval = "" if effect.low is None else f" ({effect.low:.4g} .. {effect.high:.4g})"
            yield f"{metric_title(effect.metric)}: {numbers}{ratio}{interval}"


def _strip(
    runs: Sequence[RunRow], nights: Sequence[NightRow], last_day: str, out: Path
) -> Iterator[StripNight]:
    """Yield the last nights by their dates. Of several runs of a date the last one counts."""
    by_day = {run.started[:10]: run for run in sorted(runs, key=lambda run: run.started)}
    failed = {night.started[:10]: night for night in nights if night.reason}
    end = date.fromisoformat(last_day) if last_day else date.min
    for back in range(STRIP_NIGHTS - 1, -1, -1):
        day = (end - timedelta(days=back)).isoformat()
        if (run := by_day.get(day)) is not None:
            link = _report_link(run.folder, out)
            label = f"{day}: {run.title}, {run.candidate_kernel}"
            yield StripNight(day, run.verdict, label, link)
        elif (night := failed.get(day)) is not None:
            yield StripNight(day, "gap", f"{day}: no run, {night.reason}", "")
        else:
            yield StripNight(day, "none", f"{day}: no run", "")


def _series_link(trend: Trend) -> SeriesLink:
    last = trend.points[-1] if trend.points else None
    value = None if last is None else value_of(last, trend.series.unit)
    number = "" if value is None else (
        format_quantity(value, "count") if trend.series.unit == "count" else f"{value:.4g}x"
    )  # fmt: skip
    changed = trend.points[trend.changes[-1].point.index].started[:10] if trend.changes else ""
    return SeriesLink(
        metric_title(trend.series.metric), _series_file(trend.series), number,
        last.verdict if last is not None else "invalid", changed,
    )  # fmt: skip


# a series ----------------------------------------------------------------------------------------


def _build_series_page(trend: Trend, folder: Path) -> SeriesPage:
    series = trend.series
    return SeriesPage(
        metric_title(series.metric), series.machine, f"{series.scenario}/{series.accel}",
        series_plot(trend),
        tuple(
            ChangeLine(
                describe_night(trend, change), describe_size(change, series.unit),
                describe_sureness(change), describe_cause(change),
            )
            for change in trend.changes[::-1]
        ),
        tuple(
            (trend.points[move.index].started[:10], describe_move(move))
            for move in trend.moves[::-1]
        ),
        tuple(
            NightLine(
                point.started[:16].replace("T", " "), point.verdict,
                (
                    format_quantity(point.baseline, series.unit),
                    format_quantity(point.candidate, series.unit),
                    "" if point.ratio is None else f"{point.ratio:.4g}",
                    "" if point.low is None else f"{point.low:.4g} .. {point.high:.4g}",
                ),
                point.kernel, _report_link(point.folder, folder),
            )
            for point in trend.points[::-1]
        ),
    )  # fmt: skip
