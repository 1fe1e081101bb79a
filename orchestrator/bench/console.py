"""A serial console that something else writes to a file."""

from __future__ import annotations

import logging
from pathlib import Path

from orchestrator.command import tail

log = logging.getLogger("barometer.console")


class Console:
    """A serial console in a file."""

    def __init__(self, path: Path, start: int = 0) -> None:
        """`start`: how many bytes at the file's beginning are of another boot."""
        self.path = path
        self._text = ""
        self._read = start

    def text(self) -> str:
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return ""
        self._read += len(new)
        text = new.decode(errors="replace").replace("\r", "")
        for line in text.splitlines():
            log.debug("host| %s", line)
        self._text += text
        return self._text

    def size(self) -> int:
        self.text()
        return self._read

    def tail(self) -> str:
        return tail(self.text(), 25)

    def last_line(self) -> str:
        return (self.text().rstrip().splitlines() or [""])[-1][:100]
