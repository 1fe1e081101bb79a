from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.analysis.boot.marks import WatchedBoot, parse_marks
from tests.unit.recorded import FAILED, MEASURED, RUN

RECORDED = (RUN / "trials" / MEASURED / "guest-0/marks.txt").read_text()
BORN = 'E 2100000000 started {"pid": 7, "start_ns": 2000000000}\n'


def test_recorded_boot_has_all_its_times() -> None:
    boot = parse_marks(RECORDED)
    assert boot.boot_seconds == pytest.approx(43.490872214 - 17.700090744)
    assert boot.ssh_seconds == pytest.approx(49.345551497 - 17.700090744)
    assert boot.exit == pytest.approx(51.210027109)
    assert boot.page_table_bytes == 1343488
    assert (boot.mark or 0.0, "barometer: boot mark, uptime 10.01") in boot.console


def test_guest_that_died_has_no_boot_time() -> None:
    boot = parse_marks((RUN / "trials" / FAILED / "guest-1/marks.txt").read_text())
    assert boot.started is not None
    assert (boot.mark, boot.boot_seconds, boot.ssh_seconds) == (None, None, None)
    assert boot.exit is not None


def test_start_is_the_processs_own_and_not_when_it_was_noticed() -> None:
    assert parse_marks(BORN + "E 5000000000 mark\n").boot_seconds == 3


def test_first_mark_counts() -> None:
    assert parse_marks(BORN + "E 5000000000 mark\nE 9000000000 mark\n").mark == 5


def test_mark_without_a_start_is_no_boot_time() -> None:
    assert parse_marks("E 5000000000 mark\nE 6000000000 ssh\n").boot_seconds is None


@pytest.mark.parametrize(
    "line",
    ["E 1 started", 'E 1 started {"pid": 1}', "E 1 started []", 'E 1 started {"start_ns": null}',
     "E 1 tables", "E 1 tables many", "E 1 tables -4096", "E x mark", "E", "E 1", "X 1 mark",
     "C 1 unquoted", "C 1 7", "P 1 2 3", "",
     "mark", "E -1 mark"],
)  # fmt: skip
def test_line_that_says_nothing_is_skipped(line: str) -> None:
    assert parse_marks(line + "\n") == WatchedBoot()


def test_page_tables_are_read() -> None:
    assert parse_marks("E 1 tables 69632\n").page_table_bytes == 69632


@given(st.lists(st.text(max_size=30), max_size=6))
def test_console_lines_survive(words: list[str]) -> None:
    text = "".join(f"C {i} {json.dumps(word)}\n" for i, word in enumerate(words))
    assert [word for _, word in parse_marks(text).console] == words


@given(st.text(max_size=80))
@example("C 1 " + "[" * 100_000)
def test_any_text_is_read(text: str) -> None:
    parse_marks(text)
    parse_marks(BORN + "E " + text)


@given(st.integers(0, len(RECORDED)))
def test_marks_cut_anywhere_never_say_another_time(cut: int) -> None:
    whole, part = parse_marks(RECORDED), parse_marks(RECORDED[:cut])
    for name in ("started", "mark", "ssh", "exit"):
        assert getattr(part, name) in (None, getattr(whole, name))
