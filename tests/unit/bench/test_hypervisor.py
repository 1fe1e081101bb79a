"""Connections with a libvirt that is made up; the real one is for the lanes with machines."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import libvirt
import pytest

from orchestrator.bench.hypervisor import Connection, Domain
from orchestrator.errors import BenchError, ScenarioError


class RawDomain:
    def __init__(self, xml: str) -> None:
        self.xml, self.running = xml, True
        self.connection = RawConnection()

    def name(self) -> str:
        return self.xml

    def UUIDString(self) -> str:  # noqa: N802  # libvirt's name
        return f"uuid of {self.xml}"

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
        return f"{self.xml} {flags}"

    def connect(self) -> RawConnection:
        return self.connection

    def destroy(self) -> None:
        if not self.running:
            raise libvirt.libvirtError("it has ended")
        self.running = False


class RawConnection:
    def __init__(self) -> None:
        self.domains: list[RawDomain] = []
        self.error: BaseException | None = None
        self.callbacks: dict[int, Any] = {}

    def createXML(self, xml: str, flags: int) -> RawDomain:  # noqa: N802
        if self.error is not None:
            raise self.error
        self.domains.append(RawDomain(xml))
        return self.domains[-1]

    def getURI(self) -> str:  # noqa: N802
        return "qemu:///system"

    def lookupByName(self, name: str) -> RawDomain:  # noqa: N802
        for domain in self.domains:
            if domain.xml == name:
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
    with connection.running("one") as domain:
        assert domain.active()
    assert not raw.domains[0].running
    with pytest.raises(ZeroDivisionError), connection.running("two"):
        raise ZeroDivisionError
    assert not raw.domains[1].running


def test_domain_that_has_ended_is_not_held_while_its_error_is_on_its_way(
    raw: RawConnection, connection: Connection
) -> None:
    """libvirt keeps a connection open for as long as there is an object of one of its domains."""
    caught: list[BaseException] = []
    try:
        with connection.running("one") as domain:
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
    with connection.running("one") as one, connection.running("two") as two:
        connection.stop()
        assert not one.active()
        assert not two.active()
        with pytest.raises(BenchError, match="interrupted") as caught, connection.running("three"):
            pytest.fail("it must not begin")
        assert caught.value.reason == "interrupted"
    assert not any(domain.running for domain in raw.domains)
    connection.stop()


def test_stop_beside_a_thread_that_waits_is_seen_by_it(connection: Connection) -> None:
    started, seen = threading.Event(), threading.Event()

    def wait() -> None:
        with connection.running("one") as domain:
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
    with pytest.raises(BenchError, match="could not start") as caught, connection.running("one"):
        pytest.fail("it did not start")
    assert caught.value.reason == "libvirt-start"
    raw.error = None
    unused: Any = connection
    with unused.running("two") as domain:
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
    with Domain(raw).watched() as happened:
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
