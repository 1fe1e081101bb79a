"""Size limits of files on the runner's disk that a machine fills. QEMU writes console and logs
itself, so that nothing in the machine waits for the runner (in an exact machine nothing may)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.base.bounded import CONSOLE_BYTES, Excerpt
from orchestrator.base.waiting import repeatedly

_EVERY_SECONDS = 0.05
"""Time between two checks. A program that writes a line at a time writes 200 MB/s at most, so a
file may exceed its limit by 10 MB."""

_REST_BYTES = 128 << 10


def find_outgrown(limits: Mapping[Path, int]) -> Path | None:
    """Return the first file that is over its limit of bytes, or None."""
    for path, most in limits.items():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > most:
                return path
    return None


class LimitedFile:
    """A file that the runner writes: `most` bytes as they come, then an excerpt of the rest."""

    def __init__(self, path: Path, most: int = CONSOLE_BYTES) -> None:
        self._file = path.open("ab", buffering=0)
        self._most = most
        self._lock = threading.Lock()
        self._rest = Excerpt(_REST_BYTES)
        self.begin()

    def begin(self) -> int:
        """Allow another `most` bytes from here on. Return how many bytes the file has."""
        with self._lock:
            self._add_rest()
            self._room = self._most
            return self._file.tell()

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._room >= 0:  # one chunk beyond the limit, so that a reader sees the flood
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
    """Watch the files while the block runs. If one is over its limit of bytes, call `end`, in a
    thread of its own; it has to end the program that writes the file."""

    def look() -> bool:
        if find_outgrown(limits) is None:
            return False
        end()
        return True

    with repeatedly(look, every=_EVERY_SECONDS, name="file-limits"):
        yield
