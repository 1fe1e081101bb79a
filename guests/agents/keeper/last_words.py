"""Read the last messages of a boot that is over: those that the firmware or RAM keeps (pstore),
and those in systemd's journal."""

from __future__ import annotations

import contextlib

from keeper import boot, machine
from keeper.journaling.journal import Journal
from keeper.machine import RefusedError

_PLACES = ("/sys/fs/pstore", "/var/lib/systemd/pstore")
"""Folders in which the kernel shows its records, and to which systemd-pstore.service(8) moves
them."""
_LINES = 60


def last_words(journal: Journal) -> str:
    """Return the last messages of the kernel that was booted last; empty if nothing kept them.

    Records are removed once they are read, so that there is room for the next ones. Those that are
    older than barometer's first boot stay: they are the machine's own.
    """
    for entry in reversed(journal.entries):
        if entry.kind == "leaving":
            return _records(entry.what["time"]) + _messages(entry.what["boot_token"])
    return ""


def _records(since: float) -> str:
    """Return the records that are newer than `since`, in seconds since the epoch."""
    original = machine.at(boot.ORIGINAL)
    first = original.stat().st_mtime if original.exists() else since
    said = []
    for place in map(machine.at, _PLACES):
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            with contextlib.suppress(OSError):  # a damaged record, or a folder that is not empty
                time = path.stat().st_mtime
                if time > since:
                    said.append(path.read_text(errors="replace"))
                if time > first:
                    path.unlink()
                    if path.parent != place:
                        path.parent.rmdir()
    return "".join(said)


def _messages(token: str) -> str:
    with contextlib.suppress(RefusedError):  # no journal of an earlier boot, or no journalctl
        said = machine.run(
            "journalctl", "--quiet", "--no-pager", "--dmesg", "--boot=-1", "--output=cat"
        )
        if token and machine.token_in(said) == token:
            return "".join(said.splitlines(keepends=True)[-_LINES:])
    return ""
