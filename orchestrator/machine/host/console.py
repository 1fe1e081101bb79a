"""The output of a machine's console: kept within limits, searched as it arrives. One reader
serves all who look for something in it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.base.bounded import CONSOLE_BYTES, CONSOLE_LINES, Excerpt, Lines, excerpt_of
from orchestrator.base.process import tail
from orchestrator.formats.kernelreports import KernelReports

_log = logging.getLogger("barometer.console")
_T = TypeVar("_T")

_PIECE = 1 << 16
_LAST_LINE = 100


class Transcript:
    """The output of one console in one boot. Each search function sees each line only once."""

    def __init__(self, who: str, most: int = CONSOLE_BYTES) -> None:
        self._who, self._most = who, most
        self.kernel = KernelReports()
        """Reports of the kernel that prints here. Output that is over the limits is searched for
        them, too: a kernel that panics may flood its console first."""
        self._kept = Excerpt(most)
        self._lines = Lines()
        self._found: dict[Callable[[str], Any], Any] = {}
        self._last = ""
        self._bytes = 0
        self._count = 0
        self._started = self._fed = 0.0
        self._flooded = False
        self._lock = threading.RLock()
        """Needed because one thread reads the console while others wait for a line."""

    def feed(self, chunk: bytes) -> None:
        with self._lock:
            self._fed = time.monotonic()
            if not self._bytes:
                self._started = self._fed
            self._bytes += len(chunk)
            self._count += chunk.count(b"\n")
            self._kept.feed(chunk.replace(b"\r", b""))
            self.kernel.take(_decode(chunk))
            if self._flooded:
                return
            for line in self._lines.feed(chunk):
                self._take(_decode(line))
            self._flooded = self._bytes > self._most or self._count > CONSOLE_LINES

    def _take(self, line: str) -> None:
        _log.debug("%s| %s", self._who, line)
        self._last = line if line.strip() else self._last
        for look, result in self._found.items():
            if result is None:
                self._found[look] = look(line)

    @property
    def flood(self) -> str:
        """Amount and rate of the output, once it is over the limits; else empty. Later output is
        counted, but no longer searched."""
        self.refresh()
        with self._lock:
            seconds = self._fed - self._started
            return describe_flood(self._bytes, self._count, seconds) if self._flooded else ""

    def first(self, look: Callable[[str], _T | None]) -> _T | None:
        """Call `look` with each line, and at last with the line that is not complete yet. Return
        its first result that is not None. Results are kept for each function, and a complete line
        is searched only once, so pass the same function (or bound method) each time."""
        self.refresh()
        with self._lock:
            if look not in self._found:
                results = (look(line) for line in self._kept.text().split("\n")[:-1])
                self._found[look] = next((f for f in results if f is not None), None)
            if self._found[look] is None:
                return look(_decode(self._lines.begun()))
            result: _T | None = self._found[look]
            return result

    def refresh(self) -> None:
        """Read new output. Subclasses for consoles that have to be polled override it."""

    def text(self) -> str:
        """Return all output, or its beginning and its end if it is over the limits."""
        self.refresh()
        with self._lock:
            return self._kept.text()

    def size(self) -> int:
        """Return the number of bytes of output so far."""
        self.refresh()
        return self._bytes

    def tail(self) -> str:
        return tail(self.text(), 25)

    def last_line(self) -> str:
        self.refresh()
        with self._lock:
            return (_decode(self._lines.begun()).strip() or self._last)[:_LAST_LINE]


class Console(Transcript):
    """A serial console whose output another program writes to a file."""

    def __init__(self, path: Path, start: int = 0, most: int = CONSOLE_BYTES) -> None:
        """`start`: bytes at the file's beginning that belong to another boot."""
        super().__init__("host", most)
        self.path = path
        self._read = start

    def refresh(self) -> None:
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    # output that arrives during this loop is left for the next call
                    end = os.fstat(file.fileno()).st_size
                    file.seek(self._read)
                    while self._read < end and (new := file.read(min(_PIECE, end - self._read))):
                        self._read += len(new)
                        self.feed(new)
            except FileNotFoundError:
                return


def describe_flood(size: int, lines: int, seconds: float) -> str:
    """Return an amount of output and its rate, in words."""
    rate = size / max(seconds, 0.001) / 1e6
    return f"{size} bytes, {lines} lines in {seconds:.1f} s, {rate:.2f} MB/s"


def _decode(line: bytes) -> str:
    return line.decode(errors="replace").replace("\r", "")


def read_excerpt(path: Path, most: int) -> bytes:
    """Read a file that a machine wrote: all of it, or its beginning and its end if it has more
    than `most` bytes."""
    with path.open("rb") as file:
        return excerpt_of(iter(lambda: file.read(_PIECE), b""), most).content()
