"""libvirt connections and running domains: the one importer of libvirt."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Literal

# Read when the library is loaded. What fails is raised to us; what else it would print is about
# the settings below.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

import libvirt
import libvirt_qemu

from orchestrator.errors import BarometerError, BenchError, ScenarioError

log = logging.getLogger("barometer.libvirt")

# libvirt's embedded driver as root needs to be told not to become another user, not to use
# namespaces or cgroups; there is no virtlogd, so QEMU writes its files itself.
_QEMU_CONF_USER = 'stdio_handler = "file"\n'
_QEMU_CONF_ROOT = (
    _QEMU_CONF_USER
    + 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nnamespaces = []\n'
    + "cgroup_controllers = []\nremember_owner = 0\n"
)
_ALIVE_SECONDS, _ALIVE_TRIES = 10, 6
_loop_lock = threading.Lock()
_loop_started = False

Happening = Literal["agent", "reset"]
"""The guest's agent has connected; QEMU has reset the machine (its devices before it says so)."""
Happened = Set[Happening]


def _event_loop() -> None:
    """libvirt's embedded driver hangs without an event loop."""
    global _loop_started  # noqa: PLW0603  # libvirt's loop is one for each process
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
def _as_ours(what: str, reason: str, error: type[BarometerError] = BenchError) -> Iterator[None]:
    """libvirt's errors as ours: `what` failed."""
    try:
        yield
    except libvirt.libvirtError as exc:
        raise error(f"{what}: {exc}", reason=reason) from exc


class Connection:
    def __init__(self, raw: libvirt.virConnect, name: str, start_flags: int) -> None:
        self._raw = raw
        self._start_flags = start_flags
        self.name = name
        self._running: dict[str, Domain] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End every domain that was started here and start no other: whoever waits for one sees
        it gone. For an interrupt while several threads are at work."""
        self._stopped.set()
        for domain in [*self._running.values()]:
            domain.destroy()

    def version(self) -> dict[str, str]:
        """libvirt's and QEMU's version, as MAJOR.MINOR.MICRO."""
        return {
            "libvirt": _dotted(self._raw.getLibVersion()),
            "qemu": _dotted(self._raw.getVersion()),
        }

    def security_models(self) -> tuple[str, ...]:
        """Those that confine the domains of this libvirt, `none` left out: dac, apparmor, ..."""
        found = ET.fromstring(self._raw.getCapabilities()).iterfind("host/secmodel/model")
        return tuple(model.text for model in found if model.text and model.text != "none")

    @property
    def uri(self) -> str:
        """As libvirt opened it."""
        return str(self._raw.getURI())

    def keep_alive(self, seconds: int, tries: int) -> None:
        """Ask for a sign of life so often; after so many without an answer, whatever waits for
        the connection fails."""
        with contextlib.suppress(libvirt.libvirtError):  # of a libvirt in this process
            self._raw.setKeepAlive(seconds, tries)

    def lookup(self, name: str) -> Domain:
        """A domain that is defined or runs there. Raises ScenarioError when none has that name."""
        try:
            return Domain(self._raw.lookupByName(name))
        except libvirt.libvirtError as exc:
            names = sorted(domain.name() for domain in self._raw.listAllDomains())
            raise ScenarioError(
                f"{self.uri} has no domain {name!r}",
                hint=f"its domains: {', '.join(names) or 'none'}",
                reason="no-domain",
            ) from exc

    @contextlib.contextmanager
    def running(self, xml: str, error: type[BarometerError] = BenchError) -> Iterator[Domain]:
        """A domain that runs while the block does, and is gone after it."""
        failed = f"{self.name}: libvirt could not start the domain"
        try:
            with _as_ours(failed, "libvirt-start", error):
                domain = Domain(self._raw.createXML(xml, self._start_flags))
        except KeyboardInterrupt:
            # it is delivered when the call returns: the domain may run, and nobody holds it
            self._destroy(xml)
            raise
        self._running[domain.uuid] = domain
        try:
            if self._stopped.is_set():
                raise BenchError(f"{self.name}: interrupted", reason="interrupted")
            yield domain
        finally:
            domain.destroy()
            del self._running[domain.uuid]
            domain.let_go()

    def _destroy(self, xml: str) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self._raw.lookupByUUIDString(ET.fromstring(xml).findtext("uuid")).destroy()


class Domain:
    def __init__(self, raw: libvirt.virDomain) -> None:
        self._raw = raw
        self.name: str = raw.name()
        self.uuid: str = raw.UUIDString()

    def let_go(self) -> None:
        """Forget libvirt's own object. As long as there is one, its connection stays open, and
        an error on its way holds all that is on the stack."""
        self._raw = None

    def active(self) -> bool:
        raw = self._raw
        try:
            return raw is not None and bool(raw.isActive())
        except libvirt.libvirtError:
            return False

    def start(self) -> None:
        """Start a domain that is defined and does not run; it runs on when the connection ends.
        Raises BenchError."""
        with _as_ours(f"libvirt could not start {self.name}", "libvirt-start"):
            self._raw.create()

    def reboot(self) -> None:
        """Ask its guest to reboot, as by ACPI or the guest agent. Raises BenchError."""
        with _as_ours(f"libvirt could not reboot {self.name}", "libvirt-reboot"):
            self._raw.reboot()

    def definition(self) -> str:
        """Its XML as the next start will use it; of a transient one, as it runs."""
        return str(self._raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    @contextlib.contextmanager
    def watched(self) -> Iterator[Happened]:
        """What happens to it while the block runs, as it happens."""
        seen: set[Happening] = set()
        connection = self._raw.connect()

        def agent(_c: object, _d: object, state: int, _reason: int, _o: object) -> None:
            if state == libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED:
                seen.add("agent")

        def reset(_c: object, _d: object, _o: object) -> None:
            seen.add("reset")

        ids = [
            connection.domainEventRegisterAny(self._raw, kind, callback, None)
            for kind, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, reset),
            )
        ]
        try:
            yield seen
        finally:
            for number in ids:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(number)

    def destroy(self) -> None:
        """End it now; nothing happens when it has ended."""
        if (raw := self._raw) is not None:
            with contextlib.suppress(libvirt.libvirtError):
                raw.destroy()

    def xml(self) -> str:
        """The domain as libvirt completed it; empty when it has ended."""
        try:
            return str(self._raw.XMLDesc())
        except libvirt.libvirtError:
            return ""

    def monitor(self, command: str) -> str:
        """Ask QEMU's human monitor. Raises BenchError when it does not answer."""
        human = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        with _as_ours(f"QEMU did not answer {command!r}", "monitor"):
            return str(libvirt_qemu.qemuMonitorCommand(self._raw, command, human))


@contextlib.contextmanager
def embedded(root: Path, cache: Path) -> Iterator[Connection]:
    """libvirt in this process, with its state under `root`: no daemon, no root, nothing shared.

    What libvirt learns about this machine's QEMU is kept in `cache`. `root` must be short:
    a socket's path is limited to 108 bytes.
    """
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/qemu.conf").write_text(_QEMU_CONF_ROOT if os.geteuid() == 0 else _QEMU_CONF_USER)
    if not (root / "cache").exists():
        (root / "cache").symlink_to(cache)
    with _opened(f"qemu:///embed?root={root}", "runner") as connection:
        yield connection


@contextlib.contextmanager
def over_ssh(ssh_program: Path, name: str) -> Iterator[Connection]:
    """The libvirt of a host, through its own SSH server."""
    uri = f"qemu+ssh://barometer-host/system?command={ssh_program}&no_tty=1"
    # A domain ends with its connection, so that a killed runner leaves none on a remote host.
    # (The embedded driver does not know this flag.)
    with _opened(uri, name, libvirt.VIR_DOMAIN_START_AUTODESTROY) as connection:
        yield connection


@contextlib.contextmanager
def at(uri: str | None) -> Iterator[Connection]:
    """The libvirt of a URI; None: the one that virsh would choose (LIBVIRT_DEFAULT_URI, the
    user's libvirt.conf). Raises BenchError; so does what waits for a host that is gone."""
    with _opened(uri, uri or "default") as connection:
        connection.keep_alive(_ALIVE_SECONDS, _ALIVE_TRIES)
        yield connection


@contextlib.contextmanager
def _opened(uri: str | None, name: str, start_flags: int = 0) -> Iterator[Connection]:
    _event_loop()
    log.debug("libvirt: %s", uri)
    with _as_ours(f"the {name}'s libvirt cannot be reached", "libvirt-connect"):
        raw = libvirt.open(uri)
    try:
        yield Connection(raw, name, start_flags)
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            raw.close()


def library_version() -> str:
    """libvirt's own, in this process."""
    return _dotted(libvirt.getVersion())


def _dotted(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
