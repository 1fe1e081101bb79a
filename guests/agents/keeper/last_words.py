"""What a boot that is over said at last: as the firmware or RAM keeps it (pstore), and as the
journal of systemd has it."""

from __future__ import annotations

import contextlib

from keeper import boot, machine
from keeper.journal import Journal
from keeper.machine import RefusedError

_PLACES = ("/sys/fs/pstore", "/var/lib/systemd/pstore")
"""Where the kernel shows its records, and where systemd-pstore.service(8) moves them to."""
_LINES = 60


def last_words(journal: Journal) -> str:
    """Of the kernel that was booted last; empty where nothing kept them.

    Records are removed once they are read, so that there is room for the next ones; but not what
    is older than barometer's first boot: that is the machine's own.
    """
    for entry in reversed(journal.entries):
        if entry.kind == "leaving":
            return _records(entry.what["time"]) + _messages(entry.what["boot_token"])
    return ""


def _records(since: float) -> str:
    """`since`: seconds since the epoch."""
    original = machine.at(boot.ORIGINAL)
    first = original.stat().st_mtime if original.exists() else since
    said = []
    for place in map(machine.at, _PLACES):
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            with contextlib.suppress(OSError):  # a damaged record; a folder with more in it
                time = path.stat().st_mtime
                if time > since:
                    said.append(path.read_text(errors="replace"))
                if time > first:
                    path.unlink()
                    if path.parent != place:
                        path.parent.rmdir()
    return "".join(said)


def _messages(token: str) -> str:
    with contextlib.suppress(RefusedError):  # it has none of a boot before, or is not there
        said = machine.run(
            "journalctl", "--quiet", "--no-pager", "--dmesg", "--boot=-1", "--output=cat"
        )
        if token and machine.token_in(said) == token:
            return "".join(said.splitlines(keepends=True)[-_LINES:])
    return ""
