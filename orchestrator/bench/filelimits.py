"""Limits on files that a machine writes on this machine's disk: QEMU writes its console and its
logs itself, so that nothing in the machine waits for the runner (an exact one must not)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.bench.waiting import repeatedly
from orchestrator.bounded import CONSOLE_BYTES, Excerpt

_EVERY_SECONDS = 0.05
"""A program that writes a line at a time writes 200 MB/s at most: 10 MB may be over the limit."""

_REST_BYTES = 128 << 10


def outgrown(limits: Mapping[Path, int]) -> Path | None:
    """The first of the files that has more bytes than it may."""
    for path, most in limits.items():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > most:
                return path
    return None


class LimitedFile:
    """A file that is written here: so many bytes as they come, and of what follows the last."""

    def __init__(self, path: Path, most: int = CONSOLE_BYTES) -> None:
        self._file = path.open("ab", buffering=0)
        self._most = most
        self._lock = threading.Lock()
        self._rest = Excerpt(_REST_BYTES)
        self.begin()

    def begin(self) -> int:
        """From here on it takes as much again. How many bytes it has."""
        with self._lock:
            self._add_rest()
            self._room = self._most
            return self._file.tell()

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._room >= 0:  # one chunk too many, by which a reader knows that it was too much
                self._file.write(chunk)
                self._room -= len(chunk)
            else:
                self._rest.feed(chunk)

    def close(self) -> None:
        with self._lock:
            self._add_rest()
            self._file.close()

    def _add_rest(self) -> None:
        self._file.write(self._rest.content())
        self._rest = Excerpt(_REST_BYTES)


@contextmanager
def limited_files(limits: Mapping[Path, int], end: Callable[[], object]) -> Iterator[None]:
    """While the block runs, `end` is called once one of the files has more bytes than it may; it
    has to end what writes the file. It runs in a thread of its own."""

    def look() -> bool:
        if outgrown(limits) is None:
            return False
        end()
        return True

    with repeatedly(look, every=_EVERY_SECONDS, name="file-limits"):
        yield
