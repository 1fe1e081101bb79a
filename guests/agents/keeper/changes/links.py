"""Make staged files appear where the machine looks for them: by a link, or by a bind mount over
what is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from keeper import machine
from keeper.changes import files
from keeper.machine import RefusedError


def plan_link(path: str, target: str) -> dict[str, Any]:
    """Plan a link. Raises RefusedError if something is at `path`, unless it is a link that only
    barometer makes: to `target`, or below its own folder."""
    files.check(path)
    if os.path.lexists(machine.at(path)) and not _is_ours(path, target):
        raise RefusedError("exists", f"{path} is there already, and not of barometer's")
    return {"path": path, "target": target, "made": files.missing(path)}


def _is_ours(path: str, target: str) -> bool:
    there = machine.at(path)
    leads = str(there.readlink()) if there.is_symlink() else ""
    return leads == str(machine.at(target)) or leads.startswith(f"{machine.at(machine.STATE)}/")


def link(what: dict[str, Any]) -> None:
    there = machine.at(what["path"])
    there.parent.mkdir(parents=True, exist_ok=True)
    new = machine.beside(there)
    new.unlink(missing_ok=True)
    new.symlink_to(machine.at(what["target"]))
    new.rename(there)
    machine.sync_folder(there.parent)


def unlink(what: dict[str, Any]) -> str:
    path = what["path"]
    files.check(path)
    there = machine.at(path)
    machine.beside(there).unlink(missing_ok=True)
    if _is_ours(path, what["target"]):
        there.unlink()
        machine.sync_folder(there.parent)
    elif os.path.lexists(there):
        return f"{path}: somebody changed it since, so it is left as it is"
    files.remove_empty(path, what["made"])
    return f"{path}: removed"


def plan_mount(path: str, source: str) -> dict[str, Any]:
    """Plan a mount. Raises RefusedError if the place is no folder, or the source is not one of
    barometer's."""
    files.check(path)
    there = machine.at(path)
    if there.is_symlink() or not there.is_dir():
        raise RefusedError("mount", f"{path} is no folder to mount over")
    brought = Path(os.path.realpath(machine.at(source)))
    if Path(os.path.realpath(machine.at(machine.STATE))) not in brought.parents:
        raise RefusedError("path-refused", f"{source} is not below {machine.STATE}")
    if not brought.is_dir():
        raise RefusedError("mount", f"{source} is no folder")
    return {"path": path, "source": source}


def mount(what: dict[str, Any]) -> None:
    machine.run("mount", "--bind", *(str(machine.at(what[name])) for name in ("source", "path")))


def unmount(what: dict[str, Any]) -> str:
    """Unmount the source lazily (umount -l): from now on nobody finds it there, while udev may
    still have files of it open."""
    files.check(what["path"])
    if _is_mounted(what):
        machine.run("umount", "-l", str(machine.at(what["path"])))
    return f"{what['path']}: {what['source']} is not mounted there"


def _is_mounted(what: dict[str, Any]) -> bool:
    """True if both paths are one folder, as they are while the source is mounted."""
    there, source = machine.at(what["path"]), machine.at(what["source"])
    return there.exists() and source.exists() and there.samefile(source)
