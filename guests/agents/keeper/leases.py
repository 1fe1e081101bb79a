"""Leases on the machine: only who holds one may change it. They expire, and their tokens always
grow.

Within one boot a lease expires by CLOCK_BOOTTIME, which no one sets; across boots by
CLOCK_REALTIME, the only clock that goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from keeper import machine, records
from keeper.journal import Entry, Journal
from keeper.machine import RefusedError
from keeper.records import Shape, UnreadableError

_LONGEST = 1 << 20
_NO_TOKEN = 1 << 63
"""Least number that is damage and no token: the next lease could not be given a greater one."""
_BYTES = 2048
"""Unit to which a lease's file is padded, so that it can be written again on a full disk."""
_FILE = re.compile(r"lease-(0|[1-9][0-9]{0,19})\.json")
_SHAPE: dict[str, Shape] = {
    "token": int, "resources": [str], "owner": {}, "ttl": float, "boot_id": str,
    "expires_boottime": float, "expires_realtime": float, "granted": float,
}  # fmt: skip


@dataclass
class Lease:
    token: int
    """Fencing token: of two leases the later one has the greater."""
    resources: list[str]
    """`machine`, or addresses of devices. A lease whose file is damaged has none, and has
    expired."""
    owner: dict[str, Any]
    ttl: float
    """Seconds from one renewal to the expiry."""
    boot_id: str = ""
    expires_boottime: float = 0
    """Seconds of CLOCK_BOOTTIME under `boot_id`."""
    expires_realtime: float = 0
    """Seconds since the epoch."""
    granted: float = 0
    """Seconds of its last extension."""

    def left(self) -> float:
        """Return the seconds to its expiry, less than 0 after it. They are never more than were
        granted, even if the real-time clock was set back."""
        if self.boot_id == machine.boot_id():
            left = self.expires_boottime - machine.boottime()
        else:
            left = self.expires_realtime - machine.realtime_ns() / 1e9
        return min(left, self.granted)

    def extend(self, seconds: float) -> None:
        """Let it expire in so many seconds, on the disk, too."""
        self.boot_id = machine.boot_id()
        self.expires_boottime = machine.boottime() + seconds
        self.expires_realtime = machine.realtime_ns() / 1e9 + seconds
        self.granted = seconds
        self._write()

    def _write(self) -> None:
        path = machine.at(_path(self.token))
        content = records.seal(asdict(self))
        content = content.ljust(-(-len(content) // _BYTES) * _BYTES)
        try:
            machine.replace(path, content)
        except OSError:
            # writing over the old one needs no room if it is as long; else it could be cut off
            if not path.exists() or path.stat().st_size != len(content):
                raise
            file = os.open(path, os.O_WRONLY)
            try:
                machine.write_whole(file, content)
            finally:
                os.close(file)

    def renew(self) -> None:
        """Extend it by its ttl, but within this boot never shorten it: it may have been extended
        across the next boot."""
        is_same = self.boot_id == machine.boot_id()
        self.extend(max(self.ttl, self.left()) if is_same else self.ttl)

    @contextlib.contextmanager
    def kept(self, seconds: float) -> Iterator[None]:
        """Keep the lease live while the block runs, which may take so many seconds. Afterwards it
        is as if renewed."""
        replace(self).extend(max(self.left(), seconds))
        try:
            yield
        finally:
            self.renew()

    def remove(self) -> None:
        path = machine.at(_path(self.token))
        path.unlink(missing_ok=True)
        machine.sync_folder(path.parent)

    def shares(self, resources: Sequence[str]) -> bool:
        return not {*self.resources}.isdisjoint(resources)

    def holder(self) -> str:
        who = self.owner
        return (
            f"{who.get('user', '?')}@{who.get('runner', '?')}"
            f" (process {who.get('pid', '?')}, {who.get('what', '?')})"
        )

    def facts(self) -> dict[str, Any]:
        left = self.left()
        return {"token": self.token, "resources": self.resources, "owner": self.owner,
                "left": round(left, 1), "expired": left <= 0}  # fmt: skip


def _path(token: int | str) -> str:
    return f"{machine.STATE}/lease-{token}.json"


def leases() -> list[Lease]:
    """Return all leases that can be read, oldest first, expired or not. If two share a resource,
    only the earlier is valid: the keeper that wrote the later one was killed before it could
    remove the earlier and grant the later."""
    written = _written()
    return [
        lease
        for number, lease in enumerate(written)
        if lease.resources
        and not any(lease.shares(earlier.resources) for earlier in written[:number])
    ]


def _written() -> list[Lease]:
    files = machine.at(machine.STATE).glob("lease-*.json")
    found = [_read(file) for file in files if _FILE.fullmatch(file.name) and file.is_file()]
    return sorted(found, key=lambda lease: lease.token)


def _read(file: Path) -> Lease:
    """Read a lease. One of a newer barometer counts, too; one that is damaged has expired."""
    match = _FILE.fullmatch(file.name)
    token = int(match[1]) if match else 0
    try:
        with file.open("rb") as opened:
            record = records.unseal(opened.read(_LONGEST), _SHAPE, newer=True)
    except (OSError, UnreadableError):
        record = {}
    if record.get("token") != token:
        return Lease(token, [], {}, 0)
    return Lease(**{name: record[name] for name in _SHAPE})


def live() -> list[Lease]:
    return [lease for lease in leases() if lease.left() > 0]


def grant(
    resources: list[str], owner: dict[str, Any], ttl: float, takeover: int, journal: Journal
) -> Lease:
    """Return a new lease, if no live one shares a resource. `takeover` is the token of one that is
    replaced although it is live. Raises RefusedError that names the holder."""
    for lease in leases():
        if lease.left() > 0 and lease.shares(resources) and lease.token != takeover:
            raise RefusedError(
                "lease-held",
                f"the machine is held by {lease.holder()} for another {lease.left():.0f} s",
                holder=lease.facts(),
            )
    folder = machine.at(machine.STATE)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    machine.sync_folder(folder.parent)
    written = _written()
    seen = [lease.token for lease in written] + [entry.token for entry in journal.entries]
    known = [token + 1 for token in seen if token < _NO_TOKEN]
    new = Lease(max([machine.realtime_ns(), *known]), resources, owner, ttl)
    replaced = [lease for lease in written if lease.left() <= 0 or lease.shares(resources)]
    # at no moment without a lease: the dead man's switch reads them without the lock
    with contextlib.suppress(OSError):
        new.extend(ttl)
    for lease in reversed(replaced):
        lease.remove()
    if not machine.at(_path(new.token)).exists():  # the disk was full until these were gone
        new.extend(ttl)
    return new


def the_live(token: int) -> Lease:
    """Return the lease with this token. Raises RefusedError if it has expired or is lost."""
    mine = of_token(token)
    if mine.left() <= 0:
        raise RefusedError("lease-lost", f"the lease expired {-mine.left():.0f} s ago")
    return mine


def of_token(token: int) -> Lease:
    """Return the lease as `the_live` does, even if it has expired: as long as no one took it, it
    can be renewed."""
    held = leases()
    for lease in held:
        if lease.token == token:
            return lease
    now = "; ".join(f"{lease.holder()} has it now" for lease in held)
    raise RefusedError(
        "lease-lost",
        f"the lease is lost: {now or 'the machine knows of none'}",
        holder=held[0].facts() if held else None,
    )


def of_nobody(entries: Sequence[Entry]) -> list[Entry]:
    """Return the changes whose maker has no live lease any more."""
    tokens = {lease.token for lease in live()}
    return [entry for entry in entries if entry.token not in tokens]
