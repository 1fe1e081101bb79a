"""The keeper (guests/agents/keeper/) as the runner asks it: leases on a machine, changes that it
can put back, boots into other kernels.

It is sent with every request and leaves nothing on the machine but what it has in its journal.
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

from orchestrator.bench.images import GUESTS
from orchestrator.bench.owner import process_start
from orchestrator.bench.shell import Commands, Shell
from orchestrator.bench.waiting import until
from orchestrator.command import tail
from orchestrator.errors import BarometerError, BenchError
from orchestrator.scenario import BootWay

log = logging.getLogger("barometer.keeper")

TTL = 60.0
"""Seconds that a lease lives without its runner."""
MACHINE = "machine"
"""The resource that is the machine as a whole; a device's is its PCI address."""

How = Literal[BootWay, "reboot"]

_BOOTSTRAP = (
    "import os, runpy, sys;"
    "archive = os.memfd_create('keeper');"
    "content = sys.stdin.buffer.read(int(sys.argv.pop()));"
    "open(archive, 'wb', closefd=False).write(content);"
    "runpy.run_path(f'/proc/self/fd/{archive}', run_name='__main__')"
)
"""The program is the first so many bytes of standard input; what follows is for it."""
_SECONDS = 300
"""An unbind, a kernel loaded on an emulated machine: what takes longer hangs."""
_WAIT_SECONDS = 2.0
_HINTS = {
    "lease-held": "wait for it (host.wait), or until its runner is gone: then its lease expires",
    "lease-lost": "run it again with the same --out",
    "unfinished": "`barometer recover` puts them back",
    "original-damaged": "`barometer recover`, once the machine runs its own kernel",
    "machine-busy": "look for a keeper that hangs there: a driver that does not let go",
    "driver-hangs": "something on the machine uses the device: end it first",
}


@dataclass(frozen=True)
class Image:
    """A kernel as it lies on the machine. Paths there; `initrd` may be empty."""

    kernel: str
    kernel_sha256: str
    initrd: str
    initrd_sha256: str


@dataclass(frozen=True)
class PutBack:
    done: list[str]
    """What was put back, a text each."""
    failed: list[Failed]
    """What could not be; it is still in the machine's journal."""


@dataclass(frozen=True)
class Failed:
    kind: str
    why: str
    by_hand: str
    """What an admin of the machine can do about it."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}; by hand: {self.by_hand}"


@dataclass(frozen=True)
class Unreadable:
    """A record of a change that the keeper cannot read, in a file on the machine."""

    file: str
    line: int
    """0: the file as a whole."""
    why: str
    text: str
    """Its beginning."""

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.why}" + (f": {self.text}" if self.text else "")


class LeftError(BenchError):
    """`recover` did what it could, and something is left for an admin of the machine."""

    exit_code = 4


class HeldError(BenchError):
    """Another has the lease: `holder` is {"token", "resources", "owner", "left", "expired"}."""

    def __init__(self, message: str, *, holder: dict[str, Any], hint: str) -> None:
        super().__init__(message, hint=hint, reason="lease-held")
        self.holder = holder


class Keeper:
    """A machine's keeper. `connect` gives a connection to it as root, a new one where the last
    was lost.

    Each method raises BenchError with the keeper's reason (`lease-lost`, `unfinished`, `bind`,
    ...) where it refuses, and ConnectionLostError; then nothing is known of what was done.
    """

    def __init__(self, connect: Callable[[], Commands]) -> None:
        self._connect = connect
        self.token = 0
        """Of the lease, once it is acquired."""

    def status(self) -> dict[str, Any]:
        """`leases`, `journal` (what is not put back), `unreadable`, `original`, and of the running
        kernel `boot_id`, `release`, `version`, `cmdline`, `uptime` in seconds. Changes nothing."""
        return self._ask("status")

    def unreadable(self) -> list[Unreadable]:
        """Records that the keeper cannot read, also those that it has set aside before."""
        return [Unreadable(**found) for found in self.status()["unreadable"]]

    def detect(self) -> dict[str, Any]:
        """The means of booting, each {"usable", "why"}, by their names as `boot` takes them; and
        `systemd`, `watchdogs`, `watchdog_stop_on_reboot`, `consoles`, `initramfs`, `lockdown`,
        `secure_boot`."""
        return self._ask("detect")

    def acquire(
        self,
        resources: Sequence[str],
        what: str,
        *,
        ttl: float = TTL,
        wait: float = 0,
        on_wait: Callable[[str], None] = log.info,
    ) -> bool:
        """Take the lease, within `wait` seconds. `what` is told to those who find it held.

        Whether changes are left on the machine by somebody who is gone: then nothing is granted
        but what puts them back. A lease of a process of this runner that has ended is taken over.
        Raises HeldError with the holder.
        """
        request = {"resources": [*resources], "owner": this_process(what), "ttl": ttl}
        held: list[HeldError] = []

        def granted() -> dict[str, Any] | None:
            try:
                return self._acquire(request)
            except HeldError as exc:
                if not held:
                    on_wait(exc.message)
                held.append(exc)
                return None

        try:
            answer = until(granted, within=wait, every=_WAIT_SECONDS, waiting_for="lease")
        except BenchError as exc:
            if exc.reason == "timeout":
                raise held[-1] from None
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

    def renew(self, within: float = _SECONDS) -> None:
        self._leased("renew", within=within)

    def release(self) -> None:
        """Raises BenchError (`unfinished`) while anything is not put back."""
        self._leased("release")

    def write(self, path: str, value: str) -> None:
        """A file below /sys or /proc/sys. The caller proves what it reads then."""
        self._leased("write", path=path, value=value)

    def modules(self, names: Sequence[str]) -> list[str]:
        """Load modules; those that are new, with what they need."""
        return list(self._leased("modules", names=[*names])["new"])

    def bind(self, address: str, driver: str) -> None:
        """Give a PCI function to a driver that is loaded. Raises BenchError: `bind` with the
        reason, `driver-hangs`, `decode-always-on`."""
        self._leased("bind", address=address, driver=driver)

    def claim(self, paths: Sequence[str]) -> None:
        """Files and folders that are going to be made, for barometer alone: they are removed with
        all that is in them. Raises BenchError (`exists`) where one is there."""
        self._leased("claim", paths=[*paths])

    def link(self, path: str, target: str) -> None:
        """A link to what was staged. Raises BenchError (`exists`) where something else is."""
        self._leased("link", path=path, target=target)

    def mount(self, path: str, source: str) -> None:
        """Mount a folder of what was staged over another, until that is put back."""
        self._leased("mount", path=path, source=source)

    def tracing(self, instance: str, group: str) -> None:
        """A tracefs instance and a group of probes that are going to be made."""
        self._leased("tracing", instance=instance, group=group)

    def guest(self, uuid: str) -> None:
        """A domain that is going to be started."""
        self._leased("guest", uuid=uuid)

    def original(self) -> dict[str, Any]:
        """Record the running kernel as the one to come back to: `release`, `version`, `cmdline`,
        `boot_id`, `machine_id`, `kernel`, `kernel_sha256`, `initrd`, `default`."""
        return self._leased("original")

    def deadman(self, seconds: int) -> None:
        """Have the machine restart into its default kernel where it is not confirmed within
        `seconds` of booting a kernel of barometer's, or loses its runner after that. Raises
        BenchError (`no-systemd`)."""
        self._leased("deadman", seconds=seconds)

    def confirm(self) -> list[str]:
        """The machine was reached after a boot; what is to be known of it: a watchdog that is not
        stopped."""
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
        """Have the machine boot in a second, and the lease live `extend` seconds over it; the
        boot id that it leaves, and what is done without. `reboot` boots its default kernel, and
        takes no image. `watchdog`: one of `detect` and its seconds, at least, to restart the
        machine where that kernel hangs; where it cannot be armed, the machine boots without."""
        images = vars(image or Image("", "", "", ""))
        answer = self._leased(
            "boot", how=how, cmdline=cmdline, extend=extend,
            watchdog=watchdog[0], watchdog_seconds=watchdog[1], **images,
        )  # fmt: skip
        return str(answer["boot_id"]), list(answer["notes"])

    def last_words(self) -> str:
        """What the kernel said at last that was booted last; empty where nothing kept it. Its
        records in pstore are removed, and those of the boots before it."""
        return str(self._leased("last_words")["text"])

    def putback(self, *, volatile: bool = False) -> PutBack:
        """Put back what was changed, the latest change first; `volatile`: only what the next
        boot would make void."""
        answer = self._leased("putback", volatile=volatile)
        names = ("kind", "why", "by_hand")
        failed = [Failed(*(str(each[name]) for name in names)) for each in answer["failed"]]
        return PutBack(answer["done"], failed)

    def kernel_restored(self, *, keep: bool = False) -> None:
        """The machine's own kernel runs again; `keep`: or another that barometer did not boot.
        Raises BenchError (`wrong-kernel`)."""
        self._leased("kernel_restored", keep=keep)

    def _leased(self, verb: str, *, within: float = _SECONDS, **request: Any) -> dict[str, Any]:
        return self._ask(verb, within=within, token=self.token, **request)

    def _ask(self, verb: str, *, within: float = _SECONDS, **request: Any) -> dict[str, Any]:
        shell, program = self._connect(), _archive()
        done = shell.run(
            ["python3", "-I", "-c", _BOOTSTRAP, str(len(program))],
            stdin=program + json.dumps({"verb": verb, **request}).encode(),
            timeout=within, check=False, doing=f"asking the keeper to {verb}",
        )  # fmt: skip
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError as exc:
            raise BenchError(
                f"{shell.name}: the keeper did not answer to {verb}: exit code {done.code}",
                evidence=tail(done.stderr or done.stdout),
                hint="barometer needs python3 on the machine, 3.9 or later",
                reason="keeper-failed",
            ) from exc
        if "refused" in answer:
            raise _refused(shell.name, answer)
        return answer


def _refused(machine: str, answer: dict[str, Any]) -> BenchError:
    reason, message = answer["refused"], f"{machine}: {answer['message']}"
    hint = _HINTS.get(reason, "")
    if reason == "lease-held":
        return HeldError(message, holder=answer["holder"], hint=hint)
    return BenchError(message, hint=hint, reason=reason)


@functools.cache
def _archive() -> bytes:
    """The keeper's program, with the tracer's way to clear what it armed."""

    def is_ours(path: Path) -> bool:
        return path.suffix == ".py" and (path.parts[0] == "keeper" or path.name == "tracer.py")

    archive = io.BytesIO()
    zipapp.create_archive(
        GUESTS / "agents", archive, main="keeper.verbs:main", filter=is_ours, compressed=True
    )
    return archive.getvalue()


def this_process(what: str) -> dict[str, Any]:
    """The owner of a lease, so that anyone can tell who it is, and this runner whether it is
    still alive."""
    return {
        "runner": socket.gethostname(),
        "user": getpass.getuser(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": str(Path("/proc/self/ns/pid").readlink()),
        "what": what,
    }


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this runner that has ended. Of another
    machine or container, or of a boot before, only the lease's expiry tells."""
    owner, here = holder["owner"], this_process("")
    same = ("runner", "user", "boot_id", "pid_namespace")
    pid = owner.get("pid")
    return (
        all(owner.get(name) == here[name] for name in same)
        and isinstance(pid, int)
        and process_start(pid) != owner.get("started")
    )


class Lease:
    """A lease that is kept alive while the block runs, over a connection of its own."""

    def __init__(
        self,
        connect: Callable[[], Shell],
        token: int,
        *,
        ttl: float = TTL,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """`close` ends a connection that failed, so that the next is a new one."""
        self._close = close
        self._keeper = Keeper(connect)
        self._keeper.token = token
        self._every = ttl / 3
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._lost: BarometerError | None = None

    @property
    def lost(self) -> bool:
        """The machine has said that the lease is another's."""
        return self._lost is not None

    def check(self) -> None:
        """Raises BenchError (`lease-lost`)."""
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

    def _beat(self) -> None:
        """A machine that does not answer may be booting: what counts is its word."""
        pause = self._every
        while not self._end.wait(pause):
            pause = self._every
            try:
                self._keeper.renew(within=self._every)
            except BarometerError as exc:
                if exc.reason == "lease-lost":
                    self._lost = exc
                    return
                log.debug("the lease is not renewed: %s", exc.message)
                self._close()
                pause = min(_WAIT_SECONDS, self._every)
