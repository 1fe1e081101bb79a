"""Which accelerator a nested host gets: KVM only where a guest really runs under it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from orchestrator.errors import BenchError

Accel = Literal["kvm", "tcg", "exact"]
_SECONDS = 10
# A boot sector that writes 0x10 to QEMU's isa-debug-exit port: exit code 0x10 * 2 + 1.
_SECTOR = bytes([0xB0, 0x10, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"
_EXIT_CODE = 33


def chosen_accel(requested: Literal["auto", "kvm", "tcg", "exact"]) -> tuple[Accel, str]:
    """The accelerator and why. Raises BenchError when `kvm` is asked for and does not work."""
    if requested == "tcg":
        return "tcg", "asked for"
    if requested == "exact":
        return "exact", "asked for; emulated, one instruction is one nanosecond"
    problem = kvm_problem()
    if problem is None:
        return "kvm", "a guest runs under it"
    if requested == "kvm":
        raise BenchError(
            f'accel = "kvm", but KVM does not work here: {problem}',
            hint='use accel = "auto" or "tcg": everything works, emulated',
            reason="no-kvm",
        )
    return "tcg", f"no KVM: {problem}"


def kvm_problem() -> str | None:
    """What keeps KVM from running a guest here, or None."""
    flags = re.search(r"(?m)^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text())
    if not flags or not {"vmx", "svm"} & set(flags[1].split()):
        return "the CPU shows neither vmx nor svm"
    if not Path("/dev/kvm").exists():
        return "there is no /dev/kvm"
    return boot_problem("kvm")


def boot_problem(accel: Accel) -> str | None:
    """Boot a tiny guest under `accel`: what went wrong, or None when it ran.

    A /dev/kvm can exist, open and create a machine, and still run nothing: QEMU stays alive,
    silent. So the guest has to say something.
    """
    with tempfile.NamedTemporaryFile(prefix="barometer-kvm-probe-") as disk:
        disk.write(_SECTOR.ljust(1 << 20, b"\0"))
        disk.flush()
        argv = [
            "qemu-system-x86_64", "-accel", accel, "-machine", "pc", "-m", "16", "-nodefaults",
            "-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
            "-drive", f"file={disk.name},format=raw,if=ide,snapshot=on",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except FileNotFoundError:
            return "qemu-system-x86_64 is not installed"
        except subprocess.TimeoutExpired:
            return f"a tiny guest did not run within {_SECONDS} s"
    if done.returncode == _EXIT_CODE:
        return None
    return (done.stderr.strip().splitlines() or [f"QEMU exited with {done.returncode}"])[-1]
