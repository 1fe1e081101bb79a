"""The frequency of this machine's time stamp counter (TSC), which QEMU gives to hosts that it
emulates."""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from pathlib import Path

from orchestrator.machine.runner.accel import Accel

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_PERIOD_SECONDS = 0.1
_READINGS = 50
_STEADY = {"constant_tsc", "nonstop_tsc"}


@functools.cache
def tsc_khz() -> int | None:
    """Measure the TSC's frequency in kHz against CLOCK_MONOTONIC_RAW, to about 10 ppm. Return None
    if it is not known: another processor than x86-64, a TSC that is not steady, or a system that
    lets no program write code for itself."""
    if platform.machine() != "x86_64" or not {*_cpu_flags()} >= _STEADY:
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_READ_TSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    begin, first = _read_both(read)
    time.sleep(_PERIOD_SECONDS)
    end, last = _read_both(read)
    return round((last - first) * 1e6 / (end - begin))


def _read_both(read: ctypes._CFunctionType) -> tuple[float, int]:
    """Return the time in ns and the TSC of the same moment: of many pairs of readings the one that
    took least, because the process may lose the CPU between them."""

    def pair() -> tuple[int, float, int]:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = read()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return after - before, (before + after) / 2, ticks

    _, moment, ticks = min(pair() for _ in range(_READINGS))
    return moment, ticks


def _cpu_flags() -> list[str]:
    text = Path("/proc/cpuinfo").read_text()
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return lines[0].split() if lines else []


def find_tsc_word(accel: Accel) -> list[str]:
    """Return the word that tells an emulated host's kernel the frequency of its TSC, if it is
    known.

    The kernel would measure it against the timer (pit_hpet_ptimer_calibrate_cpu() in
    arch/x86/kernel/tsc.c). On a busy runner it was seen to find 28.6 MHz in place of 2596 MHz: its
    clock then runs 91 times too fast, and timeouts end everything on the host and in its guest."""
    # QEMU's TSC is that of the runner; in an exact host it counts the nanoseconds of its clock
    khz = 1_000_000 if accel == "exact" else tsc_khz()
    return [] if khz is None else [f"tsc_early_khz={khz}"]
