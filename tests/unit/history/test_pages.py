"""The pages, the feed, the mail and the numbers for Prometheus: they tell what the store has, tell
changes once, and contain nothing that a name or a message smuggles in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pytest

from orchestrator.history.events import Event, find_events, format_mail
from orchestrator.history.feed import atom_feed, prometheus_text
from orchestrator.history.moves import read_trend
from orchestrator.history.pages import STRIP_NIGHTS, write_pages
from orchestrator.history.rows import NightRow, StoredRun
from orchestrator.history.store import Store
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.history.made import night_of
from tests.unit.history.weeks import LOST_NIGHTS, METRICS, RED_NIGHT, fill, with_reports

ATOM = "{http://www.w3.org/2005/Atom}"
HOSTILE = "</script><script>alert(1)</script>\x1b[31m\x00"
NIGHTS = 60


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    folder = tmp_path_factory.mktemp("week")
    with_reports(folder / "nights", NIGHTS)
    with Store.open(str(folder / "history.db")) as store:
        fill(store, NIGHTS, str(folder / "nights"))
        write_pages(store, folder / "out", "https://lab.example/nights/")
        yield store, folder / "out"


def links(page: Path) -> list[str]:
    return re.findall(r'href="([^"#]+)"', page.read_text())


def test_every_night_is_in_the_strip_with_its_text(week: tuple[Store, Path]) -> None:
    index = (week[1] / "index.html").read_text()
    strips = re.findall(r'<ol class="strip".*?</ol>', index, re.DOTALL)
    assert len(strips) == 2
    for strip in strips:
        assert strip.count("<li") == STRIP_NIGHTS
        assert strip.count("aria-label=") == STRIP_NIGHTS + 1
    assert strips[0].count('class="regressed"') == NIGHTS - RED_NIGHT
    assert strips[1].count('class="gap"') == len(LOST_NIGHTS)
    assert strips[1].count("no run, host-no-ssh") == 2 * len(LOST_NIGHTS)
    assert strips[0].count('href="') == strips[1].count('href="') == 14


def test_every_link_leads_to_a_file(week: tuple[Store, Path]) -> None:
    pages = [week[1] / "index.html", *(week[1] / "series").iterdir()]
    assert len(pages) == 1 + 2 * len(METRICS)
    for page in pages:
        for link in links(page):
            assert (page.parent / unquote(link)).exists(), f"{page.name}: {link}"


def test_pages_of_the_same_store_are_the_same(week: tuple[Store, Path]) -> None:
    store, out = week
    write_pages(store, out.parent / "again")
    for page in (out / "index.html", *(out / "series").iterdir()):
        assert page.read_text() == (out.parent / "again" / page.relative_to(out)).read_text()


def test_the_series_page_names_the_change_and_its_cause(week: tuple[Store, Path]) -> None:
    [page] = (week[1] / "series").glob("gpu2-*-bar_map_cost-*.html")
    text = page.read_text()
    assert "the machine, not the kernel (host.qemu 10.0.2 -&gt; 10.1.0)" in text
    assert text.count('class="night equivalent"') == NIGHTS - len(LOST_NIGHTS)
    assert 'class="moved"' in text


def test_the_feed_has_changes_only_and_its_form(week: tuple[Store, Path]) -> None:
    feed = ET.parse(week[1] / "feed.xml").getroot()
    entries = feed.findall(f"{ATOM}entry")
    titles = [entry.findtext(f"{ATOM}title") or "" for entry in entries]
    # gpu1 regressed, and its level changed; gpu2's level changed, it was lost and came back,
    # and was not put back
    assert len(titles) == 6
    assert sum("no run, host-no-ssh" in title for title in titles) == 1
    assert sum("regressed, was equivalent" in title for title in titles) == 1
    ids = [entry.findtext(f"{ATOM}id") for entry in entries]
    assert len({*ids}) == len(ids)
    for element in [feed, *entries]:
        for name in ("id", "title", "updated"):
            assert element.findtext(f"{ATOM}{name}"), name
    updated = [entry.findtext(f"{ATOM}updated") or "" for entry in entries]
    assert updated == sorted(updated, reverse=True)
    assert feed.findtext(f"{ATOM}updated") == updated[0]


def test_a_change_is_told_once(tmp_path: Path) -> None:
    """Every night a page is made; a change is told when it is found, and then no more."""
    told: list[Event] = []
    ids = set()
    with (
        Store.open(str(tmp_path / "whole.db")) as whole,
        Store.open(str(tmp_path / "history.db")) as store,
    ):
        fill(whole, 52)
        for day in range(42, 52):
            copy_until(whole, store, night_of(day, {}).run.started)
            new = write_pages(store, tmp_path / "out")
            told += new if day > 42 else []
            feed = ET.parse(tmp_path / "out/feed.xml").getroot()
            ids |= {entry.findtext(f"{ATOM}id") for entry in feed.findall(f"{ATOM}entry")}
    assert len(told) == 2  # gpu1 regressed, and its level changed
    # two nights after the step one may still take it for a night earlier
    assert {event.at[:10] for event in told} <= {"2026-02-14", "2026-02-15"}
    assert len(ids) == 3  # and gpu2's level, from the beginning


def copy_until(whole: Store, store: Store, last: str) -> None:
    """Copy the runs up to a time."""
    there = {run.row.started for run in store.runs()}
    for run in whole.runs():
        if run.row.started <= last and run.row.started not in there:
            conditions = {arm: whole.conditions(run.id, arm) for arm in ARMS}
            effects = tuple(whole.effects(run.id))[:3]
            store.add(StoredRun(run.row, (), (), effects, (), conditions))


def test_nights_without_a_change_make_no_mail(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "history.db")) as store:
        for day in range(20):
            store.add(night_of(day, {"bar_map_cost": 1.0 + day % 2 / 1000}))
        assert write_pages(store, tmp_path / "out") == []
    assert (tmp_path / "out/mail.txt").read_text() == ""


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "history.db")) as store:
        write_pages(store, tmp_path / "out")
    assert "None so far." in (tmp_path / "out/index.html").read_text()


def test_a_machine_that_never_had_a_run_is_on_the_page(tmp_path: Path) -> None:
    night = NightRow("gpu9", "nightly", "2026-01-01T02:00:00+00:00", "", 3, "host-no-name", "m",
                     None, 1.0)  # fmt: skip
    with Store.open(str(tmp_path / "history.db")) as store:
        store.add_night(night)
        write_pages(store, tmp_path / "out")
    index = (tmp_path / "out/index.html").read_text()
    assert "gpu9" in index
    assert index.count("no run, host-no-name") >= 2


def test_names_and_messages_are_data(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "history.db")) as store:
        store.add(night_of(0, {"bar_map_cost": 1.0}, machine=HOSTILE.replace("\x00", "")))
        store.add_night(NightRow(
            HOSTILE.replace("\x00", ""), "n", "2026-01-01T02:00:00+00:00", "", 3, "host-no-ssh",
            HOSTILE.replace("\x00", ""), False, None,
        ))  # fmt: skip
        write_pages(store, tmp_path / "out")
        trends = [read_trend(store, series) for series in store.series()]
        text = prometheus_text(trends, store.nights())
    for page in (tmp_path / "out").rglob("*.html"):
        assert "<script>alert" not in page.read_text()
        assert "\x1b" not in page.read_text()
    ET.parse(tmp_path / "out/feed.xml")
    names = [re.match(r'\w+\{(\w+="([^"\\]|\\.)*",?)+\} \S+$', line)
             for line in text.splitlines() if not line.startswith("#")]  # fmt: skip
    assert names
    assert all(names)


def test_a_mail_names_the_run_and_the_page() -> None:
    event = Event("2026-01-02T00:00:00+00:00", "k", "gpu1 n: regressed", ("why",), "/nights/1")
    mail = format_mail([event], "https://lab.example/")
    for part in ("1 change\n", "2026-01-02", event.title, "why", "/nights/1", "https://lab"):
        assert part in mail
    assert format_mail([]) == ""
    assert atom_feed([])
    assert find_events([], [], []) == []
