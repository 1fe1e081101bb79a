from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.words.columns import (
    WIDTH,
    fit_lines,
    format_table,
    shorten,
    to_ascii,
    wrap_text,
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("as it is", "as it is"),
        ("\x1b[2J\x1b[01;31mred\x1b[0m", "red"),
        ("\x1bc\x1b(Bplain", "plain"),
        ("a\tb", "a       b"),
        ("Zo\u00eb, e\u0301t\u00e9", "Zoe, ete"),
        ("bell\x07, \u65e5, half \ud800", "bell?, ?, half ?"),
    ],
)
def test_whatever_a_console_says_is_printable(text: str, printed: str) -> None:
    assert to_ascii(text) == printed


def test_path_that_is_too_long_keeps_both_of_its_ends() -> None:
    path = "/home/somebody/" + "x" * 100 + "/vmlinuz"
    assert shorten(path, 30) == "/home/somebod...xxxxxx/vmlinuz"
    assert shorten("short", 30) == "short"


@given(st.text(max_size=300), st.integers(3, WIDTH))
def test_shortened_text_is_no_longer_than_it_may_be(text: str, width: int) -> None:
    assert len(shorten(text, width)) <= width


def test_number_stays_with_its_unit() -> None:
    for before in range(60, WIDTH):
        text = "x" * before + " 28.46 s +- 8.0% of 1.5 kinsn"
        assert not re.search(r"[0-9-]\n", "\n".join(wrap_text(text)))


def test_line_goes_on_below_the_beginning_of_its_text() -> None:
    long = "word " * 20
    first, second = fit_lines(f"device     {long}").split("\n")
    assert second.startswith(" " * 11 + "word")
    first, second = fit_lines(f"  a sentence {long}").split("\n")
    assert (first[:4], second[:7]) == ("  a ", "      w")
    assert fit_lines("line\n\n  other  \n") == "line\n\n  other\n"


@given(st.text(max_size=500) | st.text("ab \n", max_size=500))
def test_every_line_fits_whatever_it_holds(text: str) -> None:
    made = fit_lines(text)
    assert made.isascii()
    assert not [line for line in made.split("\n") if len(line) > WIDTH or line != line.rstrip()]
    assert fit_lines(made) == made


def test_table_is_a_line_for_each_row() -> None:
    rows = [["a", "12", "x"], "a text\n", ["longer", "3", "y"]]
    assert format_table(["what", "one", "last"], rows) == [
        "what    one  last", "a        12  x", "a text", "", "longer    3  y",
    ]  # fmt: skip


def test_table_that_is_too_wide_is_two_lines_for_each_row() -> None:
    wide = "w" * 40
    assert format_table([wide, "one", "last"], [["a", "1" * 30, "x"]]) == [
        wide, " " * 4 + " " * 27 + "one  last", "a", " " * 4 + "1" * 30 + "  x",
    ]  # fmt: skip


def test_table_that_is_wider_still_is_a_line_for_each_cell() -> None:
    assert format_table(["what", "one", "last"], [["a", "1" * 60, "x" * 20], ["b", "", "y"]]) == [
        "a", "    one   " + "1" * 60, "    last  " + "x" * 20, "b", "    last  y",
    ]  # fmt: skip
