from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.words.printable import escape_unprintable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("console\r\nlines\r\n", "console\nlines\n"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x00\x7f", "\\x00\\x7f"),
        ("\x9b", "\\x9b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("µs, 日本, é", "µs, 日本, é"),
    ],
)
def test_what_does_not_show_is_made_visible(text: str, shown: str) -> None:
    assert escape_unprintable(text) == shown


@given(st.text())
def test_result_can_be_shown_and_is_stable(text: str) -> None:
    shown = escape_unprintable(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert escape_unprintable(shown) == shown
    shown.encode()
