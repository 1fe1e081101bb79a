"""A metal host's console, kept in a file."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from orchestrator.base.bounded import CONSOLE_BYTES
from orchestrator.base.errors import BenchError
from orchestrator.machine.host.console import Console
from orchestrator.machine.metal.consoles import (
    ConsoleCommand,
    following_dmesg,
    running_console_command,
)
from orchestrator.machine.transport.shell import Shell
from tests.unit.machine.metals import SECONDS, lives, wait_for


@pytest.mark.parametrize("error", [EOFError, TimeoutError, OSError])
def test_messages_end_where_the_machine_does(tmp_path: Path, error: type[Exception]) -> None:
    def lines() -> Iterator[str]:
        yield "one"
        raise error

    class Ending:
        @contextmanager
        def stream(self, argv: list[str], timeout: float) -> Iterator[Iterator[str]]:
            yield lines()

    with following_dmesg(cast(Shell, Ending()), tmp_path / "console.log"):
        pass
    assert (tmp_path / "console.log").read_text() == "one\n"


def test_messages_are_whole_whatever_ended_the_block(tmp_path: Path) -> None:
    closed = threading.Event()

    def lines() -> Iterator[str]:
        yield "one"
        closed.wait(SECONDS)
        time.sleep(0.2)
        yield "the last that was on its way"

    class Closing:
        @contextmanager
        def stream(self, argv: list[str], timeout: float) -> Iterator[Iterator[str]]:
            try:
                yield lines()
            finally:
                closed.set()

    with (
        pytest.raises(KeyboardInterrupt),
        following_dmesg(cast(Shell, Closing()), tmp_path / "log"),
    ):
        raise KeyboardInterrupt
    assert (tmp_path / "log").read_text() == "one\nthe last that was on its way\n"


@contextmanager
def running(
    script: str, folder: Path, say: Callable[[str], None] = pytest.fail
) -> Iterator[ConsoleCommand]:
    command = f"sh -c {shlex.quote(script)}"
    with running_console_command(command, folder / "console", say) as console:
        assert console is not None
        yield console


def test_console_that_ends_is_said_once_and_started_again(tmp_path: Path) -> None:
    taken, told = tmp_path / "taken", list[str]()
    script = (
        f"echo $$; while [ ! -e {taken} ]; do sleep 0.05; done;"
        " echo first >&2; echo 'SOL session closed by BMC' >&2; exit 2"
    )
    with running(script, tmp_path, told.append) as console:
        console.tend()
        assert told == []
        (pid,) = map(int, console.path.read_text().split())
        taken.touch()
        for _ in range(2):
            wait_for(lambda: console._process.poll() == 2)
            console.tend()
        assert told == [
            f"host.console: sh -c {shlex.quote(script)} ended with exit code 2 (SOL session closed"
            " by BMC): some of what the machine said is missing"
        ]
        wait_for(lambda: console._process.poll() == 2)
        taken.unlink()
        console.tend()
        wait_for(lambda: len(console.path.read_text().split()) == 4)
        again = [int(pid) for pid in console.path.read_text().split()]
        assert again[0] == pid  # earlier output stays
        assert lives(again[-1])
    wait_for(lambda: not lives(again[-1]))
    assert len(told) == 1


def test_console_that_cannot_be_started_again_is_no_error(tmp_path: Path) -> None:
    program, told = tmp_path / "sol", list[str]()
    program.write_text("#!/bin/sh\nwhile [ -e $0 ]; do sleep 0.05; done\n")
    program.chmod(0o755)
    with running_console_command(str(program), tmp_path / "console", told.append) as console:
        assert console is not None
        program.unlink()
        wait_for(lambda: console._process.poll() == 0)
        console.tend()
        for _ in range(2):
            wait_for(lambda: console._process.poll() == 127)
            console.tend()
    ended, absent = told
    assert ended == (
        f"host.console: {program} ended with exit code 0: some of what the machine said is missing"
    )
    assert absent.startswith(f"host.console: {program} ended with exit code 127 (setpriv: ")


def test_console_command_runs_as_long_as_the_block_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $$ $! > {pids}; echo oops >&2; echo hello; wait"
    with running(script, tmp_path) as console:
        assert console.path == tmp_path / "console"
        wait_for(lambda: console.path.read_text() == "hello\n")
        ours = [int(pid) for pid in pids.read_text().split()]
        assert all(map(lives, ours))
    wait_for(lambda: not any(map(lives, ours)))


def test_console_that_ignores_the_word_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.base.process._TERM_SECONDS", 0.2)
    script = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    with running(script, tmp_path) as console:
        wait_for(console.path.read_text)
        pid = int(console.path.read_text())
    wait_for(lambda: not lives(pid))


def test_console_of_another_user_ends_with_its_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs under sudo, for example, and may not be signalled."""

    def refused(pid: int, number: int) -> None:
        ended.append(pid)
        raise PermissionError

    ended: list[int] = []
    monkeypatch.setattr("orchestrator.base.process.os.killpg", refused)
    with running_console_command("cat", tmp_path / "console", pytest.fail):
        pass
    wait_for(lambda: not lives(ended[0]))


def test_console_command_has_an_open_standard_input(tmp_path: Path) -> None:
    with running_console_command("cat", tmp_path / "console", pytest.fail):
        pass  # it has not ended by itself


def test_console_that_floods_is_bounded_on_the_disk_in_each_boot(tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = (
        f"head -c {3 * CONSOLE_BYTES} /dev/zero; echo; echo end 1; while [ ! -e {go} ]; do"
        f" sleep 0.05; done; head -c {2 * CONSOLE_BYTES} /dev/zero; echo; echo end 2; sleep 600"
    )
    with running(script, tmp_path) as console:
        wait_for(lambda: console._file._rest.content().endswith(b"end 1\n"))
        assert CONSOLE_BYTES < console.path.stat().st_size < CONSOLE_BYTES + (1 << 17)
        assert Console(console.path).flood
        start = console.begin()
        assert start == console.path.stat().st_size
        go.touch()
        wait_for(lambda: console._file._rest.content().endswith(b"end 2\n"))
        assert Console(console.path, start).flood
    content = console.path.read_bytes()
    assert re.search(rb"lines left out \.\.\.\nend 1\n\x00", content)
    assert content.endswith(b"end 2\n")
    assert len(content) < 2 * CONSOLE_BYTES + (1 << 19)


def test_errors_of_a_console_that_floods_are_bounded(tmp_path: Path) -> None:
    script = "head -c 200000 /dev/zero >&2; echo denied >&2; exit 3"
    with pytest.raises(BenchError) as caught, running(script, tmp_path):
        pass
    assert caught.value.evidence.endswith("denied")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/no/such/ipmitool sol", "host.console: /no/such/ipmitool sol: ended with exit code 127"),
        ("sh -c 'echo denied >&2; exit 3'", "ended with exit code 3\n  | denied"),
        ("true", "host.console: true: ended with exit code 0"),
    ],
)
def test_console_command_that_does_not_run_is_an_error(
    tmp_path: Path, command: str, expected: str
) -> None:
    with (
        pytest.raises(BenchError) as caught,
        running_console_command(command, tmp_path / "console", pytest.fail),
    ):
        pass
    assert expected in str(caught.value)
    assert caught.value.reason == "console-command"


def test_host_without_a_console_command_has_none(tmp_path: Path) -> None:
    with running_console_command(None, tmp_path / "console", pytest.fail) as console:
        assert console is None
    assert list(tmp_path.iterdir()) == []


def test_console_ends_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from orchestrator.machine.metal.consoles import ConsoleCommand\n"
        "console = ConsoleCommand('sleep 1000', pathlib.Path(sys.argv[1]), print)\n"
        "print(console._process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "console"], stdout=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdout is not None
        pid = int(runner.stdout.readline())
        # setpriv may not have requested the signal yet, so wait until it executes the program
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_text().startswith("sleep"))
        runner.kill()
    wait_for(lambda: not lives(pid))
