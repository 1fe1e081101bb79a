"""Move files that the keeper cannot read into a folder, each under a new name, where they stay
until somebody removes them."""

from __future__ import annotations

import os
from pathlib import Path

from keeper import machine

FOLDER = f"{machine.STATE}/set-aside"


def keep(path: Path, content: bytes | None) -> str:
    """Move a file into the folder, put `content` in its place unless that is None, and return
    where the file is now. Nothing is lost, whenever the keeper is killed."""
    folder = machine.at(FOLDER)
    folder.mkdir(exist_ok=True)
    number = 1 + sum(1 for _ in folder.iterdir())
    while os.path.lexists(kept := folder / f"{path.name}.{number}"):
        number += 1
    if content is None:
        path.rename(kept)
    else:
        try:
            os.link(path, kept)
        except OSError:  # it is a folder, which cannot be linked
            path.rename(kept)
        try:
            machine.replace(path, content)
        except OSError:
            if path.exists():
                kept.unlink()
            raise
    machine.sync_folder(folder)
    machine.sync_folder(path.parent)
    return f"{FOLDER}/{kept.name}"


def files() -> list[str]:
    folder = machine.at(FOLDER)
    return sorted(f"{FOLDER}/{path.name}" for path in folder.glob("*"))


def remove_all_but() -> None:
    """Remove all that barometer has on the machine, except what was set aside."""
    if not files():
        machine.remove_tree(machine.STATE)
        return
    for path in machine.at(machine.STATE).iterdir():
        if path.is_dir() and not path.is_symlink() and path.name != Path(FOLDER).name:
            machine.remove_tree(f"{machine.STATE}/{path.name}")
        elif path.name != Path(FOLDER).name:
            path.unlink()
