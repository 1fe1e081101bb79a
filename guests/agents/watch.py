"""Watch one guest boot on its host's clock. Plain Python 3 standard library.

    watch.py PIDFILE MARK [MARKER [FILE ...]]

Listens for the guest's serial console and prints these lines, with CLOCK_MONOTONIC nanoseconds of
this host:

    E <ns> ports {"console": P, "ssh": Q}   where to send the console, which port to forward
    E <ns> console                          QEMU connected its serial port
    C <ns> "text"                           a line of the console, when its end arrived; a long one
                                            is cut, and its end tells how much was left out
    E <ns> flood {"bytes": B, "lines": L, "seconds": S}   too much on the console: no further lines
    E <ns> started {"pid": N, "start_ns": S} QEMU's process, and when it began (10 ms steps)
    E <ns> mark                             the console showed the line that begins with MARK
    E <ns> tables <bytes>                   QEMU's page tables (VmPTE) at the mark
    E <ns> threads [N, ...]                 QEMU's threads at the mark
    E <ns> ssh                              the guest's SSH server sent its banner
    P <ns> <cpu ns> <console bytes>         progress of the boot, every two seconds
    E <ns> libvirt-stopped                  libvirt's daemon is stopped (SIGSTOP), and stays so
    E <ns> exit                             QEMU has ended

Ends when QEMU ends or when standard input closes. With MARKER, the trace_marker file of a tracefs
instance, it writes each line there first, after the word barometer, so that the line also has a
time of the trace clock. When the guest's kernel prints its first line, the agent writes 0 into
each FILE: the enable files of probes that are needed only while the firmware runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
MARKER_BYTES = 900
"""Longest write to trace_marker. The kernel cuts a write after 1 KiB (TRACE_MARKER_SIZE)."""
KERNEL = b"Linux version "
LAST_SECONDS = 5.0
"""Time for the last output of the console to arrive after QEMU has ended."""
DAEMONS = ("libvirtd.pid", "virtqemud.pid")
"""Files with the process id of libvirt's daemon, two folders above those of its guests."""
STOPPED_LOOKS = 2
"""Looks in a row, 2 s apart, after which a stopped daemon counts as stopped for good."""
LINE_BYTES = 16 << 10
"""Longest part of a console line that is printed."""
MOST_BYTES, MOST_LINES = 8 << 20, 45_000
"""Most console output of a guest that is printed. The rest is read and counted, so that QEMU does
not have to wait."""
lock = threading.Lock()
marker: int | None = None


def say(kind: str, rest: str, at: int | None = None) -> None:
    with lock:
        at = time.monotonic_ns() if at is None else at
        if marker is not None:
            with contextlib.suppress(OSError):  # tracing has ended before the guest
                os.write(marker, f"barometer {kind} {at} {rest}"[:MARKER_BYTES].encode() + b"\n")
        sys.stdout.write(f"{kind} {at} {rest}\n")
        sys.stdout.flush()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on (proc_pid_stat(5)); none if the
    process has ended.

    A zombie has not ended: another of its threads may still be unmapping on the way out.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return fields


def start_ns(pid: int) -> int:
    """Return when the process began, on CLOCK_MONOTONIC: field 22 counts ticks of
    CLOCK_BOOTTIME."""
    suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    fields = stat(pid)
    return int(fields[19]) * TICK_NS - suspended if fields else 0


def page_table_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmPTE:")]
    return int(found[0]) * 1024 if found else None


def threads(pid: int) -> list[int]:
    try:
        return sorted(int(thread) for thread in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []


def wait_for_pid(pidfile: Path) -> int:
    while True:
        try:
            pid = int(pidfile.read_text())
            if stat(pid):
                return pid
        except (OSError, ValueError):
            pass
        time.sleep(0.01)


def are_stopped(pidfiles: list[Path]) -> bool:
    """True if the processes of these files, as far as they exist, are all stopped by a signal or a
    debugger."""
    states = []
    for pidfile in pidfiles:
        with contextlib.suppress(OSError, ValueError):
            states += stat(int(pidfile.read_text()))[:1]
    return bool(states) and {*states} <= {"T", "t"}


class Watch:
    def __init__(self, mark: bytes, ssh_port: int, until_kernel: list[Path]) -> None:
        self.mark, self.ssh_port = mark, ssh_port
        self.until_kernel = until_kernel
        self.console_bytes = 0
        self.begun, self.lost = bytearray(), 0
        self.pid = 0

    def console(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        say("E", "console")
        began, lines, flooded = time.monotonic(), 0, False
        while chunk := connection.recv(1 << 16):
            now = time.monotonic_ns()
            self.console_bytes += len(chunk)
            lines += chunk.count(b"\n")
            if self.console_bytes <= MOST_BYTES and lines <= MOST_LINES:
                *ends, begins = chunk.split(b"\n")
                for end in ends:
                    self.go_on(end)
                    self.take(self.say_line(now), now)
                self.go_on(begins)
            elif not flooded:
                flooded = True
                size, seconds = self.console_bytes, time.monotonic() - began
                facts = {"bytes": size, "lines": lines, "seconds": round(seconds, 3)}
                say("E", f"flood {json.dumps(facts)}")
        if self.begun:
            self.say_line(time.monotonic_ns())

    def go_on(self, piece: bytes) -> None:
        """Add a piece to the line that has begun."""
        room = LINE_BYTES - len(self.begun)
        self.begun += piece[:room]
        self.lost += len(piece[room:])

    def say_line(self, now: int) -> bytes:
        """Print and return the line that has begun, and that ends here."""
        line, lost = bytes(self.begun), self.lost
        self.begun, self.lost = bytearray(), 0
        text = line.rstrip(b"\r").decode(errors="replace")
        say("C", json.dumps(f"{text} ... {lost} bytes left out" if lost else text), now)
        return line

    def take(self, line: bytes, now: int) -> None:
        """Act on a whole line, if it is the kernel's first line or the boot mark."""
        if KERNEL in line:
            while self.until_kernel:
                with contextlib.suppress(OSError):  # no such file: the probe was not armed
                    self.until_kernel.pop().write_text("0")
        if line.startswith(self.mark):
            say("E", "mark", now)
            if (tables := page_table_bytes(self.pid)) is not None:
                say("E", f"tables {tables}")
            say("E", f"threads {json.dumps(threads(self.pid))}")
            threading.Thread(target=self.ssh, daemon=True).start()

    def ssh(self) -> None:
        """Wait for the banner of the SSH server. Starts at the boot mark, so that the attempts do
        not slow the boot."""
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.ssh_port), 10) as connection:
                    if connection.recv(4) == b"SSH-":
                        say("E", "ssh")
                        return
            except OSError:
                pass
            time.sleep(0.02)

    def process(self, pidfile: Path) -> None:
        pid = self.pid = wait_for_pid(pidfile)
        say("E", f"started {json.dumps({'pid': pid, 'start_ns': start_ns(pid)})}")
        daemons = [pidfile.parents[2] / name for name in DAEMONS]
        told, stopped = 0.0, 0
        while fields := stat(pid):
            if time.monotonic() - told >= 2:
                cpu = (int(fields[11]) + int(fields[12])) * TICK_NS
                say("P", f"{cpu} {self.console_bytes}")
                stopped = stopped + 1 if are_stopped(daemons) else 0
                if stopped == STOPPED_LOOKS:
                    say("E", "libvirt-stopped")
                told = time.monotonic()
            time.sleep(0.05)
        say("E", "exit")


def main() -> None:
    global marker  # noqa: PLW0603  # one process, one trace
    pidfile, mark, *more = sys.argv[1:]
    if more:
        marker = os.open(more[0], os.O_WRONLY)
    server = socket.create_server(("127.0.0.1", 0))
    watch = Watch(mark.encode(), free_port(), [Path(file) for file in more[1:]])
    console = threading.Thread(target=watch.console, args=(server,), daemon=True)
    process = threading.Thread(target=watch.process, args=(Path(pidfile),), daemon=True)
    say("E", f"ports {json.dumps({'console': server.getsockname()[1], 'ssh': watch.ssh_port})}")
    console.start()
    process.start()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    process.join()
    console.join(LAST_SECONDS)


if __name__ == "__main__":
    main()
