"""The lease of a metal host, held while a run or a recovery is at work. What an earlier run left
on the machine is put back first."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base import interrupts
from orchestrator.base.errors import BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.machine.metal.boots import TRANSIENT, Boots
from orchestrator.machine.metal.consoles import running_console_command
from orchestrator.machine.metal.keeper import MACHINE, Keeper, Lease, LeftError
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.transport import remote
from orchestrator.machine.transport.shell import Shell
from orchestrator.scenario.machines import MetalHost

_ANSWER_SECONDS = 10.0
"""A machine whose port is open, but that sends no SSH banner within this time, is not up yet."""
_LEFT = (Reason.NOT_PUT_BACK, Reason.WRONG_KERNEL, Reason.WRONG_IMAGE)
"""Error reasons for which something is left on a machine, although it was reached and put back as
far as it can be."""
_TCG = "QEMU TCG CPU"


def detect_accel(shell: Shell) -> tuple[Accel, str]:
    """Return the accelerator that a machine (which may be virtual) runs under, and how that is
    known."""
    cpuinfo = shell.run(
        "grep -m1 '^model name' /proc/cpuinfo; grep -m1 -ow hypervisor /proc/cpuinfo || :"
    ).stdout
    if _TCG in cpuinfo:
        return "tcg", f"its processor is a {_TCG}"
    if "hypervisor" in cpuinfo:
        return "kvm", "its processor has a hypervisor"
    return "none", "a real machine"


@dataclass(frozen=True)
class HeldMachine:
    """A machine under a lease that is kept alive."""

    boots: Boots
    lease: Lease
    accel: tuple[Accel, str]
    """Accelerator that the machine runs under, and how that is known."""
    is_unfinished: bool
    """True if an earlier run left changes on the machine, or left it running one of barometer's
    kernels."""


@contextmanager
def restored_machine(
    spec: MetalHost, purpose: str, scratch: Path, progress: Progress
) -> Iterator[HeldMachine]:
    """Hold a lease on the machine while the block runs. What an earlier run left changed is put
    back first."""
    with _held_machine(spec, purpose, scratch, progress) as machine:
        if not machine.is_unfinished:
            yield machine
            return
        progress.note(f"host: an earlier run left {spec.address} changed")
        machine.boots.put_back()
    with _held_machine(spec, purpose, scratch, progress) as machine:
        yield machine


def recover_machine(
    spec: MetalHost,
    scratch: Path,
    progress: Progress,
    *,
    keep_kernel: bool = False,
    power_cycle: bool = False,
) -> bool:
    """Put back what a killed run left; True if there was anything. With `keep_kernel` the kernel
    that runs counts as the machine's own, unless barometer booted it. With `power_cycle` cut the
    power of a machine that does not answer, although somebody else may be using it.

    Raises BenchError if somebody else holds the machine for longer than `host.wait`, and LeftError
    if some things could not be put back; the error lists them."""
    # the console is not needed here, and the killed run's command may still hold it
    spec = spec.model_copy(update={"console": None})
    with _held_machine(spec, "recover", scratch, progress, power_cycle=power_cycle) as machine:
        try:
            unreadable = machine.boots.put_back(keep_kernel=keep_kernel)
        except BenchError as exc:
            if exc.reason not in _LEFT:
                raise
            raise LeftError(
                exc.message, evidence=exc.evidence, hint=exc.hint, reason=exc.reason
            ) from exc
    if unreadable:
        raise LeftError(
            f"{spec.address} is put back, but for changes whose records cannot be read",
            evidence="\n".join(map(str, unreadable)),
            hint=f"put back by hand what these lines name; then remove {STATE}/set-aside there",
            reason=Reason.UNREADABLE,
        )
    return machine.is_unfinished


@contextmanager
def _held_machine(
    spec: MetalHost,
    purpose: str,
    scratch: Path,
    progress: Progress,
    *,
    power_cycle: bool = False,
) -> Iterator[HeldMachine]:
    """Hold a lease on the machine while the block runs."""
    endpoint = remote.resolve_address(spec.address, spec.ssh_config)
    scratch.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        link, beat = (remote.Link(endpoint, patience=_ANSWER_SECONDS) for _ in range(2))
        stack.callback(link.close)
        stack.callback(beat.close)
        keeper = Keeper(link.shell)
        console = stack.enter_context(
            running_console_command(spec.console, scratch / "console", progress.note)
        )
        boots = Boots(spec, endpoint, link, keeper, progress, console)

        def acquire() -> tuple[tuple[Accel, str], bool] | None:
            with progress.stage(f"host: reaching {endpoint}"):
                running = boots.reach(power_cycle=power_cycle)
            try:
                accel = detect_accel(link.shell())
                is_unfinished = keeper.acquire(
                    [MACHINE], purpose, ttl=spec.lease, wait=spec.wait, on_wait=progress.note
                )
                return accel, is_unfinished or bool(running.token)
            except BenchError as exc:
                if exc.reason not in TRANSIENT:
                    raise
                link.close()  # it goes down for a boot that somebody ordered
                return None

        accel, is_unfinished = until(
            acquire, within=spec.deadline, every=1, reason=Reason.MACHINE_LOST,
            waiting_for=f"lease of {endpoint}",
        )  # fmt: skip
        config = ["--ssh-config", str(spec.ssh_config)] if spec.ssh_config else []
        stack.enter_context(
            interrupts.duty(
                f"{spec.address} is being put back",
                f"barometer recover {shlex.join([spec.address, *config])}",
            )
        )
        lease = stack.enter_context(
            Lease(beat.shell, keeper.token, ttl=spec.lease, close=beat.close)
        )
        yield HeldMachine(boots, lease, accel, is_unfinished)
