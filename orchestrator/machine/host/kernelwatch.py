"""Follow a host's console for its kernel's reports about itself, and detect hosts that hang.

A kernel reports a task that waits for too long ("hung task"). If the QEMU that the host runs in
also uses next to no CPU, nothing is going to end that wait: the trial ends, and quotes the report.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.base.waiting import repeatedly
from orchestrator.formats.kernelreports import KernelReport, KernelReports

_TICK_SECONDS = 1.0
_IDLE_SECONDS, _IDLE_SHARE = 15.0, 0.2
"""A QEMU is idle if it uses less than `_IDLE_SHARE` of one CPU for `_IDLE_SECONDS`."""
_FRESH_SECONDS = 55.0
"""Time for which a report counts: a task that still hangs is reported again after a minute."""
_TRACE_SECONDS = 3.0
"""Time from a panic's first line to the end of its call trace, over an emulated serial port."""
_CHUNK = 1 << 20


class KernelWatch:
    """The reports of the kernel in one boot. `look` reads the console's new output; any thread may
    call it."""

    def __init__(
        self,
        console: Path,
        start: int = 0,
        cpu_seconds: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`start`: bytes of the console that belong to another boot. `cpu_seconds` returns the CPU
        time that the machine's QEMU has used; None if there is no QEMU."""
        self._console, self._read, self._cpu_seconds = console, start, cpu_seconds
        self._lock = threading.Lock()
        self._reports = KernelReports()
        self._hung_tasks, self._told = 0, 0.0
        self._cpu: deque[tuple[float, float]] = deque(maxlen=int(2 * _IDLE_SECONDS))
        self._on_hang: Callable[[], None] = lambda: None
        self.hung: KernelReport | None = None
        """Report of a hung task, once nothing on the machine makes progress any more."""

    def look(self) -> None:
        """Read the console's new output."""
        with self._lock:
            try:
                with self._console.open("rb") as file:
                    file.seek(self._read)
                    while chunk := file.read(_CHUNK):
                        self._read += len(chunk)
                        self._reports.take(chunk.decode(errors="replace"))
            except FileNotFoundError:
                return

    def reports(self) -> tuple[KernelReport, ...]:
        self.look()
        return self._reports.all()

    def broken(self) -> KernelReport | None:
        """Return the panic or oops, if any, with as much of its call trace as arrives within
        `_TRACE_SECONDS`."""
        self.look()
        end = time.monotonic() + _TRACE_SECONDS
        while (report := self._reports.broken()) and not report.ended and time.monotonic() < end:
            time.sleep(0.1)
            self.look()
        return report

    def on_hang(self, end_waits: Callable[[], None]) -> None:
        """Set the function that ends all waits for the host if the host hangs. The watching thread
        calls it once."""
        self._on_hang = end_waits

    def tick(self, now: float) -> None:
        """Check whether the host hangs, at `now` of a monotonic clock."""
        hung = [report for report in self.reports() if report.kind == "hung-task"]
        if len(hung) > self._hung_tasks:
            self._hung_tasks, self._told = len(hung), now
        if (used := self._cpu_seconds()) is not None:
            self._cpu.append((now, used))
        if self.hung is None and hung and now - self._told < _FRESH_SECONDS and self._is_idle():
            self.hung = hung[0]
            self._on_hang()

    def _is_idle(self) -> bool:
        """True if QEMU has been idle since the last report, for long enough."""
        recent = [sample for sample in self._cpu if sample[0] >= self._told]
        if not recent or recent[-1][0] - recent[0][0] < _IDLE_SECONDS:
            return False
        (start, before), (end, after) = recent[0], recent[-1]
        return (after - before) / (end - start) < _IDLE_SHARE


@contextmanager
def watching_kernel(kernel: KernelWatch) -> Iterator[None]:
    """Check the kernel's reports in a thread while the block runs, even if the block waits."""

    def look() -> bool:
        kernel.tick(time.monotonic())
        return False

    with repeatedly(look, every=_TICK_SECONDS, name="kernel-watch"):
        yield


def read_cpu_seconds(pid: int) -> float | None:
    """Return the CPU seconds of a process (utime, stime of proc_pid_stat(5)), plus those in which
    its threads were ready to run and got no CPU (Documentation/scheduler/sched-stats.rst: the
    second number of schedstat): a QEMU that is starved is not idle. None once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    waited = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # it has ended
            waited += int(thread.read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + waited / 1e9
