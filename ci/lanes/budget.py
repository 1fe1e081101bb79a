"""ci/budget.toml: how many seconds each lane of a landing may take. Who makes one longer raises
the number there, in the open."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ci.lanes.groups import ROOT

FILE = ROOT / "ci/budget.toml"
_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY_SHARE = 0.1
"""Of one CPU: from here on, what other work on this machine takes makes its times no measure."""


def read_budget(file: Path = FILE) -> dict[str, int]:
    """Lane -> seconds. Raises ValueError for what is no number of seconds."""
    found = tomllib.loads(file.read_text())["seconds"]
    for lane, seconds in found.items():
        if not isinstance(seconds, int) or seconds <= 0:
            raise ValueError(f"{file.name}: {lane} = {seconds!r} is no number of seconds")
    return dict(found)


def exceeded(spent: Mapping[str, float], budget: Mapping[str, int]) -> list[str]:
    """A line for each lane that took longer than it may, or has no number."""
    lines = []
    for lane, seconds in spent.items():
        if lane not in budget:
            lines.append(f"{lane}: {seconds:.0f} s, and no number in ci/budget.toml")
        elif seconds > budget[lane]:
            lines.append(f"{lane}: {seconds:.0f} s, of {budget[lane]} in ci/budget.toml")
    return lines


@dataclass
class OtherWork:
    """CPU seconds of the processes that were on this machine before."""

    before: dict[tuple[int, int], float]
    """(process id, start time) -> CPU seconds."""

    @classmethod
    def begin(cls) -> OtherWork:
        return cls(_cpu_seconds())

    def is_busy(self, elapsed: float) -> bool:
        """Whether others used the CPUs since, so that nothing can be told by the clock."""
        now = _cpu_seconds()
        spent = sum(
            now[process] - seconds for process, seconds in self.before.items() if process in now
        )
        return spent > _BUSY_SHARE * elapsed


def _cpu_seconds() -> dict[tuple[int, int], float]:
    """Of all processes but this one and its ancestors. proc_pid_stat(5): fields 14 and 15 are user
    and system time without children, 22 is the start."""
    ours = set()
    pid = os.getpid()
    while pid > 1 and (fields := _stat(pid)):
        ours.add(pid)
        pid = int(fields[1])
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        if process not in ours and (fields := _stat(process)):
            found[process, int(fields[19])] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def _stat(pid: int) -> list[str]:
    """From field 3 on; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
