"""A hardware watchdog that runs on over a boot: it restarts a machine whose kernel hangs before
its own driver takes the watchdog over."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Any

from keeper import leaving, machine
from keeper.machine import RefusedError

SETTIMEOUT = 0xC0045706
"""WDIOC_SETTIMEOUT (include/uapi/linux/watchdog.h)."""
GETTIMELEFT = 0x8004570A
"""WDIOC_GETTIMELEFT there."""
_HAS_NOT = (errno.EOPNOTSUPP, errno.ENOTTY)
"""By which a driver says so (watchdog_get_timeleft of watchdog_dev.c; ioctl(2))."""
LEAST_SECONDS = leaving.CLEAN_SECONDS + 60
"""It is armed before the machine is taken down, and must not bite while that goes well."""
_COUNTED_SECONDS = 5
"""That may be gone, or be less than a tick of the hardware's, when it is asked what is left."""
STOP_ON_REBOOT = "/sys/module/watchdog/parameters/stop_on_reboot"
"""0: the kernel leaves them running (watchdog_core.c); -1: as each driver has it."""
CLASS = "/sys/class/watchdog"
_HOLDERS = "/sys/module/watchdog/holders"
_SOFTWARE = "softdog"


def watchdogs() -> list[dict[str, str | None]]:
    """As of Documentation/ABI/testing/sysfs-class-watchdog; `driver` is its module's name, `why`
    says what is in the way of having it watch over a boot."""
    devices = sorted(folder.name for folder in machine.at(CLASS).glob("watchdog*"))
    return [_facts(device) for device in devices]


def _facts(device: str) -> dict[str, str | None]:
    names = ("identity", "state", "timeout", "nowayout")
    facts = {name: machine.text(f"{CLASS}/{device}/{name}") for name in names}
    driver = _driver(device)
    if driver is None:  # a kernel without it would be restarted, however well it is
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
    """Some register their watchdog without the device that it is part of (i6300esb.c, softdog.c):
    then it is the one module that uses the watchdog core, if it is one."""
    base = machine.at(f"{CLASS}/{device}/device/driver")
    for link in (base / "module", base):
        if link.exists():
            return link.resolve().name
    holders = [holder.name for holder in machine.at(_HOLDERS).glob("*")]
    return holders[0] if len(holders) == 1 else None


def plan(device: str, seconds: int) -> dict[str, Any]:
    """Raises RefusedError for one that somebody uses, or that could not be stopped again."""
    for found in watchdogs():
        if found["device"] == device:
            break
    else:
        raise RefusedError("watchdog", f"{device} is not there")
    if found["why"]:
        raise RefusedError("watchdog", found["why"])
    return {"seconds": seconds, **{name: found[name] for name in ("device", "identity", "driver")}}


def arm(what: dict[str, Any]) -> None:
    """Closed without the magic V it runs on (Documentation/watchdog/watchdog-api.rst). Raises
    RefusedError where the hardware takes no time that is long enough."""
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
    """What the hardware counts. Of one that can count to less than the time it was given, the
    kernel delays the end (max_hw_heartbeat_ms, watchdog_dev.c), and no kernel does over a boot.
    None where its driver does not tell."""
    try:
        left = fcntl.ioctl(file, GETTIMELEFT, struct.pack("i", 0))
    except OSError as exc:
        if exc.errno in _HAS_NOT:
            return None
        raise
    return int(struct.unpack("i", left)[0])


def found_again(what: dict[str, Any]) -> dict[str, str | None] | None:
    """It has another number after a boot, perhaps; a kernel may not tell its identity."""
    known = (what["identity"], None)
    return next((found for found in watchdogs() if found["identity"] in known), None)


def disarm(what: dict[str, Any]) -> str:
    """Whether its driver knows that it runs or not: opened, it does. Raises RefusedError where it
    is not there, or would only run on for having been opened."""
    found = found_again(what)
    if found is None:
        raise RefusedError("watchdog", f"there is no {what['identity']}")
    if found["nowayout"] == "1":
        raise RefusedError("watchdog", f"{what['identity']} cannot be stopped: nowayout is 1")
    with machine.writable(f"/dev/{found['device']}") as file:
        os.write(file, b"V")
    return f"{found['device']}: stopped"
