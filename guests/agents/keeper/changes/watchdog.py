"""Arm a hardware watchdog that runs on across a boot. It restarts the machine if the new kernel
hangs before its driver takes the watchdog over."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Any

from keeper import machine
from keeper.changes import leaving
from keeper.machine import RefusedError

SETTIMEOUT = 0xC0045706
"""WDIOC_SETTIMEOUT (include/uapi/linux/watchdog.h)."""
GETTIMELEFT = 0x8004570A
"""WDIOC_GETTIMELEFT, in the same file."""
_HAS_NOT = (errno.EOPNOTSUPP, errno.ENOTTY)
"""errno values from a driver that does not implement an ioctl (watchdog_get_timeleft of
watchdog_dev.c; ioctl(2))."""
LEAST_SECONDS = leaving.CLEAN_SECONDS + 60
"""Shortest timeout of a watchdog. It is armed before the machine is shut down, and must not
restart the machine during a normal shutdown."""
_COUNTED_SECONDS = 5
"""Tolerance of the time left: some seconds may have passed, and the hardware may count in coarser
steps."""
STOP_ON_REBOOT = "/sys/module/watchdog/parameters/stop_on_reboot"
"""0: the kernel leaves watchdogs running (watchdog_core.c); -1: each driver decides."""
CLASS = "/sys/class/watchdog"
_HOLDERS = "/sys/module/watchdog/holders"
_SOFTWARE = "softdog"


def watchdogs() -> list[dict[str, str | None]]:
    """Return the facts of each watchdog, as in Documentation/ABI/testing/sysfs-class-watchdog.
    `driver` is the name of its module. `why` is the reason why it cannot be used across a boot, or
    empty."""
    devices = sorted(folder.name for folder in machine.at(CLASS).glob("watchdog*"))
    return [_facts(device) for device in devices]


def _facts(device: str) -> dict[str, str | None]:
    names = ("identity", "state", "timeout", "nowayout")
    facts = {name: machine.text(f"{CLASS}/{device}/{name}") for name in names}
    driver = _driver(device)
    if driver is None:  # a kernel without that driver would be restarted, too
        why = f"which driver {device} has is not known"
    elif driver == _SOFTWARE:
        why = f"{device} is software, and ends with its kernel"
    elif facts["state"] != "inactive":
        why = f"{device} is {facts['state']}, so it is left alone"
    elif facts["nowayout"] != "0":
        why = f"{device} could not be stopped: nowayout is not 0"
    else:
        why = ""
    return {"device": device, "driver": driver, **facts, "why": why}


def _driver(device: str) -> str | None:
    """Return the name of a watchdog's module, or None. Some drivers register their watchdog
    without the device that it is part of (i6300esb.c, softdog.c): then it is the module that uses
    the watchdog core, if only one does."""
    base = machine.at(f"{CLASS}/{device}/device/driver")
    for link in (base / "module", base):
        if link.exists():
            return link.resolve().name
    holders = [holder.name for holder in machine.at(_HOLDERS).glob("*")]
    return holders[0] if len(holders) == 1 else None


def plan(device: str, seconds: int) -> dict[str, Any]:
    """Plan to arm a watchdog. Raises RefusedError if somebody uses it, or if it could not be
    stopped again."""
    for found in watchdogs():
        if found["device"] == device:
            break
    else:
        raise RefusedError("watchdog", f"{device} is not there")
    if found["why"]:
        raise RefusedError("watchdog", found["why"])
    return {"seconds": seconds, **{name: found[name] for name in ("device", "identity", "driver")}}


def arm(what: dict[str, Any]) -> None:
    """Arm the watchdog, and close it without the magic V, so that it runs on
    (Documentation/watchdog/watchdog-api.rst). Raises RefusedError if the hardware accepts no
    timeout that is long enough."""
    with machine.writable(f"/dev/{what['device']}") as file:
        longest = max(what["seconds"], LEAST_SECONDS)
        if not any(_takes(file, seconds) for seconds in (longest, LEAST_SECONDS)):
            os.write(file, b"V")
            raise RefusedError(
                "watchdog", f"{what['device']} takes no time of {LEAST_SECONDS} s or more"
            )
        os.write(file, b"\0")
        left = _left(file)
        if left is not None and left < LEAST_SECONDS - _COUNTED_SECONDS:
            os.write(file, b"V")
            raise RefusedError(
                "watchdog", f"{what['device']} itself counts {left} s, and {LEAST_SECONDS} s or"
                " more are needed: its kernel makes up for that, and is gone by then",
            )  # fmt: skip


def _takes(file: int, seconds: int) -> bool:
    try:
        taken = fcntl.ioctl(file, SETTIMEOUT, struct.pack("i", seconds))
    except OSError:
        return False
    return bool(struct.unpack("i", taken)[0] >= LEAST_SECONDS)


def _left(file: int) -> int | None:
    """Return the seconds that are left on the hardware's own counter, or None if its driver cannot
    tell.

    For a timeout that is longer than the hardware can count, the running kernel pings the hardware
    in between (max_hw_heartbeat_ms, watchdog_dev.c). During a boot no kernel does so."""
    try:
        left = fcntl.ioctl(file, GETTIMELEFT, struct.pack("i", 0))
    except OSError as exc:
        if exc.errno in _HAS_NOT:
            return None
        raise
    return int(struct.unpack("i", left)[0])


def found_again(what: dict[str, Any]) -> dict[str, str | None] | None:
    """Return the facts of the watchdog that was armed, or None. After a boot it may have another
    number, and a kernel may not tell its identity."""
    known = (what["identity"], None)
    return next((found for found in watchdogs() if found["identity"] in known), None)


def disarm(what: dict[str, Any]) -> str:
    """Stop the watchdog. Its driver may not know that the watchdog runs until it is opened. Raises
    RefusedError if there is no such watchdog, or if it has nowayout, so that it would run on after
    it was opened."""
    found = found_again(what)
    if found is None:
        raise RefusedError("watchdog", f"there is no {what['identity']}")
    if found["nowayout"] == "1":
        raise RefusedError("watchdog", f"{what['identity']} cannot be stopped: nowayout is 1")
    with machine.writable(f"/dev/{found['device']}") as file:
        os.write(file, b"V")
    return f"{found['device']}: stopped"
