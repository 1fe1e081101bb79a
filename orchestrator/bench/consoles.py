"""What a metal host says: its serial console by a command, or the kernel's messages over SSH."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.bench.shell import A_DAY, Shell
from orchestrator.command import end_group, tail
from orchestrator.errors import BenchError

_AT_ONCE_SECONDS = 0.5


@contextmanager
def followed(shell: Shell, path: Path) -> Iterator[None]:
    """The kernel's messages, those of the boot first, in a file as they come."""

    def read() -> None:
        # the machine goes down, or the block ends: either is an end
        with contextlib.suppress(TimeoutError, EOFError, OSError), path.open("w") as file:
            for line in lines:
                file.write(f"{line}\n")
                file.flush()

    reader = threading.Thread(target=read, daemon=True)
    argv = ["dmesg", "--follow", "--nopager"]
    with contextlib.ExitStack() as after, shell.stream(argv, timeout=A_DAY) as lines:
        reader.start()
        after.callback(reader.join, 5)  # the file is whole, whatever ended the block
        yield


class ConsoleCommand:
    """A command on the runner whose standard output is the machine's console, in a file."""

    def __init__(self, command: str, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        path.write_bytes(b"")
        self._command, self._say = command, say
        self._errors = path.with_name(f"{path.name}.stderr")
        self._told: set[str] = set()
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        with self.path.open("ab") as output, self._errors.open("wb") as errors:
            # its standard input stays open: a serial console ends with it
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *shlex.split(self._command)],
                stdin=subprocess.PIPE, stdout=output, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def check(self) -> None:
        """Raises BenchError when it ends at once."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_AT_ONCE_SECONDS)
            said = self._errors_said() or self.path.read_text(errors="replace")
            raise BenchError(
                f"host.console: {self._command}: ended with exit code {code}",
                evidence=tail(said), reason="console-command",
            )  # fmt: skip

    def tend(self) -> None:
        """Where it has ended, as a console does that somebody else takes over, say so, once, and
        start it again."""
        code = self._process.poll()
        if code is None:
            return
        last = tail(self._errors_said(), 1)
        why = f"{self._command} ended with exit code {code}" + (f" ({last})" if last else "")
        if why not in self._told:
            self._say(f"host.console: {why}: some of what the machine said is missing")
        self._told.add(why)
        self.end()
        self._process = self._started()

    def end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        end_group(self._process)

    def _errors_said(self) -> str:
        return self._errors.read_text(errors="replace")


@contextmanager
def console_command(
    command: str | None, path: Path, say: Callable[[str], None]
) -> Iterator[ConsoleCommand | None]:
    """The command runs while the block does. `say`: what is to be known of it. Raises BenchError
    when it does not start or ends at once."""
    if command is None:
        yield None
        return
    console = ConsoleCommand(command, path, say)
    try:
        console.check()
        yield console
    finally:
        console.end()
