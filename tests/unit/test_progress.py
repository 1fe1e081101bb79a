from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from orchestrator.base.errors import LastStageEnded
from orchestrator.base.process import run
from orchestrator.base.progress import Progress, waiting_for
from orchestrator.base.waiting import until


def plain() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, width=60)), out


def on_a_terminal(width: int = 80) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_interactive=True, width=width)
    return Progress(console), out


def test_stages_are_plain_lines_when_piped() -> None:
    progress, out = plain()
    with progress.stage("outer"):
        with progress.stage("inner"):
            progress.detail("a console line")
        progress.note("something")
    lines = re.sub(r"\d+\.\d s", "N s", out.getvalue()).splitlines()
    assert lines == ["outer ...", "  inner ...", "  inner: N s", "  something", "outer: N s"]


def test_stage_that_is_left_out_has_not_failed() -> None:
    progress, out = plain()
    with pytest.raises(LastStageEnded), progress.stage("thing"):
        raise LastStageEnded
    assert "failed" not in out.getvalue()
    assert "thing" in out.getvalue().splitlines()[-1]


def test_failed_stage_is_said_and_the_error_goes_on() -> None:
    progress, out = plain()
    with pytest.raises(ValueError, match="no"), progress.stage("thing"):
        raise ValueError("no")
    assert re.match(r"\(thing: failed\b", out.getvalue().splitlines()[-1])
    with progress.stage("next"):
        pass
    assert "\nnext ...\n" in out.getvalue()


def test_square_brackets_of_a_console_line_are_shown() -> None:
    progress, out = plain()
    progress.note("[    0.000000] Linux [bold]version")
    assert "[    0.000000] Linux [bold]version" in out.getvalue()


def test_long_line_is_not_wrapped_when_piped() -> None:
    progress, out = plain()
    progress.note("x" * 200)
    assert "x" * 200 in out.getvalue()


def test_live_line_on_a_terminal_shows_the_innermost_stage_and_detail() -> None:
    progress, out = on_a_terminal(70)
    with progress.stage("outer"), progress.stage("inner"):
        progress.detail("waiting for words")
        line = progress._line().plain
        assert re.match(r"\[ +0 s\] inner 0 s  waiting for words", line)
        progress.detail("y" * 300)
        assert len(progress._line().plain) < 70
    assert progress._line().plain == ""
    assert "outer ..." not in out.getvalue()


def test_lane_says_its_label_before_each_of_its_lines() -> None:
    progress, out = plain()
    with progress.stage("2 trials, 2 at once"):
        with (
            progress.lane("0001-baseline") as first,
            progress.lane("0002-candidate") as two,
            first.stage("host: boot"),
            two.stage("host: boot"),
        ):
            two.note("something")
        progress.note("of all")
    lines = re.sub(r"\d+\.\d s", "N s", out.getvalue()).splitlines()
    assert lines == [
        "2 trials, 2 at once ...",
        "0001-baseline: host: boot ...",
        "0002-candidate: host: boot ...",
        "0002-candidate:   something",
        "0002-candidate: host: boot: N s",
        "0001-baseline: host: boot: N s",
        "  of all",
        "2 trials, 2 at once: N s",
    ]


def test_live_line_shows_where_each_lane_is() -> None:
    progress, _ = on_a_terminal(120)
    with progress.stage("2 trials, 2 at once"):
        with progress.lane("0001") as first, progress.lane("0002") as second:
            assert "2 trials" in progress._line().plain  # neither has begun
            with first.stage("host: boot"):
                first.detail("Linux")
                assert re.search(r"s\] 0001: host: boot 0 s  Linux$", progress._line().plain)
                with second.stage("host: boot"), second.stage("inner"):
                    assert re.search(
                        r"0001: host: boot 0 s  Linux  0002: inner 0 s", progress._line().plain
                    )
        assert "0001" not in progress._line().plain
        assert "2 trials" in progress._line().plain


def test_lane_that_fails_is_gone_from_the_live_line() -> None:
    progress, _ = on_a_terminal()
    with progress.stage("all"):
        with (
            pytest.raises(ValueError, match="no"),
            progress.lane("0001") as lane,
            lane.stage("host"),
        ):
            raise ValueError("no")
        assert "0001" not in progress._line().plain


def test_lanes_of_many_threads_do_not_mix_their_lines() -> None:
    progress, out = plain()

    def work(number: int) -> None:
        with progress.lane(f"{number:04d}") as lane:
            for _ in range(20):
                with lane.stage("x" * 50):
                    pass

    with progress.stage("all"), ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    lines = out.getvalue().splitlines()[1:-1]
    assert len(lines) == 8 * 20 * 2
    assert all(re.fullmatch(r"\d{4}: x{50}( \.\.\.|: \d+\.\d s)", line) for line in lines)


class Vanishing(list[tuple[str, float]]):
    """A stage that ends just after the check that it exists."""

    def __bool__(self) -> bool:
        return True


def test_stage_of_a_lane_that_ends_meanwhile_is_no_error() -> None:
    progress, _ = on_a_terminal()
    with progress.stage("all"), progress.lane("0001") as lane:
        lane._stack = Vanishing()
        assert "all" in progress._line().plain
        lane._stack = []


SILENCE = 0.02


class Log(io.StringIO):
    """A pipe whose reader waits for lines."""

    def has(self, pattern: str, number: int = 1) -> bool:
        """True if so many lines match within two seconds."""
        deadline = time.monotonic() + 2
        while len(self.matches(pattern)) < number and time.monotonic() < deadline:
            time.sleep(SILENCE / 4)
        return len(self.matches(pattern)) >= number

    def matches(self, pattern: str) -> list[str]:
        return [line for line in self.getvalue().splitlines() if re.fullmatch(pattern, line)]


def in_a_pipe(silence: float = SILENCE) -> tuple[Progress, Log]:
    log = Log()
    return Progress(Console(file=log, width=60), silence), log


def test_log_has_a_line_again_and_again_with_the_stage_and_what_is_waited_for() -> None:
    progress, log = in_a_pipe()
    with progress.stage("outer"), progress.stage("host: boot"):
        progress.detail("Linux version 7.3")
        assert log.has(r"\[ +\d+ s\] host: boot \d+ s  Linux version 7.3", 2)
        with waiting_for("sshd on the host"):
            assert log.has(r"\[ +\d+ s\] host: boot \d+ s  sshd on the host: Linux version 7.3")


def test_log_shows_where_each_lane_is() -> None:
    progress, log = in_a_pipe()
    with (
        progress.stage("2 trials, 2 at once"), progress.lane("0001") as first,
        progress.lane("0002") as two, first.stage("host: boot"), two.stage("host: device"),
    ):  # fmt: skip
        assert log.has(r"\[ +\d+ s\] 0001: host: boot \d+ s")
        assert log.has(r"\[ +\d+ s\] 0002: host: device \d+ s")


def test_task_is_shown_between_its_stages_and_after_them() -> None:
    progress, log = in_a_pipe()
    with progress.task("barometer doctor"):
        assert log.has(r"\[ +\d+ s\] barometer doctor \d+ s")
        with progress.stage("one"):
            assert log.has(r"\[ +\d+ s\] one \d+ s")
        assert log.has(r"\[ +\d+ s\] barometer doctor \d+ s", len(log.matches(".*doctor.*")) + 1)
    assert log.matches(".*barometer doctor [.][.][.]") == []


def test_log_that_is_written_to_has_no_line_more() -> None:
    progress, log = in_a_pipe(silence=30)
    with progress.stage("one"):
        progress.note("something")
    assert len(log.getvalue().splitlines()) == 3


@pytest.mark.parametrize("ends", [lambda: None, lambda: pytest.fail("as an error does")])
def test_timer_ends_with_its_task(ends: Callable[[], None]) -> None:
    before = threading.active_count()
    progress, log = in_a_pipe()
    try:
        with progress.task("run"), progress.stage("inner"):
            assert threading.active_count() == before + 1
            ends()
    except pytest.fail.Exception:
        pass
    assert threading.active_count() == before
    length = len(log.getvalue())
    time.sleep(2 * SILENCE)
    assert len(log.getvalue()) == length


def test_terminal_has_no_timer() -> None:
    before = threading.active_count()
    progress, _ = on_a_terminal()
    with progress.task("run"):
        assert threading.active_count() == before + 1  # the thread that refreshes the live line
        assert "run 0 s" in progress._line().plain
        with progress.stage("one"):
            assert threading.active_count() == before + 1


def test_pipe_that_nobody_reads_ends_the_timer_and_not_the_run() -> None:
    progress, log = in_a_pipe()
    with progress.task("run"):
        log.close()
        time.sleep(3 * SILENCE)


def test_what_a_console_says_is_one_short_line_without_control_sequences() -> None:
    progress, log = in_a_pipe()
    with progress.task("run"), progress.stage("boot"):
        progress.detail("\x1b[31mred\nmore\t" + "y" * 100_000)
        assert log.has(r"\[ +\d+ s\] boot \d+ s  \[31mred more y+\.\.\.")
    assert max(map(len, log.getvalue().splitlines())) < 160


def test_programs_and_waits_say_what_they_are_for() -> None:
    progress, log = in_a_pipe()
    shown = r"\[ +\d+ s\] boot \d+ s  "
    with progress.stage("boot"):
        run(["sh", "-c", f"sleep {6 * SILENCE}"], doing="unpacking")
        assert log.matches(shown + "unpacking")

        def last() -> bool | None:
            return True if log.matches(shown + "sshd") else None

        assert until(last, within=2, waiting_for="sshd", every=SILENCE)
    assert progress._waits_for == ""


def test_wait_of_a_thread_without_a_stage_is_nobodys() -> None:
    with waiting_for("something"):
        pass


@pytest.mark.parametrize(
    ("terminal", "variables", "live"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "CI": "true"}, False),
        (False, {"TERM": "xterm"}, False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_live_line_is_for_terminals_that_somebody_looks_at(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], live: bool
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    for name in ("TERM", "CI", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Stream())
    assert Progress()._console.is_interactive == live
