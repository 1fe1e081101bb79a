"""ci/budget.toml: how many seconds each lane of a landing may take. Who makes one longer raises
the number there, in the open."""

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
"""Of one CPU: from here on, what other work on this machine takes makes its times no measure."""


def read_budget(file: Path = FILE) -> dict[str, int]:
    """Lane -> seconds. Raises ValueError for what is no number of seconds."""
    try:
        found = dict(tomllib.loads(file.read_text())["seconds"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"{file}: no table of seconds: {exc}") from exc
    for lane, seconds in found.items():
        if not isinstance(seconds, int) or seconds <= 0:
            raise ValueError(f"{file.name}: {lane} = {seconds!r} is no number of seconds")
    return found


def exceeded(spent: Mapping[str, float], budget: Mapping[str, int]) -> list[str]:
    """A line for each lane that took longer than it may, or has no number."""
    lines = []
    for lane, seconds in spent.items():
        if lane not in budget:
            lines.append(f"{lane}: {seconds:.0f} s, and no number in ci/budget.toml")
        elif seconds > budget[lane]:
            lines.append(f"{lane}: {seconds:.0f} s, of {budget[lane]} in ci/budget.toml")
    return lines


class OtherWork:
    """CPU seconds of processes that are not of this run, while the block runs."""

    def __init__(self, marker: str) -> None:
        """`marker`: words in the command line or the environment of all that this run starts and
        that is nobody's child any more, as a QEMU under libvirt is."""
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
        """Whether others used the CPUs, so that nothing can be told by the clock."""
        self.look()
        return sum(self.spent.values()) > _BUSY_SHARE * (time.monotonic() - self._begun)

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Take down what each has used by now. What begins later had used nothing before."""
        seen = self._seen()
        if self._before is None:
            self._before = seen
        for process, seconds in seen.items():
            self.spent[process] = seconds - self._before.get(process, 0.0)

    def _seen(self) -> dict[tuple[int, int], float]:
        """CPU seconds of all processes but those of this run. proc_pid_stat(5): field 4 is the
        parent, 14 and 15 are user and system time without children, 22 is the start."""
        stats = {
            int(folder.name): fields for folder in Path("/proc").glob("[0-9]*")
            if (fields := _stat(int(folder.name)))
        }  # fmt: skip
        parents = {pid: int(fields[1]) for pid, fields in stats.items()}
        ours = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        above = os.getpid()
        while (above := parents.get(above, 0)) > 1:  # what waits for this run
            ours.add(above)
        return {
            (pid, int(fields[19])): (int(fields[11]) + int(fields[12])) / _TICKS
            for pid, fields in stats.items()
            if pid not in ours and self._marker not in _words(pid)
        }


def _stat(pid: int) -> list[str]:
    """From field 3 on; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _words(pid: int) -> bytes:
    """Command line and environment; empty where they may not be read."""
    try:
        return b"\0".join(
            Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")
        )
    except OSError:
        return b""
