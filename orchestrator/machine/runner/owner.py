"""The process that a record belongs to, and the proof that this process has ended.

A process id alone proves nothing: in another PID namespace, on another machine with the same home,
or after the next boot it is another process's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")


class Fate(NamedTuple):
    """State of a process, and why it is known or unknown."""

    state: Literal["alive", "ended", "unknown"]
    why: str


@dataclass(frozen=True)
class Owner:
    """A process, with all that tells it from any other."""

    pid: int
    started: int
    """Start of the process, in clock ticks since boot (proc_pid_stat(5), field 22)."""
    pid_namespace: str
    """Name of the namespace from /proc/PID/ns/pid: unique among those that exist."""
    boot: str
    """The boot id of its kernel."""
    machine: str
    """machine-id(5); "" if there is none, as in a container."""
    host: str
    """The name of the machine: copies of a machine's disk have the same machine-id."""

    @classmethod
    def here(cls) -> Owner:
        """Return the owner that stands for this process."""
        pid = os.getpid()
        return cls(
            pid, process_start(pid) or 0, _link("/proc/self/ns/pid"), _text(_BOOT_ID),
            _text(_MACHINE_ID), os.uname().nodename,
        )  # fmt: skip

    def fate(self) -> Fate:
        """Find out what became of the process; `ended` is never returned without a proof."""
        this = Owner.here()
        if not (self.boot and this.boot and self.pid_namespace and this.pid_namespace):
            return Fate("unknown", "/proc does not tell which boot and PID namespace this is")
        if self.boot != this.boot:
            same = self.machine and (self.machine, self.host) == (this.machine, this.host)
            if same:
                return Fate("ended", "this machine was booted since")
            return Fate("unknown", f"it ran on another machine, {self.host}")
        if self.pid_namespace != this.pid_namespace:
            return Fate("unknown", f"it ran in another PID namespace, of {self.host}")
        if _link("/proc/self") != str(this.pid):
            return Fate("unknown", "/proc is that of another PID namespace")
        return _fate_of(self.pid, self.started)


def _fate_of(pid: int, started: int) -> Fate:
    start = process_start(pid)
    if start == started:
        return Fate("alive", f"as process {pid}")
    if start is not None:
        return Fate("ended", f"process {pid} is a later one")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return Fate("ended", f"there is no process {pid}")
    except PermissionError:
        pass
    if Path(f"/proc/{pid}").exists():
        return Fate("ended", f"process {pid} waits for its parent only")
    return Fate("unknown", f"/proc hides process {pid}, which is another user's")


def process_start(pid: int) -> int | None:
    """Return a process's start in clock ticks since boot. Start and id together identify the
    process until the next boot. None if there is no such process, or if it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
