"""Change the machine so that it can be put back, whenever the keeper or the machine is killed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keeper.changes import (
    entries,
    files,
    leaving,
    links,
    modules,
    pci,
    settings,
    systemd_boot,
    watchdog,
)
from keeper.journaling.journal import Entry, Journal
from keeper.journaling.kinds import by_hand
from keeper.machine import RefusedError, boot_id

What = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of change."""

    plan: Callable[..., What]
    """Return what is needed to undo the change. Called before anything is changed."""
    act: Callable[[What], object]
    undo: Callable[[What], str]
    """Undo the change, whether it was made, made in part, or undone before. Return what was
    done."""
    volatile: bool = False
    """True if a boot voids the change."""


def _nothing(what: What) -> None:
    """Do nothing: others make this change, and the keeper only undoes it."""


def _as_asked(**what: Any) -> What:
    return what


def _no_way_back(what: What) -> str:
    raise RefusedError("kernel-changed", f"{what['release']} is not proven to run again")


KINDS = {
    "write": Kind(settings.plan_write, settings.write, settings.unwrite, volatile=True),
    "modules": Kind(modules.plan, modules.load, modules.unload, volatile=True),
    "bind": Kind(pci.plan, pci.bind, pci.unbind, volatile=True),
    "tracing": Kind(_as_asked, _nothing, settings.end_tracing, volatile=True),
    "guest": Kind(settings.plan_guest, _nothing, settings.end_guest, volatile=True),
    "claim": Kind(files.plan_claim, _nothing, files.unclaim),
    "link": Kind(links.plan_link, links.link, links.unlink),
    "mount": Kind(links.plan_mount, links.mount, links.unmount, volatile=True),
    "put": Kind(files.plan_put, files.put, files.unput),
    "kernel": Kind(_as_asked, _nothing, _no_way_back),
    "leaving": Kind(leaving.plan, leaving.leave, leaving.stay, volatile=True),
    "watchdog": Kind(watchdog.plan, watchdog.arm, watchdog.disarm, volatile=True),
    "kexec": Kind(entries.plan_kexec, entries.load_kexec, entries.unload_kexec, volatile=True),
    "grub-entry": Kind(files.plan_put, files.put, files.unput),
    "grub-next": Kind(entries.plan_grub_next, entries.set_grub_next, entries.unset_grub_next),
    "loader-entry": Kind(
        systemd_boot.plan_entry, systemd_boot.make_entry, systemd_boot.remove_entry
    ),
    "loader-oneshot": Kind(
        systemd_boot.plan_oneshot, systemd_boot.set_oneshot, systemd_boot.unset_oneshot
    ),
}
BOOT_KINDS = frozenset(
    ("leaving", "watchdog", "kexec", "grub-entry", "grub-next", "loader-entry", "loader-oneshot")
)
"""Kinds that make the machine boot a kernel; they are of no use once it has booted."""


def failure(kind: str, what: What, why: str, advice: str = "") -> dict[str, Any]:
    """Return the report of a change that could not be put back, with what an admin does then."""
    return {"kind": kind, "what": what, "why": why, "by_hand": advice or by_hand(kind, what)}


class Steps:
    """Changes under one lease."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.journal = Journal()

    def take(self, kind: str, **request: Any) -> What:
        """Plan a change, write it down and make it. If the machine refuses it, undo it at once, as
        far as that is possible."""
        entry = self.journal.add(kind, self.token, KINDS[kind].plan(**request))
        try:
            KINDS[kind].act(entry.what)
        except (RefusedError, OSError):
            with contextlib.suppress(RefusedError, OSError):
                KINDS[kind].undo(entry.what)
                self.journal.strike(entry)
            raise
        return entry.what

    def put_back(self, chosen: Callable[[Entry], bool]) -> dict[str, Any]:
        """Undo the chosen entries, the latest first. Return {"done": [TEXT], "failed": [{"kind",
        "what", "why", "by_hand"}]}.

        If an undo fails, its entry stays in the journal, and the others are undone all the same.
        Lines that cannot be read are set aside, and reported in `failed`."""
        done: list[str] = []
        failed = self._set_aside()
        for entry in reversed(self.journal.entries):
            if not chosen(entry):
                continue
            try:
                undone = self._undo(entry)
                self.journal.strike(entry)
            except Exception as exc:  # noqa: BLE001  # whatever it is, undo the others
                is_known = isinstance(exc, (RefusedError, OSError))
                why = str(exc) if is_known else f"a bug: {type(exc).__name__}: {exc}"
                failed.append(failure(entry.kind, entry.what, why))
            else:
                done.append(undone)
        return {"done": done, "failed": failed}

    def _set_aside(self) -> list[dict[str, Any]]:
        if not (unreadable := self.journal.unreadable):
            return []
        first = f"line {unreadable[0].line}: {unreadable[0].why}"
        count = len(unreadable)
        try:
            kept = self.journal.set_unreadable_aside()
        except OSError as exc:
            why = f"{count} lines cannot be read ({first}), nor set aside: {exc.strerror}"
            return [failure("journal", {"path": self.journal.path}, why, "make room on its disk")]
        why = f"{count} lines could not be read ({first})"
        return [failure("journal", {"path": kept}, why, f"see {kept}; then remove it")]

    def _undo(self, entry: Entry) -> str:
        kind = KINDS[entry.kind]
        if kind.volatile and entry.boot_id != boot_id():
            return f"{entry.kind}: void since the machine was booted"
        return kind.undo(entry.what)
