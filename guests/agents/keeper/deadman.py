"""The dead man's switch: under a kernel that barometer booted, restart the machine into its own
kernel if the runner is gone. A kernel under test whose network does not work has lost its runner,
too."""

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
"""File that exists once the runner has reached the machine under this kernel."""
PROGRAM = f"{STATE}/keeper.pyz"
UNIT = "/etc/systemd/system/barometer-deadman.service"
_LINK = "/etc/systemd/system/sysinit.target.wants/barometer-deadman.service"
_HEAD = "[Unit]\nDescription=Restart into the machine's own kernel when barometer is not there\n"
"""Beginning of the unit, by which barometer's is recognized."""
_EVERY_SECONDS = 10.0
_CLEAN_SECONDS = 20.0


def install(steps: Steps, seconds: int) -> None:
    """Install a service that starts as soon as the file systems are mounted, and needs nothing
    else. Raises RefusedError on a machine without systemd, or if another unit has its name."""
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
    """Remove the unit of a switch that the journal does not name, because the journal of the run
    that installed it was lost. Raises RefusedError if another unit has its name."""
    unit = machine.at(UNIT)
    is_named = any(entry.what.get("path") == UNIT for entry in steps.journal.entries)
    is_switch = not unit.is_symlink() and (machine.text(UNIT) or "").startswith(_HEAD)
    if is_switch and not is_named:
        unit.unlink()
    if os.path.lexists(unit):
        raise RefusedError("exists", f"{UNIT} is there already, and not of barometer's")


def _own_archive() -> bytes:
    """Return the zip archive that this module was read from."""
    archive: Any = __spec__.loader if __spec__ else None
    return Path(archive.archive).read_bytes()


def confirm(steps: Steps) -> None:
    """Record that the runner has reached the machine. From now on its lease shows whether it is
    still there."""
    if not machine.at(CONFIRMED).exists():
        steps.take("claim", paths=[CONFIRMED])
        machine.replace(machine.at(CONFIRMED), b"")


def watch(seconds: float) -> None:
    """Under a kernel that barometer booted, wait until the runner is gone, and then restart the
    machine. Under the machine's own kernel, return at once."""
    if machine.is_under_test():
        deadline = machine.boottime() + seconds
        restart(_lost(deadline))


def _lost(deadline: float) -> str:
    """Wait until the runner is gone, and return the evidence of that, as text."""
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
    """True if a lease is live, or has expired less than its own length ago: a restart loses what
    runs on the machine, and the runner may only have a bad connection.

    Reads without the lock, because a keeper that has it may hang. A lease that is being written is
    read again at the next look, and one that is damaged has expired."""
    try:
        return any(lease.left() > -lease.ttl for lease in leases.leases())
    except OSError:
        return False


def restart(why: str) -> None:
    """Restart into the default kernel, which is the machine's own, as cleanly as a short time
    allows."""
    with contextlib.suppress(OSError):
        machine.set_value("/dev/kmsg", f"barometer: {why}: restarting into the default kernel")
    _try(os.sync)
    for force in (("--force",), ("--force", "--force")):
        _try(functools.partial(os.execvp, "systemctl", ["systemctl", "reboot", *force]))
        time.sleep(_CLEAN_SECONDS)
    machine.set_value("/proc/sysrq-trigger", "b")


def _try(act: Callable[[], object]) -> None:
    """Run `act` in a child process, and wait for its end no longer than _CLEAN_SECONDS: it may
    hang in the kernel. subprocess.Popen is not used, because it would hang, too, for a program on
    a disk that does not answer."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(1)
    deadline = time.monotonic() + _CLEAN_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.1)
