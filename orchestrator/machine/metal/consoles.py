"""The console of a metal host: a command that prints its serial console, or its kernel messages
over SSH."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator.base.bounded import Excerpt
from orchestrator.base.errors import BenchError
from orchestrator.base.process import drain, end_group, tail
from orchestrator.base.reasons import Reason
from orchestrator.machine.host.console import read_excerpt
from orchestrator.machine.runner.filelimits import LimitedFile
from orchestrator.machine.transport.shell import A_DAY, Shell

_AT_ONCE_SECONDS = 0.5
_ERRORS_BYTES = 16 << 10


@contextmanager
def following_dmesg(shell: Shell, path: Path) -> Iterator[None]:
    """Write the kernel's messages to `path` while the block runs, beginning with those of its
    boot."""

    def read() -> None:
        # it ends when the machine goes down or the block ends
        with (
            contextlib.suppress(TimeoutError, EOFError, OSError),
            closing(LimitedFile(path)) as file,
        ):
            for line in lines:
                file.write(f"{line}\n".encode())

    reader = threading.Thread(target=read, daemon=True)
    argv = ["dmesg", "--follow", "--nopager"]
    with contextlib.ExitStack() as after, shell.stream(argv, timeout=A_DAY) as lines:
        reader.start()
        after.callback(reader.join, 5)  # so that the file is complete, whatever ended the block
        yield


class ConsoleCommand:
    """A command on the runner that prints the machine's console; its output is kept in a file."""

    def __init__(self, command: str, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        path.write_bytes(b"")
        self._command, self._say = command, say
        self._file = LimitedFile(path)
        self._told: set[str] = set()
        self._start()

    def _start(self) -> None:
        # its standard input stays open: a program for serial consoles ends when that is closed
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *shlex.split(self._command)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._errors = Excerpt(_ERRORS_BYTES)
        self._readers = [
            drain(self._process.stdout, self._file.write),
            drain(self._process.stderr, self._errors.feed),
        ]

    def check(self) -> None:
        """Raise BenchError if the command ends at once."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_AT_ONCE_SECONDS)
            output = self._read_errors() or read_excerpt(self.path, _ERRORS_BYTES).decode(
                errors="replace"
            )
            raise BenchError(
                f"host.console: {self._command}: ended with exit code {code}",
                evidence=tail(output), reason=Reason.CONSOLE_COMMAND,
            )  # fmt: skip

    def tend(self) -> None:
        """Restart the command if it has ended, as it does when somebody else takes the console
        over. The same message about it is shown only once."""
        code = self._process.poll()
        if code is None:
            return
        last = tail(self._read_errors(), 1)
        why = f"{self._command} ended with exit code {code}" + (f" ({last})" if last else "")
        if why not in self._told:
            self._say(f"host.console: {why}: some of what the machine said is missing")
        self._told.add(why)
        self._end()
        self._start()

    def begin(self) -> int:
        """Begin a boot, which has an output limit of its own. Return the number of bytes of
        earlier output."""
        self.tend()
        return self._file.begin()

    def end(self) -> None:
        self._end()
        self._file.close()

    def _end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        end_group(self._process)
        self._wait_for_readers()

    def _wait_for_readers(self) -> None:
        """Wait until all output of an ended program is in the file. The wait is short, because a
        child process that is still alive may hold the pipe open."""
        for reader in self._readers:
            reader.join(_AT_ONCE_SECONDS)

    def _read_errors(self) -> str:
        self._wait_for_readers()
        return self._errors.text()


@contextmanager
def running_console_command(
    command: str | None, path: Path, say: Callable[[str], None]
) -> Iterator[ConsoleCommand | None]:
    """Run the command, if there is one, while the block runs. `say` gets messages for the user.
    Raises BenchError if the command does not start or ends at once."""
    if command is None:
        yield None
        return
    console = ConsoleCommand(command, path, say)
    try:
        console.check()
        yield console
    finally:
        console.end()
