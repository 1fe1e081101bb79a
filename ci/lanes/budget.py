"""Read ci/budget.toml: how many seconds each lane of a landing may take. A change that makes a
lane longer raises its number there, in the open."""

from __future__ import annotations

import os
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

from ci.lanes.groups import ROOT

FILE = ROOT / "ci/budget.toml"
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK_SECONDS = 5.0
_BUSY_SHARE = 0.1
"""Share of one CPU. If other work on this machine uses more, the clock measures nothing."""


def read_budget(file: Path = FILE) -> dict[str, int]:
    """Return lane -> seconds. Raises ValueError for a file without such a table, and for a value
    that is not a number of seconds."""
    try:
        seconds_by_lane = dict(tomllib.loads(file.read_text())["seconds"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"{file}: no table of seconds: {exc}") from exc
    for lane, seconds in seconds_by_lane.items():
        if not isinstance(seconds, int) or seconds <= 0:
            raise ValueError(f"{file.name}: {lane} = {seconds!r} is not a number of seconds")
    return seconds_by_lane


def find_exceeded(spent: Mapping[str, float], budget: Mapping[str, int]) -> list[str]:
    """Return a line for each lane that took longer than its budget or has none."""
    lines = []
    for lane, seconds in spent.items():
        if lane not in budget:
            lines.append(f"{lane}: {seconds:.0f} s, and no number in ci/budget.toml")
        elif seconds > budget[lane]:
            lines.append(f"{lane}: {seconds:.0f} s, of {budget[lane]} in ci/budget.toml")
    return lines


class OtherWork:
    """Measure the CPU seconds of other processes than this run's while the block runs."""

    def __init__(self, marker: str) -> None:
        """`marker` is a text in the command line or the environment of every process that this run
        starts and that loses its parent, as a QEMU under libvirt does."""
        self._marker = marker.encode()
        self.spent: dict[tuple[int, int], float] = {}
        """(process id, start time) -> CPU seconds since the block began."""
        self._before: dict[tuple[int, int], float] | None = None
        self._begun = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> OtherWork:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def is_busy(self) -> bool:
        """True if other processes used the CPUs so much that the clock measures nothing."""
        self.look()
        return sum(self.spent.values()) > _BUSY_SHARE * (time.monotonic() - self._begun)

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Record what each process has used by now. A process that starts later begins at 0."""
        usage = self._read_usage()
        if self._before is None:
            self._before = usage
        for process, seconds in usage.items():
            self.spent[process] = seconds - self._before.get(process, 0.0)

    def _read_usage(self) -> dict[tuple[int, int], float]:
        """Return the CPU seconds of all processes except this run's. proc_pid_stat(5): field 4 is
        the parent, 14 and 15 are user and system time without children, 22 is the start."""
        stats = {
            int(folder.name): fields for folder in Path("/proc").glob("[0-9]*")
            if (fields := _read_stat(int(folder.name)))
        }  # fmt: skip
        parents = {pid: int(fields[1]) for pid, fields in stats.items()}
        ours = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        above = os.getpid()
        while (above := parents.get(above, 0)) > 1:  # the processes that wait for this run
            ours.add(above)
        return {
            (pid, int(fields[19])): (int(fields[11]) + int(fields[12])) / _TICKS
            for pid, fields in stats.items()
            if pid not in ours and self._marker not in _read_words(pid)
        }


def _read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from field 3 on; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _read_words(pid: int) -> bytes:
    """Return a process's command line and environment; empty if they are not readable."""
    try:
        return b"\0".join(
            Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")
        )
    except OSError:
        return b""
