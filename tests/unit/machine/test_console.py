"""A console's output: how much of it is kept, and how it is searched."""

from __future__ import annotations

import re
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.bounded import CONSOLE_BYTES, CONSOLE_LINES, LINE_BYTES
from orchestrator.machine.host.console import Console, Transcript

WORD = re.compile("needle")


@given(
    pieces=st.lists(st.sampled_from([b"needle 1\n", b"hay\r\n", b"nee", b"dle 2", b"\n"])),
    asked=st.integers(0, 20),
)
def test_first_line_is_found_whenever_it_is_asked_for(pieces: list[bytes], asked: int) -> None:
    transcript = Transcript("host")
    for number, piece in enumerate(pieces):
        transcript.feed(piece)
        if number >= asked:
            transcript.first(WORD.search)
    lines = b"".join(pieces).decode().replace("\r", "").split("\n")
    found = transcript.first(WORD.search)
    expected = next((line for line in lines if "needle" in line), None)
    assert (found and found.string) == expected


def test_each_line_is_looked_at_once() -> None:
    seen = list[str]()
    transcript = Transcript("host")

    def look(line: str) -> None:
        seen.append(line)

    for number in range(100):
        transcript.feed(b"%d\n" % number)
        assert transcript.first(look) is None
    assert [line for line in seen if line] == [str(number) for number in range(100)]


def test_console_grows_and_is_read_once(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    assert (console.text(), console.size(), console.last_line()) == ("", 0, "")
    with (tmp_path / "console.log").open("ab") as file:
        file.write(b"one\r\ntwo")
        file.flush()
        assert console.text() == "one\ntwo"
        assert console.last_line() == "two"
        file.write(b" more\r\n" + b"x" * 300)
        file.flush()
        assert console.text().startswith("one\ntwo more\n")
        assert len(console.last_line()) == 100
        assert console.size() == 315
    assert console.tail().startswith("one\n")
    assert console.flood == ""


def test_console_of_a_later_boot_is_read_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("older\nnewer\n")
    assert Console(tmp_path / "console.log", 6).text() == "newer\n"


def test_flood_is_said_with_its_size_and_its_ends_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"first\n" + b"y" * 2 * CONSOLE_BYTES + b"\nlast\n")
    console = Console(path)
    assert console.flood.startswith(f"{path.stat().st_size} bytes, 3 lines in ")
    text = console.text()
    assert text.startswith("first\n")
    assert text.endswith("left out ...\nlast\n")
    assert len(text) < CONSOLE_BYTES + 100
    assert console.size() == path.stat().st_size


def test_lines_without_end_are_a_flood_before_they_are_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"\n" * CONSOLE_LINES)
    assert not Console(path).flood
    console = Console(path)
    with path.open("ab") as file:
        file.write(b"\n" * CONSOLE_BYTES)
    began = time.process_time()
    assert console.flood
    assert time.process_time() - began < 1.0


def test_as_much_as_a_console_may_say_is_no_flood_and_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * CONSOLE_BYTES)
    console = Console(path)
    assert Console(path).flood == ""
    assert len(console.text()) == CONSOLE_BYTES
    with path.open("ab") as file:
        file.write(b"x")
    assert console.flood


def test_line_without_an_end_is_searched_as_far_as_it_is_kept(tmp_path: Path) -> None:
    transcript = Transcript("host")
    transcript.feed(b"needle" + b"x" * 3 * LINE_BYTES)
    found = transcript.first(WORD.search)
    assert found is not None
    assert len(found.string) < LINE_BYTES + 100


def test_panic_in_a_flood_is_a_report_whatever_it_is_cut_into(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"y\n" * CONSOLE_LINES * 2)
    console = Console(path)
    assert console.flood
    for piece in (b"[    9.000000] Kernel pa", b"nic - not syncing: x\r", b"\n"):
        with path.open("ab") as file:
            file.write(piece)
        assert console.kernel.all() == ()
        console.refresh()
    [report] = console.kernel.all()
    assert (report.kind, report.message) == ("panic", "Kernel panic - not syncing: x")


def test_asking_again_and_again_does_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"a line of a console that says a lot\n" * 25_000)
    console = Console(path)
    assert console.first(WORD.search) is None
    began = time.process_time()
    for _ in range(1000):
        assert console.first(WORD.search) is None
        assert not console.flood
    assert time.process_time() - began < 1.0  # reading all of it takes 10 ms each time
