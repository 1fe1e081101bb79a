"""A bisection as text."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.verdict.bisection import (
    BisectCommit,
    Bisection,
    BisectStep,
    Measured,
    Skipped,
)
from orchestrator.report.text.bisect_text import bisect_report
from tests.unit.stable import has_in_order, numbers_in


def commit(number: int, subject: str = "vfio/type1: pin page by page") -> BisectCommit:
    return BisectCommit(
        f"{number:012x}{0:028x}", "A Developer <dev@example.org>", "2026-05-03T10:00:00Z", subject
    )


def measured(value: float, release: str = "7.3.0-barometer-cand") -> Measured:
    return Measured("Ginsn", (value,), release, "d1")


GOOD = BisectStep(commit(1), "good", "good", measured(0.011), 140.2, "ends")
BAD = BisectStep(commit(9), "bad", "bad", measured(1.2), 140.2, "ends")
STEPS = (
    GOOD, BAD,
    BisectStep(commit(5), "step", "bad", measured(1.2), 82.6, "steps/0001"),
    BisectStep(
        commit(3), "step", "skip", Skipped("build-failed", "it does not build\nmore"), 40, "x"
    ),
    BisectStep(commit(4), "step", "good", measured(0.012), 81.0, "steps/0003"),
)  # fmt: skip


def report(bisection: Bisection) -> str:
    text = bisect_report(bisection)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 76
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    return text


def test_first_bad_commit_is_said_with_the_table_of_steps() -> None:
    lines = report(Bisection("bar_map_cost", STEPS, (commit(5),))).splitlines()
    assert lines == [
        "000000000005 is the first bad commit",
        "",
        "commit  0000000000050000000000000000000000000000",
        "author  A Developer <dev@example.org>",
        "date    2026-05-03T10:00:00Z",
        "subject vfio/type1: pin page by page",
        "",
        "one DMA map: good 11 Minsn, bad 1.2 Ginsn; a number nearer to bad than",
        "    114.9 Minsn is bad",
        "",
        "3 steps",
        "",
        "            commit      value  of good   took  verdict",
        "good  000000000001   11 Minsn        1  140 s  good",
        "      7.3.0-barometer-cand: vfio/type1: pin page by page",
        "bad   000000000009  1.2 Ginsn    109.1  140 s  bad",
        "      7.3.0-barometer-cand: vfio/type1: pin page by page",
        "1     000000000005  1.2 Ginsn    109.1   83 s  bad",
        "      7.3.0-barometer-cand: vfio/type1: pin page by page",
        "2     000000000003          -        -   40 s  skip",
        "      build-failed: vfio/type1: pin page by page",
        "      it does not build",
        "3     000000000004   12 Minsn    1.091   81 s  good",
        "      7.3.0-barometer-cand: vfio/type1: pin page by page",
    ]


def test_commits_that_skips_hide_are_listed() -> None:
    text = report(Bisection("bar_map_cost", STEPS, (commit(5, "a"), commit(4, "b" * 90))))
    head, commits = text.split("\n\n")[:2]
    assert "2" in numbers_in(head)
    assert commits.startswith("  000000000005  a\n  000000000004  bbbb")


def test_what_is_not_known_yet_is_said() -> None:
    assert not re.search(r"[0-9a-f]{12}", report(Bisection("bar_map_cost", ())))  # no commit
    ends = report(Bisection("bar_map_cost", (GOOD, BAD)))
    assert has_in_order(ends, "good", "11 Minsn", "bad", "1.2 Ginsn")


@given(st.text(), st.text(), st.floats(0, 1e9), st.text())
def test_any_commit_and_number_fit(subject: str, reason: str, value: float, release: str) -> None:
    steps = (
        GOOD, BAD,
        BisectStep(commit(5, subject), "step", "bad", measured(value, release), value, "x"),
        BisectStep(commit(6, subject), "step", "skip", Skipped(reason, subject), 1, "x"),
    )  # fmt: skip
    report(Bisection("bar_map_cost", steps, (commit(5, subject),)))
    report(Bisection("bar_map_cost", steps, (commit(5, subject), commit(6, subject))))
