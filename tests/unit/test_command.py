from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.base.process import _lines, run, run_logged, tail
from tests.unit.stable import numbers_in


def gone(pid: int, within: float = 5) -> bool:
    """True if a process ends (or is a zombie of another parent) in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_output_comes_back_as_text() -> None:
    done = run(["sh", "-c", "cat; echo bad >&2"], doing="testing", stdin="grüße\n")
    assert (done.stdout, done.stderr, done.returncode) == ("grüße\n", "bad\n", 0)


def test_output_that_is_no_text_is_replaced() -> None:
    assert run(["printf", r"\377x"], doing="testing").stdout == "\ufffdx"


@given(st.binary(max_size=200_000))
def test_bytes_come_back_as_they_are(content: bytes) -> None:
    done = run(["cat"], doing="testing", stdin=content)
    assert done.content == content
    assert done.stdout == io.TextIOWrapper(io.BytesIO(content), "utf-8", "replace").read()


def test_environment_is_added_to_and_folder_is_set(tmp_path: Path) -> None:
    done = run(["sh", "-c", 'echo "$X $HOME"; pwd'], doing="t", env={"X": "y"}, cwd=tmp_path)
    assert done.stdout == f"y {os.environ['HOME']}\n{tmp_path}\n"


def test_variable_can_be_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "outer")
    done = run(["sh", "-c", 'echo "${X-none}"'], doing="t", env={"X": None})
    assert done.stdout == "none\n"


def test_exit_code_is_an_error_with_the_last_words() -> None:
    with pytest.raises(BenchError) as caught:
        run(["sh", "-c", "echo why >&2; exit 3"], doing="making a thing")
    assert "making a thing" in caught.value.message
    assert numbers_in(caught.value.message) == ["3"]
    assert caught.value.evidence.endswith("why")
    assert caught.value.reason == "program-failed"


def test_accepted_exit_code_is_no_error() -> None:
    assert run(["sh", "-c", "exit 100"], doing="t", accept=(0, 100)).returncode == 100


def test_missing_program_is_named() -> None:
    with pytest.raises(BenchError, match="no-such-program") as caught:
        run(["no-such-program"], doing="t")
    assert caught.value.reason == "program-missing"
    assert "barometer doctor" in caught.value.hint


def test_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(BenchError, match=r"\bdata\b") as caught:
        run([tmp_path / "data"], doing="t")
    assert caught.value.reason == "program-missing"


def test_slow_program_ends_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(BenchError, match=r"\b1 s\b") as caught:
        run(["sh", "-c", 'sleep 60 & echo $! $$ > "$0"; wait', pids], doing="t", timeout=1)
    assert caught.value.reason == "program-timeout"
    assert time.monotonic() - started < 20
    child, parent = map(int, pids.read_text().split())
    assert gone(child)
    assert gone(parent)


def test_interrupted_program_ends_with_all_that_it_started(tmp_path: Path) -> None:
    pids, is_interrupted = tmp_path / "pids", False

    def interrupt(*_: object) -> None:
        nonlocal is_interrupted
        # on a busy machine the next alarm arrives before this one has been dealt with
        if not is_interrupted and pids.exists() and pids.read_text():
            is_interrupted = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(["sh", "-c", 'sleep 60 & echo $! > "$0"; wait', pids], doing="t")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert gone(int(pids.read_text()))


def test_large_output_does_not_block() -> None:
    done = run(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo end"], doing="t")
    assert len(done.stderr) == 3_000_000
    assert done.stdout == "end\n"


def test_tail_is_the_last_lines() -> None:
    assert tail("a\nb\nc\n\n", 2) == "b\nc"
    assert tail("") == ""


def test_logged_program_leaves_its_lines_in_the_log_and_its_exit_code(tmp_path: Path) -> None:
    seen: list[str] = []
    script = "echo one; echo two >&2; exit 7"
    code = run_logged(["sh", "-c", script], doing="t", log=tmp_path / "log", on_line=seen.append)
    assert code == 7
    assert seen == ["one", "two"]
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_slow_logged_program_ends_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(BenchError, match=r"\b1 s\b") as caught:
        run_logged(
            ["sh", "-c", 'sleep 60 & echo $! > "$0"; wait', pids], doing="t", timeout=1,
            log=tmp_path / "log",
        )  # fmt: skip
    assert caught.value.reason == "program-timeout"
    assert gone(int(pids.read_text()))


def test_logged_program_ends_when_its_lines_are_not_wanted_any_more(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_logged(
            ["sh", "-c", 'sleep 60 & echo $! > "$0"; echo; wait', pids], doing="t",
            log=tmp_path / "log", on_line=interrupted,
        )  # fmt: skip
    assert gone(int(pids.read_text()))


def test_missing_logged_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no-such-program") as caught:
        run_logged(["no-such-program"], doing="t", log=tmp_path / "log")
    assert caught.value.reason == "program-missing"


def test_full_disk_is_said_as_such() -> None:
    script = "echo 'tar: x: Cannot write: No space left on device' >&2; exit 2"
    with pytest.raises(BenchError, match=r"\bunpacking\b") as caught:
        run(["sh", "-c", script], doing="unpacking")
    assert caught.value.reason == "disk-full"


@pytest.mark.parametrize("to", ["", " >&2"])
def test_program_that_prints_without_end_is_ended(to: str) -> None:
    started = time.monotonic()
    with pytest.raises(BenchError, match=r"\b100000 bytes\b") as caught:
        run(["sh", "-c", f"yes{to}"], doing="t", limit=100_000)
    assert caught.value.reason == "output-flood"
    assert caught.value.evidence.splitlines()[-1] in ("y", "")
    assert time.monotonic() - started < 20


def test_program_may_print_as_much_as_it_is_asked_for() -> None:
    done = run(["head", "-c", "100000", "/dev/zero"], doing="t", limit=100_000)
    assert len(done.stdout) == 100_000


def test_much_input_and_much_output_at_once_do_not_block() -> None:
    text = "grün\n" * 500_000
    assert run(["cat"], doing="t", stdin=text).stdout == text
    assert run(["head", "-c", "5"], doing="t", stdin=text).stdout == "grün"


def test_line_ends_of_other_systems_are_line_feeds() -> None:
    assert run(["printf", r"a\r\nb\rc\n"], doing="t").stdout == "a\nb\nc\n"


@given(st.lists(st.one_of(st.sampled_from([b"\n", b"\r", b"\r\n", b"\xff"]), st.binary())))
def test_lines_of_a_program_are_those_of_its_text(chunks: list[bytes]) -> None:
    """This holds however its output is cut into pieces."""
    reading, writing = os.pipe()
    with open(reading, "rb") as output:  # noqa: PTH123  # of a descriptor
        lines = _lines(_process(output), time.monotonic() + 20)
        for chunk in chunks:
            os.write(writing, chunk)
        os.close(writing)
        text = io.TextIOWrapper(io.BytesIO(b"".join(chunks)), errors="replace")
        assert "".join(lines) == text.read()


def test_lines_that_trickle_end_when_their_time_is_over(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(BenchError) as caught:
        run_logged(
            ["sh", "-c", "while echo; do sleep 0.1; done"], doing="t", timeout=0.5,
            log=tmp_path / "log",
        )  # fmt: skip
    assert caught.value.reason == "program-timeout"
    assert time.monotonic() - started < 10


def test_program_that_closes_its_output_and_goes_on_ends_too(tmp_path: Path) -> None:
    with pytest.raises(BenchError) as caught:
        run_logged(["sh", "-c", "exec >&- 2>&-; sleep 60"], doing="t", timeout=0.5,
                   log=tmp_path / "log")  # fmt: skip
    assert caught.value.reason == "program-timeout"


def _process(output: object) -> Any:
    return SimpleNamespace(stdout=output)
