"""Requests to the keeper (guests/agents/keeper/): leases on a machine, changes that the keeper can
put back, boots into other kernels.

The keeper is sent with a request, and leaves nothing on the machine but what its journal lists.
"""

from __future__ import annotations

import functools
import getpass
import io
import json
import logging
import os
import socket
import threading
import zipapp
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason, parse_reason
from orchestrator.base.waiting import until
from orchestrator.machine.host.changes import VFIO
from orchestrator.machine.runner.agents import AgentProgram, StayingAgent, run_agent, sent_program
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.runner.owner import process_start
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.shell import Commands, Shell
from orchestrator.scenario.vocabulary import BootWay

_log = logging.getLogger("barometer.keeper")

TTL = 60.0
"""Seconds that a lease outlives its runner."""
MACHINE = "machine"
"""Resource name of the machine as a whole; that of a device is its PCI address."""

How = Literal[BootWay, "reboot"]

_SECONDS = 300
"""Deadline of a request. The slowest requests unbind a device or load a kernel on an emulated
machine; a request that takes longer hangs."""
_WAIT_SECONDS = 2.0
_BUSY_SECONDS = 10.0
_HINTS = {
    Reason.LEASE_HELD: "wait for it (host.wait), or until its runner is gone: then its lease"
    " expires",
    Reason.LEASE_LOST: "run it again with the same --out",
    Reason.UNFINISHED: "`barometer recover` puts them back",
    Reason.ORIGINAL_DAMAGED: "`barometer recover`, once the machine runs its own kernel",
    Reason.MACHINE_BUSY: "look for a keeper that hangs there: a driver that does not let go",
    Reason.DRIVER_HANGS: "something on the machine uses the device: end it first",
}


@dataclass(frozen=True)
class Image:
    """A kernel that is stored on the machine. The paths are the machine's; `initrd` may be
    empty."""

    kernel: str
    kernel_sha256: str
    initrd: str
    initrd_sha256: str


@dataclass(frozen=True)
class PutBack:
    done: list[str]
    """Changes that were put back, as one text for each."""
    failed: list[Failed]
    """Changes that could not be put back; they are still in the machine's journal."""


@dataclass(frozen=True)
class Failed:
    kind: str
    why: str
    by_hand: str
    """Remedy for an admin of the machine."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}; by hand: {self.by_hand}"


@dataclass(frozen=True)
class Unreadable:
    """A record of a change that the keeper cannot read, in a file on the machine."""

    file: str
    line: int
    """Number of the line; 0: the file as a whole."""
    why: str
    text: str
    """Beginning of the record."""

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.why}" + (f": {self.text}" if self.text else "")


class LeftError(BenchError):
    """`recover` did what it could, and something is left for an admin of the machine."""

    exit_code = 4


class HeldError(BenchError):
    """Somebody else has the lease.

    `holder` is {"token", "resources", "owner", "left", "expired"}."""

    def __init__(self, message: str, *, holder: dict[str, Any], hint: str) -> None:
        super().__init__(message, hint=hint, reason=Reason.LEASE_HELD)
        self.holder = holder


class Keeper:
    """A machine's keeper. `connect` returns a connection to the machine as root, a new one if the
    last was lost.

    Each method raises BenchError with the keeper's reason (`lease-lost`, `unfinished`, `bind`,
    ...) if the keeper refuses. After ConnectionLostError it is unknown what was done.
    """

    def __init__(self, connect: Callable[[], Commands]) -> None:
        self._connect = connect
        self.token = 0
        """Token of the lease, once it is acquired."""

    def status(self) -> dict[str, Any]:
        """Return `leases`, `journal` (changes that are not put back), `unreadable`, `original`,
        and facts of the running kernel: `boot_id`, `release`, `version`, `cmdline`, `uptime` in
        seconds. This request changes nothing."""
        return self._ask("status")

    def unreadable(self) -> list[Unreadable]:
        """Return the records that the keeper cannot read, and those that it set aside before."""
        return [Unreadable(**record) for record in self.status()["unreadable"]]

    def detect(self) -> dict[str, Any]:
        """Return {"usable", "why"} for each boot method, under the name that `boot` takes as
        `how`; and `systemd`, `watchdogs`, `watchdog_stop_on_reboot`, `consoles`, `initramfs`,
        `lockdown`, `secure_boot`."""
        return self._ask("detect")

    def acquire(
        self,
        resources: Sequence[str],
        purpose: str,
        *,
        ttl: float = TTL,
        wait: float = 0,
        on_wait: Callable[[str], None] = _log.info,
    ) -> bool:
        """Take the lease, within `wait` seconds. Others who request it meanwhile are shown the
        `purpose`.

        Return True if an earlier holder is gone and left changes on the machine. Then the keeper
        refuses every new change until these are put back. If the holder was a process of this
        runner that has ended, its lease is taken over. Raises HeldError with the holder.
        """
        request = {"resources": [*resources], "owner": describe_this_process(purpose), "ttl": ttl}
        refusals: list[HeldError] = []

        def granted() -> dict[str, Any] | None:
            try:
                return self._acquire(request)
            except HeldError as exc:
                if not refusals:
                    on_wait(exc.message)
                refusals.append(exc)
                return None

        try:
            answer = until(granted, within=wait, every=_WAIT_SECONDS, waiting_for="lease")
        except BenchError as exc:
            if exc.reason == Reason.TIMEOUT:
                raise refusals[-1] from None
            raise
        self.token = answer["token"]
        return bool(answer["unfinished"])

    def _acquire(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._ask("acquire", takeover=0, **request)
        except HeldError as exc:
            if not has_ended(exc.holder):
                raise
            return self._ask("acquire", takeover=exc.holder["token"], **request)

    def release(self) -> None:
        """Give the lease back. Raises BenchError (`unfinished`) while anything is not put back."""
        self._leased("release")

    def write(self, path: str, value: str) -> None:
        """Write a file below /sys or /proc/sys. The caller proves its new content."""
        self._leased("write", path=path, value=value)

    def modules(self, names: Sequence[str]) -> list[str]:
        """Load modules and all that they need; return those that were not loaded before."""
        return list(self._leased("modules", names=[*names])["new"])

    def bind(self, address: str, driver: str) -> None:
        """Bind a PCI function to a driver that is loaded. Raises BenchError: `bind` with the
        reason, `driver-hangs`, `decode-always-on`."""
        self._leased("bind", address=address, driver=driver)

    def claim(self, paths: Sequence[str]) -> None:
        """Announce files and folders that barometer is about to make for itself. Putting back
        removes them with all that is in them. Raises BenchError (`exists`) if one exists."""
        self._leased("claim", paths=[*paths])

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link to something that barometer has staged. Raises BenchError
        (`exists`) if something else is there."""
        self._leased("link", path=path, target=target)

    def mount(self, path: str, source: str) -> None:
        """Mount a staged folder over the folder `path`. Putting back unmounts it."""
        self._leased("mount", path=path, source=source)

    def tracing(self, instance: str, group: str) -> None:
        """Announce a tracefs instance and a group of probes."""
        self._leased("tracing", instance=instance, group=group)

    def guest(self, uuid: str) -> None:
        """Announce a domain by its UUID."""
        self._leased("guest", uuid=uuid)

    def original(self) -> dict[str, Any]:
        """Record the running kernel as the one to come back to. If a kernel is recorded already,
        keep that record. Return the record: `release`, `version`, `cmdline`, `boot_id`,
        `machine_id`, `kernel`, `kernel_sha256`, `initrd`, `initrd_sha256`, `default`."""
        return self._leased("original")

    def deadman(self, seconds: int) -> None:
        """Have the machine restart into its default kernel if barometer boots a kernel on it and
        does not confirm the boot within `seconds`, or if the machine loses its runner after that.
        Raises BenchError (`no-systemd`)."""
        self._leased("deadman", seconds=seconds)

    def confirm(self) -> list[str]:
        """Tell the keeper that the machine was reached after a boot. Return notes for the user,
        for example on a watchdog that could not be stopped."""
        return list(self._leased("confirm")["notes"])

    def boot(
        self,
        how: How,
        image: Image | None = None,
        cmdline: str = "",
        *,
        extend: float,
        watchdog: tuple[str, int] = ("", 0),
    ) -> tuple[str, list[str]]:
        """Have the machine boot in a second, and the lease expire in `extend` seconds. Return the
        boot id of the boot that ends, and notes on what is missing from the boot. `reboot` boots
        the machine's default kernel, and takes no image. `watchdog` is the device of a watchdog
        that `detect` lists, and its shortest timeout in seconds. It restarts the machine if the
        new kernel hangs. If it cannot be armed, the machine boots without it."""
        images = vars(image or Image("", "", "", ""))
        answer = self._leased(
            "boot", how=how, cmdline=cmdline, extend=extend,
            watchdog=watchdog[0], watchdog_seconds=watchdog[1], **images,
        )  # fmt: skip
        return str(answer["boot_id"]), list(answer["notes"])

    def last_words(self) -> str:
        """Return the last messages of the kernel that was booted last; empty if nothing kept them.
        Its records in pstore are removed, and those of barometer's earlier boots."""
        return str(self._leased("last_words")["text"])

    def putback(self, *, volatile: bool = False) -> PutBack:
        """Put back what was changed, the latest change first; `volatile`: only changes that the
        next boot would void."""
        answer = self._leased("putback", volatile=volatile)
        names = ("kind", "why", "by_hand")
        failed = [Failed(*(str(each[name]) for name in names)) for each in answer["failed"]]
        return PutBack(answer["done"], failed)

    def kernel_restored(self, *, keep: bool = False) -> None:
        """Tell the keeper that the machine's original kernel runs again. With `keep`, any other
        kernel that barometer did not boot is accepted, too. Raises BenchError (`wrong-kernel`) if
        neither runs."""
        self._leased("kernel_restored", keep=keep)

    def _leased(self, verb: str, *, within: float = _SECONDS, **request: Any) -> dict[str, Any]:
        return self._ask(verb, within=within, token=self.token, **request)

    def _ask(self, verb: str, *, within: float = _SECONDS, **request: Any) -> dict[str, Any]:
        shell = self._connect()
        completed = run_agent(
            shell, _program(), request=json.dumps({"verb": verb, **request}).encode(),
            timeout=within, check=False, doing=f"asking the keeper to {verb}",
        )  # fmt: skip
        question = f"{verb}: exit code {completed.code}"
        return _answer(
            shell.name, question, completed.stdout, completed.stderr or completed.stdout
        )


def _answer(machine: str, question: str, line: str, output: str) -> dict[str, Any]:
    """Parse an answer of the keeper to `question`. Raises BenchError if it is none, or a refusal;
    `output` is the evidence for the former."""
    try:
        answer: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BenchError(
            f"{machine}: the keeper did not answer to {question}", evidence=tail(output),
            hint="barometer needs python3 on the machine, 3.9 or later",
            reason=Reason.KEEPER_FAILED,
        ) from exc  # fmt: skip
    if "refused" in answer:
        raise _refused(machine, answer)
    return answer


def _refused(machine: str, answer: dict[str, Any]) -> BenchError:
    name, message = answer["refused"], f"{machine}: {answer['message']}"
    reason = parse_reason(name) or Reason.KEEPER_FAILED
    if reason != name:
        message += f" ({name})"
    hint = _HINTS.get(reason, "")
    if reason == Reason.LEASE_HELD:
        return HeldError(message, holder=answer["holder"], hint=hint)
    return BenchError(message, hint=hint, reason=reason)


@functools.cache
def _program() -> AgentProgram:
    """Return the keeper, with the program that removes probes."""

    def is_ours(path: Path) -> bool:
        return path.suffix in (".py", ".sh") and path.parts[0] == "keeper"

    archive = io.BytesIO()
    zipapp.create_archive(
        GUESTS / "agents", archive, main="keeper.verbs:main", filter=is_ours, compressed=True
    )
    return sent_program(archive.getvalue())


def describe_this_process(purpose: str) -> dict[str, Any]:
    """Describe this process as the owner of a lease: enough to show others who it is, and for this
    runner to tell whether the process is still alive."""
    return {
        "runner": socket.gethostname(),
        "user": getpass.getuser(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": str(Path("/proc/self/ns/pid").readlink()),
        "what": purpose,
    }


def has_ended(holder: dict[str, Any]) -> bool:
    """True if the holder of a lease was a process of this runner that has ended. For a holder in
    another machine or container, or in an earlier boot, only the lease's expiry tells."""
    owner, this = holder["owner"], describe_this_process("")
    same = ("runner", "user", "boot_id", "pid_namespace")
    pid = owner.get("pid")
    return (
        all(owner.get(name) == this[name] for name in same)
        and isinstance(pid, int)
        and process_start(pid) != owner.get("started")
    )


class Lease:
    """A lease that is kept alive while the block runs, over a connection of its own. The keeper
    stays at its end, since to start it takes 0.14 s of a CPU of the machine that is measured. If
    the connection is lost, the keeper ends, nobody renews the lease, and it expires."""

    def __init__(
        self,
        connect: Callable[[], Shell],
        token: int,
        *,
        ttl: float = TTL,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """`close` ends a connection that failed, so that the next is a new one."""
        self._close, self._token = close, token
        self._keeper = StayingAgent(connect, _program(), "stay")
        self._every = ttl / 3
        self._asking = threading.Lock()
        """The keeper that stays answers one request at a time."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._lost: BarometerError | None = None

    @property
    def lost(self) -> bool:
        """True once the machine has reported that the lease is lost."""
        return self._lost is not None

    def check(self) -> None:
        """Raise BenchError (`lease-lost`) if the lease is lost."""
        if self._lost is not None:
            raise self._lost

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join(self._every)
        self._keeper.close()

    def _beat(self) -> None:
        """Renew the lease until the block ends. The lease is lost only if the machine answers so.
        A machine that does not answer may be booting."""
        pause = self._every
        while not self._end.wait(pause):
            pause = self._every
            try:
                self._renew()
            except BarometerError as exc:
                if exc.reason == Reason.LEASE_LOST:
                    self._lost = exc
                    return
                _log.debug("the lease is not renewed: %s", exc.message)
                self._keeper.close()
                self._close()
                pause = min(_WAIT_SECONDS, self._every)

    def _renew(self) -> None:
        with self._asking:
            line = self._keeper.ask({"verb": "renew", "token": self._token}, within=self._every)
        _answer("host", "renew", line, line)

    def read_busy_seconds(self) -> float | None:
        """Return the seconds that the machine's CPUs have worked since its boot, or None if the
        keeper that stays does not tell. It needs no new program, which a machine that hangs could
        not start."""
        try:
            with self._asking:
                line = self._keeper.ask({"verb": "busy"}, within=_BUSY_SECONDS)
            answer = _answer("host", "busy", line, line)
            with parsing("the keeper's answer", line):
                return float(answer["seconds"])
        except BarometerError as exc:
            _log.debug("how busy the machine is, is not known: %s", exc.message)
            return None


class JournaledChanges:
    """Makes changes on a metal host. Its keeper writes each to the journal before making it."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._claimed: set[str] = set()

    def write(self, path: str, value: str) -> None:
        self._keeper.write(path, value)

    def bind(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            self._keeper.bind(address, VFIO)

    def tracing(self, instance: str, group: str) -> None:
        self._keeper.tracing(instance, group)

    def guest(self, uuid: str) -> None:
        self._keeper.guest(uuid)

    def files(self, *paths: str) -> None:
        if new := [path for path in paths if path not in self._claimed]:
            self._keeper.claim(new)
            self._claimed |= {*new}

    def put_back(self) -> None:
        self._keeper.putback(volatile=True)
