"""Change settings of the running kernel, and end the tracing and the guests that run on it. A boot
voids all of these."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

from keeper import machine
from keeper.machine import RefusedError

_TREES = ("/sys", "/proc/sys")
_TRACEFS = "/sys/kernel/tracing"
_PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"
_END_SECONDS = 10.0


def plan_write(path: str, value: str) -> dict[str, Any]:
    _check(path)
    return {"path": path, "value": value, "former": _setting(path)}


def _check(path: str) -> None:
    real = os.path.realpath(machine.at(path))
    if os.path.normpath(path) != path or not any(
        path.startswith(f"{tree}/") and real.startswith(f"{os.path.realpath(machine.at(tree))}/")
        for tree in _TREES
    ):
        raise RefusedError("path-refused", f"{path} is not below {' or '.join(_TREES)}")


def write(what: dict[str, Any]) -> None:
    machine.set_value(what["path"], what["value"])


def unwrite(what: dict[str, Any]) -> str:
    path, former = what["path"], what["former"]
    _check(path)
    if _setting(path) != former:
        machine.set_value(path, former)
    if (now := _setting(path)) != former:
        raise RefusedError("setting-refused", f"{path} is {now}, and was {former}")
    return f"{path}: {former}"


def _setting(path: str) -> str:
    try:
        return machine.chosen(machine.at(path).read_text())
    except OSError as exc:
        raise RefusedError(
            "setting-refused", f"{path} cannot be read, so not put back either: {exc.strerror}"
        ) from exc


def end_tracing(what: dict[str, Any]) -> str:
    """Remove the instance and the probes of the group, as far as they are still there."""
    tracefs, instance, group = machine.at(_TRACEFS), what["instance"], what["group"]
    if (tracefs / "kprobe_events").exists():
        places = {"PATH": _PROGRAMS, "T": tracefs, "I": tracefs / "instances" / instance,
                  "G": group}  # fmt: skip
        lines = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in places.items())
        functions = (pkgutil.get_data("keeper", "tracing.sh") or b"").decode()
        with machine.refused_as("tracing", "program-failed", "program-timeout"):
            machine.run("/bin/sh", "-c", f'{lines}{functions}undo\n[ ! -d "$I" ]\n')
    return f"tracing {instance}, {group}: cleared"


def plan_guest(uuid: str) -> dict[str, Any]:
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid):
        raise RefusedError("bad-request", f"{uuid!r} is no UUID of a guest")
    return {"uuid": uuid}


def end_guest(what: dict[str, Any]) -> str:
    """Kill the QEMU that has the guest's UUID on its command line, and wait for its end."""
    ours = [
        folder for folder in machine.at("/proc").glob("[0-9]*")
        if _is_qemu(folder, what["uuid"])
    ]  # fmt: skip
    for folder in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(folder.name), signal.SIGKILL)
    deadline = time.monotonic() + _END_SECONDS
    while any(_is_qemu(folder, what["uuid"]) for folder in ours):
        if time.monotonic() > deadline:
            raise RefusedError(
                "guest-stays", f"QEMU of guest {what['uuid']} has not ended within"
                f" {_END_SECONDS:.0f} s of being killed",
            )  # fmt: skip
        time.sleep(0.05)
    return f"guest {what['uuid']}: {'ended' if ours else 'not running'}"


def _is_qemu(folder: Path, uuid: str) -> bool:
    """True if the process is the QEMU of this guest, and has not ended. The rule is that of
    `runs_domain` in orchestrator/machine/runner/state.py, which is not on the machine.

    A process that has exited has no command line, though other threads of it may still be
    unmapping. If it waits only for its parent to call wait(2), there are no such threads."""
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return "qemu" in os.path.basename(words[0]) and ("-uuid", uuid) in zip(words, words[1:])
