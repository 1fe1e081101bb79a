from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from orchestrator.progress import Progress


def plain() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, width=60)), out


def test_stages_are_plain_lines_when_piped() -> None:
    progress, out = plain()
    with progress.stage("outer"):
        with progress.stage("inner"):
            progress.detail("a console line")
        progress.note("something")
    lines = re.sub(r"\d+\.\d s", "N s", out.getvalue()).splitlines()
    assert lines == ["outer ...", "  inner ...", "  inner: N s", "  something", "outer: N s"]


def test_failed_stage_is_said_and_the_error_goes_on() -> None:
    progress, out = plain()
    with pytest.raises(ValueError, match="no"), progress.stage("thing"):
        raise ValueError("no")
    assert "thing: failed after" in out.getvalue()
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
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=70))
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
            progress.lane("0001-baseline") as one,
            progress.lane("0002-candidate") as two,
            one.stage("host: boot"),
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
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=120))
    with progress.stage("2 trials, 2 at once"):
        with progress.lane("0001") as one, progress.lane("0002") as two:
            assert "2 trials" in progress._line().plain  # neither has begun
            with one.stage("host: boot"):
                one.detail("Linux")
                assert re.search(r"s\] 0001: host: boot 0 s  Linux$", progress._line().plain)
                with two.stage("host: boot"), two.stage("inner"):
                    assert re.search(
                        r"0001: host: boot 0 s  Linux  0002: inner 0 s", progress._line().plain
                    )
        assert "0001" not in progress._line().plain
        assert "2 trials" in progress._line().plain


def test_lane_that_fails_is_gone_from_the_live_line() -> None:
    progress = Progress(Console(file=io.StringIO(), force_terminal=True, width=80))
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
    """A stage that ends just after it was looked for."""

    def __bool__(self) -> bool:
        return True


def test_stage_of_a_lane_that_ends_meanwhile_is_no_error() -> None:
    progress = Progress(Console(file=io.StringIO(), force_terminal=True, width=80))
    with progress.stage("all"), progress.lane("0001") as lane:
        lane._stack = Vanishing()
        assert "all" in progress._line().plain
        lane._stack = []
