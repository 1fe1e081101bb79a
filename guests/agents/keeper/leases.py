"""Leases on the machine: only their holders may change it. A lease expires, and each new lease has
a greater token than all before it.

Within one boot a lease expires by CLOCK_BOOTTIME, which nobody can set; across boots by
CLOCK_REALTIME, the only clock that continues over a boot.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from keeper import machine
from keeper.journaling import records
from keeper.journaling.journal import Entry, Journal
from keeper.journaling.records import Shape, UnreadableError
from keeper.machine import RefusedError

_LONGEST = 1 << 20
_NO_TOKEN = 1 << 63
"""Smallest number that counts as damage and not as a token: after such a token no greater one
could be given."""
_BYTES = 2048
"""A lease's file is padded to a multiple of this, so that it can be overwritten on a full disk."""
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
    """`machine`, or addresses of devices. Empty if the lease's file is damaged; such a lease has
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
    """Seconds for which it was last extended."""

    def left(self) -> float:
        """Return the seconds to its expiry, less than 0 after it. They are never more than were
        granted, even if the real-time clock was set back."""
        if self.boot_id == machine.boot_id():
            left = self.expires_boottime - machine.boottime()
        else:
            left = self.expires_realtime - machine.realtime_ns() / 1e9
        return min(left, self.granted)

    def extend(self, seconds: float) -> None:
        """Let the lease expire `seconds` from now, and write that to the disk."""
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
        """Let the lease expire one ttl from now. Within one boot this never shortens it, because
        it may have been extended across the next boot."""
        is_same = self.boot_id == machine.boot_id()
        self.extend(max(self.ttl, self.left()) if is_same else self.ttl)

    @contextlib.contextmanager
    def kept(self, seconds: float) -> Iterator[None]:
        """Keep the lease live while the block runs, for up to `seconds`. After the block it
        expires as if it had been renewed and never extended."""
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
    """Read a lease. A lease that a newer barometer wrote counts, too. A damaged one has
    expired."""
    match = _FILE.fullmatch(file.name)
    token = int(match[1]) if match else 0
    try:
        record = records.unseal(machine.read_plain(file, _LONGEST), _SHAPE, newer=True)
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
    # write it before the old ones go: the dead man's switch reads leases without the lock
    with contextlib.suppress(OSError):
        new.extend(ttl)
    for lease in reversed(replaced):
        lease.remove()
    if not machine.at(_path(new.token)).exists():  # the disk was full until the old were gone
        new.extend(ttl)
    return new


def the_live(token: int) -> Lease:
    """Return the lease with this token. Raises RefusedError if it has expired or is lost."""
    mine = of_token(token)
    if mine.left() <= 0:
        raise RefusedError("lease-lost", f"the lease expired {-mine.left():.0f} s ago")
    return mine


def of_token(token: int) -> Lease:
    """Return the lease with this token, even if it has expired: until somebody else takes the
    machine, it can be renewed. Raises RefusedError if it is lost."""
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
