"""Reports of a kernel about itself on its console: panics, oopses, stalls, lost interrupts.

A report is recognised by the form of the kernel's own line, after the timestamp that printk puts
before it. If another program has begun a line on the console (a login prompt, a colour), the
kernel continues that line, so the kernel's part begins at the last timestamp in the line. The same
words elsewhere in a line are no report, because any program can print them. The forms are those of
Linux 5.10 to 7.x on x86. A comment at each form names the function that prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "panic", "no-timer", "oops", "hung-task", "soft-lockup", "hard-lockup", "rcu-stall",
    "lost-interrupt", "machine-check", "oom",
]  # fmt: skip
BROKEN: frozenset[Kind] = frozenset({"panic", "no-timer", "oops"})
"""Reports after which the kernel cannot go on."""
STALLS: frozenset[Kind] = frozenset(
    {"hung-task", "soft-lockup", "hard-lockup", "rcu-stall", "lost-interrupt"}
)
"""Reports that something made no progress. Under emulation the emulator itself may have stood
still."""

_EXCEPTIONS = (
    "Oops", "general protection fault", "invalid opcode", "divide error", "int3", "overflow",
    "bounds", "coprocessor segment overrun", "invalid TSS", "segment not present",
    "stack segment", "double fault", "alignment check", "control protection fault",
)  # fmt: skip
"""Names that arch/x86/kernel/traps.c and arch/x86/mm/fault.c pass to die()."""
_FORMS: tuple[tuple[Kind, str], ...] = (
    # check_timer() in arch/x86/kernel/apic/io_apic.c, two ways to panic
    ("no-timer", r"Kernel panic - not syncing: IO-APIC \+ timer doesn't work!"),
    ("no-timer", r"Kernel panic - not syncing: timer doesn't work through Interrupt-remapped"),
    ("panic", r"Kernel panic - not syncing\b"),  # vpanic() in kernel/panic.c
    # __die_header() in arch/x86/kernel/dumpstack.c; since v6.10 with one more "Oops: "
    ("oops", rf"(?:Oops: )?(?:{'|'.join(_EXCEPTIONS)})\b[^:]*: [0-9a-f]{{4,16}} \[#\d+\]"),
    # show_fault_oops() in arch/x86/mm/fault.c
    ("oops", r"BUG: unable to handle (?:page fault for address: |kernel )"),
    ("oops", r"BUG: kernel NULL pointer dereference, address: "),
    ("oops", r"[kK]ernel BUG at \S+"),  # __report_bug() in lib/bug.c
    # check_hung_task() in kernel/hung_task.c
    ("hung-task", r"INFO: task .+:\d+ blocked (?:in I/O wait )?for more than \d+ seconds\."),
    # watchdog_timer_fn(), watchdog_hardlockup_check() in kernel/watchdog.c
    ("soft-lockup", r"watchdog: BUG: soft lockup - CPU#\d+ stuck for \d+s!"),
    ("hard-lockup",
     r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu ?\d+"),
    # print_cpu_stall(), print_other_cpu_stall() in kernel/rcu/tree_stall.h; tree_exp.h; tasks.h
    ("rcu-stall", r"rcu: INFO: \S+ (?:self-)?detected (?:expedited )?stalls? on"),
    # rcu_check_gp_kthread_starvation(), ..._expired_fqs_timer() in kernel/rcu/tree_stall.h
    ("rcu-stall", r"rcu: \S+ kthread (?:starved for|timer wakeup didn't happen for) \d+ jiffies"),
    ("lost-interrupt", r"irq \d+: nobody cared"),  # __report_bad_irq() in kernel/irq/spurious.c
    # __common_interrupt() in arch/x86/kernel/irq.c
    ("lost-interrupt", r"\w+: \d+\.\d+ No irq handler for vector"),
    # print_mce() in arch/x86/kernel/cpu/mce/core.c
    ("machine-check", r"mce: \[Hardware Error\]: CPU \d+: Machine Check"),
    # __oom_kill_process() in mm/oom_kill.c
    ("oom", r"(?:Memory cgroup out|Out) of memory(?: \(\w+\))?: Killed process \d+ "),
)  # fmt: skip
_REPORT = re.compile("|".join(f"(?P<f{i}>{form})" for i, (_, form) in enumerate(_FORMS)))
# print_time(), print_caller() in kernel/printk/printk.c: `<4>[   12.345678][  T123] `
_PREFIX = re.compile(r"(?:<\d+>)?\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? ")
# the same within a line, in exactly the form of print_time(), "[%5lu.%06lu]"
_BEGINNING = re.compile(r"(?:<\d{1,3}>)?\[(?=[ \d]{5,20}\.) *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ")
# printk_stack_address() in arch/x86/kernel/dumpstack.c: ` func+0x12/0x34 [module]`; a function
# with a question mark was only found on the stack, and need not have been called. show_ip() prints
# RIP
_CALL = re.compile(
    r"(?: |RIP: [0-9a-f]{4}:)([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(\w+)(?: \w+)?\])?"
)
_END = re.compile(r"---\[ end (?:trace|Kernel panic)| ?</TASK>")
_LONGEST = 300
"""Characters of a line that are kept."""
_SHORTEST = len("</TASK>")
"""Characters of the shortest line that says something: a flood is often one of shorter lines."""
_MOST = 64
"""Number of reports that are kept, and of functions in each report. The first ones are kept."""


@dataclass(frozen=True)
class CalledFunction:
    name: str
    module: str = ""
    """Module of the function; empty if it is built in."""


@dataclass(frozen=True)
class KernelReport:
    """One report, with the functions of the call trace below it."""

    kind: Kind
    line: str
    """The line as printed, with its time, cut to 300 characters."""
    seconds: float | None
    """Time on the kernel's clock; None if the kernel's lines have no times."""
    functions: tuple[CalledFunction, ...] = ()
    """Functions of the call trace, innermost first."""
    ended: bool = False
    """True if the end of the call trace was printed."""

    @property
    def message(self) -> str:
        """The line without its time."""
        prefix = _PREFIX.match(self.line)
        return self.line[prefix.end() if prefix else 0 :]


class KernelReports:
    """The reports of one console, read as it grows. Memory is bounded, whatever the console
    prints."""

    def __init__(self) -> None:
        self._rest = ""
        self._has_times = False
        self._reports: list[KernelReport] = []

    def take(self, text: str) -> None:
        """Read more of the console. A line is searched once it is complete."""
        *lines, rest = (self._rest + text).split("\n")
        for line in lines:
            if len(line) >= _SHORTEST:
                self._take_line(line.rstrip("\r"))
        rest = _own_part(rest)
        # Keep the end, too: it may have the first half of a timestamp.
        self._rest = rest if len(rest) <= 2 * _LONGEST else rest[:_LONGEST] + rest[-_LONGEST:]

    def all(self) -> tuple[KernelReport, ...]:
        return tuple(self._reports)

    def broken(self) -> KernelReport | None:
        """Return the first report after which the kernel cannot go on, or None."""
        return next((report for report in self._reports if report.kind in BROKEN), None)

    def _take_line(self, line: str) -> None:
        line = _own_part(line)[:_LONGEST]
        prefix = _PREFIX.match(line)
        if prefix is not None:
            self._has_times = True
        elif self._has_times:
            return  # not the kernel's
        message = line[prefix.end() if prefix else 0 :]
        last = self._reports[-1] if self._reports and not self._reports[-1].ended else None
        if (opening := _REPORT.match(message)) is not None:
            kind = _FORMS[int(str(opening.lastgroup)[1:])][0]
            # one oops begins with several lines: "BUG: ...", then "Oops: ... [#1]"
            goes_on = kind == "oops" and last and last.kind == "oops" and not last.functions
            if len(self._reports) < _MOST and not goes_on:
                seconds = float(prefix[1]) if prefix else None
                self._reports.append(KernelReport(kind, line, seconds))
        elif last is not None:
            self._reports[-1] = _with_line(last, message)


def reports_in(text: str) -> tuple[KernelReport, ...]:
    """Return the reports of a whole console. Its last line need not be complete."""
    reports = KernelReports()
    reports.take(text + "\n")
    return reports.all()


def _own_part(line: str) -> str:
    """Return the kernel's part of a line: from the last timestamp on, or all of it if it has
    none."""
    starts = [prefix.start() for prefix in _BEGINNING.finditer(line)]
    return line[starts[-1] :] if starts else line


def first_of(trace: Sequence[CalledFunction], modules: Iterable[str]) -> CalledFunction | None:
    """Return the first function of a call trace that belongs to VFIO, to the IOMMU or to one of
    the modules. If the trace has a function that the DMA of any driver or an interrupt of the
    IOMMU can call, return None, unless a function of VFIO or of the modules is in it, too."""
    known = {*modules} - {""}
    if any(_ANYBODYS.match(f.name) for f in trace) and not any(
        f.module in known or _VFIOS.match(f.module or f.name) for f in trace
    ):
        return None
    return next(
        (
            f for f in trace
            if f.module in known or any(p.match(f.module or f.name) for p in (_VFIOS, _IOMMUS))
        ),
        None,
    )  # fmt: skip


# drivers/vfio and iommufd, then the rest of drivers/iommu, whether modules or built in
_VFIOS = re.compile(r"_*(?:vfio|iommufd|iopt)(?:_|$)")
_IOMMUS = re.compile(r"_*(?:iommu|intel_iommu|amd_iommu|virtio_iommu|viommu|dmar|qi)(?:_|$)")
# drivers/iommu/dma-iommu.c, and intel/dmar.c: the DMA API, queued invalidation, its interrupts
_ANYBODYS = re.compile(r"_*(?:iommu_dma|dmar|qi)(?:_|$)")


def _with_line(report: KernelReport, message: str) -> KernelReport:
    functions = report.functions
    if (call := _CALL.match(message)) is not None and len(functions) < _MOST:
        functions = (*functions, CalledFunction(call[1], call[2] or ""))
    return KernelReport(
        report.kind, report.line, report.seconds, functions,
        report.ended or _END.match(message) is not None,
    )  # fmt: skip
