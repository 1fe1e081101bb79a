"""Boot a metal host into another kernel and back. The keeper on the machine starts each boot; what
answers over SSH afterwards proves which kernel runs."""

from __future__ import annotations

import contextlib
import logging
import shlex
from dataclasses import dataclass, field
from typing import Any

from orchestrator.base.bounded import FACTS_BYTES
from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.process import run, tail
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.machine.host.console import Console
from orchestrator.machine.metal.consoles import ConsoleCommand
from orchestrator.machine.metal.keeper import How, Image, Keeper, Unreadable
from orchestrator.machine.transport import remote
from orchestrator.machine.transport.shell import Shell
from orchestrator.scenario.machines import MetalHost
from orchestrator.scenario.vocabulary import BOOT_WAYS

_log = logging.getLogger("barometer.metal")

_ASKED_SECONDS = 60.0
FATAL = (
    Reason.HOST_UNKNOWN_HOST_KEY,
    Reason.HOST_WRONG_HOST_KEY,
    Reason.HOST_NO_PROXY,
)
"""Error reasons of a connection that waiting does not cure."""
FATAL_ON_FIRST_CONTACT = (Reason.HOST_NO_NAME, Reason.HOST_NO_LOGIN, Reason.HOST_NO_ROOT)
"""Error reasons that waiting may cure only if the machine has let us in before: while it goes down
and comes up, it refuses a user's login (pam_nologin(8))."""
TRANSIENT = (Reason.HOST_NO_SSH, Reason.HOST_SSH_LOST, *FATAL_ON_FIRST_CONTACT)
"""Error reasons that are seen while a machine goes down."""


@dataclass(frozen=True)
class Running:
    """The kernel that runs on the machine now."""

    boot_id: str
    release: str
    version: str
    """Version as `uname -v` prints it; it differs between builds of one release."""
    cmdline: str

    @property
    def token(self) -> str:
        """Token on the command line of a kernel that barometer booted; else empty."""
        words = [w for w in self.cmdline.split() if w.startswith("barometer.token=")]
        return words[0].partition("=")[2] if words else ""


def read_running_kernel(shell: Shell) -> Running:
    lines = shell.run(
        ["cat", "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/osrelease",
         "/proc/sys/kernel/version", "/proc/cmdline"],
        doing="asking what runs", timeout=_ASKED_SECONDS, limit=FACTS_BYTES,
    ).stdout.splitlines()  # fmt: skip
    return Running(*[*lines, "", "", "", ""][:4])


@dataclass
class Boots:
    """The boots of one machine. Only `reach` works without a lease."""

    spec: MetalHost
    endpoint: remote.Endpoint
    link: remote.Link
    keeper: Keeper
    progress: Progress
    console: ConsoleCommand | None
    way: How = field(default="reboot", init=False)
    """Boot method of the kernels under test, once `choose_way` has found it."""
    _reached: bool = field(default=False, init=False)
    """True once the machine has answered."""

    def running(self) -> Running:
        return read_running_kernel(self.link.shell())

    def reach(self, *, power_cycle: bool = False) -> Running:
        """Wait until the machine, which may be booting, answers. Return the kernel that runs.

        Its power is cycled only with `power_cycle`: a machine that cannot be reached may be in use
        by somebody else. Raises the errors of `into`.
        """
        return self._back("", power_cycle=power_cycle)

    def choose_way(self) -> None:
        """Choose the boot method for the kernels under test: the one that the scenario requests,
        or the first one that the machine supports. Raises BenchError if there is none."""
        means = self.keeper.detect()
        candidates: tuple[How, ...] = BOOT_WAYS if self.spec.boot == "auto" else (self.spec.boot,)
        usable = [way for way in candidates if means[way]["usable"]]
        if not usable:
            raise BenchError(
                f"{self.spec.address} has no way to boot a kernel under test",
                evidence="\n".join(f"{way}: {means[way]['why']}" for way in candidates),
                hint="mend what one of them lacks; kexec is the fastest",
                reason=Reason.NO_WAY_TO_BOOT,
            )  # fmt: skip
        self.way = usable[0]

    def into(
        self,
        how: How,
        image: Image | None = None,
        cmdline: str = "",
        watchdog: tuple[str, int] = ("", 0),
    ) -> Running:
        """Boot the machine and return the kernel that runs then. The lease is extended across the
        boot; once it is renewed under the new boot id, it has its usual length again.

        Raises BenchError (`machine-lost`) if nothing answers in time, not even after a power
        cycle. Login errors that waiting does not cure are raised at once.
        """
        waits = 2 if self.spec.power_cycle else 1
        extend = waits * self.spec.deadline + self.spec.lease
        old_boot_id, notes = self.keeper.boot(
            how, image, cmdline, extend=extend, watchdog=watchdog
        )
        for note in notes:
            self.progress.note(f"host: {note}")
        self.link.close()
        return self._back(old_boot_id, power_cycle=True)

    def confirm(self) -> None:
        """Tell the keeper that the machine was reached after the boot of a kernel under test,
        whether that kernel runs or the machine's own. The lease gets its usual length again, and
        the watchdog is stopped. Call Keeper.last_words before this."""
        for note in self.keeper.confirm():
            self.progress.note(f"host: {note}")

    def _back(self, old_boot_id: str, *, power_cycle: bool) -> Running:
        """Wait until the machine has another boot id than `old_boot_id`; return the kernel that
        runs. With `power_cycle`, cycle the power once if it does not answer in time."""
        spec, seen = self.spec, ""

        def answers() -> Running | None:
            nonlocal seen
            try:
                running = self.running()
            except BarometerError as exc:
                if exc.reason in FATAL or (
                    exc.reason in FATAL_ON_FIRST_CONTACT and not self._reached
                ):
                    raise
                seen = exc.message
                _log.debug("not back: %s", exc.message)
                self.link.close()
                return None
            self._reached = True
            seen = f"it still runs {running.release}"
            return running if running.boot_id != old_boot_id else None

        for after in (" after a boot" if old_boot_id else "", " after its power was cycled"):
            try:
                return until(
                    answers, within=spec.deadline, every=1, reason=Reason.MACHINE_LOST,
                    waiting_for=f"answer of {self.endpoint}{after}",
                    last_seen=lambda: self.read_console_tail() or seen,
                )  # fmt: skip
            except BenchError as exc:
                may = power_cycle and spec.power_cycle and "power" not in after
                if exc.reason != Reason.MACHINE_LOST or not may:
                    raise
            self.progress.note(f"host: no answer within {spec.deadline} s; power cycle")
            run(shlex.split(spec.power_cycle or ""), doing="cycling the host's power")
        raise AssertionError

    def go_home(self) -> None:
        """Boot the kernel that the machine ran before the run: by kexec if kernels under test are
        booted so; otherwise, or if kexec fails, by a restart. If the restart boots another kernel,
        because the default has changed, boot the original by a one-shot boot. Raises BenchError if
        the original does not run in the end."""
        running = self.reach()
        own = self.keeper.status()["original"]
        if own is None:
            self._into_default(running)
            return
        if _is_own_kernel(running, own):
            return
        image = _find_own_image(own)
        if image is not None and self.way == "kexec" and self._way_home() == "kexec":
            with contextlib.suppress(BenchError):  # then by a restart
                running = self.into("kexec", image, own["cmdline"])
        if running.token:
            running = self.into("reboot")
        if not running.token and not _is_own_kernel(running, own) and image is not None:
            self.progress.note(f"host: its default is {running.release}, not {own['release']}")
            if (way := self._way_home()) is not None:
                running = self.into(way, image, own["cmdline"])
        if not _is_own_kernel(running, own):
            raise BenchError(
                f"{self.endpoint} runs {running.release} {running.version}, and was found with"
                f" {own['release']} {own['version']}",
                hint=f"boot that one, or keep this one: barometer recover {self.endpoint}"
                " --keep-kernel",
                reason=Reason.WRONG_KERNEL,
            )

    def _into_default(self, running: Running) -> None:
        """Restart a machine that runs a kernel of barometer's but has lost its journal."""
        if not running.token:
            return
        self.progress.note(
            f"host: it runs barometer's {running.release}, and its journal is lost: restarting"
            " into its default kernel; what else was changed is not known"
        )
        if (running := self.into("reboot")).token:
            raise BenchError(
                f"{self.endpoint} runs barometer's {running.release} after a restart",
                hint="make its own kernel the default, and restart it", reason=Reason.WRONG_KERNEL,
            )  # fmt: skip

    def _way_home(self) -> How | None:
        means = self.keeper.detect()
        return next((way for way in BOOT_WAYS if means[way]["usable"]), None)

    def put_back(self, *, keep_kernel: bool = False) -> list[Unreadable]:
        """Put back all changes and the machine's own kernel. Return the records of changes that
        cannot be read. `keep_kernel`: keep whatever kernel runs, unless it is barometer's. A
        failure does not stop the rest; BenchError with all failures is raised at the end."""
        with self.progress.stage("host: putting it back"):
            until(
                self._settled, within=self.spec.deadline, every=1, reason=Reason.MACHINE_LOST,
                waiting_for=f"end of what {self.endpoint} was doing",
            )  # fmt: skip
            wrong_kernel = self._bring_home(keep_kernel)
            failed = self.keeper.putback().failed
            try:
                self.keeper.kernel_restored(keep=keep_kernel)
            except BenchError as exc:
                if exc.reason != Reason.WRONG_KERNEL:
                    raise
                wrong_kernel = wrong_kernel or exc
            unreadable = self.keeper.unreadable()
            if failed:
                kernel = [] if wrong_kernel is None else [f"kernel: {wrong_kernel}"]
                raise BenchError(
                    f"{self.endpoint} could not be put back as it was",
                    evidence="\n".join(map(str, [*failed, *kernel, *unreadable])),
                    hint=f"once that is mended: barometer recover {self.endpoint}",
                    reason=Reason.NOT_PUT_BACK,
                )
            if wrong_kernel is not None:
                raise wrong_kernel
            self.keeper.release()
        for file in sorted({record.file for record in unreadable}):
            self.progress.note(f"host: {self.endpoint}: what is in {file} was not put back")
        return unreadable

    def _bring_home(self, keep_kernel: bool) -> BenchError | None:
        """Boot the machine's own kernel. Return the error if another kernel of the machine's runs
        instead. Raises BenchError if the running kernel is unknown or one that barometer booted:
        the latter still needs the changes that were made for it."""
        try:
            if not keep_kernel:
                self.go_home()
            elif self.reach().token:
                self.into("reboot")
        except BenchError as exc:
            if exc.reason in (*TRANSIENT, Reason.MACHINE_LOST) or self.running().token:
                raise
            return exc
        return None

    def _settled(self) -> bool | None:
        """Put back the changes that the next boot would void, and wait for a boot that is under
        way. Return True when both are done, None if the machine went down meanwhile. Raises the
        errors of `into`."""
        self.reach()
        try:
            old_boot_id = self.running().boot_id
            failed = self.keeper.putback(volatile=True).failed
        except BenchError as exc:
            if exc.reason not in TRANSIENT:
                raise
            _log.debug("it goes down: %s", exc.message)
            self.link.close()
            return None
        if any(failure.kind == "leaving" for failure in failed):
            self._back(old_boot_id, power_cycle=True)  # a boot was requested: it is going down
        return True

    def begin_console(self) -> int:
        """Begin a boot on the console. Return the number of bytes of earlier output; 0 if no
        command provides a console."""
        return 0 if self.console is None else self.console.begin()

    def read_console(self, start: int) -> str:
        """Return the console from byte `start` on; empty if no command provides a console."""
        if self.console is None:
            return ""
        self.console.tend()
        return Console(self.console.path, start).text()

    def read_console_tail(self) -> str:
        return tail(self.read_console(0), 25)


def _is_own_kernel(running: Running, own: dict[str, Any]) -> bool:
    same = (running.release, running.version) == (own["release"], own["version"])
    return same and not running.token


def _find_own_image(own: dict[str, Any]) -> Image | None:
    """Return the machine's own kernel as an image; None if its files are not known."""
    if not own.get("kernel") or not own.get("initrd"):
        return None
    return Image(own["kernel"], own["kernel_sha256"], own["initrd"], own["initrd_sha256"])
