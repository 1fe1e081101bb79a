"""Choice of a nested host's accelerator: KVM only if a guest really runs under it."""

from __future__ import annotations

import shlex
from typing import Literal

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Commands

Emulator = Literal["kvm", "tcg", "exact"]
"""Accelerator of a nested host."""
Accel = Literal[Emulator, "none"]
"""Accelerator of any host; `none` for a real machine."""
_SECONDS = 10
_EXIT_CODE, _TIMEOUT, _NO_PROGRAM = 33, 124, 127  # 124 is timeout(1)'s, 127 sh(1)'s
# The tiny guest's boot sector writes 0x10 to QEMU's isa-debug-exit port: exit code 0x10 * 2 + 1.
_BOOT = r"""
qemu=$(command -v qemu-system-x86_64 || command -v /usr/libexec/qemu-kvm) || exit 127
disk=$(mktemp /tmp/barometer-kvm-probe-XXXXXX) || exit 1
trap 'rm -f "$disk"' EXIT
truncate -s 1M "$disk"
printf '\260\020\346\364\364\353\375' | dd of="$disk" conv=notrunc status=none
printf '\125\252' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none
timeout {seconds} "$qemu" -accel {accel} -machine pc -m 16 -nodefaults -display none -no-reboot \
    -device isa-debug-exit,iobase=0xf4,iosize=0x04 \
    -drive "file=$disk,format=raw,if=ide,snapshot=on"
"""


def choose_accel(requested: Literal["auto", "kvm", "tcg", "exact"]) -> tuple[Emulator, str]:
    """Return the accelerator and the reason for it. Raises BenchError if `kvm` is requested and
    does not work."""
    if requested == "tcg":
        return "tcg", "asked for"
    if requested == "exact":
        return "exact", "asked for; emulated, one instruction is one nanosecond"
    try:
        problem = find_kvm_problem(LocalMachine())
    except TimeoutError as exc:
        problem = str(exc)
    if problem is None:
        return "kvm", "a guest runs under it"
    if requested == "kvm":
        raise BenchError(
            f'accel = "kvm", but no guest runs under KVM here: {problem}',
            hint='use accel = "auto" or "tcg": everything works, emulated',
            reason=Reason.NO_KVM,
        )
    return "tcg", f"no KVM: {problem}"


def find_kvm_problem(machine: Commands, within: float = _SECONDS) -> str | None:
    """Return what keeps KVM from running a guest on `machine`, or None. Leaves nothing there.
    `within` and TimeoutError are those of `find_boot_problem`."""
    flags = machine.run("grep -m1 '^flags' /proc/cpuinfo", check=False).stdout.split()
    if not {"vmx", "svm"} & set(flags):
        return "the CPU shows neither vmx nor svm"
    if machine.run(["test", "-e", "/dev/kvm"], check=False).code:
        return "there is no /dev/kvm"
    return find_boot_problem("kvm", machine, within)


def find_boot_problem(accel: str, machine: Commands, within: float = _SECONDS) -> str | None:
    """Boot a tiny guest under `accel`. Return what went wrong, or None if the guest ran.

    A /dev/kvm may be there, may be opened and may create a VM, and still run nothing: QEMU stays
    alive and silent. So the guest has to give a sign of life. Raises TimeoutError if there is none
    within `within` seconds: the guest may just be slow.
    """
    script = _BOOT.format(accel=shlex.quote(accel), seconds=f"{within:g}")
    completed = machine.run(script, check=False, timeout=within + 30, doing="booting a tiny guest")
    if completed.code == _EXIT_CODE:
        return None
    if completed.code == _NO_PROGRAM:
        return "qemu-system-x86_64 is not installed"
    if completed.code == _TIMEOUT:
        raise TimeoutError(f"a tiny guest did not run within {within:g} s")
    return (completed.stderr.strip().splitlines() or [f"QEMU exited with {completed.code}"])[-1]
