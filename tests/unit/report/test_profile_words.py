"""The difference of two instruction profiles in words."""

from __future__ import annotations

from orchestrator.analysis.maps.breakdown import Breakdown, Stacks, subtract_breakdowns
from orchestrator.report.words.profile_words import describe_profile

BAR = 4 << 30
PAGES = BAR >> 12


def describe(before: Stacks, after: Stacks, changed: frozenset[str] | None = None) -> str:
    old, new = (Breakdown("map", "warm", stacks, logged=True) for stacks in (before, after))
    [difference] = subtract_breakdowns([old], [new], BAR, changed)
    return describe_profile(difference)


def test_functions_with_the_largest_change_are_named_by_the_page() -> None:
    before: Stacks = {("f",): 1000 * PAGES, ("f", "g"): 5 * PAGES, ("f", "h"): 7}
    after: Stacks = {("f",): 1000 * PAGES, ("f", "g"): 5.6 * PAGES, ("f", "h"): 6}
    text = describe(before, after)
    assert "g +0.6," in text
    assert "h -9.537e-07" in text
    assert "+0.06%" in text
    assert "series" not in text


def test_what_is_outside_of_the_series_files_is_told() -> None:
    before: Stacks = {("f",): 10 * PAGES, ("f", "g"): PAGES}
    after: Stacks = {("f",): 9 * PAGES, ("f", "g"): 3 * PAGES}
    text = describe(before, after, frozenset({"f"}))
    assert "g +2 (not in the series' files)" in text
    assert "f -1," in text or text.split(";")[1].endswith("f -1")
    assert "outside the series' files: +2.097 Minsn" in text


def test_many_functions_are_counted() -> None:
    after: Stacks = {("f", f"g{n}"): (n + 1) * PAGES for n in range(9)}
    assert "6 others" in describe({("f",): PAGES}, {**after, ("f",): PAGES})


def test_profiles_that_do_not_differ() -> None:
    assert "the same number" in describe({("f",): 5.0}, {("f",): 5.0})
