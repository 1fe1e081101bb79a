from __future__ import annotations

import io
import re

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
