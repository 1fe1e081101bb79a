"""The HTML report in a real Chromium: it loads nothing, raises no error, and everybody can read
it. Times are printed, but no limit applies: the machine may be busy."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from orchestrator.analysis.trial import Findings
from orchestrator.analysis.verdict.comparison import Comparison
from orchestrator.evidence.plan import Plan
from orchestrator.history.pages import write_pages
from orchestrator.history.store import Store
from orchestrator.report.html.html import html_report
from orchestrator.run.judging.matrix import MatrixDir, judge_cells
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, Role
from tests.unit.history.weeks import fill, with_reports
from tests.unit.report.pages import PLAN, RECORDED, RUNS, bad, compared, recorded, trials
from tests.unit.scenarios import scenario
from tests.unit.timelines import booted

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox",  # tests may run as root
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--no-first-run",
)  # fmt: skip
HOSTILE = "</script><script>alert(1)</script><img src=//example.org> \x1b[31mOops\x1b[0m\x00"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"this lane needs {CHROMIUM}; ci/setup.sh --late installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Reports:
    """HTML reports in files, each made on its first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Path:
        """Return the report of the recorded run `name`, or of the made-up run `everything`."""
        path = self._folder / f"{name}.html"
        if not path.exists():
            made = everything() if name == "everything" else recorded(RECORDED / name)
            path.write_text(html_report(*made), "utf-8")
        return path


def everything() -> tuple[Scenario, Comparison, Plan]:
    values = [8 + number / 100 for number in range(12)]
    arms: dict[Role, list[float]] = {
        "baseline": values, "candidate": [v / 100 for v in values], "control": values[::-1],
    }  # fmt: skip
    results = trials(arms)
    results[:2] = [
        replace(result, findings=Findings(timelines=(booted(arm),)))
        for result, arm in zip(results[:2], ARMS, strict=True)
    ]
    return scenario(), compared([*results, bad(evidence=HOSTILE, message=HOSTILE)]), PLAN


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return Reports(tmp_path_factory.mktemp("reports"))


EVERY_LANDING = ("everything", "debian-6.12-vs-7")
ALL = [
    pytest.param(name, marks=() if name in EVERY_LANDING else pytest.mark.full)
    for name in (*(run.name for run in RUNS), "everything")
]


@pytest.fixture(params=ALL)
def report(request: pytest.FixtureRequest, reports: Reports) -> Path:
    return reports[request.param]


class Seen:
    """A page and its faults: messages, errors, dialogs and requests."""

    def __init__(self, context: BrowserContext, report: Path) -> None:
        self.page = context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.on("request", lambda request: self._asked(request.url, report))
        self.page.goto(report.as_uri())

    def _asked(self, url: str, report: Path) -> None:
        if url != report.as_uri():
            self.faults.append(url)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_sound_and_everybody_can_read_it(
    chromium: Browser, report: Path, scheme: Any
) -> None:
    with chromium.new_context(color_scheme=scheme) as context:
        seen = Seen(context, report)
        page = seen.page
        for details in page.locator("details").all():
            details.evaluate("details => { details.open = true }")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert seen.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_a_matrix_is_sound(chromium: Browser, tmp_path: Path, scheme: Any) -> None:
    matrix = MatrixDir(shutil.copytree(RECORDED / "factors", tmp_path / "factors"))
    judge_cells(matrix).save()
    with chromium.new_context(
        color_scheme=scheme, viewport={"width": 400, "height": 800}
    ) as context:
        seen = Seen(context, matrix.path / "report.html")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 400
        found = Axe().run(seen.page)
        assert found.violations_count == 0, found.generate_report()
        assert seen.faults == []
        seen.page.locator(".cell a").first.click()
        seen.page.locator("#table").wait_for()  # the cell's own page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_of_a_history_are_sound(chromium: Browser, tmp_path: Path, scheme: Any) -> None:
    """On a phone: the index and a series, and the way from one to the other by keyboard."""
    with Store.open(str(tmp_path / "history.db")) as store:
        fill(store, 60, str(tmp_path / "nights"))
        with_reports(tmp_path / "nights", 60)
        write_pages(store, tmp_path / "out")
    [series] = (tmp_path / "out/series").glob("gpu2-*-bar_map_cost-*.html")
    with chromium.new_context(
        color_scheme=scheme, viewport={"width": 400, "height": 800}
    ) as context:
        for path in (tmp_path / "out/index.html", series):
            seen = Seen(context, path)
            for details in seen.page.locator("details").all():
                details.evaluate("details => { details.open = true }")
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= 400
            found = Axe().run(seen.page)
            assert found.violations_count == 0, found.generate_report()
            assert seen.faults == []
        page = Seen(context, tmp_path / "out/index.html").page
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")  # the table's region
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        chart = page.locator("svg.series")
        chart.wait_for()
        assert chart.locator("circle").count() == 60
        page.locator("header a").click()
        page.locator(".strip a").last.click()
        page.locator("h1", has_text="A report").wait_for()


def test_page_is_whole_without_scripts(chromium: Browser, report: Path) -> None:
    """Every chart has its size and its ink, and verdict and change are on the first screen."""
    with chromium.new_context(
        java_script_enabled=False, viewport={"width": 400, "height": 800}
    ) as context:
        begun = time.monotonic()
        page = Seen(context, report).page
        print(f"{report.stem}: loaded in {time.monotonic() - begun:.2f} s")
        for chart in page.locator("svg.chart").all():
            if chart.is_visible():  # others are folded away
                box = chart.bounding_box()
                assert box is not None
                assert box["width"] > 300
                assert box["height"] > 30
        for part in ("#verdict", ".sentence"):
            box = page.locator(part).bounding_box()
            assert box is not None
            assert box["y"] + box["height"] < 400


def test_charts_have_what_the_page_has(chromium: Browser, reports: Reports) -> None:
    with chromium.new_context() as context:
        page = Seen(context, reports["everything"]).page
        samples = page.locator("#samples ~ .panels svg.chart").first
        assert samples.locator(".dot").count() == 3 * 12
        assert samples.locator(".median").count() == 3
        assert page.locator("svg.boots .phase").count() >= 2 * 4
        first = page.locator("svg.chart").first
        assert "boots" in (first.get_attribute("class") or "")


def test_theme_follows_the_system_and_the_button(chromium: Browser, reports: Reports) -> None:
    with chromium.new_context(color_scheme="dark") as context:
        page = Seen(context, reports["everything"]).page
        paper = "getComputedStyle(document.body).backgroundColor"
        ink = "getComputedStyle(document.querySelector('.chart text')).fill"
        dark = page.evaluate(paper), page.evaluate(ink)
        button = page.locator("#theme")
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        light = page.evaluate(paper), page.evaluate(ink)
        assert button.get_attribute("aria-pressed") == "false"
        assert light[0] == "rgb(255, 255, 255)"
        assert dark[0] != light[0]
        assert dark[1] != light[1]
        page.emulate_media(color_scheme="light")
        button.click()
        assert (page.evaluate(paper), page.evaluate(ink)) == dark


def test_every_control_is_reached_by_tab_and_shows_it(chromium: Browser, reports: Reports) -> None:
    with chromium.new_context() as context:
        page = Seen(context, reports["everything"]).page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.locator(".skip").bounding_box() is not None
        reached = set()
        for _ in range(page.locator("a, button, summary, [tabindex='0']").count()):
            page.keyboard.press("Tab")
            kind, outline = page.evaluate(
                "[document.activeElement.id || document.activeElement.className"
                " || document.activeElement.localName,"
                " getComputedStyle(document.activeElement).outlineStyle]"
            )
            reached.add(kind)
            assert kind == "body" or outline == "solid"
        assert {"theme", "region", "summary", "a"} <= reached
        page.locator("#theme").focus()
        page.keyboard.press("Enter")
        assert page.locator("html").get_attribute("data-theme") == "dark"
        summary = page.locator("summary").first
        summary.focus()
        page.keyboard.press("Enter")
        assert summary.locator("..").get_attribute("open") is not None


def test_narrow_window_scrolls_tables_and_not_the_page(chromium: Browser, report: Path) -> None:
    with chromium.new_context(viewport={"width": 400, "height": 800}) as context:
        page = Seen(context, report).page
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        wide = page.locator(".region").evaluate_all(
            "all => all.filter(region => region.scrollWidth > region.clientWidth).length"
        )
        assert wide > 0


def test_paper_is_light_and_whole(chromium: Browser, report: Path) -> None:
    with chromium.new_context(
        color_scheme="dark", viewport={"width": 1280, "height": 800}
    ) as context:
        seen = Seen(context, report)
        page = seen.page
        page.set_viewport_size({"width": 718, "height": 1000})  # A4 within its margins
        page.emulate_media(media="print")
        page.locator("details:not([open])").first.wait_for(state="detached")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        clipped = page.locator(".region, svg.chart, pre").evaluate_all(
            "all => all.filter(e => (e.localName !== 'svg' && e.scrollWidth > e.clientWidth + 1)"
            " || e.getBoundingClientRect().right > innerWidth).map(e => e.ariaLabel || e.id)"
        )
        assert clipped == []
        page.emulate_media(media="screen")
        page.locator("details:not([open])").first.wait_for(state="attached")
        assert page.locator("html").get_attribute("data-theme") is None
        assert seen.faults == []


def test_page_is_printed(chromium: Browser, reports: Reports) -> None:
    with chromium.new_context() as context:
        printed = Seen(context, reports["everything"]).page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    print(f"{len(printed) / 1e6:.2f} MB")
