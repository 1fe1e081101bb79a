from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.printable import disarm_commands, escape_unprintable


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


def has_command(text: str) -> bool:
    """As ActionCommand of actions/runner looks for one: a line that begins with `::` after blanks,
    or has `##[` anywhere."""
    return any(line.lstrip().startswith("::") or "##[" in line for line in text.split("\n"))


PIECES = st.lists(
    st.sampled_from([
        ":", "::", "#", "##", "[", "##[error]", " ", "\t", "\n", "x", "\u00a0", "\x0b",
        "::stop-commands::x",
    ]),
    max_size=12,
)  # fmt: skip


@given(PIECES.map("".join), PIECES.map("".join))
def test_no_command_is_left_however_the_text_is_cut(first: str, second: str) -> None:
    safe = disarm_commands(first)
    assert not has_command(safe)
    line = safe.rpartition("\n")[2]
    assert not has_command(safe + disarm_commands(second, line))


@given(PIECES.map("".join))
def test_disarmed_json_is_the_same_document(text: str) -> None:
    document = json.dumps({"text": text}, indent=2)
    safe = disarm_commands(document)
    assert not has_command(safe)
    assert json.loads(safe) == {"text": text}


@given(st.text(alphabet="abc:#[] \n"))
def test_text_without_commands_stays(text: str) -> None:
    if not has_command(text):
        assert disarm_commands(text) == text
