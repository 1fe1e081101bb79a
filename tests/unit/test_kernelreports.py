"""A kernel's reports are recognized in its own lines, and never in anybody else's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.formats.kernelreports import (
    BROKEN,
    STALLS,
    CalledFunction,
    KernelReports,
    first_of,
    reports_in,
)
from tests.unit.recorded import FAILED, MEASURED, RUN

LINES = {
    "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)": "panic",
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100": "panic",
    "Kernel panic - not syncing: timer doesn't work through Interrupt-remapped IO-APIC":
        "no-timer",
    "Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug": "no-timer",
    "BUG: unable to handle page fault for address: fffffbfff8092000": "oops",
    "BUG: kernel NULL pointer dereference, address: 00000000000000c8": "oops",
    "Oops: 0000 [#1] PREEMPT SMP NOPTI": "oops",
    "Oops: Oops: 0000 [#1] SMP NOPTI": "oops",
    "general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1]":
        "oops",
    "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#3] SMP":
        "oops",
    "kernel BUG at mm/slub.c:4307!": "oops",
    "Oops: invalid opcode: 0000 [#1] SMP": "oops",
    "INFO: task CPU 0/KVM:340 blocked for more than 121 seconds.": "hung-task",
    "INFO: task a:b c:7 blocked in I/O wait for more than 60 seconds.": "hung-task",
    "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [qemu-system-x86:340]": "soft-lockup",
    "watchdog: Watchdog detected hard LOCKUP on cpu 3": "hard-lockup",
    "watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3": "hard-lockup",
    "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0": "hard-lockup",
    "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:": "rcu-stall",
    "rcu: INFO: rcu_sched self-detected stall on CPU": "rcu-stall",
    "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-.... }": "rcu-stall",
    "rcu: rcu_preempt kthread starved for 5252 jiffies! g129 f0x0": "rcu-stall",
    "rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies! g129": "rcu-stall",
    'irq 16: nobody cared (try booting with the "irqpoll" option)': "lost-interrupt",
    "__common_interrupt: 1.55 No irq handler for vector": "lost-interrupt",
    "mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 0: b200": "machine-check",
    "Out of memory: Killed process 123 (qemu-system-x86) total-vm:1kB, anon-rss:1kB": "oom",
    "Memory cgroup out of memory: Killed process 7 (x) total-vm:1kB": "oom",
}  # fmt: skip
PREFIXES = (
    "[    4.123456] ",
    "[   12.000000][  T123] ",
    "[123456.000001][   C0] ",
    "<0>[    1.000000] ",
)

OOPS = """\
[   34.415494][    T1] BUG: kernel NULL pointer dereference, address: 0000000000000020
[   34.416986][    T1] #PF: supervisor read access in kernel mode
[   34.416986][    T1] PGD 0 P4D 0
[   34.416986][    T1] Oops: Oops: 0000 [#1] SMP PTI
[   34.416986][    T1] CPU: 1 UID: 0 PID: 19713 Comm: qemu-system-x86 Not tainted 6.14.0 #0
[   34.416986][    T1] RIP: 0010:vfio_pin_map_dma+0x2e/0xa0 [vfio_iommu_type1]
[   34.416986][    T1] Code: c3 d3 eb
[   34.416986][    T1] Call Trace:
[   34.416986][    T1]  <TASK>
[   34.416986][    T1]  ? page_fault_oops+0x15a/0x2d0
[   34.416986][    T1]  vfio_iommu_type1_ioctl+0x1ca/0x5d0 [vfio_iommu_type1 0123456789abcdef]
[   34.416986][    T1]  __x64_sys_ioctl+0x94/0xc0
[   34.416986][    T1]  </TASK>
[   34.416986][    T1] ---[ end trace 0000000000000000 ]---
[   34.500000][    T1] Kernel panic - not syncing: Fatal exception
"""


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("message", "kind"), LINES.items())
def test_report_is_known_by_its_line(message: str, kind: str, prefix: str) -> None:
    [report] = reports_in(f"[    0.000000] Linux version 7.1\r\n{prefix}{message}\r\n[    9.0] x")
    assert (report.kind, report.line) == (kind, prefix + message)
    assert report.seconds == float(prefix[prefix.index("[") + 1 : prefix.index("]")])


@pytest.mark.parametrize("message", LINES)
def test_kernel_that_prints_no_times_is_understood(message: str) -> None:
    [report] = reports_in(f"Linux version 7.1\n{message}\n")
    assert report.seconds is None
    # a kernel that prints times prints them on every line, so this line is somebody else's
    assert reports_in(f"[    0.000000] Linux version 7.1\n{message}\n") == ()


@pytest.mark.parametrize("trial", [FAILED, MEASURED])
def test_ordinary_console_has_no_report(trial: str) -> None:
    for path in (RUN / "trials" / trial).rglob("console.log"):
        assert reports_in(path.read_text()) == ()


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=60)


@given(st.sampled_from(sorted(LINES)), st.sampled_from(PREFIXES), WORDS.filter(str.strip), WORDS)
def test_words_within_a_line_are_no_report(
    message: str, prefix: str, before: str, after: str
) -> None:
    """`echo WORDS > /dev/kmsg` and a command line that is echoed may contain them."""
    line = f"{prefix}foo {before}: {message}{after}"
    assert reports_in(f"[    0.000000] Linux\n{line}\n[    0.0] Command line: {message}") == ()


UNFINISHED = (
    st.sampled_from(["host login: ", "\x1b[1;31m", "[  OK  ] Started x", "x" * 500]) | WORDS
)


@given(st.sampled_from(sorted(LINES)), st.sampled_from(PREFIXES), UNFINISHED, st.data())
def test_report_behind_unfinished_text_is_known(
    message: str, prefix: str, before: str, data: st.DataObject
) -> None:
    """The kernel does not end a line that a program has begun."""
    text = f"[    0.000000] Linux\n{before}{prefix}{message}\n"
    cut = data.draw(st.integers(0, len(text)))
    reports = KernelReports()
    for piece in (text[:cut], text[cut:]):
        reports.take(piece)
    assert [(r.kind, r.line) for r in reports.all()] == [(LINES[message], prefix + message)]
    # a line without a time, or with words after it, is not the kernel's
    for line in (f"{before} {message}", f"{before}{prefix}foo: {message}"):
        assert reports_in(f"[    0.000000] Linux\n{line}\n") == ()


@pytest.mark.parametrize(
    "time", ["[1.5]", "[ 100.0]", "[    1.00000]", "[1.000000]", "[x.000000]"]
)
def test_time_within_a_line_has_the_form_that_printk_gives_it(time: str) -> None:
    panic = "Kernel panic - not syncing: x"
    assert reports_in(f"[    0.000000] Linux\nfoo {time} {panic}\n") == ()


@given(st.lists(st.sampled_from([*LINES, *OOPS.splitlines()]) | WORDS, max_size=40), st.data())
def test_reports_are_the_same_however_the_console_is_read(
    messages: list[str], data: st.DataObject
) -> None:
    text = "".join(f"[    1.000000] {line}\n" for line in messages)
    pieces, reports = text, KernelReports()
    while pieces:
        size = data.draw(st.integers(1, len(pieces)))
        reports.take(pieces[:size])
        pieces = pieces[size:]
    assert reports.all() == reports_in(text)


@given(st.binary(max_size=400))
def test_any_bytes_are_read(content: bytes) -> None:
    for report in reports_in(content.decode(errors="replace")):
        assert len(report.line) <= 300


def test_flood_is_bounded() -> None:
    reports = KernelReports()
    for _ in range(100):
        reports.take("x" * 100_000)
    reports.take("\n" + "[    1.000000] irq 1: nobody cared\n" * 10_000)
    assert len(reports.all()) == 64
    assert len(reports._rest) <= 600


def test_oops_is_one_report_with_the_functions_that_were_called() -> None:
    oops, panic = reports_in(OOPS)
    assert (oops.kind, panic.kind) == ("oops", "panic")
    assert oops.line.endswith("address: 0000000000000020")
    assert oops.functions == (
        CalledFunction("vfio_pin_map_dma", "vfio_iommu_type1"),
        CalledFunction("vfio_iommu_type1_ioctl", "vfio_iommu_type1"),
        CalledFunction("__x64_sys_ioctl"),
    )
    assert (oops.ended, panic.ended, panic.functions) == (True, False, ())


@pytest.mark.parametrize(
    ("function", "changed", "is_ours"),
    [
        (CalledFunction("vfio_pin_map_dma", "vfio_iommu_type1"), (), True),
        (CalledFunction("vfio_pin_map_dma"), (), True),
        (CalledFunction("__iommu_map"), (), True),
        (CalledFunction("iommufd_fops_ioctl", "iommufd"), (), True),
        (CalledFunction("intel_iommu_map_pages"), (), True),
        (CalledFunction("do_init_module"), (), False),
        (CalledFunction("ext4_map_blocks", "ext4"), (), False),
        (CalledFunction("ext4_map_blocks", "ext4"), ("ext4",), True),
        (CalledFunction("kvm_mmu_uninit_vm", "kvm"), ("vfio_pci",), False),
        # a module of somebody else's whose name contains it
        (CalledFunction("my_vfio_thing"), (), False),
        (CalledFunction("vfiology"), (), False),
    ],
)
def test_function_is_of_vfio_the_iommu_or_a_changed_module(
    function: CalledFunction, changed: tuple[str, ...], is_ours: bool
) -> None:
    assert (first_of([CalledFunction("do_sys"), function], changed) == function) == is_ours
    assert (first_of([CalledFunction("do_sys"), function], changed) is None) != is_ours


DMA = (
    CalledFunction("intel_iommu_map_pages"),
    CalledFunction("iommu_map"),
    CalledFunction("iommu_dma_map_page"),
)


@pytest.mark.parametrize(
    ("more", "changed", "blamed"),
    [
        ((), (), None),
        ((CalledFunction("nvme_queue_rq", "nvme"),), (), None),
        ((CalledFunction("nvme_queue_rq", "nvme"),), ("nvme",), "intel_iommu_map_pages"),
        ((CalledFunction("vfio_dma_do_map", "vfio_iommu_type1"),), (), "intel_iommu_map_pages"),
    ],
)
@pytest.mark.parametrize(
    "passed", [DMA, (CalledFunction("iommu_map"), CalledFunction("qi_submit_sync"))]
)
def test_dma_of_any_driver_is_not_the_arms(
    passed: tuple[CalledFunction, ...],
    more: tuple[CalledFunction, ...],
    changed: tuple[str, ...],
    blamed: str | None,
) -> None:
    first = first_of([*passed, *more], changed)
    assert (first is None) == (blamed is None)
    assert first in (None, passed[0])


def test_kinds_are_broken_or_a_stall_or_neither() -> None:
    assert not BROKEN & STALLS
    assert {*LINES.values()} - BROKEN - STALLS == {"machine-check", "oom"}
