"""What the journal has of each kind of change, and what an admin does where its undo fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keeper.records import Shape


@dataclass(frozen=True)
class Record:
    shape: dict[str, Shape]
    """What the undo needs."""
    by_hand: str
    """A format of these."""


_PUT: dict[str, Shape] = {
    "path": str, "content_base64": str, "mode": int, "made": [str],
    "former": (None, {"content_base64": str, "mode": int, "owner": [int]}),
}  # fmt: skip
_BIND: dict[str, Shape] = {
    "address": str, "driver": str,
    "former": {"driver": (str, None), "override": str, "command": (int, None),
               "power": (str, None)},
}  # fmt: skip

RECORDS = {
    "write": Record({"path": str, "value": str, "former": str}, "write {former} to {path}"),
    "modules": Record({"names": [str], "new": [str]}, "rmmod {new}"),
    "bind": Record(
        _BIND, "give {address} back to its driver ({former[driver]}), or restart the machine"
    ),
    "tracing": Record(
        {"instance": str, "group": str},
        "remove /sys/kernel/tracing/instances/{instance} and the probes of {group}",
    ),
    "guest": Record({"uuid": str}, "end the QEMU with the UUID {uuid}"),
    "claim": Record({"paths": [str]}, "remove {paths}"),
    "link": Record({"path": str, "target": str, "made": [str]}, "remove the link {path}"),
    "mount": Record({"path": str, "source": str}, "umount -l {path}"),
    "put": Record(_PUT, "make {path} as it was before, or remove it"),
    "kernel": Record({"release": str, "boot_id": str}, "boot {release}"),
    "leaving": Record(
        {"script": str, "unit": str, "boot_token": str, "time": float},
        "wait for the boot that was ordered, or restart the machine",
    ),
    "watchdog": Record(
        {"device": str, "seconds": int, "identity": (str, None), "driver": (str, None)},
        "stop the watchdog {device} ({identity}), or restart the machine",
    ),
    "kexec": Record({"kernel": str, "initrd": str, "cmdline": str}, "kexec -u"),
    "grub-entry": Record(_PUT, "take the menuentry 'barometer' out of {path}"),
    "grub-next": Record(
        {"entry": str, "prefix": str, "folder": str, "former": (str, None)},
        "{prefix}-editenv {folder}/grubenv unset next_entry",
    ),
    "loader-entry": Record({"paths": [str], "made": [str]}, "remove {paths}"),
    "loader-oneshot": Record({"entry": str}, "bootctl set-oneshot ''"),
}


def by_hand(kind: str, what: dict[str, Any]) -> str:
    lists = {name: " ".join(item) for name, item in what.items() if isinstance(item, list)}
    return RECORDS[kind].by_hand.format(**{**what, **lists})
