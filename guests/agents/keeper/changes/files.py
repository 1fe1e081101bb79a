"""Make barometer's files on the machine, below a few folders only, and put back what was there
before."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Any

from keeper import machine
from keeper.journaling.journal import Journal
from keeper.journaling.kinds import BELOW, STARTS
from keeper.machine import RefusedError

_GUEST_LOG = "/var/log/libvirt/qemu/barometer-guest-"


def plan_claim(paths: list[str]) -> dict[str, Any]:
    """Plan files or folders that barometer is going to make for itself. Raises RefusedError if one
    exists, unless a run whose journal is lost has left it."""
    named = {path for entry in Journal().entries for path in entry.what.get("paths", ())}
    for path in paths:
        check(path)
        if os.path.lexists(machine.at(path)) and (path in named or not _is_ours(path)):
            raise RefusedError("exists", f"{path} is there already, and not of barometer's")
    return {"paths": paths}


def _is_ours(path: str) -> bool:
    """True if the file is the log of one of barometer's guests, which nobody else makes."""
    there = machine.at(path)
    return path.startswith(_GUEST_LOG) and there.is_file() and not there.is_symlink()


def unclaim(what: dict[str, Any]) -> str:
    for path in reversed(what["paths"]):
        check(path)
        there = machine.at(path)
        machine.beside(there).unlink(missing_ok=True)
        if there.is_dir() and not there.is_symlink():
            machine.remove_tree(path)
        else:
            there.unlink(missing_ok=True)
        _sync_removal(there)
    return f"{' '.join(what['paths'])}: removed"


def _sync_removal(there: Path) -> None:
    """Write a removal to the disk before the journal records it. This is needed because an EFI
    system partition and the journal are on different file systems."""
    if there.parent.is_dir():
        machine.sync_folder(there.parent)


def plan_put(path: str, content_base64: str, mode: int) -> dict[str, Any]:
    """Plan to write a file. `former` is null if there is no such file."""
    check(path)
    there = machine.at(path)
    if there.is_symlink() or (there.exists() and not there.is_file()):
        raise RefusedError("exists", f"{path} is there already, and no plain file")
    former = _facts(there) if there.exists() else None
    return {"path": path, "content_base64": content_base64, "mode": mode, "former": former,
            "made": missing(path)}  # fmt: skip


def _facts(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {
        "content_base64": base64.b64encode(file.read_bytes()).decode(),
        "mode": stat.S_IMODE(status.st_mode), "owner": [status.st_uid, status.st_gid],
    }  # fmt: skip


def put(what: dict[str, Any]) -> None:
    there = machine.at(what["path"])
    there.parent.mkdir(parents=True, exist_ok=True)
    former = what["former"] or {"owner": ()}
    content = base64.b64decode(what["content_base64"])
    machine.replace(there, content, what["mode"], former["owner"])


def unput(what: dict[str, Any]) -> str:
    """Put the file back as it was. If somebody else has changed the file since, keep their file,
    and remove only the text that barometer added to it."""
    path, former = what["path"], what["former"]
    check(path)
    there = machine.at(path)
    machine.beside(there).unlink(missing_ok=True)
    before = base64.b64decode(former["content_base64"]) if former else b""
    ours = base64.b64decode(what["content_base64"])
    now = there.read_bytes() if there.is_file() and not there.is_symlink() else None
    if now is not None and ours.startswith(now) and len(now) > len(before):
        now = ours  # cut off while it was written
    if now not in (ours, before) and (former or os.path.lexists(there)):
        added = ours[len(before) :] if ours.startswith(before) else b""
        if not (now and added and added in now):
            return f"{path}: somebody changed it since, so it is left as it is"
        kept = former or _facts(there)
        machine.replace(there, now.replace(added, b""), kept["mode"], kept["owner"])
        return f"{path}: somebody changed it since, so only what was added is taken out"
    if former is not None:
        machine.replace(there, before, former["mode"], former["owner"])
        return f"{path}: as before"
    there.unlink(missing_ok=True)
    _sync_removal(there)
    remove_empty(path, what["made"])
    return f"{path}: removed"


def missing(path: str) -> list[str]:
    """Return the folders above a file that do not exist, the innermost first."""
    return [str(folder) for folder in Path(path).parents if not machine.at(str(folder)).exists()]


def remove_empty(path: str, folders: list[str]) -> None:
    """Remove the folders that were made for a file, unless somebody else has put something there
    since."""
    for folder in folders:
        there = machine.at(folder)
        is_its = Path(folder) in Path(path).parents
        if is_its and there.is_dir() and not there.is_symlink() and not any(there.iterdir()):
            there.rmdir()


def check(path: str) -> None:
    """Raise RefusedError if barometer may not have a file at this path. The folder's real path
    must be allowed, too, because a link may lead elsewhere."""
    root = os.path.realpath(machine.at("/")).rstrip("/")
    real = os.path.realpath(machine.at(path).parent).removeprefix(root)
    is_plain = os.path.normpath(path) == path and path.isprintable()
    if not (is_plain and _is_allowed(path) and _is_allowed(f"{real}/{Path(path).name}")):
        raise RefusedError(
            "path-refused",
            f"{path} is not below {', '.join(BELOW)}, nor begins with {' or '.join(STARTS)}",
        )


def _is_allowed(path: str) -> bool:
    return path.startswith(STARTS) or any(path.startswith(f"{folder}/") for folder in BELOW)
