"""What was changed on the machine: written down before it is changed, struck when put back."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any

from keeper import machine

PATH = f"{machine.STATE}/journal.jsonl"


@dataclass(frozen=True)
class Entry:
    number: int
    kind: str
    token: int
    """Of the lease that it was made under."""
    boot_id: str
    """Of the kernel that it was made under."""
    what: dict[str, Any]
    """All that is needed to put it back, whether or not the change was made after it."""


class Journal:
    """A line for each change and for each entry struck, on the disk when the call returns."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._last = 0
        for line in _whole_lines().splitlines():
            try:
                record = json.loads(line)
            except ValueError as exc:
                raise machine.RefusedError(
                    "journal-damaged", f"{PATH}: a line is no JSON: {line[:80]!r}"
                ) from exc
            if "struck" in record:
                self._entries.pop(record["struck"], None)
            else:
                entry = Entry(**record)
                self._entries[entry.number] = entry
                self._last = entry.number

    @property
    def entries(self) -> list[Entry]:
        """What is not put back yet, oldest first."""
        return list(self._entries.values())

    def add(self, kind: str, token: int, what: dict[str, Any]) -> Entry:
        self._last += 1
        entry = Entry(self._last, kind, token, machine.boot_id(), what)
        self._append(vars(entry))
        self._entries[entry.number] = entry
        return entry

    def strike(self, entry: Entry) -> None:
        self._append({"struck": entry.number})
        del self._entries[entry.number]

    def _append(self, record: dict[str, Any]) -> None:
        """Raises OSError where it cannot be written; then the file is as it was."""
        path = machine.at(PATH)
        is_new = not path.exists()
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        whole = len(_whole_lines())
        try:
            # a line that was cut off announced a change that was never begun
            os.ftruncate(file, whole)
            os.lseek(file, 0, os.SEEK_END)
            machine.write_whole(file, json.dumps(record).encode() + b"\n")
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(file, whole)
            raise OSError(exc.errno, exc.strerror, PATH) from exc
        finally:
            os.close(file)
        if is_new:
            machine.sync_folder(path.parent)


def _whole_lines() -> bytes:
    try:
        content = machine.at(PATH).read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
