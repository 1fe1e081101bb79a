"""Facts that the journal records for each kind of change, and what an admin does by hand if the
undo fails."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from keeper.journaling.records import Shape
from keeper.machine import STATE

BELOW = (STATE, "/lib/modules", "/usr/lib/modules", "/boot", "/efi", "/etc/systemd/system")
STARTS = ("/run/barometer", "/var/log/libvirt/qemu/barometer-")
"""Places of barometer's files: below a folder of BELOW, or at a path that begins as in STARTS."""


@dataclass(frozen=True)
class Record:
    shape: dict[str, Shape]
    """Facts that the undo needs. The shape is narrow: a change that nobody can have requested is
    never undone."""
    by_hand: str
    """Advice to an admin in place of the undo, as a format string of these facts."""


_STEPS = r"(?:/(?!\.\.?(?:/|\Z))[^/\n]+)"
_FILE = re.compile(rf"(?:{'|'.join(BELOW)}){_STEPS}+|(?:{'|'.join(STARTS)})[^/\n]*{_STEPS}*")
_SETTING = re.compile(rf"/(?:sys|proc/sys){_STEPS}+")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_DRIVER = re.compile(r"(?!\.\.?\Z)[^/\n]+")
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNIT = re.compile(r"(barometer-boot-[0-9]+\.service)?")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_ID = range(1 << 32)
_MODE = range(0o10000)

_PUT: dict[str, Shape] = {
    "path": _FILE, "content_base64": _BASE64, "mode": _MODE, "made": [str],
    "former": (None, {"content_base64": _BASE64, "mode": _MODE, "owner": [_ID]}),
}  # fmt: skip
_BIND: dict[str, Shape] = {
    "address": _ADDRESS, "driver": _DRIVER,
    "former": {"driver": (_DRIVER, None), "override": str, "command": (range(1 << 16), None),
               "power": (str, None)},
}  # fmt: skip

RECORDS = {
    "write": Record({"path": _SETTING, "value": str, "former": str}, "write {former} to {path}"),
    "modules": Record({"names": [str], "new": [str]}, "rmmod {new}"),
    "bind": Record(
        _BIND, "give {address} back to its driver ({former[driver]}), or restart the machine"
    ),
    "tracing": Record(
        {"instance": _NAME, "group": _NAME},
        "remove /sys/kernel/tracing/instances/{instance} and the probes of {group}",
    ),
    "guest": Record({"uuid": _UUID}, "end the QEMU with the UUID {uuid}"),
    "claim": Record({"paths": [_FILE]}, "remove {paths}"),
    "link": Record({"path": _FILE, "target": str, "made": [str]}, "remove the link {path}"),
    "mount": Record({"path": _FILE, "source": str}, "umount -l {path}"),
    "put": Record(_PUT, "make {path} as it was before, or remove it"),
    "kernel": Record({"release": str, "boot_id": str}, "boot {release}"),
    "leaving": Record(
        {"script": str, "unit": _UNIT, "boot_token": str, "time": float},
        "wait for the boot that was ordered, or restart the machine",
    ),
    "watchdog": Record(
        {"device": str, "seconds": int, "identity": (str, None), "driver": (str, None)},
        "stop the watchdog {device} ({identity}), or restart the machine",
    ),
    "kexec": Record({"kernel": str, "initrd": str, "cmdline": str}, "kexec -u"),
    "grub-entry": Record(_PUT, "take the menuentry 'barometer' out of {path}"),
    "grub-next": Record(
        {
            "entry": str,
            "prefix": re.compile("grub2?"),
            "folder": re.compile("/boot/grub2?"),
            "former": (str, None),
        },
        "{prefix}-editenv {folder}/grubenv unset next_entry",
    ),
    "loader-entry": Record({"paths": [_FILE], "made": [str]}, "remove {paths}"),
    "loader-oneshot": Record({"entry": str}, "bootctl set-oneshot ''"),
}


def by_hand(kind: str, what: dict[str, Any]) -> str:
    lists = {name: " ".join(item) for name, item in what.items() if isinstance(item, list)}
    return RECORDS[kind].by_hand.format(**{**what, **lists})
