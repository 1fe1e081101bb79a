"""Standard output and standard error of the command line. Text from outside (consoles, names of
kernels, messages) reaches them in many places, so they are guarded here, once for all: in a log,
every character shows, and no line is a command to the CI system. On a terminal barometer's own
lines move the cursor; what is from outside is escaped where they are made (base/progress.py)."""

from __future__ import annotations

import secrets
import sys
from typing import IO, Any, cast

from orchestrator.base.printable import disarm_commands, escape_unprintable


class LogStream:
    """A text stream in which nothing is more than text."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._line = ""
        """What is on the last line so far."""

    def write(self, text: str) -> int:
        safe = escape_unprintable(text)
        self._stream.write(disarm_commands(safe, self._line))
        self._line = (self._line + safe).rpartition("\n")[2]
        return len(text)

    def write_command(self, text: str) -> None:
        """Write lines of barometer's own that are commands to the CI system."""
        self._stream.write(text)
        self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Guard the process's streams that are no terminals."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not stream.isatty():
            setattr(sys, name, cast("IO[str]", LogStream(stream)))


def print_commands(text: str, stream: IO[str]) -> None:
    """Print workflow commands, each a line, on a stream that may be guarded."""
    stream.flush()
    if isinstance(stream, LogStream):
        stream.write_command(text)
    else:
        stream.write(text)


class CommandsStopped:
    """While the block runs, GitHub takes no line of the stream for a command."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._token = stream, secrets.token_hex(16)

    def __enter__(self) -> None:
        print_commands(f"::stop-commands::{self._token}\n", self._stream)

    def __exit__(self, *_: object) -> None:
        print_commands(f"::{self._token}::\n", self._stream)
