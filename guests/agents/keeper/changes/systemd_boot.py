"""Make an entry of systemd-boot for one boot: a type #1 entry of the Boot Loader Specification
(uapi-group.org). The kernel is stored beside it, on the partition that systemd-boot reads."""

from __future__ import annotations

import os
import re
from typing import Any

from keeper import machine, means
from keeper.changes import files
from keeper.machine import RefusedError

_SPARE_BYTES = 1 << 20
"""Spare room for the entry, the folder and the unused part of each file's last cluster."""
_EFI_PROGRAM = b"MZ"
"""First bytes of a kernel with CONFIG_EFI_STUB (Documentation/admin-guide/efi-stub.rst).
systemd-boot can start no other kernel."""


def plan_entry(
    name: str, kernel: str, kernel_sha256: str, initrd: str, initrd_sha256: str, cmdline: str
) -> dict[str, Any]:
    """Plan the entry. Raises RefusedError if it could not be booted, or if there is no room for
    it."""
    loader = means.systemd_boot()
    if not loader.usable:
        raise RefusedError("systemd-boot", loader.why)
    with machine.at(kernel).open("rb") as file:
        if file.read(len(_EFI_PROGRAM)) != _EFI_PROGRAM:
            raise RefusedError(
                "wrong-image",
                f"{kernel} is no EFI program, which systemd-boot needs (CONFIG_EFI_STUB)",
            )
    sources = {"linux": [kernel, kernel_sha256]}
    if initrd:
        sources["initrd"] = [initrd, initrd_sha256]
    _check_room(loader.folder, [path for path, _ in sources.values()])
    folder, entries = f"{loader.folder}/{name}", f"{loader.folder}/loader/entries"
    conf = f"{entries}/{name}.conf"
    return {**files.plan_claim([conf, folder]), "made": files.missing(conf), "name": name,
            "folder": folder, "conf": conf, "sources": sources, "cmdline": cmdline}  # fmt: skip


def _check_room(folder: str, paths: list[str]) -> None:
    system = os.statvfs(machine.at(folder))
    there = system.f_bavail * system.f_frsize
    needed = sum(machine.at(path).stat().st_size for path in paths) + _SPARE_BYTES
    if there < needed:
        raise RefusedError(
            "disk-full", f"{folder} has {there >> 20} MiB of room, and the kernel with its"
            f" initramfs needs {-(-needed >> 20)} MiB",
        )  # fmt: skip


def make_entry(what: dict[str, Any]) -> None:
    """Write the kernel and the entry. The entry has no sort-key, so systemd-boot sorts it after
    all entries that have one. A machine without a configured default boots the first entry
    (systemd-boot(7)). Raises RefusedError if that is this entry, because the machine would boot it
    again and again."""
    name, folder, conf = what["name"], machine.at(what["folder"]), machine.at(what["conf"])
    folder.mkdir()
    machine.sync_folder(folder.parent)
    lines = [f"title {name}", f"options {what['cmdline']}"]
    for verb, (source, sha256) in what["sources"].items():
        machine.replace(folder / verb, machine.at(source).read_bytes())
        machine.check_sha256(f"{what['folder']}/{verb}", sha256)
        lines.append(f"{verb} /{name}/{verb}")
    conf.parent.mkdir(parents=True, exist_ok=True)
    machine.replace(conf, "".join(f"{line}\n" for line in lines).encode())
    if re.search(rf"title: {name} .*\(default\)", machine.run("bootctl", "list")):
        raise RefusedError(
            "systemd-boot", f"systemd-boot would take {name} for the machine's default, which is"
            " not named: name it in loader.conf, or by `bootctl set-default`",
        )  # fmt: skip


def remove_entry(what: dict[str, Any]) -> str:
    removed = files.unclaim(what)
    for path in what["paths"]:
        files.remove_empty(path, what["made"])
    return removed


def plan_oneshot(entry: str) -> dict[str, Any]:
    """Plan to choose the entry for the next boot. It applies once, because systemd-boot deletes
    the choice when it boots."""
    return {"entry": entry}


def set_oneshot(what: dict[str, Any]) -> None:
    machine.run("bootctl", "set-oneshot", what["entry"])
    if (found := means.loader_variable(means.ONESHOT)) != what["entry"]:
        raise RefusedError(
            "systemd-boot", f"{means.ONESHOT} is {found}, not {what['entry']}, after"
            " bootctl set-oneshot",
        )  # fmt: skip


def unset_oneshot(what: dict[str, Any]) -> str:
    """Take the choice back if its EFI variable still has it, that is, if systemd-boot has not
    deleted it. A kernel without EFI variables (PREEMPT_RT) cannot read it, and nothing is done."""
    if means.loader_variable(means.ONESHOT) == what["entry"]:
        machine.run("bootctl", "set-oneshot", "")
    return f"systemd-boot: {what['entry']} is not chosen for the next boot"
