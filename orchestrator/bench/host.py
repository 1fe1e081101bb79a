"""A host under test that is booted and proven, whatever kind of machine it is."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.bench.accel import Accel
from orchestrator.bench.changes import Changes
from orchestrator.bench.console import Console
from orchestrator.bench.hypervisor import Connection
from orchestrator.bench.shell import ConnectionLostError, Shell
from orchestrator.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.scenario import is_emulated

PANIC = re.compile(
    r"Kernel panic - not syncing|kernel BUG at |BUG: unable to handle|BUG: kernel NULL|Oops: "
)
"""A console line that says the kernel is beyond help; a lockup warning after a long map is not."""

RUN_AGAIN = "run it again with the same --out: trials that the bench failed are repeated"
"""What to do about a failure of the emulator."""

_DYING_SECONDS = 10.0
"""From the loss of its connections to a VM's end: a QEMU that aborts may write its core first."""


@dataclass(frozen=True)
class Host:
    """What a workload needs of its host."""

    shell: Shell
    release: str
    kvm: bool
    """Guests run under KVM; else they are emulated."""
    cpus: int
    accel: Accel
    """How the host itself runs; emulated, its seconds are not those of a real machine."""
    payload: str
    """Folder on the host with guest/vmlinuz, guest/initramfs and agents/."""
    console: Console
    alive: Callable[[], bool]
    """Raises BenchError where that cannot be told: a machine that does not answer any more."""
    crash: Callable[[], str]
    """Last words of what the machine ran in, if that crashed; else empty."""
    libvirt: Callable[[], AbstractContextManager[Connection]]
    monitor: Callable[[str], str]
    """Ask the human monitor of the QEMU that the host runs in."""
    scratch: Path
    """A private folder of the runner, gone with the run."""
    change: Changes
    """To be asked before anything on it is changed."""
    ours: bool
    """A VM of barometer's: what runs on it is set up for nothing else."""

    @property
    def emulated(self) -> bool:
        return is_emulated(self.accel)

    @property
    def slow(self) -> bool:
        """Guests are emulated, at one level or the other: deadlines are longer."""
        return self.emulated or not self.kvm

    def undo(self, command: list[str] | str) -> None:
        """Put something back as it was, where the host still answers.

        Never raises: a host that does not answer is what the error on its way says.
        """
        if self.shell.alive():
            with contextlib.suppress(BarometerError):
                self.shell.run(command, check=False, timeout=20)

    def check(self) -> None:
        """Raises ArmFailedError when the kernel under test has oopsed, the host floods its
        console, or the machine is gone; BenchError when that is because what the machine runs in
        has crashed, and as `alive`."""
        _check_console(self)
        if not self.alive():
            _check_console(self)  # its last words may have come since
            if words := self.crash():
                raise BenchError(
                    "the QEMU that the host runs in crashed, which is no kernel's fault",
                    evidence=words, reason="host-crash",
                    hint=RUN_AGAIN,
                )  # fmt: skip
            raise ArmFailedError(
                "the host's machine ended by itself", evidence=self.console.tail(),
                reason="host-ended",
            )  # fmt: skip

    def agent(self, name: str, *arguments: str) -> list[str]:
        """Command line of one of guests/agents/."""
        return ["python3", "-I", f"{self.payload}/agents/{name}.py", *arguments]


def _check_console(host: Host) -> None:
    if (found := host.console.first(PANIC.search)) is not None:
        raise ArmFailedError(
            f"the host's kernel {host.release} is broken: {found[0]}",
            evidence=host.console.tail(), reason="host-panic",
        )  # fmt: skip
    if flood := host.console.flood:
        raise ArmFailedError(
            f"the host floods its console: {flood}",
            evidence=host.console.tail(), reason="console-flood",
        )  # fmt: skip


@contextlib.contextmanager
def charged_to_the_arm(host: Host) -> Iterator[None]:
    """The kernel is proven: where it has oopsed or its machine is gone, a failure is the arm's;
    but for a crash of the QEMU that it runs in."""
    try:
        yield
    except BenchError as exc:
        lost = host.ours and isinstance(exc, ConnectionLostError)
        end = time.monotonic() + _DYING_SECONDS
        try:
            host.check()
            while lost and not host.shell.alive() and time.monotonic() < end:
                time.sleep(0.1)
                host.check()
        except BarometerError as why:
            raise why from exc
        raise
