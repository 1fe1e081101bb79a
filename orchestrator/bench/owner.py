"""Which process a record is of, and what proves that this process has ended.

A process id alone proves nothing: it is another process's in another PID namespace, on another
machine with the same home, and after the next boot.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")


class Fate(NamedTuple):
    """What became of a process."""

    state: Literal["alive", "ended", "unknown"]
    why: str


@dataclass(frozen=True)
class Owner:
    """A process, by all that it takes to tell it from any other."""

    pid: int
    started: int
    """Clock ticks since boot (proc_pid_stat(5), field 22)."""
    pid_namespace: str
    """As /proc/PID/ns/pid says it: unique among those that exist."""
    boot: str
    """The boot id of its kernel."""
    machine: str
    """machine-id(5); "" where there is none, as in a container."""
    host: str
    """The name of the machine: copies of a machine's disk have the same machine-id."""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(
            pid, process_start(pid) or 0, _link("/proc/self/ns/pid"), _text(_BOOT_ID),
            _text(_MACHINE_ID), os.uname().nodename,
        )  # fmt: skip

    def fate(self) -> Fate:
        """Never `ended` without a proof."""
        here = Owner.here()
        if not (self.boot and here.boot and self.pid_namespace and here.pid_namespace):
            return Fate("unknown", "/proc does not tell which boot and PID namespace this is")
        if self.boot != here.boot:
            same = self.machine and (self.machine, self.host) == (here.machine, here.host)
            if same:
                return Fate("ended", "this machine was booted since")
            return Fate("unknown", f"it ran on another machine, {self.host}")
        if self.pid_namespace != here.pid_namespace:
            return Fate("unknown", f"it ran in another PID namespace, of {self.host}")
        if _link("/proc/self") != str(here.pid):
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
    """A process's start in clock ticks since boot; with its id it names it until the next boot.
    None: there is none, or it has ended and its parent has not asked yet."""
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
