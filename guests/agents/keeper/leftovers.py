"""Remove barometer's boot entries that are damaged, or that no journal names any more. Their names
show that they are barometer's."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from keeper import machine, means
from keeper.machine import RefusedError

_NAME = re.compile(r"barometer-([0-9]{1,20})")
"""Name of an entry, with the token of its lease."""
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_NEXT = re.compile(rb"^next_entry=([^\n]*)(?:\n|\Z)", re.MULTILINE)


def remove(spared: Collection[int]) -> tuple[list[str], list[str]]:
    """Remove the entries, except those with a token in `spared`: the tokens of other holders'
    leases. Return what was removed, and what could not be and why."""
    done: list[str] = []
    failed: list[str] = []
    for act in (_out_of_menu, _out_of_environment, _oneshot, _systemd_boot_entries):
        try:
            done += act(spared)
        except (RefusedError, OSError) as exc:
            failed.append(str(exc))
    return done, failed


def _is_left(text: str, spared: Collection[int]) -> bool:
    match = _NAME.search(text)
    return match is not None and int(match[1]) not in spared


def _out_of_menu(spared: Collection[int]) -> Iterator[str]:
    for folder in means.GRUB_FOLDERS:
        path = f"{folder}/custom.cfg"
        there = machine.at(path)
        if not there.is_file() or there.is_symlink():
            continue
        before = there.read_bytes()
        content = without_entries(before, spared)
        if content != before:
            _replace(there, content)
            yield f"{path}: barometer's entry is taken out"


def without_entries(menu: bytes, spared: Collection[int]) -> bytes:
    """Return a GRUB menu without barometer's entries, be they complete or cut off."""
    lines = _LINE.findall(menu)
    kept = []
    at = 0
    while at < len(lines):
        header = lines[at].decode("ascii", "replace")
        if header.startswith("menuentry 'barometer'") and _is_left(header, spared):
            at = _end_of_entry(lines, at + 1)
        else:
            kept.append(lines[at])
            at += 1
    return b"".join(kept)


def _end_of_entry(lines: list[bytes], start: int) -> int:
    """Return the index after the entry's closing brace; if that is missing, after its indented
    lines."""
    indented = start
    while indented < len(lines) and lines[indented].startswith(b"\t"):
        indented += 1
    for at in range(indented, len(lines)):
        if lines[at].rstrip() == b"}":
            return at + 1
        if lines[at].startswith((b"menuentry", b"submenu", b"#")):
            break
    return indented


def _out_of_environment(spared: Collection[int]) -> Iterator[str]:
    for folder in means.GRUB_FOLDERS:
        if remove_next(folder, spared):
            yield f"grub: {folder}/grubenv: barometer's entry is not the next any more"


def remove_next(folder: str, spared: Collection[int] = ()) -> bool:
    """Take barometer's entry for the next boot out of GRUB's environment block, even if
    grub-editenv refuses the block as damaged. Return True if there was an entry. The block keeps
    its length: # fills its end (GRUB manual, "Environment block")."""

    def without(line: re.Match[bytes]) -> bytes:
        return b"" if _is_left(line[1].decode("ascii", "replace"), spared) else line[0]

    there = machine.at(f"{folder}/grubenv").resolve()
    before = there.read_bytes() if there.is_file() else b""
    after = _NEXT.sub(without, before)
    if after != before:
        _replace(there, after.ljust(len(before), b"#"))
    return after != before


def _oneshot(spared: Collection[int]) -> Iterator[str]:
    chosen = means.loader_variable(means.ONESHOT) or ""
    if _is_left(chosen, spared):
        machine.run("bootctl", "set-oneshot", "")
        yield f"systemd-boot: {chosen} is not chosen for the next boot"


def _systemd_boot_entries(spared: Collection[int]) -> Iterator[str]:
    if (folder := means.boot_partition()) is None:
        return
    entries = [*machine.at(f"{folder}/loader/entries").glob("*barometer-*")]
    for path in [*entries, *machine.at(folder).glob("barometer-*")]:
        name = path.name.strip(".").partition(".")[0]
        if _NAME.fullmatch(name) and _is_left(name, spared):
            if path.is_dir() and not path.is_symlink():
                machine.remove_tree(f"/{path.relative_to(machine.at('/'))}")
            else:
                path.unlink()
            machine.sync_folder(path.parent)
            yield f"systemd-boot: {path.name} is removed"


def _replace(path: Path, content: bytes) -> None:
    status = path.stat()
    owner = (status.st_uid, status.st_gid)
    machine.replace(path, content, stat.S_IMODE(status.st_mode), owner)
