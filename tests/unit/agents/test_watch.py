"""The agent as a real process; this test is QEMU's serial port, and the guest's SSH server."""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from orchestrator.analysis.marks import parse_marks
from tests.unit.agents.loading import agent as loaded

AGENT = Path(__file__).parents[3] / "guests/agents/watch.py"
MARK = "boot mark"
SECONDS = 20.0


class Agent:
    """The agent, and its lines as they come."""

    def __init__(self, pidfile: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", AGENT, pidfile, MARK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, pattern: str) -> str:
        """The next line that has the pattern."""
        while True:
            line = self._queue.get(timeout=SECONDS)
            assert line is not None, f"ended before {pattern!r}: {self.lines}"
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def end(self) -> str:
        """Everything it said; it has ended by itself, without a word on standard error."""
        while (line := self._queue.get(timeout=SECONDS)) is not None:
            self.lines.append(line)
        assert self.process.wait(SECONDS) == 0
        assert self.process.stderr is not None
        assert self.process.stderr.read() == ""
        return "\n".join(self.lines) + "\n"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def pidfile(tmp_path: Path) -> Path:
    return tmp_path / "guest.pid"


@pytest.fixture
def agent(pidfile: Path) -> Iterator[Agent]:
    started = Agent(pidfile)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    """A process to be watched."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    try:
        yield child
    finally:
        child.stdin.close()
        child.wait()


def ports(agent: Agent) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(agent.until(" ports ").split(" ports ")[1])
    return found


def quit_qemu(qemu: subprocess.Popen[bytes]) -> None:
    assert qemu.stdin is not None
    qemu.stdin.close()
    qemu.wait(SECONDS)


def test_whole_boot_is_watched(agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]) -> None:
    announced = ports(agent)
    pidfile.write_text(f"{qemu.pid}\n")
    started = json.loads(agent.until(" started ").split(" started ")[1])
    assert started["pid"] == qemu.pid
    assert 0 <= time.monotonic_ns() - started["start_ns"] < SECONDS * 1e9
    with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
        agent.until(r"^E \d+ console$")
        serial.sendall(b"[    0.000000] Linux\r\nhalf a l")
        assert agent.until("^C").endswith(' "[    0.000000] Linux"')
        serial.sendall("ine \u00fc\r\n".encode())
        assert json.loads(agent.until("^C").split(" ", 2)[2]) == "half a line \u00fc"
        with socket.create_server(("127.0.0.1", announced["ssh"])) as ssh:
            ssh.settimeout(SECONDS)
            serial.sendall(b"barometer: boot mark, uptime 1.23\r\n")
            agent.until(r"^E \d+ mark$")
            guest, _ = ssh.accept()
            with guest:
                guest.sendall(b"SSH-2.0-x\r\n")
                agent.until(r"^E \d+ ssh$")
        serial.sendall(b"last words")
    quit_qemu(qemu)
    boot = parse_marks(agent.end())
    assert boot.boot_seconds is not None
    assert boot.ssh_seconds is not None
    assert boot.exit is not None
    assert boot.mark is not None
    assert boot.ssh is not None
    assert 0 <= boot.boot_seconds <= boot.ssh_seconds < SECONDS
    assert boot.mark <= boot.ssh <= boot.exit
    assert [line for _, line in boot.console] == [
        "[    0.000000] Linux", "half a line \u00fc", "barometer: boot mark, uptime 1.23",
        "last words",
    ]  # fmt: skip


def test_server_that_speaks_something_else_is_no_ssh_server(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    announced = ports(agent)
    pidfile.write_text(str(qemu.pid))
    with (
        socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial,
        socket.create_server(("127.0.0.1", announced["ssh"])) as server,
    ):
        server.settimeout(SECONDS)
        serial.sendall(b"boot mark\n")
        agent.until(" mark$")
        for banner in (b"HTTP/1.1 400\r\n", b""):
            guest, _ = server.accept()
            with guest:
                guest.sendall(banner)
        guest, _ = server.accept()  # it asks again
        with guest:
            guest.sendall(b"SSH-2.0-x\r\n")
            agent.until(" ssh$")
    assert sum(line.endswith(" ssh") for line in agent.lines) == 1


def test_mark_is_known_only_when_its_line_has_ended(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    announced = ports(agent)
    pidfile.write_text(str(qemu.pid))
    with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
        serial.sendall(b"boot mark without an end")
    agent.until(" started ")
    quit_qemu(qemu)
    boot = parse_marks(agent.end())
    assert boot.mark is None
    assert [line for _, line in boot.console] == ["boot mark without an end"]


def test_progress_says_cpu_and_console_bytes(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    announced = ports(agent)
    with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
        serial.sendall(b"12345678\n")
        agent.until("^C")
        pidfile.write_text(str(qemu.pid))
        _, at, cpu, count = agent.until("^P").split()
    assert abs(time.monotonic_ns() - int(at)) < SECONDS * 1e9
    assert 0 <= int(cpu) < SECONDS * 1e9
    assert int(count) == 9


def test_pid_file_that_is_written_late_or_names_a_dead_process_is_waited_for(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    ports(agent)
    dead = subprocess.Popen(["true"])
    dead.wait()
    for text in ("", "soon", str(dead.pid)):
        pidfile.write_text(text)
        time.sleep(0.05)
    pidfile.write_text(str(qemu.pid))
    assert f'"pid": {qemu.pid}' in agent.until(" started ")
    assert not any(" exit" in line for line in agent.lines)


def test_qemu_that_never_connects_ends_the_watch(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    ports(agent)
    pidfile.write_text(str(qemu.pid))
    agent.until(" started ")
    quit_qemu(qemu)
    boot = parse_marks(agent.end())
    assert boot.started is not None
    assert boot.exit is not None


def test_agent_ends_when_nobody_listens(agent: Agent) -> None:
    ports(agent)
    assert agent.process.stdin is not None
    agent.process.stdin.close()
    assert agent.process.wait(SECONDS) == 0


def test_page_tables_of_a_process_are_measured() -> None:
    watch = loaded("watch")
    assert watch.page_table_bytes(os.getpid()) > 4096
    assert watch.page_table_bytes(os.getpid()) % 1024 == 0
    child = subprocess.Popen(["true"])
    child.wait()
    assert watch.page_table_bytes(child.pid) is None
    assert watch.page_table_bytes(2**22 + 1) is None


def test_page_tables_are_told_at_the_mark(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    announced = ports(agent)
    pidfile.write_text(str(qemu.pid))
    agent.until(" started ")
    with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
        serial.sendall(b"barometer: boot mark\n")
        size = agent.until(r"^E \d+ tables \d+$").split()[-1]
    quit_qemu(qemu)
    boot = parse_marks(agent.end())
    assert boot.page_table_bytes == int(size) > 4096
