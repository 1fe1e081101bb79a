"""Take the machine down for a boot, or call the boot off before it goes down."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from keeper import machine
from keeper.journaling import records
from keeper.journaling.records import UnreadableError
from keeper.machine import RefusedError

PID = f"{machine.STATE}/leaving.pid"
CLEAN_SECONDS = 180
"""Time for services to stop and file systems to be unmounted. After it the machine is taken down
without waiting for them."""


def plan(script: str, unit: str, boot_token: str) -> dict[str, Any]:
    """Plan the boot. `boot_token` is the token on the command line of the kernel to boot; empty
    for the machine's own kernel."""
    return {"script": script, "unit": unit if machine.has_systemd() else "",
            "boot_token": boot_token, "time": machine.realtime_ns() / 1e9}  # fmt: skip


def leave(what: dict[str, Any]) -> None:
    """Start the script so that it outlives the keeper: in a unit that systemd leaves running while
    it stops everything else, or without systemd in a session of its own."""
    argv = ["/bin/sh", "-c", what["script"]]
    if what["unit"]:
        machine.run(
            "systemd-run", "--quiet", "--collect", f"--unit={what['unit']}",
            "--property=DefaultDependencies=no", *argv,
        )  # fmt: skip
        return
    # the shell waits for a word, which comes once its PID is recorded: so `stay` can end it before
    # it has done anything
    argv[2] = f"read -r go || exit; {what['script']}"
    process = subprocess.Popen(
        argv, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd=Path("/"),
    )  # fmt: skip
    machine.replace(machine.at(PID), records.seal({"pid": process.pid}))
    if process.stdin is not None:
        with process.stdin as word:
            word.write(b"go\n")


def stay(what: dict[str, Any]) -> str:
    """Call the boot off. Raises RefusedError if it is too late: the machine goes down, and will be
    back."""
    if what["unit"]:
        machine.run("systemctl", "stop", what["unit"], accept=(0, 1, 5))  # 5: the unit has ended
        if machine.run("systemctl", "is-system-running", accept=range(5)).strip() == "stopping":
            raise RefusedError("going-down", "the machine is going down for a boot")
    elif (content := machine.text(PID)) is not None:
        with contextlib.suppress(ProcessLookupError, UnreadableError):
            pid = records.unseal(content.encode(), {"pid": int})["pid"]
            os.killpg(pid, signal.SIGKILL)
        machine.at(PID).unlink()
    return "boot: called off"
