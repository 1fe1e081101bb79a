"""A guest boot as its host sees it: the watch agent's lines, and whether the guest progresses."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orchestrator.base.bounded import MARKS_BYTES, MARKS_LINES
from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import Stall, until
from orchestrator.formats.kernelreports import STALLS
from orchestrator.formats.units import GIB
from orchestrator.machine.host.console import Transcript, describe_flood
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing.probes import MARKER, UNTIL_KERNEL
from orchestrator.machine.transport.shell import ConnectionLostError

_HOUR = 3600.0
_IDLE_SECONDS = 45.0
_IDLE_SHARE = 0.2
_MUTE_SECONDS = 15.0
"""The watch agent prints a line every 2 s. If it prints none for this long, the host has to prove
that it still answers."""
_NO_SAMPLE_SECONDS = 45.0
"""The watch agent sleeps for 50 ms at a time and samples QEMU's CPU time every 2 s. If a host that
answers over SSH sends no sample for this long, the sleep does not end: the timers of the CPU that
the agent runs on no longer fire. A busy runner makes the interval 3 s at most."""
_TIMERS = (
    "grep -E '^now at|^cpu:|expires_next|hres_active|nr_events|nr_retries|nr_hangs|max_hang_time"
    "|^Tick Device|^Clock Event Device|mode:|next_event' /proc/timer_list"
)
"""Command that prints the state of each CPU's timers, some 40 lines for each (print_cpu() and
print_tickdevice() in kernel/time/timer_list.c)."""
_NO_SSH_SECONDS = {True: 90.0, False: 30.0}


LIBVIRT_STOPPED = "libvirt-stopped"
"""The watch agent's event for a daemon that is stopped."""


def boot_mark(token: str) -> str:
    """Return the beginning of the line that a guest's first program writes to its console. No
    other program knows the token, so no other line can be mistaken for it."""
    return f"barometer: boot mark {token},"


class Watched:
    """Reads the watch agent's output about one guest boot as it comes. Each line is saved at once,
    in marks.txt and console.log, so that it is kept whatever happens to the host."""

    def __init__(self, lines: Iterator[str], folder: Path) -> None:
        self._lines = lines
        self._events: dict[str, str] = {}
        self.console = Transcript("guest")
        self._bytes, self._count, self._started = 0, 0, time.monotonic()
        self.flood = ""
        """Amount and rate of the guest's or the agent's output, if it is over the limits."""
        self._cpu: deque[tuple[float, float]] = deque(maxlen=60)
        self.ended = False
        self.heard = time.monotonic()
        """Time of the last line, by time.monotonic()."""
        self.sampled: float | None = None
        """Time of the last sample of QEMU's CPU time, by time.monotonic()."""
        self.error: Exception | None = None
        """Error that ended the reader: a full disk of the runner, or a garbled line from the
        agent."""
        self._marks: IO[bytes] = (folder / "marks.txt").open("wb")
        self._log: IO[bytes] = (folder / "console.log").open("wb")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for line in self._lines:
                self._take(line)
                if self.flood:
                    break
        except (TimeoutError, EOFError):
            pass
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
            self.error = exc
        finally:
            self.ended = True

    def _take(self, line: str) -> None:
        self.heard = time.monotonic()
        kind, _, rest = line.partition(" ")
        at, _, rest = rest.partition(" ")
        encoded = line.encode(errors="replace") + b"\n"
        self._bytes += len(encoded)
        self._count += 1
        self._marks.write(encoded)
        if kind == "C":
            encoded = f"{json.loads(rest)}\n".encode(errors="replace")
            self._log.write(encoded)
            self.console.feed(encoded)
            self.flood = self.console.flood
        elif kind == "E":
            name, _, detail = rest.partition(" ")
            self._events.setdefault(name, detail)
            if name == "flood":
                amounts = json.loads(detail)
                self.flood = describe_flood(
                    int(amounts["bytes"]), int(amounts["lines"]), float(amounts["seconds"])
                )
        elif kind == "P":
            self._cpu.append((int(at) / 1e9, int(rest.split()[0]) / 1e9))
            self.sampled = self.heard
        if self._bytes > MARKS_BYTES or self._count > MARKS_LINES:
            seconds = time.monotonic() - self._started
            self.flood = describe_flood(self._bytes, self._count, seconds)
        self._marks.flush()
        self._log.flush()

    def event(self, name: str) -> str | None:
        """Return the detail of an event ("" if it has none); None if it has not happened."""
        return self._events.get(name)

    def idle(self, seconds: float) -> bool:
        """True if QEMU has used less than a fifth of a CPU in the last `seconds` of the host's
        clock."""
        samples = list(self._cpu)
        recent = [s for s in samples if s[0] >= samples[-1][0] - seconds] if samples else []
        if not recent or recent[-1][0] - recent[0][0] < seconds * 0.8:
            return False
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]) < _IDLE_SHARE

    def close(self) -> None:
        self._thread.join(5)
        self._marks.close()
        self._log.close()


@contextmanager
def watching(
    host: Host, name: str, folder: Path, *, token: str, traced: bool
) -> Iterator[Watched]:
    """Run the watch agent for a guest while the block runs. `token` is the one in the guest's boot
    mark."""
    more = (MARKER, *UNTIL_KERNEL) if traced else ()
    arguments = f"/run/libvirt/qemu/{name}.pid", boot_mark(token), *more
    with contextlib.ExitStack() as stack, host.staying_agent("watch", *arguments) as agent:
        # an hour without a line, progress lines included, means that the host is gone
        watched = Watched(agent.dialogue(_HOUR), folder)
        # on the outer stack, so that it is called after the agent has ended, which ends the
        # reader
        stack.callback(watched.close)
        yield watched


class Limits:
    """Deadlines by progress: a guest has as much time as it needs while it makes progress.

    An unpatched kernel maps the BAR a dozen times in silence, at up to half a second for each
    GiB if it is emulated, so silence is allowed in proportion to the BAR. A guest that is silent
    and uses no CPU has hung.
    """

    def __init__(self, host: Host, watched: Watched, bar: int) -> None:
        self.host, self.watched = host, watched
        base, for_each_gib = (120.0, 12.0) if host.slow else (30.0, 2.0)
        self.silent_seconds = base + for_each_gib * bar / GIB
        self.most_seconds = 10 * self.silent_seconds
        """Limit of the whole wait: a guest that prints lines and gets nowhere has hung, too."""
        self._stall = Stall()
        self.is_ending = False
        """True once the guest has taken the command to power down."""

    def check(self, waiting_for: str, *, stall: bool = True) -> None:
        """Raise the error that ended the boot, if any. With `stall`, also raise if the boot makes
        no progress."""
        self.host.check()
        if (report := self.watched.console.kernel.broken()) is not None:
            raise self.failed(
                f"the guest's kernel is broken: {report.message}",
                reason=Reason.GUEST_NO_TIMER if report.kind == "no-timer" else Reason.GUEST_PANIC,
            )
        if self.watched.flood:
            raise self.failed(
                f"the guest floods its console: {self.watched.flood}", reason=Reason.CONSOLE_FLOOD
            )
        if self.watched.event("exit") is not None:
            raise self.failed(
                f"the guest ended while waiting for: {waiting_for}", reason=Reason.GUEST_ENDED
            )
        if self.watched.event(LIBVIRT_STOPPED) is not None:
            raise BenchError(
                "the daemon of the host's libvirt is stopped, by a signal (SIGSTOP) or a debugger",
                reason=Reason.LIBVIRT_SILENT,
            )
        if isinstance(self.watched.error, OSError):
            raise self.watched.error
        if self.watched.error is not None:
            raise BenchError(
                f"the watch agent says what it should not: {self.watched.error}",
                reason=Reason.ANSWER_GARBLED,
            )
        if self.watched.ended:
            raise ConnectionLostError("the host stopped reporting", reason=Reason.HOST_SSH_LOST)
        # on an exact host the agent's seconds are not the runner's
        if self.host.accel != "exact":
            self._check_agent()
        silent = self._stall.seconds(self.watched.console.size())
        if not stall:
            return
        if silent > _IDLE_SECONDS and self.watched.idle(_IDLE_SECONDS):
            raise self._hangs(
                f"idle: no console line for {silent:.0f} s and no CPU used", waiting_for
            )
        if silent > self.silent_seconds:
            raise self._hangs(f"busy: no console line for {silent:.0f} s", waiting_for)

    def _check_agent(self) -> None:
        """Raise an error if the watch agent prints nothing because its host is lost, or no samples
        because the host's timers do not fire."""
        now, watched = time.monotonic(), self.watched
        if now - watched.heard > _MUTE_SECONDS:
            self.host.shell.prove_alive()
            watched.heard = time.monotonic()
        if watched.sampled is None or now - watched.sampled <= _NO_SAMPLE_SECONDS:
            return
        timers = self.host.shell.run(_TIMERS, timeout=_MUTE_SECONDS, check=False).stdout
        raise ArmFailedError(
            f"the host answers, but a program on it has slept for {now - watched.sampled:.0f} s"
            " in place of 0.05 s: the timers of a CPU no longer fire",
            evidence=timers, reason=Reason.HOST_TIMERS,
        )  # fmt: skip

    def _hangs(self, how: str, waiting_for: str) -> ArmFailedError:
        message = f"the guest hangs, {how}, waiting for: {waiting_for}"
        stalls = [report for report in self.watched.console.kernel.all() if report.kind in STALLS]
        if stalls:
            return self.failed(f"{message}; {stalls[0].message}", reason=Reason.GUEST_STALL)
        # only "exit" is still missing: the guest has taken the command to power down
        if self.is_ending:
            return self.failed(message, reason=Reason.GUEST_END_HANG)
        return self.failed(message, reason=Reason.GUEST_HANG)

    def failed(self, message: str, *, reason: Reason) -> ArmFailedError:
        return ArmFailedError(message, evidence=self.watched.console.tail(), reason=reason)


def wait_for(limits: Limits, event: str, waiting_for: str, progress: Progress) -> None:
    def happened() -> str | None:
        progress.detail(limits.watched.console.last_line())
        if (detail := limits.watched.event(event)) is not None:
            return detail
        try:
            limits.check(waiting_for)
        except ArmFailedError:
            # The event may have come during the check: QEMU's end is an event, and fails the
            # check.
            if limits.watched.event(event) is None:
                raise
        return None

    until(happened, within=limits.most_seconds, every=0.1, waiting_for=waiting_for,
          error=ArmFailedError, reason=Reason.GUEST_HANG)  # fmt: skip


def wait_for_ssh(host: Host, limits: Limits, progress: Progress) -> None:
    def ready() -> str | None:
        progress.detail(limits.watched.console.last_line())
        if limits.watched.event("ssh") is None:
            # A guest that is about to answer is idle for some seconds, not for as long as this.
            limits.check("the guest's SSH server", stall=False)
            if limits.watched.idle(_IDLE_SECONDS):
                raise limits.failed(
                    f"no SSH server in the guest, which has used no CPU for {_IDLE_SECONDS:.0f} s",
                    reason=Reason.GUEST_NO_SSH,
                )
        return limits.watched.event("ssh")

    until(ready, within=_NO_SSH_SECONDS[host.slow], every=0.1,
          waiting_for="SSH server in the guest", error=ArmFailedError, reason=Reason.GUEST_NO_SSH,
          last_seen=limits.watched.console.tail)  # fmt: skip
