"""A host under test that is booted and proven, whatever kind of machine it is."""

from __future__ import annotations

import contextlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.base.bounded import FACTS_BYTES
from orchestrator.base.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import fault_of
from orchestrator.formats.kernelreports import STALLS, KernelReport, Kind
from orchestrator.machine.host.changes import ChangeLog
from orchestrator.machine.host.console import Console
from orchestrator.machine.host.kernelwatch import KernelWatch
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.agents import AgentProgram, StayingAgent, run_agent, staged_agent
from orchestrator.machine.transport.shell import Completed, ConnectionLostError, Shell
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.vocabulary import is_emulated

_STALLED: Mapping[Kind, Reason] = {
    "hung-task": Reason.HOST_HUNG_TASK,
    "soft-lockup": Reason.HOST_SOFT_LOCKUP,
    "hard-lockup": Reason.HOST_HARD_LOCKUP,
    "rcu-stall": Reason.HOST_RCU_STALL,
    "lost-interrupt": Reason.HOST_LOST_INTERRUPT,
}
"""Reasons of the kernel's reports in STALLS."""
RUN_AGAIN = "run it again with the same --out: trials that the bench failed are repeated"
"""Hint for a failure of the emulator."""

_LIBVIRT_PIDS = ("/run/libvirtd.pid", "/run/virtqemud.pid")
"""Process id of libvirt's daemon, monolithic or modular (libvirtd(8), virtqemud(8))."""
_LOOK_SECONDS = 10.0
_DYING_SECONDS = 10.0
"""Longest time from the loss of the connections to a VM to the VM's end: a QEMU that aborts may
write its core dump first."""


@dataclass(frozen=True, kw_only=True)
class Host(ABC):
    """A booted host with all that a workload needs of it."""

    is_ours: ClassVar[bool]
    """True for a VM of barometer's, which is set up for nothing else."""
    shell: Shell
    release: str
    kvm: bool
    """True if guests run under KVM; else they are emulated."""
    cpus: int
    accel: Accel
    """Accelerator of the host itself; if it is emulated, its seconds are not a real machine's."""
    payload: str
    """Folder on the host with guest/vmlinuz, guest/initramfs and agents/."""
    console: Console
    kernel: KernelWatch
    """Reports of the host's kernel about itself."""
    scratch: Path
    """A private folder on the runner, which is gone with the run."""
    change: ChangeLog
    """Record of the host's changes; it is called before anything on the host is changed."""

    @abstractmethod
    def is_alive(self) -> bool:
        """True while the machine runs in this boot. Raises BenchError if that is unknown because
        the machine does not answer any more."""

    @abstractmethod
    def libvirt(self) -> AbstractContextManager[Connection]:
        """Keep a connection to the host's own libvirt while the block runs."""

    def is_libvirt_stopped(self) -> bool:
        """True if the daemon of the host's libvirt is stopped, by a signal or a debugger. False if
        the host does not tell: then its silence has another cause."""
        # libvirt writes no newline there, on which `read` of a shell would insist
        script = f'for file in {" ".join(_LIBVIRT_PIDS)}; do cat "/proc/$(cat $file)/stat"; done'
        try:
            answer = self.shell.run(script, check=False, timeout=_LOOK_SECONDS, limit=FACTS_BYTES)
        except BarometerError:
            return False
        states = re.findall(r"(?m)^\d+ \((?:libvirtd|virtqemud)\) (\S)", answer.stdout)
        return bool(states) and {*states} <= {"T", "t"}

    def crash(self) -> str:
        """Return the last output of the QEMU that the machine ran in if that QEMU has crashed,
        else an empty string."""
        return ""

    def monitor(self, command: str) -> str:
        """Send a command to the human monitor of the QEMU that the host runs in. Return the
        answer."""
        raise BenchError(
            f"the host runs in no QEMU that could be asked {command!r}", reason=Reason.MONITOR
        )

    @property
    def emulated(self) -> bool:
        return is_emulated(self.accel)

    @property
    def slow(self) -> bool:
        """True if the host or its guests are emulated: deadlines are longer."""
        return self.emulated or not self.kvm

    def undo(self, command: list[str] | str) -> None:
        """Put something back by `command`, if the host still answers.

        Never raises: if the host does not answer, an error in flight reports that already.
        """
        if self.shell.alive():
            with contextlib.suppress(BarometerError):
                self.shell.run(command, check=False, timeout=20)

    def check(self) -> None:
        """Raise an error unless the host still works.

        ArmFailedError: the kernel under test has oopsed, the host floods its console, or the
        machine is gone. BenchError: the machine is gone because its QEMU has crashed or is
        stopped, the host hangs, or `is_alive` raises it."""
        _check_console(self)
        if (standstill := find_standstill(self.kernel, self.console)) is not None:
            raise standstill
        if not self.is_alive():
            _check_console(self)  # its last output may have arrived since
            if words := self.crash():
                raise qemu_crashed(words)
            raise ArmFailedError(
                "the host's machine ended by itself", evidence=self.console.tail(),
                reason=Reason.HOST_ENDED,
            )  # fmt: skip

    def agent(self, name: str) -> AgentProgram:
        """Return an agent of guests/agents/, which is on the host."""
        return staged_agent(self.payload, name)

    def run_agent(self, name: str, *arguments: str, **how: Any) -> Completed:
        """Run an agent to its end, as `orchestrator.machine.runner.agents.run_agent` does."""
        return run_agent(self.shell, self.agent(name), *arguments, **how)

    def staying_agent(self, name: str, *arguments: str) -> StayingAgent:
        """Return an agent that stays."""
        return StayingAgent(lambda: self.shell, self.agent(name), *arguments)


def _check_console(host: Host) -> None:
    if (report := host.kernel.broken()) is not None:
        raise ArmFailedError(
            f"the host's kernel {host.release} is broken: {report.message}",
            evidence=evidence(report, host.console), reason=panic_reason(report),
        )  # fmt: skip
    if flood := host.console.flood:
        raise ArmFailedError(
            f"the host floods its console: {flood}",
            evidence=host.console.tail(), reason=Reason.CONSOLE_FLOOD,
        )  # fmt: skip


def qemu_crashed(words: str) -> BenchError:
    """Return the error for a crash of the QEMU that a host runs in. `words`: its last output."""
    return BenchError(
        "the QEMU that the host runs in crashed, which is no kernel's fault",
        evidence=words, reason=Reason.HOST_CRASH, hint=RUN_AGAIN,
    )  # fmt: skip


def find_standstill(kernel: KernelWatch, console: Console) -> BenchError | None:
    """Return the error for a host that stands still, or None: its QEMU is stopped, or it is idle
    although one of its tasks hangs."""
    if kernel.is_stopped:
        return BenchError(
            "the QEMU that the host runs in is stopped, by a signal (SIGSTOP) or a debugger",
            evidence=console.tail(), reason=Reason.HOST_STOPPED, hint=RUN_AGAIN,
        )  # fmt: skip
    if (hung := kernel.hung) is not None:
        return BenchError(
            f"the host hangs: it uses next to no CPU, and its kernel reports: {hung.message}",
            evidence=evidence(hung, console), reason=Reason.HOST_HUNG_TASK,
        )  # fmt: skip
    return None


def evidence(report: KernelReport, console: Console) -> str:
    """Return the end of a console, with the kernel's report before it if the report is not in
    it."""
    end = console.tail()
    return end if report.line in end.splitlines() else f"{report.line}\n{end}"


def panic_reason(report: KernelReport) -> Reason:
    return Reason.HOST_NO_TIMER if report.kind == "no-timer" else Reason.HOST_PANIC


@contextlib.contextmanager
def explained_by_the_host(host: Host) -> Iterator[None]:
    """If the block fails because of the host, raise an error that names what happened to the host:
    its kernel has oopsed or hangs, its machine is gone, or an emulated host stalled and the
    block's failure is undecided (see faults.py). Else the block's own error is raised."""
    before = len(host.kernel.reports())
    try:
        yield
    except (ArmFailedError, BenchError) as exc:
        # after a silence as long as a deadline, a dying QEMU is dead
        lost = (
            host.is_ours and isinstance(exc, ConnectionLostError)
            and not isinstance(exc.__cause__, TimeoutError)
        )  # fmt: skip
        end = time.monotonic() + _DYING_SECONDS
        try:
            host.check()
            while lost and not host.shell.alive() and time.monotonic() < end:
                time.sleep(0.1)
                host.check()
        except BarometerError as why:
            raise why from exc
        stalls = [r for r in host.kernel.reports()[before:] if r.kind in STALLS]
        if host.emulated and stalls and fault_of(exc.reason).charge == "undecided":
            raise BenchError(
                f"the emulated host stood still, and then: {exc.message}",
                evidence=f"{stalls[0].line}\n{exc.evidence}", reason=_STALLED[stalls[0].kind],
                hint=RUN_AGAIN,
            ) from exc  # fmt: skip
        raise
