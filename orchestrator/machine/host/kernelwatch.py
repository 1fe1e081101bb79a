"""Follow a host's console for its kernel's reports about itself, and detect hosts that hang.

A kernel reports a task that waits for too long ("hung task"). If the QEMU that the host runs in
also uses next to no CPU, or a metal host's CPUs are idle, nothing is going to end that wait: the
trial ends, and quotes the report. A QEMU that is stopped (SIGSTOP, a debugger) is known by its
process's state: no deadline of silence is needed.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.waiting import repeatedly
from orchestrator.formats.kernelreports import KernelReport
from orchestrator.machine.host.console import Console

_TICK_SECONDS = 1.0
_STOPPED_TICKS = 3
"""Ticks in a row in which a stopped QEMU counts as stopped for good: a debugger or a profiler that
attaches stops it for a moment. Ticks are counted, and not seconds, because barometer itself may
have been stopped in between."""
_IDLE_SECONDS, _IDLE_SHARE = 15.0, 0.2
"""A machine is idle if it uses less than `_IDLE_SHARE` of one CPU for `_IDLE_SECONDS`."""
_FRESH_SECONDS = 55.0
"""Time for which a report counts: a task that still hangs is reported again after a minute."""
_OLD_SECONDS = 5.0
"""Time in which a machine that was not booted for this trial repeats its earlier messages."""
_TRACE_SECONDS = 3.0
"""Time from a panic's first line to the end of its call trace, over an emulated serial port."""


@dataclass(frozen=True)
class Activity:
    """What the QEMU that a host runs in does, or a metal host itself."""

    cpu_seconds: float
    """CPU seconds that it has used, and those that it waited for a CPU."""
    is_stopped: bool = False
    """True if a signal or a debugger has stopped the QEMU."""


class KernelWatch:
    """The reports of the kernel in one boot, on its console. Any thread may ask for them."""

    def __init__(
        self,
        console: Console,
        activity: Callable[[], Activity | None] = lambda: None,
        old_seconds: float = 0.0,
    ) -> None:
        """`activity` returns what the machine does; None if that is not known. A hung task that is
        reported in the first `old_seconds` hung before."""
        self._console, self._activity, self._old_seconds = console, activity, old_seconds
        self._began = math.inf
        self._hung_tasks, self._told = 0, -math.inf
        self._suspect: KernelReport | None = None
        self._cpu: deque[tuple[float, float]] = deque(
            maxlen=int(2 * _IDLE_SECONDS / _TICK_SECONDS)
        )
        self._stopped_ticks = 0
        self._on_hang: list[Callable[[], object]] = []
        self.is_suspect = False
        """True while a report of a hung task counts."""
        self.hung: KernelReport | None = None
        """Report of a hung task, once nothing on the machine makes progress any more."""
        self.is_stopped = False
        """True once the machine's QEMU is stopped and stays so."""

    def reports(self) -> tuple[KernelReport, ...]:
        self._console.refresh()
        return self._console.kernel.all()

    def broken(self) -> KernelReport | None:
        """Return the panic or oops, if any, with as much of its call trace as arrives within
        `_TRACE_SECONDS`."""
        end = time.monotonic() + _TRACE_SECONDS
        while (report := self._broken()) and not report.ended and time.monotonic() < end:
            time.sleep(0.1)
        return report

    def _broken(self) -> KernelReport | None:
        self._console.refresh()
        return self._console.kernel.broken()

    def on_hang(self, end_waits: Callable[[], object]) -> None:
        """Add a function that ends waits for the host if the host hangs or its QEMU is stopped.
        The watching thread calls each once."""
        self._on_hang.append(end_waits)

    def tick(self, now: float) -> None:
        """Check whether the host hangs, at `now` of a monotonic clock."""
        hung = [report for report in self.reports() if report.kind == "hung-task"]
        self._began = min(self._began, now)
        if new := hung[self._hung_tasks :]:
            self._hung_tasks = len(hung)
            if now - self._began >= self._old_seconds:
                self._suspect, self._told = new[0], now
        self.is_suspect = now - self._told < _FRESH_SECONDS
        activity = self._activity()
        if activity is not None:
            self._cpu.append((now, activity.cpu_seconds))
        self._stopped_ticks = self._stopped_ticks + 1 if activity and activity.is_stopped else 0
        if self.hung is not None or self.is_stopped:
            return
        if self._stopped_ticks >= _STOPPED_TICKS:  # it is idle, too, but that is not why
            self.is_stopped = True
        elif self.is_suspect and self._is_idle():
            self.hung = self._suspect
        else:
            return
        for end_waits in self._on_hang:
            end_waits()

    def _is_idle(self) -> bool:
        """True if the machine has been idle since the last report, for long enough."""
        recent = [sample for sample in self._cpu if sample[0] >= self._told]
        if not recent or recent[-1][0] - recent[0][0] < _IDLE_SECONDS:
            return False
        (start, before), (end, after) = recent[0], recent[-1]
        return (after - before) / (end - start) < _IDLE_SHARE


def watch_of_machine(
    console: Console, read_busy_seconds: Callable[[], float | None]
) -> KernelWatch:
    """Return the watch of a machine that runs in no QEMU. `read_busy_seconds` returns the seconds
    that its CPUs have worked, or None. It is called only while a hung task is reported, so that
    no measurement is disturbed. The console may begin with the reports of earlier trials."""

    def activity() -> Activity | None:
        seconds = read_busy_seconds() if kernel.is_suspect else None
        return None if seconds is None else Activity(seconds)

    kernel = KernelWatch(console, activity, _OLD_SECONDS)
    return kernel


@contextmanager
def watching_kernel(kernel: KernelWatch) -> Iterator[None]:
    """Check the kernel's reports in a thread while the block runs, even if the block waits."""

    def look() -> bool:
        kernel.tick(time.monotonic())
        return False

    with repeatedly(look, every=_TICK_SECONDS, name="kernel-watch"):
        yield


def read_activity(pid: int) -> Activity | None:
    """Return what a QEMU does; None once it is gone. Its CPU seconds are utime and stime of
    proc_pid_stat(5), plus the time in which its threads were ready to run and got no CPU
    (Documentation/scheduler/sched-stats.rst: the second number of schedstat): a QEMU that is
    starved is not idle."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    waited = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # it has ended
            waited += int(thread.read_text().split()[1])
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    # T: stopped by a signal, t: by a tracer; a stop is that of all threads
    return Activity(used + waited / 1e9, fields[0] in "Tt")
