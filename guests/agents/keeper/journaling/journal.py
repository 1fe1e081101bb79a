"""The journal of changes to the machine. A change is written down before it is made, and struck
when it is put back."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper import machine
from keeper.journaling import records, set_aside
from keeper.journaling.kinds import RECORDS
from keeper.journaling.records import Shape, UnreadableError

PATH = f"{machine.STATE}/journal.jsonl"
_LONGEST = 64 << 20
"""Most bytes that are read; no journal of barometer's is as long."""
_ENTRY: dict[str, Shape] = {
    "number": int, "kind": str, "token": int, "boot_id": str, "what": {},
}  # fmt: skip
_STRUCK: dict[str, Shape] = {"struck": int}
_EXCERPT = 160
_MOST = 20
"""Most unreadable lines of a file that are reported."""


@dataclass(frozen=True)
class Entry:
    number: int
    kind: str
    token: int
    """Token of the lease under which the change was made."""
    boot_id: str
    """Boot id of the kernel under which the change was made."""
    what: dict[str, Any]
    """All that is needed to put the change back. It may not have been made: the entry is written
    first."""


@dataclass(frozen=True)
class Unreadable:
    """A line that cannot be read, and that may record a change."""

    file: str
    line: int
    """Number of the line; 0 for the file as a whole."""
    why: str
    text: str
    """Beginning of the line."""


class Journal:
    """A file with a line for each change and for each entry struck; a line is on the disk when the
    call that writes it returns.

    The order of the lines does not matter: entries have numbers. A line that cannot be read is in
    `unreadable`; all other lines are read.
    """

    def __init__(self, path: str = PATH) -> None:
        self.path = path
        self._load()

    def _load(self) -> None:
        self.unreadable: list[Unreadable] = []
        self._entries: dict[int, Entry] = {}
        self._struck: set[int] = set()
        content = self._content()
        rest = content[content.rfind(b"\n") + 1 :]
        self._ends_in_line = not rest or _is_cut_off(rest)
        self._whole = len(content) - (len(rest) if self._ends_in_line else 0)
        """Bytes of the file that stay when the next line is written."""
        for number, line in enumerate(io.BytesIO(content[: self._whole]), 1):
            if line.strip():
                self._read(number, line)
        self._last = max([0, *self._entries, *self._struck])

    def _content(self) -> bytes:
        try:
            content = machine.read_plain(machine.at(self.path), _LONGEST + 1)
        except FileNotFoundError:
            return b""
        except OSError as exc:
            self.unreadable.append(Unreadable(self.path, 0, str(exc.strerror), ""))
            return b""
        if len(content) > _LONGEST:
            self.unreadable.append(Unreadable(self.path, 0, "it is too long", ""))
            return content[: content.rfind(b"\n") + 1]
        return content

    def _read(self, number: int, line: bytes) -> None:
        try:
            self._take(line)
        except UnreadableError as exc:
            if len(self.unreadable) < _MOST:
                text = line[:_EXCERPT].decode("ascii", "backslashreplace").strip()
                self.unreadable.append(Unreadable(self.path, number, str(exc), text))

    def _take(self, line: bytes) -> None:
        """Take in what a line records. Raises UnreadableError."""
        record = records.unseal(line, (_ENTRY, _STRUCK))
        if "struck" in record:
            self._struck.add(record["struck"])
            return
        if (known := RECORDS.get(record["kind"])) is None:
            raise UnreadableError(f"this barometer knows no change called {record['kind']!r}")
        if not records.has_shape(record["what"], known.shape):
            raise UnreadableError("it lacks what the undo needs")
        entry = Entry(*(record[name] for name in _ENTRY))
        if self._entries.setdefault(entry.number, entry) != entry:
            raise UnreadableError(f"another change has its number, {entry.number}")

    @property
    def entries(self) -> list[Entry]:
        """Changes that are not put back yet, oldest first."""
        return [self._entries[n] for n in sorted(self._entries) if n not in self._struck]

    def add(self, kind: str, token: int, what: dict[str, Any]) -> Entry:
        """Write a change down. Raises RefusedError if the entry could not be read back, and
        OSError if it cannot be written."""
        if not records.has_shape(what, RECORDS[kind].shape):
            raise machine.RefusedError("bad-request", f"nobody could undo this {kind}: {what}")
        entry = Entry(self._last + 1, kind, token, machine.boot_id(), what)
        self._append(vars(entry))
        self._last += 1
        self._entries[entry.number] = entry
        return entry

    def strike(self, entry: Entry) -> None:
        self._append({"struck": entry.number})
        self._struck.add(entry.number)

    def set_unreadable_aside(self) -> str:
        """Set the file aside, write the entries to a new one, and return the path of the old one.
        Raises OSError; then all is as it was."""
        lines = [records.seal(vars(entry)) + b"\n" for entry in self.entries]
        kept = set_aside.keep(machine.at(self.path), b"".join(lines))
        self._load()
        return kept

    def _append(self, record: dict[str, Any]) -> None:
        """Write a line. Raises OSError if it cannot be written; then the file is as it was."""
        path = machine.at(self.path)
        if any(not found.line for found in self.unreadable):  # what was not read would be cut
            raise OSError(errno.EIO, "it is damaged", self.path)
        is_new = not path.exists()
        line = (b"" if self._ends_in_line else b"\n") + records.seal(record) + b"\n"
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # a line that was cut off announced a change that was never begun
            os.ftruncate(file, self._whole)
            os.lseek(file, 0, os.SEEK_END)
            machine.write_whole(file, line)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._whole)
            raise OSError(exc.errno, exc.strerror, self.path) from exc
        finally:
            os.close(file)
        self._whole += len(line)
        self._ends_in_line = True
        if is_new:
            machine.sync_folder(path.parent)


def _is_cut_off(line: bytes) -> bool:
    """True if the last line is incomplete: the keeper was killed, or the disk was full, while it
    was written."""
    text = line.decode("ascii", "replace")
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return True
    return False


def left_aside() -> list[Unreadable]:
    """Return what was set aside and has not been removed since: the unreadable lines of journals,
    and whole files."""
    found = []
    for path in set_aside.files():
        is_journal = Path(path).name.startswith(Path(PATH).name)
        lines = Journal(path).unreadable if is_journal else []
        found += lines or [Unreadable(path, 0, "it was set aside", "")]
    return found
