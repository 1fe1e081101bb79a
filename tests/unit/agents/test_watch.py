"""The agent as a real process; this test is QEMU's serial port and the guest's SSH server."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from orchestrator.analysis.boot.boottrace import read_boot
from orchestrator.analysis.boot.marks import parse_marks
from orchestrator.base.bounded import CONSOLE_BYTES, CONSOLE_LINES
from tests.unit.agents.loading import agent as loaded

AGENT = Path(__file__).parents[3] / "guests/agents/watch.py"
MARK = "barometer: boot mark"
SECONDS = 20.0


class Agent:
    """The agent and its lines as they come."""

    def __init__(
        self, pidfile: Path, *more: Path, program: Sequence[str | Path] = (AGENT,)
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", *program, pidfile, MARK, *more],
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
        """Return the next line that matches the pattern."""
        while True:
            line = self._queue.get(timeout=SECONDS)
            assert line is not None, f"ended before {pattern!r}: {self.lines}"
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def end(self) -> str:
        """Return everything that the agent printed. It has ended by itself, with nothing on
        standard error."""
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
    """A process for the agent to watch."""
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
        serial.sendall(b"barometer: boot mark\n")
        agent.until(" mark$")
        for banner in (b"HTTP/1.1 400\r\n", b""):
            guest, _ = server.accept()
            with guest:
                guest.sendall(banner)
        guest, _ = server.accept()  # the agent tries again
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
        serial.sendall(b"barometer: boot mark without an end")
    agent.until(" started ")
    quit_qemu(qemu)
    boot = parse_marks(agent.end())
    assert boot.mark is None
    assert [line for _, line in boot.console] == ["barometer: boot mark without an end"]


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


@pytest.mark.parametrize("name", ["libvirtd.pid", "virtqemud.pid"])
def test_daemon_that_stays_stopped_is_told_and_a_live_one_is_not(
    tmp_path: Path, qemu: subprocess.Popen[bytes], name: str
) -> None:
    """libvirt has the guests' files in /run/libvirt/qemu, and its daemon's in /run."""
    pidfile = tmp_path / "libvirt/qemu/guest.pid"
    pidfile.parent.mkdir(parents=True)
    pidfile.write_text(str(qemu.pid))
    agent = Agent(pidfile)
    with subprocess.Popen(["sleep", "100"]) as daemon:
        try:
            (tmp_path / name).write_text(str(daemon.pid))
            for _ in range(2):
                agent.until("^P")
            assert not any("libvirt-stopped" in line for line in agent.lines)
            daemon.send_signal(signal.SIGSTOP)
            agent.until(r"^E \d+ libvirt-stopped$")
            quit_qemu(qemu)
            assert parse_marks(agent.end()).exit is not None
        finally:
            daemon.kill()
            agent.close()


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
    pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    hurried = (
        f"import sys; sys.path.insert(0, {str(AGENT.parent)!r}); import watch;"
        " watch.LAST_SECONDS = 0.2; watch.main()"
    )
    agent = Agent(pidfile, program=("-c", hurried))
    try:
        ports(agent)
        pidfile.write_text(str(qemu.pid))
        agent.until(" started ")
        quit_qemu(qemu)
        boot = parse_marks(agent.end())
    finally:
        agent.close()
    assert boot.started is not None
    assert boot.exit is not None


def test_line_without_an_end_is_cut_and_counted(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes]
) -> None:
    most = loaded("watch").LINE_BYTES
    said = whole_boot(agent, pidfile, qemu, b"x" * (most + 7), b"short")
    console = [line for _, line in parse_marks(said).console]
    assert console == ["x" * most + " ... 7 bytes left out", "short"]


@pytest.mark.parametrize("piece", [b"\0" * (1 << 20), b"a\n" * (1 << 19)])
def test_flood_is_said_once_and_qemu_does_not_wait(
    agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes], piece: bytes
) -> None:
    most, lines = loaded("watch").MOST_BYTES, loaded("watch").MOST_LINES
    announced = ports(agent)
    pidfile.write_text(str(qemu.pid))
    agent.until(" started ")
    with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
        for _ in range(3 * most // len(piece)):
            serial.sendall(piece)
        flood = json.loads(agent.until("^E .* flood ").split(" flood ")[1])
    quit_qemu(qemu)
    said = agent.end()
    assert flood["bytes"] > most or flood["lines"] > lines
    assert flood["bytes"] <= most + (1 << 16)
    assert flood["lines"] <= lines + (1 << 16)
    assert flood["seconds"] > 0
    assert len(re.findall("(?m)^E .* flood ", said)) == 1
    assert sum(len(line) + 1 for _, line in parse_marks(said).console) <= most + 100


def test_agent_says_more_than_a_console_may_so_that_a_flood_is_seen() -> None:
    assert loaded("watch").MOST_BYTES > CONSOLE_BYTES
    assert loaded("watch").MOST_LINES > CONSOLE_LINES


def test_agent_ends_when_nobody_listens(agent: Agent) -> None:
    ports(agent)
    assert agent.process.stdin is not None
    agent.process.stdin.close()
    assert agent.process.wait(SECONDS) == 0


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Stand-ins for trace_marker and for the enable files of two probes."""
    made = [tmp_path / name for name in ("trace_marker", "fault_in", "leaf")]
    for file, text in zip(made, ("", "1", "1"), strict=True):
        file.write_text(text)
    return made


@pytest.fixture
def marking(pidfile: Path, files: list[Path]) -> Iterator[Agent]:
    started = Agent(pidfile, *files)
    try:
        yield started
    finally:
        started.close()


def whole_boot(agent: Agent, pidfile: Path, qemu: subprocess.Popen[bytes], *lines: bytes) -> str:
    """Return the agent's output for a guest with these lines on its console."""
    announced = ports(agent)
    pidfile.write_text(str(qemu.pid))
    agent.until(" started ")
    agent.until("^P")
    with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
        for line in lines:
            serial.sendall(line + b"\n")
            agent.until("^C")
    quit_qemu(qemu)
    return agent.end()


def test_every_line_is_in_the_trace_as_it_was_said(
    marking: Agent, pidfile: Path, files: list[Path], qemu: subprocess.Popen[bytes]
) -> None:
    said = whole_boot(marking, pidfile, qemu, b"[    0.000000] Linux", "\u00fc".encode())
    assert files[0].read_text() == "".join(f"barometer {line}\n" for line in said.splitlines())
    assert files[0].read_bytes().isascii()


def test_line_in_the_trace_is_cut_and_the_one_that_is_said_is_not(
    marking: Agent, pidfile: Path, files: list[Path], qemu: subprocess.Popen[bytes]
) -> None:
    said = whole_boot(marking, pidfile, qemu, b"x" * 5000, b"short")
    assert json.dumps("x" * 5000) in said
    [cut] = [line for line in files[0].read_text().splitlines() if "xxx" in line]
    assert cut.startswith("barometer C ")
    assert len(cut) == loaded("watch").MARKER_BYTES < 1024
    assert len(files[0].read_text().splitlines()) == len(said.splitlines())


def test_lines_in_the_trace_are_what_the_analysis_reads(
    marking: Agent, pidfile: Path, files: list[Path], qemu: subprocess.Popen[bytes]
) -> None:
    whole_boot(marking, pidfile, qemu, b"[    0.000000] Linux", b"barometer: boot mark")
    trace = "".join(
        f" python3-7 [000] ..... 5.5: tracing_mark_write: {line}\n"
        for line in files[0].read_text().splitlines()
    )
    boot = read_boot(trace)
    assert boot.pid == qemu.pid
    assert [line for _, line in boot.console] == ["[    0.000000] Linux", "barometer: boot mark"]
    assert boot.mark_line == 1
    assert {"ports", "console", "started", "mark", "exit"} <= set(boot.marks)
    assert boot.cpu_use


def test_probes_are_switched_off_at_the_kernels_first_line(
    marking: Agent, pidfile: Path, files: list[Path], qemu: subprocess.Popen[bytes]
) -> None:
    announced = ports(marking)
    with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
        serial.sendall(b"SeaBIOS\nBooting from ROM..\n")
        marking.until("ROM")
        assert [file.read_text() for file in files[1:]] == ["1", "1"]
        serial.sendall(b"[    0.000000] Linux version 6.12\nnext\n")
        marking.until("next")
        assert [file.read_text() for file in files[1:]] == ["0", "0"]
        files[1].write_text("1")
        serial.sendall(b"[    9.000000] Linux version 6.12\nlast\n")
        marking.until("last")
    assert files[1].read_text() == "1"  # the probes are switched off once
    pidfile.write_text(str(qemu.pid))
    marking.until(" started ")
    quit_qemu(qemu)
    marking.end()


def test_probe_that_is_not_there_need_not_be_switched_off(
    pidfile: Path, tmp_path: Path, files: list[Path]
) -> None:
    """A host without probes on faults has no enable file, and nobody can create one in tracefs."""
    agent = Agent(pidfile, files[0], tmp_path / "no/such/enable")
    try:
        announced = ports(agent)
        with socket.create_connection(("127.0.0.1", announced["console"]), SECONDS) as serial:
            serial.sendall(b"[    0.000000] Linux version 6.12\n")
            agent.until("^C")
            time.sleep(0.2)
            serial.sendall(b"next\n")
            assert "next" in agent._queue.get(timeout=SECONDS)  # type: ignore[operator]
    finally:
        agent.close()


def test_marker_that_is_not_there_ends_the_agent(pidfile: Path, tmp_path: Path) -> None:
    agent = Agent(pidfile, tmp_path / "trace_marker")
    try:
        assert agent.process.wait(SECONDS) != 0
    finally:
        agent.close()
    assert not (tmp_path / "trace_marker").exists()


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
