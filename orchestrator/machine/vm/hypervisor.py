"""libvirt connections and running domains: the one importer of libvirt."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

# libvirt reads this when it is loaded (virInitialize()). Its failures reach us as exceptions; its
# other messages would only be about the settings below.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

import libvirt
import libvirt_qemu

from orchestrator.base import interrupts
from orchestrator.base.errors import BarometerError, BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.machine.runner.state import end_machines
from orchestrator.machine.transport.calls import Call
from orchestrator.machine.transport.ssh_client import end_clients

if os.environ["LIBVIRT_LOG_OUTPUTS"] == "4:file:/dev/null":  # loaded: the environment is as before
    del os.environ["LIBVIRT_LOG_OUTPUTS"]

_T = TypeVar("_T")

_log = logging.getLogger("barometer.libvirt")

# As root, libvirt's embedded driver would become another user and use namespaces and cgroups
# unless these settings forbid it. There is no virtlogd, so QEMU writes its files itself.
_QEMU_CONF_USER = 'stdio_handler = "file"\n'
_QEMU_CONF_ROOT = (
    _QEMU_CONF_USER
    + 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nnamespaces = []\n'
    + "cgroup_controllers = []\nremember_owner = 0\n"
)
_ALIVE_SECONDS, _ALIVE_TRIES = 10, 6
"""Seconds between keepalive messages, and how many may go unanswered: a libvirt that is silent for
70 s is gone. The limit is high because a libvirt on an emulated host is slow."""
_OPEN_SECONDS = 60.0
_MONITOR_SECONDS = 60.0
"""Deadline of QEMU's monitor, which answers only between operations that stop the machine."""
_LOST_SECONDS = 1.0
"""Deadline for the end of a domain on a machine that does not answer: that machine itself is ended
next."""
_SETTLE_SECONDS = 5.0
"""Seconds that an interrupt waits for the start of a domain that is nearly done, so that the new
domain is ended."""
_loop_lock = threading.Lock()
_loop_started = False

Happening = Literal["agent", "reset"]
"""`agent`: the guest's agent has connected. `reset`: QEMU has reset the machine (it resets the
devices before it reports this)."""
DomainEvents = Set[Happening]


def _event_loop() -> None:
    """Start an event loop, once. libvirt's embedded driver hangs without one."""
    global _loop_started  # noqa: PLW0603  # libvirt has one loop for each process
    with _loop_lock:
        if _loop_started:
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=run, name="libvirt-events", daemon=True).start()
        _loop_started = True


@contextlib.contextmanager
def _as_ours(
    what: str, reason: Reason, error: type[BarometerError] = BenchError
) -> Iterator[None]:
    """Turn libvirt's errors in the block into `error`, whose message begins with `what`."""
    try:
        yield
    except libvirt.libvirtError as exc:
        # its traceback holds libvirt's objects, and these hold the connection open
        raise error(f"{what}: {exc}", reason=reason) from exc.with_traceback(None)


@dataclass(frozen=True)
class Deadlines:
    """Deadlines in seconds, each for one whole call into libvirt."""

    call: float = 30.0
    start: float = 300.0
    """Start of a domain; libvirt examines its QEMU first, which is slow on an emulated host."""
    end: float = 10.0
    """End of a domain, or of the connection."""
    hurried: float = 60.0
    """Upper limit of `end` after an interrupt."""

    @property
    def ending(self) -> float:
        return min(self.end, self.hurried) if interrupts.is_requested() else self.end


class Connection:
    """A connection to libvirt that answers in time, or is dropped. A dropped connection gets no
    other call, and nobody waits for its end."""

    def __init__(
        self,
        raw: libvirt.virConnect,
        name: str,
        start_flags: int,
        *,
        deadlines: Deadlines = Deadlines(),  # it is frozen
        end_machines: Callable[[Sequence[str]], object] | None = None,
        hang_up: Callable[[], None] = lambda: None,
        is_lost: Callable[[], bool] = lambda: False,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`end_machines` ends QEMUs by the UUIDs of their domains, without libvirt, if they are
        processes of this machine. `hang_up` ends the client that a dropped connection goes
        through, so that its calls return. `is_lost` is true if the machine is known not to
        answer: then the end of a domain on it is not waited for. `is_stopped` looks whether
        libvirt's daemon is stopped (SIGSTOP), while a call takes long."""
        self._raw = raw
        self._start_flags = start_flags
        self.name = name
        self.deadlines = deadlines
        self._end_machines, self._hang_up, self._is_lost = end_machines, hang_up, is_lost
        self._is_stopped = is_stopped
        self._uuids: set[str] = set()
        """UUIDs of the domains that were started here and have not been ended."""
        self._domains: list[Domain] = []
        self.stopped = threading.Event()
        """Set by `stop`. A failure after that is a consequence of it."""
        self._dropped = threading.Event()

    def call(
        self,
        function: Callable[..., _T],
        *arguments: object,
        within: float | None = None,
        undo: Callable[[_T], object] = lambda _value: None,
        settle: float = 0.0,
    ) -> _T:
        """Return the value of libvirt's `function`, or raise its exception. Raises BenchError
        (`libvirt-silent`) past the deadline, and at once in every later call. `undo` is that of
        `Call`. An interrupt waits up to `settle` seconds for the end of the call and its undo."""
        if self._dropped.is_set():
            raise self._silent("was given up before")
        within = self.deadlines.call if within is None else within
        call = Call(lambda: function(*arguments), undo=undo)
        began = time.monotonic()
        try:
            return call.result(within, self._is_stopped)
        except TimeoutError:
            self.drop()
            seconds = time.monotonic() - began
            raise self._silent(f"did not answer {function.__name__} in {seconds:.0f} s") from None
        except KeyboardInterrupt:
            call.has_ended(settle)
            raise

    def _silent(self, what: str) -> BenchError:
        return BenchError(f"the {self.name}'s libvirt {what}", reason=Reason.LIBVIRT_SILENT)

    def drop(self) -> None:
        """Give the connection up: every later call raises BenchError at once."""
        if self._dropped.is_set():
            return
        self._dropped.set()
        # Freeing libvirt's object would wait for the connection's end. A thread holds it for ever.
        threading.Thread(target=_hold, args=(self._raw,), daemon=True).start()
        self._hang_up()

    def stop(self) -> None:
        """End every domain that was started here and start no other: whoever waits for a domain
        sees it gone. An interrupt calls this from any thread, so QEMUs that are processes of this
        machine are ended without libvirt."""
        self.stopped.set()
        if self._end_machines is not None:
            self._end_machines([*self._uuids])
            return
        for domain in [*self._domains]:
            if domain.uuid in self._uuids:
                domain.destroy()

    def close(self) -> None:
        """Close the connection. Never raises. Libvirt's objects keep it open, so they are let go
        first."""
        for domain in self._domains:
            domain.let_go()
        with contextlib.suppress(libvirt.libvirtError, BenchError):
            self.call(self._raw.close, within=self._ending())

    def _ending(self) -> float:
        """Return the seconds to wait for the end of a domain or of the connection."""
        return _LOST_SECONDS if self._is_lost() else self.deadlines.ending

    def version(self) -> dict[str, str]:
        """Return the versions of libvirt and QEMU, as MAJOR.MINOR.MICRO."""
        with self._failing():
            return {
                "libvirt": _dotted(self.call(self._raw.getLibVersion)),
                # libvirt may have to examine its QEMU first
                "qemu": _dotted(self.call(self._raw.getVersion, within=self.deadlines.start)),
            }

    def security_models(self) -> tuple[str, ...]:
        """Return the security models that confine the domains of this libvirt: dac, apparmor, ...;
        `none` is left out."""
        with self._failing():
            capabilities = ET.fromstring(self.call(self._raw.getCapabilities))
        models = capabilities.iterfind("host/secmodel/model")
        return tuple(model.text for model in models if model.text and model.text != "none")

    @property
    def uri(self) -> str:
        """URI of the connection as libvirt opened it."""
        with self._failing():
            return str(self.call(self._raw.getURI))

    def _failing(self) -> contextlib.AbstractContextManager[None]:
        return _as_ours(f"the {self.name}'s libvirt failed", Reason.LIBVIRT_FAILED)

    def keep_alive(self) -> None:
        """Have libvirt send keepalive messages. After too many without an answer, whatever waits
        for the connection fails."""
        with contextlib.suppress(libvirt.libvirtError):  # the embedded driver has no keepalive
            self.call(self._raw.setKeepAlive, _ALIVE_SECONDS, _ALIVE_TRIES)

    def lookup(self, name: str) -> Domain:
        """Return the domain of that name, which is defined or runs. Raises ScenarioError if there
        is none."""
        try:
            return self._domain(self.call(self._raw.lookupByName, name))
        except libvirt.libvirtError as exc:
            names = sorted(self.call(self._names))
            raise ScenarioError(
                f"{self.uri} has no domain {name!r}",
                hint=f"its domains: {', '.join(names) or 'none'}",
                reason=Reason.NO_DOMAIN,
            ) from exc.with_traceback(None)

    def _names(self) -> list[str]:
        return [domain.name() for domain in self._raw.listAllDomains()]

    def _domain(self, raw: libvirt.virDomain) -> Domain:
        self._domains.append(domain := Domain(raw, self))
        return domain

    @contextlib.contextmanager
    def running(self, xml: str, error: type[BarometerError] = BenchError) -> Iterator[Domain]:
        """Run a domain while the block runs, and end it after."""
        uuid = ET.fromstring(xml).findtext("uuid") or ""
        self._uuids.add(uuid)
        domain: Domain | None = None
        try:
            domain = self._started(xml, error)
            if self.stopped.is_set():
                raise BenchError(f"{self.name}: interrupted", reason=Reason.INTERRUPTED)
            yield domain
        finally:
            if domain is not None:
                domain.destroy()
                domain.let_go()
                self._domains.remove(domain)
            elif self._end_machines is not None:
                self._end_machines([uuid])  # it may run although its start failed
            self._uuids.discard(uuid)

    def _started(self, xml: str, error: type[BarometerError]) -> Domain:
        with _as_ours(
            f"{self.name}: libvirt could not start the domain", Reason.LIBVIRT_START, error
        ):
            return self._domain(
                self.call(
                    self._raw.createXML, xml, self._start_flags, within=self.deadlines.start,
                    undo=lambda raw: raw.destroy(), settle=_SETTLE_SECONDS,
                )
            )  # fmt: skip

    def end(self, raw: libvirt.virDomain, uuid: str) -> None:
        """End a domain by libvirt or, if that takes too long, without it. Never raises."""
        call: Call[object] | None = None
        if not self._dropped.is_set():
            call = Call(raw.destroy)
            try:
                call.result(self._ending(), self._is_stopped)
            except TimeoutError:
                _log.warning("the %s's libvirt does not end domain %s in time", self.name, uuid)
            except libvirt.libvirtError:  # it has ended before
                return
            else:
                return
        if self._end_machines is not None:
            self._end_machines([uuid])
            if call is not None and call.has_ended(self._ending()):
                return
        self.drop()


def _hold(_raw: libvirt.virConnect) -> None:
    threading.Event().wait()


class Domain:
    def __init__(self, raw: libvirt.virDomain, connection: Connection) -> None:
        self._raw = raw
        self._connection = connection
        self.name: str = raw.name()
        self.uuid: str = raw.UUIDString()

    def let_go(self) -> None:
        """Forget libvirt's own object. The connection stays open as long as it exists, and an
        error in flight holds all that is on the stack."""
        self._raw = None

    def active(self) -> bool:
        """True if the domain runs. Raises BenchError, as every call does, if libvirt is silent."""
        raw = self._raw
        try:
            return raw is not None and bool(self._connection.call(raw.isActive))
        except libvirt.libvirtError:
            return False

    def start(self) -> None:
        """Start a domain that is defined and does not run; it outlives the connection. Raises
        BenchError."""
        with _as_ours(f"libvirt could not start {self.name}", Reason.LIBVIRT_START):
            self._connection.call(self._raw.create, within=self._connection.deadlines.start)

    def reboot(self) -> None:
        """Ask the domain's guest to reboot, by ACPI or the guest agent. Raises BenchError."""
        with _as_ours(f"libvirt could not reboot {self.name}", Reason.LIBVIRT_REBOOT):
            self._connection.call(self._raw.reboot)

    def definition(self) -> str:
        """Return the XML that the next start will use; for a transient domain, the XML that it
        runs with."""
        inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
        with _as_ours(f"libvirt does not show {self.name}", Reason.LIBVIRT_FAILED):
            return str(self._connection.call(self._raw.XMLDesc, inactive))

    @contextlib.contextmanager
    def watched(self) -> Iterator[DomainEvents]:
        """Yield a set that collects the domain's events while the block runs."""
        seen: set[Happening] = set()
        libvirts = self._raw.connect()

        def agent(_c: object, _d: object, state: int, _reason: int, _o: object) -> None:
            if state == libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED:
                seen.add("agent")

        def reset(_c: object, _d: object, _o: object) -> None:
            seen.add("reset")

        kinds = (
            (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
            (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, reset),
        )
        register = libvirts.domainEventRegisterAny
        with _as_ours(f"libvirt does not watch {self.name}", Reason.LIBVIRT_FAILED):
            ids = [self._connection.call(register, self._raw, *kind, None) for kind in kinds]
        try:
            yield seen
        finally:
            for number in ids:
                with contextlib.suppress(libvirt.libvirtError, BenchError):
                    self._connection.call(libvirts.domainEventDeregisterAny, number)

    def destroy(self) -> None:
        """End the domain now, unless it has ended. Never raises, and never waits for long: see
        Connection.end."""
        if (raw := self._raw) is not None:
            self._connection.end(raw, self.uuid)

    def xml(self) -> str:
        """Return the domain's XML as libvirt completed it; empty if it has ended."""
        try:
            return str(self._connection.call(self._raw.XMLDesc))
        except libvirt.libvirtError:
            return ""

    def monitor(self, command: str) -> str:
        """Send a command to QEMU's human monitor and return the answer. Raises BenchError if there
        is none."""
        human = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        with _as_ours(f"QEMU did not answer {command!r}", Reason.MONITOR):
            ask = libvirt_qemu.qemuMonitorCommand
            return str(
                self._connection.call(ask, self._raw, command, human, within=_MONITOR_SECONDS)
            )


@contextlib.contextmanager
def embedded(root: Path, cache: Path) -> Iterator[Connection]:
    """Run libvirt in this process, with its state under `root`: no daemon, no need to be root,
    nothing shared.

    What libvirt learns about this machine's QEMU is kept in `cache`. `root` must be short:
    a socket's path is limited to 108 bytes.
    """
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/qemu.conf").write_text(_QEMU_CONF_ROOT if os.geteuid() == 0 else _QEMU_CONF_USER)
    if not (root / "cache").exists():
        (root / "cache").symlink_to(cache)
    with _opened_connection(
        f"qemu:///embed?root={root}", "runner",
        deadlines=Deadlines(start=120, end=30, hurried=1), end_machines=end_machines,
    ) as connection:  # fmt: skip
        yield connection


@contextlib.contextmanager
def over_ssh(
    ssh_program: Path,
    name: str,
    *,
    deadlines: Deadlines,
    keep_alive: bool = True,
    is_lost: Callable[[], bool] = lambda: False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Connection]:
    """Connect to a host's libvirt through the host's SSH server, by a program that
    `ssh_client.write_client` made. `keep_alive`: send keepalive messages, to notice if the host is
    gone. `is_lost` and `is_stopped` are those of Connection."""
    uri = f"qemu+ssh://barometer-host/system?command={ssh_program}&no_tty=1"
    with _opened_connection(
        # A domain ends with its connection, so that a killed runner leaves none on a remote host.
        # (The embedded driver does not know this flag.)
        uri, name, libvirt.VIR_DOMAIN_START_AUTODESTROY, deadlines=deadlines,
        hang_up=lambda: end_clients(ssh_program), is_lost=is_lost, is_stopped=is_stopped,
    ) as connection:  # fmt: skip
        if keep_alive:
            connection.keep_alive()
        yield connection


@contextlib.contextmanager
def at(uri: str | None) -> Iterator[Connection]:
    """Connect to the libvirt of a URI; for None, of the URI that virsh would choose
    (LIBVIRT_DEFAULT_URI, the user's libvirt.conf). Raises BenchError if it cannot be reached. A
    wait for a host that is gone raises it, too."""
    with _opened_connection(uri, uri or "default") as connection:
        connection.keep_alive()
        yield connection


@contextlib.contextmanager
def _opened_connection(
    uri: str | None,
    name: str,
    start_flags: int = 0,
    *,
    hang_up: Callable[[], None] = lambda: None,
    **how: Any,
) -> Iterator[Connection]:
    """Open a connection. `hang_up` and `how` are arguments of Connection."""
    _event_loop()
    _log.debug("libvirt: %s", uri)
    call = Call(lambda: libvirt.open(uri), undo=lambda raw: raw.close())
    try:
        with _as_ours(f"the {name}'s libvirt cannot be reached", Reason.LIBVIRT_CONNECT):
            raw = call.result(_OPEN_SECONDS)
    except KeyboardInterrupt:
        hang_up()
        raise
    except TimeoutError:
        hang_up()
        raise BenchError(
            f"the {name}'s libvirt did not answer in {_OPEN_SECONDS:.0f} s",
            reason=Reason.LIBVIRT_SILENT,
        ) from None
    connection = Connection(raw, name, start_flags, hang_up=hang_up, **how)
    del raw, call
    try:
        yield connection
    finally:
        connection.close()


def library_version() -> str:
    """Return the version of the libvirt library in this process."""
    return _dotted(libvirt.getVersion())


def _dotted(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
