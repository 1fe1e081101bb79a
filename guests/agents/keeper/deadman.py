"""The dead man's switch: under a kernel that barometer booted, restart the machine into its own
kernel when the runner is not there. A candidate without a network looks just like that."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keeper import leases, machine
from keeper.machine import STATE, RefusedError
from keeper.steps import Steps

CONFIRMED = "/run/barometer.confirmed"
"""There once the runner has reached the machine under this kernel."""
PROGRAM = f"{STATE}/keeper.pyz"
UNIT = "/etc/systemd/system/barometer-deadman.service"
_LINK = "/etc/systemd/system/sysinit.target.wants/barometer-deadman.service"
_HEAD = "[Unit]\nDescription=Restart into the machine's own kernel when barometer is not there\n"
"""By which a unit is known to be barometer's."""
_EVERY_SECONDS = 10.0
_CLEAN_SECONDS = 20.0


def install(steps: Steps, seconds: int) -> None:
    """A service that starts as soon as the file systems are mounted, and needs nothing else.
    Raises RefusedError on a machine without systemd, or where something else has its name."""
    if not machine.has_systemd():
        raise RefusedError("no-systemd", "a dead man's switch is a service of systemd")
    _clear_left(steps)
    machine.replace(machine.at(PROGRAM), _own_archive())
    steps.take("link", path=_LINK, target=UNIT)
    unit = (
        f"{_HEAD}ConditionKernelCommandLine={machine.TOKEN_WORD.rstrip('=')}\n"
        "DefaultDependencies=no\n"
        "After=local-fs.target\n"
        "IgnoreOnIsolate=yes\n"
        "FailureAction=reboot-force\n"
        "[Service]\n"
        f"ExecStart=/usr/bin/env python3 -I {PROGRAM} deadman {seconds}\n"
    )
    content = base64.b64encode(unit.encode()).decode()
    steps.take("put", path=UNIT, content_base64=content, mode=0o644)


def _clear_left(steps: Steps) -> None:
    """Of a switch that no journal names: it was put there by a run whose journal is lost."""
    unit = machine.at(UNIT)
    is_named = any(entry.what.get("path") == UNIT for entry in steps.journal.entries)
    is_switch = not unit.is_symlink() and (machine.text(UNIT) or "").startswith(_HEAD)
    if is_switch and not is_named:
        unit.unlink()
    if os.path.lexists(unit):
        raise RefusedError("exists", f"{UNIT} is there already, and not of barometer's")


def _own_archive() -> bytes:
    """The zip archive that this module was read from."""
    archive: Any = __spec__.loader if __spec__ else None
    return Path(archive.archive).read_bytes()


def confirm(steps: Steps) -> None:
    """The runner is there: from now on it is the lease that tells."""
    if not machine.at(CONFIRMED).exists():
        steps.take("claim", paths=[CONFIRMED])
        machine.replace(machine.at(CONFIRMED), b"")


def watch(seconds: float) -> None:
    """Return under the machine's own kernel; else never, but with the machine."""
    if machine.is_under_test():
        deadline = machine.boottime() + seconds
        restart(_lost(deadline))


def _lost(deadline: float) -> str:
    """Wait for the runner to be gone; how that showed."""
    while not machine.at(CONFIRMED).exists():
        if machine.boottime() > deadline:
            return "no runner came in time"
        time.sleep(1)
    looks = 0
    while looks < 2:
        time.sleep(_EVERY_SECONDS)
        looks = 0 if held() else looks + 1
    return "the runner's lease has expired"


def held() -> bool:
    """A lease lives, or has expired less than its own length ago: what runs there is lost with
    the machine, and the runner's connection may be bad. Without the lock, which a keeper may hang
    with. What is read while it is written is seen again at the next look, and what is damaged
    has expired."""
    try:
        return any(lease.left() > -lease.ttl for lease in leases.leases())
    except OSError:
        return False


def restart(why: str) -> None:
    """Into the default kernel, which is the machine's own: as cleanly as it can be done soon."""
    with contextlib.suppress(OSError):
        machine.set_value("/dev/kmsg", f"barometer: {why}: restarting into the default kernel")
    _try(os.sync)
    for force in (("--force",), ("--force", "--force")):
        _try(functools.partial(os.execvp, "systemctl", ["systemctl", "reboot", *force]))
        time.sleep(_CLEAN_SECONDS)
    machine.set_value("/proc/sysrq-trigger", "b")


def _try(act: Callable[[], object]) -> None:
    """In a process that is waited for, but not for ever: it may hang in the kernel, and so would
    subprocess.Popen, with a program on a disk that does not answer."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(1)
    deadline = time.monotonic() + _CLEAN_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.1)
