"""Output for GitHub Actions, read back: Markdown by markdown-it, commands by the rules of its
runner."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from orchestrator.report.exports.cases import Case, Suite, clean_line, clean_text, not_run
from orchestrator.report.exports.github import job_summary, workflow_commands
from tests.unit.report.made import BOOT, MAP, RUNS, ended, pairs, run
from tests.unit.stable import numbers_in

ANYTHING = st.text(st.characters())
MARKUP = st.lists(
    st.sampled_from(
        ["|", "`", "*", "_", "<b>", "</pre>", "</details>", "&amp;", "[x](y)", "~~", "\\", "#",
         "$", "::error::", "@all", "http://x.org", "-", "1.", "word", " ", "\n", "\n\n", "==="]
    )
).map("".join)  # fmt: skip


class Shown(HTMLParser):
    """The visible content of the HTML: headings, table cells, paragraphs, and folded parts."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        html = MarkdownIt("commonmark").enable("table").enable("strikethrough").render(markdown)
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "hr":
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


def row(markdown: str, name: str) -> list[str]:
    cells = Shown(markdown).texts["td"]
    at = cells.index(name)
    return cells[at - 1 : at + 9]


def commands(*suites: Suite) -> list[tuple[str, str, str]]:
    """Return command, title and message, parsed as TryParseV2 of actions/runner does."""
    parsed = []
    for line in re.split(r"[\r\n]", workflow_commands(suites).removesuffix("\n")):
        match = re.fullmatch(r"::(\w+) title=([^,:]*)::(.*)", line)
        assert match is not None, line
        title, message = match[2], match[3]
        for escaped, char in (("%3A", ":"), ("%2C", ",")):
            title = title.replace(escaped, char)
        for escaped, char in (("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            title, message = title.replace(escaped, char), message.replace(escaped, char)
        parsed.append((match[1], title, message))
    return parsed


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_its_verdict_in_both(name: str) -> None:
    make, code = RUNS[name]
    suite = make().suite
    verdict = suite.cases[0]
    shown = Shown(job_summary([suite])).texts
    assert shown["h2"][0].endswith(f"small: {verdict.reason}")
    assert shown["p"][0] == verdict.message
    kind = {0: "notice", 1: "error"}.get(code, "warning")
    assert commands(suite)[0] == (kind, "barometer small", verdict.message)


def test_table_has_the_metrics_that_decide_and_the_rest_is_folded() -> None:
    markdown = job_summary([run(pairs(0.5), f"{MAP}=improved").suite])
    assert row(markdown, MAP) == [
        "✅", MAP, "s", "0.50025", "0.250125", "0.5", "0.497759 .. 0.502251", "0.000488281",
        "improved", "improved",
    ]  # fmt: skip
    assert row(markdown, "pfn_lookups_per_map")[:5] == [
        "", "pfn_lookups_per_map", "count", "1000", "500",
    ]  # fmt: skip
    assert markdown.index("<details>") > markdown.index("| ✅ |")
    assert Shown(markdown).texts["summary"] == ["what else was measured"]


def test_signs_are_those_of_the_outcomes() -> None:
    markdown = job_summary([RUNS["not as expected"][0]().suite])
    assert (row(markdown, MAP)[0], row(markdown, BOOT)[0]) == ("❌", "✅")
    assert "## ⚠️ " in job_summary([RUNS["control"][0]().suite])


def test_large_count_is_exact() -> None:
    results = pairs(1.0, 1)
    for result in results:
        result.samples["pfn_faults_per_map"] = (8388608.0,)
    assert row(job_summary([run(results).suite]), "pfn_faults_per_map")[3] == "8388608"


def test_trials_that_do_not_count_are_folded_with_their_console() -> None:
    lost = ended("candidate", 3, "invalid", reason="lost-events", evidence="")
    suite = run([*pairs(0.4, 1), ended("baseline", 2), lost]).suite
    shown = Shown(job_summary([suite])).texts
    assert shown["summary"][1:] == [
        "❌ 0094-baseline: failed at guest-0-plain: guest-panic: the guest panicked",
        "⚠️ 0096-candidate: invalid at guest-0-plain: lost-events: the guest panicked",
    ]
    assert shown["pre"] == ["[   1.0] Oops\n[   1.1] Kernel panic"]
    assert commands(suite)[1:] == [
        ("error", "barometer small, 0094-baseline",
         "failed at guest-0-plain: guest-panic: the guest panicked"),
        ("warning", "barometer small, 0096-candidate",
         "invalid at guest-0-plain: lost-events: the guest panicked"),
    ]  # fmt: skip


def test_summary_stays_below_what_github_takes() -> None:
    long = "\n".join(f"[{n:>6}] {'x' * 120}" for n in range(1000))
    markdown = job_summary([run([ended("candidate", n, evidence=long) for n in range(500)]).suite])
    assert len(markdown.encode()) < 1 << 20
    assert "450" in numbers_in(markdown)  # those that are not listed


def test_verdicts_of_all_cells_come_first() -> None:
    bad = run([*pairs(0.4, 1), ended("baseline", 2)], f"{BOOT}=regressed").suite
    annotations = commands(bad, not_run("job-ovmf", 4))
    assert [title for _, title, _ in annotations] == [
        "barometer small", "barometer job-ovmf", f"barometer small, {BOOT}",
        "barometer small, 0094-baseline",
    ]  # fmt: skip
    assert Shown(job_summary([bad, not_run("job-ovmf", 4)])).texts["h2"] == [
        "❌ small: improved", "⚠️ job-ovmf: not-run",
    ]  # fmt: skip


@given(ANYTHING | MARKUP, ANYTHING | MARKUP, ANYTHING | MARKUP)
@example("1)", "0.", "")  # would be lists
def test_text_from_outside_is_shown_as_it_is(name: str, message: str, tail: str) -> None:
    name, message, tail = clean_line(name) or "x", clean_line(message) or "x", clean_text(tail)
    run_case = Case("run", "verdict", "failed", name, message)
    trial = Case("trial", name, "failed", "r", message, tail)
    metric = Case("metric", name, "failed", "r", message)
    facts = {"baseline.kernel": message, "variable": f"Arms: {message}"}
    suite = Suite("s", 1, (run_case, metric, trial), facts, {name: {"unit": message}})
    shown = Shown(job_summary([suite]))
    assert shown.texts["h2"] == [f"❌ s: {name}"]
    assert shown.texts["p"] == [message]
    assert shown.texts["li"] == [f"baseline: {message}", f"Arms: {message}"]
    assert shown.texts["td"][:3] == ["❌", name, message]
    assert shown.texts["summary"] == [f"❌ {name}: {message}"]
    assert [*commands(suite)] == [
        ("error", "barometer s", message),
        ("error", f"barometer s, {name}", message),
        ("error", f"barometer s, {name}", message),
    ]


@given(ANYTHING)
def test_command_is_one_line(message: str) -> None:
    suite = Suite(message, 1, (Case("run", "verdict", "failed", "r", message),))
    [(_, title, line)] = commands(suite)
    assert (title, line) == (f"barometer {message}", message)
