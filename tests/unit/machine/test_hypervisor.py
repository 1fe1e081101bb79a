"""Connections to a made-up libvirt; the real one is for the lanes with machines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import libvirt
import pytest

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.machine.transport import calls
from orchestrator.machine.vm import hypervisor
from orchestrator.machine.vm.hypervisor import Connection, Deadlines, Domain

SECONDS = 20.0
QUICK = Deadlines(call=0.1, start=0.1, end=0.1)


def xml(name: str) -> str:
    return f"<domain><name>{name}</name><uuid>uuid of {name}</uuid></domain>"


class RawDomain:
    def __init__(self, name: str) -> None:
        self._name, self.running = name, True
        self.connection = RawConnection()
        self.silent = False

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802  # libvirt's name
        return f"uuid of {self._name}"

    def isActive(self) -> bool:  # noqa: N802
        return self.running

    def create(self) -> None:
        if self.running:
            raise libvirt.libvirtError("it runs")
        self.running = True

    def reboot(self) -> None:
        if not self.running:
            raise libvirt.libvirtError("it does not run")

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        return f"{self._name} {flags}"

    def connect(self) -> RawConnection:
        return self.connection

    def destroy(self) -> None:
        if self.silent:
            threading.Event().wait()
        if not self.running:
            raise libvirt.libvirtError("it has ended")
        self.running = False


class RawConnection:
    def __init__(self) -> None:
        self.domains: list[RawDomain] = []
        self.error: BaseException | None = None
        self.callbacks: dict[int, Any] = {}
        self.is_open = True
        self.starts = threading.Event()
        """A start returns once it is set."""
        self.starts.set()

    def createXML(self, xml: str, flags: int) -> RawDomain:  # noqa: N802
        if self.error is not None:
            raise self.error
        self.starts.wait(SECONDS)
        self.domains.append(RawDomain(ET.fromstring(xml).findtext("name") or ""))
        return self.domains[-1]

    def close(self) -> None:
        self.is_open = False

    def getURI(self) -> str:  # noqa: N802
        return "qemu:///system"

    def lookupByName(self, name: str) -> RawDomain:  # noqa: N802
        for domain in self.domains:
            if domain.name() == name:
                return domain
        raise libvirt.libvirtError("no domain")

    def listAllDomains(self) -> list[RawDomain]:  # noqa: N802
        return self.domains

    def domainEventRegisterAny(  # noqa: N802
        self, _domain: RawDomain, kind: int, callback: Any, _opaque: None
    ) -> int:
        self.callbacks[kind] = callback
        return kind

    def domainEventDeregisterAny(self, number: int) -> None:  # noqa: N802
        del self.callbacks[number]


@pytest.fixture
def raw() -> RawConnection:
    return RawConnection()


@pytest.fixture
def connection(raw: RawConnection) -> Connection:
    return Connection(raw, "runner", 0)


def test_domain_runs_while_the_block_does(raw: RawConnection, connection: Connection) -> None:
    with connection.running(xml("one")) as domain:
        assert domain.active()
    assert not raw.domains[0].running
    with pytest.raises(ZeroDivisionError), connection.running(xml("two")):
        raise ZeroDivisionError
    assert not raw.domains[1].running


def test_domain_that_has_ended_is_not_held_while_its_error_is_on_its_way(
    raw: RawConnection, connection: Connection
) -> None:
    """libvirt keeps a connection open as long as an object of one of its domains exists."""
    caught: list[BaseException] = []
    try:
        with connection.running(xml("one")) as domain:
            ended = weakref.ref(raw.domains.pop())
            raise ZeroDivisionError
    except ZeroDivisionError as exc:
        caught.append(exc)
    assert caught[0].__traceback__ is not None
    assert ended() is None
    assert not domain.active()
    domain.destroy()


def test_stop_ends_every_domain_and_lets_no_other_begin(
    raw: RawConnection, connection: Connection
) -> None:
    with connection.running(xml("one")) as one, connection.running(xml("two")) as two:
        connection.stop()
        assert not one.active()
        assert not two.active()
        three = connection.running(xml("three"))
        with pytest.raises(BenchError, match="interrupted") as caught, three:
            pytest.fail("it must not begin")
        assert caught.value.reason == "interrupted"
    assert not any(domain.running for domain in raw.domains)
    connection.stop()


def test_stop_beside_a_thread_that_waits_is_seen_by_it(connection: Connection) -> None:
    started, seen = threading.Event(), threading.Event()

    def wait() -> None:
        with connection.running(xml("one")) as domain:
            started.set()
            while domain.active():
                threading.Event().wait(0.001)
            seen.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert started.wait(20)
    connection.stop()
    thread.join(20)
    assert seen.is_set()


def test_domain_that_cannot_be_started_is_the_benchs_failure(
    raw: RawConnection, connection: Connection
) -> None:
    raw.error = libvirt.libvirtError("no QEMU")
    one = connection.running(xml("one"))
    with pytest.raises(BenchError, match="could not start") as caught, one:
        pytest.fail("it did not start")
    assert caught.value.reason == "libvirt-start"
    raw.error = None
    unused: Any = connection
    with unused.running(xml("two")) as domain:
        assert domain.uuid == "uuid of two"


def test_a_domain_that_is_there_is_found_by_name(
    raw: RawConnection, connection: Connection
) -> None:
    raw.domains = [RawDomain("b"), RawDomain("a")]
    assert connection.lookup("a").name == "a"
    with pytest.raises(ScenarioError, match="qemu:///system has no domain 'c'") as caught:
        connection.lookup("c")
    assert caught.value.hint == "its domains: a, b"


def test_a_domain_is_started_and_asked_to_reboot(
    raw: RawConnection, connection: Connection
) -> None:
    raw.domains = [RawDomain("a")]
    raw.domains[0].running = False
    domain = connection.lookup("a")
    with pytest.raises(BenchError, match="could not reboot a: it does not run"):
        domain.reboot()
    domain.start()
    domain.reboot()
    assert domain.active()
    with pytest.raises(BenchError, match="could not start a: it runs"):
        domain.start()
    assert domain.definition() == f"a {libvirt.VIR_DOMAIN_XML_INACTIVE}"


def test_what_happens_to_a_domain_is_seen_as_it_happens() -> None:
    raw = RawDomain("a")
    callbacks = raw.connection.callbacks
    with Domain(raw, Connection(raw.connection, "runner", 0)).watched() as happened:
        agent = callbacks[libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE]
        agent(
            None, None, libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_DISCONNECTED, 0, 0
        )
        assert happened == set()
        agent(None, None, libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED, 0, 0)
        assert happened == {"agent"}
        callbacks[libvirt.VIR_DOMAIN_EVENT_ID_REBOOT](None, None, None)
        assert happened == {"agent", "reset"}
    assert callbacks == {}


def test_domain_that_cannot_be_ended_is_given_up_and_its_connection_dropped(
    raw: RawConnection,
) -> None:
    hung_up: list[bool] = []
    before = {*threading.enumerate()}
    connection = Connection(raw, "host", 0, deadlines=QUICK, hang_up=lambda: hung_up.append(True))
    started = time.monotonic()
    with connection.running(xml("one")):
        raw.domains[0].silent = True
    assert hung_up == [True]
    with pytest.raises(BenchError) as caught:
        connection.lookup("one")
    assert caught.value.reason == "libvirt-silent"
    connection.close()
    assert raw.is_open  # it did not try to close it either
    assert time.monotonic() - started < 5
    assert all(thread.daemon for thread in {*threading.enumerate()} - before)


def test_domain_of_this_machine_is_ended_without_libvirt(raw: RawConnection) -> None:
    ended: list[str] = []
    is_gone = threading.Event()

    def end(uuids: Sequence[str]) -> None:
        ended.extend(uuids)
        is_gone.set()

    connection = Connection(raw, "runner", 0, deadlines=QUICK, end_machines=end)
    with connection.running(xml("one")):
        unused: Any = raw.domains[0]
        unused.destroy = lambda: is_gone.wait(SECONDS)
    assert ended == ["uuid of one"]
    with connection.running(xml("two")) as domain:  # it has answered meanwhile and is kept
        assert domain.active()


def test_end_on_a_machine_that_is_lost_is_not_waited_for(
    raw: RawConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypervisor, "_LOST_SECONDS", 0.05)
    is_lost = threading.Event()
    connection = Connection(raw, "host", 0, deadlines=Deadlines(end=600), is_lost=is_lost.is_set)
    with connection.running(xml("one")):
        silent: Any = raw.domains[0]
        silent.destroy = threading.Event().wait
        is_lost.set()
    connection.close()


def test_silence_is_told_when_its_deadline_is_over(raw: RawConnection) -> None:
    connection = Connection(raw, "host", 0, deadlines=QUICK)
    with connection.running(xml("one")) as domain:
        silent: Any = raw.domains[0]
        silent.isActive = threading.Event().wait
        for _ in range(2):
            with pytest.raises(BenchError) as caught:
                domain.active()
            assert caught.value.reason == "libvirt-silent"


@pytest.mark.parametrize("asks", ["call", "end"])
def test_daemon_that_is_stopped_is_given_up_long_before_the_deadline(
    raw: RawConnection, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    monkeypatch.setattr(calls, "LOOK_SECONDS", 0.01)
    is_stopped, hung_up = threading.Event(), threading.Event()
    connection = Connection(
        raw, "host", 0, deadlines=Deadlines(call=600, end=600), hang_up=hung_up.set,
        is_stopped=is_stopped.is_set,
    )  # fmt: skip
    with connection.running(xml("one")) as domain:
        silent: Any = raw.domains[0]
        silent.isActive = silent.destroy = threading.Event().wait
        is_stopped.set()
        if asks == "call":
            with pytest.raises(BenchError) as caught:
                domain.active()
            assert caught.value.reason == "libvirt-silent"
    assert hung_up.is_set()


def test_domain_that_starts_too_late_is_ended(raw: RawConnection) -> None:
    raw.starts.clear()
    one = Connection(raw, "host", 0, deadlines=QUICK).running(xml("one"))
    with pytest.raises(BenchError) as caught, one:
        pytest.fail("it did not start in time")
    assert caught.value.reason == "libvirt-silent"
    raw.starts.set()
    end = time.monotonic() + SECONDS
    while not (raw.domains and not raw.domains[0].running) and time.monotonic() < end:
        time.sleep(0.01)
    assert not raw.domains[0].running


def test_start_that_is_interrupted_is_seen_to_its_end(raw: RawConnection) -> None:
    raw.starts.clear()
    ended: list[str] = []
    connection = Connection(raw, "runner", 0, end_machines=ended.extend)

    def interrupt(*_: object) -> None:
        threading.Timer(0.1, raw.starts.set).start()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt), connection.running(xml("one")):
            pytest.fail("it was interrupted")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not raw.domains[0].running
    assert ended == ["uuid of one"]


def test_stop_ends_what_is_only_just_starting(raw: RawConnection) -> None:
    raw.starts.clear()
    ended: list[str] = []
    refused: list[str] = []
    connection = Connection(raw, "runner", 0, end_machines=ended.extend)

    def start() -> None:
        try:
            with connection.running(xml("one")):
                pytest.fail("it must not begin")
        except BenchError as exc:
            refused.append(exc.reason)

    thread = threading.Thread(target=start)
    thread.start()
    while not connection._uuids:
        time.sleep(0.001)
    connection.stop()
    assert ended == ["uuid of one"]
    raw.starts.set()
    thread.join(SECONDS)
    assert refused == ["interrupted"]


FAILING = """
import signal
from orchestrator.machine.vm import hypervisor
from orchestrator.base.errors import ScenarioError

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
caught = 0
with hypervisor.at("test:///default") as connection:
    while caught < 50:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0003 + caught * 0.000002)
            while True:
                try:
                    connection.lookup("no such domain")
                except ScenarioError:
                    pass
        except KeyboardInterrupt:
            caught += 1
print(caught)
"""


def test_signal_while_a_call_fails_is_an_interrupt_and_nothing_else() -> None:
    """libvirt calls an error handler, in Python, from within its C code. If a signal's handler ran
    there, its exception would be lost: "returned a result with an exception set"."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING], capture_output=True, text=True, timeout=60, check=False
    )
    assert "SystemError" not in done.stderr
    assert (done.returncode, done.stdout) == (0, "50\n"), done.stderr


STUCK = """
import os, threading
from orchestrator import cli
from orchestrator.base import interrupts
from orchestrator.machine.vm.hypervisor import Connection
from tests.unit.machine.test_hypervisor import RawConnection, xml

@cli.app.command()
def stuck() -> None:
    raw = RawConnection()
    with Connection(raw, "host", 0).running(xml("one")):
        raw.domains[0].silent = True
        if os.environ["WHEN"] == "before it is ended":
            print("now", flush=True)
            threading.Event().wait()
        threading.Timer(0.3, lambda: print("now", flush=True)).start()

interrupts._WAY_OUT_SECONDS = 1.0
cli.main()
"""


@pytest.mark.parametrize("when", ["before it is ended", "while it is ended"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_process_whose_libvirt_is_silent(
    when: str, number: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, "stuck"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "BAROMETER_STATE": str(tmp_path), "WHEN": when},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        sent = time.monotonic()
        child.send_signal(number)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 130, said
    assert time.monotonic() - sent < 11


SILENT = """
import sys, time
from pathlib import Path
from orchestrator.machine.vm import hypervisor
from orchestrator.machine.transport.ssh_client import write_client
from orchestrator.base.errors import BenchError

hypervisor._OPEN_SECONDS = float(sys.argv[2])
print("now", flush=True)
try:
    {opened}
except BenchError as exc:
    print(exc.reason, flush=True)
"""


@pytest.fixture
def silent_socket(tmp_path: Path) -> Iterator[Path]:
    """Socket of a libvirtd that accepts a connection and sends nothing."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        yield tmp_path / "socket"


def opening(body: str, place: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SILENT.format(opened=body), str(place), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


AT_SOCKET = "hypervisor.at(f'qemu+unix:///system?socket={sys.argv[1]}').__enter__()"
OVER_SSH = (
    "hypervisor.over_ssh(write_client(Path(sys.argv[1]), ['sh', '-c', 'exec sleep 60']), 'host',"
    " deadlines=hypervisor.Deadlines(end=1)).__enter__()"
)


def test_libvirt_that_does_not_answer_its_opening_keeps_no_process(silent_socket: Path) -> None:
    """This is the real library, whose call never returns."""
    started = time.monotonic()
    with opening(AT_SOCKET, silent_socket, 0.3) as child:
        out, said = child.communicate(timeout=SECONDS)
    assert (child.returncode, out) == (0, "now\nlibvirt-silent\n"), said
    assert time.monotonic() - started < SECONDS / 2


def test_opening_that_is_interrupted_ends(silent_socket: Path) -> None:
    with opening(AT_SOCKET, silent_socket, 60) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        time.sleep(0.5)
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=SECONDS)
    assert "KeyboardInterrupt" in said
    assert time.monotonic() - sent < 5


def test_ssh_of_a_libvirt_that_is_dropped_ends(tmp_path: Path) -> None:
    with opening(OVER_SSH, tmp_path, 1) as child:
        out, said = child.communicate(timeout=SECONDS)
    assert out == "now\nlibvirt-silent\n", said
    pid = int((tmp_path / "ssh.pids").read_text())
    end = time.monotonic() + SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
