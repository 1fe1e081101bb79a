"""A hung host is detected by its kernel's report and its idle QEMU, or by its QEMU's state,
whatever waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.waiting import until
from orchestrator.machine.host import kernelwatch
from orchestrator.machine.host.console import Console
from orchestrator.machine.host.host import find_standstill
from orchestrator.machine.host.kernelwatch import (
    Activity,
    KernelWatch,
    read_activity,
    watch_of_machine,
    watching_kernel,
)

HUNG = "[  400.000000] INFO: task CPU 0/KVM:340 blocked for more than 60 seconds.\n"
FINE = "[    1.000000] fine\n"


class Machine:
    """A host with a made-up console and a made-up CPU use of its QEMU, second by second."""

    def __init__(self, folder: Path) -> None:
        self.console = folder / "console.log"
        self.console.write_text(FINE)
        self.now, self.used, self.ended, self.is_stopped = 1000.0, 0.0, 0, False
        self.kernel = KernelWatch(
            Console(self.console), lambda: Activity(self.used, self.is_stopped)
        )
        self.kernel.on_hang(self.end)

    def end(self) -> None:
        self.ended += 1

    def say(self, text: str) -> None:
        with self.console.open("a") as file:
            file.write(text)

    def run(self, seconds: int, share: float) -> None:
        for _ in range(seconds):
            self.now, self.used = self.now + 1, self.used + share
            self.kernel.tick(self.now)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_hung_task_of_an_idle_machine_ends_the_waits_within_a_minute(machine: Machine) -> None:
    machine.run(300, 0.01)
    assert machine.ended == 0  # idle, but nothing is wrong
    machine.say(HUNG)
    machine.run(55, 0.05)
    assert machine.kernel.hung is not None
    assert machine.kernel.hung.line == HUNG.strip()
    assert machine.ended == 1


def test_hung_task_of_a_busy_machine_is_a_report_and_no_more(machine: Machine) -> None:
    for _ in range(5):
        machine.say(HUNG)
        machine.run(60, 1.0)
    assert (machine.kernel.hung, machine.ended) == (None, 0)
    assert [report.kind for report in machine.kernel.reports()] == ["hung-task"] * 5


def test_machine_that_rests_long_after_a_hung_task_does_not_hang(machine: Machine) -> None:
    machine.say(HUNG)
    machine.run(60, 1.0)  # what the task waited for has come
    machine.run(100, 0.0)
    assert machine.kernel.hung is None


def test_work_before_the_report_does_not_hide_the_rest_after_it(machine: Machine) -> None:
    machine.run(30, 2.0)
    machine.say(HUNG)
    machine.run(20, 0.0)
    assert machine.ended == 1


def test_machine_without_a_qemu_to_ask_is_not_ended(tmp_path: Path) -> None:
    (tmp_path / "console").write_text(HUNG)
    kernel = KernelWatch(Console(tmp_path / "console"))
    for now in range(100):
        kernel.tick(float(now))
    assert kernel.hung is None
    assert len(kernel.reports()) == 1


def test_machine_in_no_qemu_is_asked_how_busy_it_is_only_after_a_hung_task(
    tmp_path: Path,
) -> None:
    path, asked = tmp_path / "console", list[float]()
    path.write_text(FINE)

    def busy() -> float:
        asked.append(1.0)
        return 1000.0 + 0.01 * len(asked)

    kernel = watch_of_machine(Console(path), busy)
    for now in range(100):
        kernel.tick(float(now))
    assert asked == []
    with path.open("a") as file:
        file.write(HUNG)
    for now in range(100, 400):
        kernel.tick(float(now))
    assert kernel.hung is not None
    assert 15 <= len(asked) < 60


def test_hung_task_of_an_earlier_trial_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_text(FINE)
    kernel = watch_of_machine(Console(path), lambda: 1000.0)
    kernel.tick(1.0)
    with path.open("a") as file:
        file.write(HUNG)  # the machine repeats its messages
    for now in range(2, 100):
        kernel.tick(float(now))
    assert (kernel.hung, kernel.is_suspect) == (None, False)
    later = HUNG.replace("340", "341")
    with path.open("a") as file:
        file.write(later)
    for now in range(100, 200):
        kernel.tick(float(now))
    assert kernel.hung is not None
    assert kernel.hung.line == later.strip()


@pytest.mark.parametrize("share", [None, 0.5])
def test_machine_in_no_qemu_that_works_or_does_not_tell_is_not_given_up(
    tmp_path: Path, share: float | None
) -> None:
    path = tmp_path / "console"
    path.write_text(FINE)
    now = 0.0
    kernel = watch_of_machine(Console(path), lambda: None if share is None else share * now)
    kernel.tick(now)
    path.write_text(FINE + HUNG)
    for second in range(10, 200):
        now = float(second)
        kernel.tick(now)
    assert kernel.hung is None


def test_console_is_read_from_where_its_boot_begins(tmp_path: Path) -> None:
    (tmp_path / "console").write_text(HUNG)
    kernel = KernelWatch(Console(tmp_path / "console", start=len(HUNG)))
    assert kernel.reports() == ()
    assert KernelWatch(Console(tmp_path / "none")).reports() == ()


def test_console_is_read_once_for_all_who_look(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(machine.console)
    kernel = KernelWatch(console)
    machine.say(HUNG)
    assert len(kernel.reports()) == 1

    def fed_again(_: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr(console, "feed", fed_again)
    assert console.text() == FINE + HUNG
    assert len(kernel.reports()) == 1


def test_panic_is_told_when_its_call_trace_is_there(machine: Machine) -> None:
    machine.say("[    2.000000] Kernel panic - not syncing: x\n")

    def more() -> None:
        machine.say("[    2.000000]  vfio_x+0x1/0x2\n[    2.0] ---[ end Kernel panic - x ]---\n")

    timer = threading.Timer(0.2, more)
    timer.start()
    found = machine.kernel.broken()
    timer.join()
    assert found is not None
    assert [function.name for function in found.functions] == ["vfio_x"]


def test_panic_without_an_end_is_told_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernelwatch, "_TRACE_SECONDS", 0.05)
    machine.say("[    2.000000] Kernel panic - not syncing: x\n")
    found = machine.kernel.broken()
    assert found is not None
    assert not found.ended


def test_thread_looks_on_while_something_else_waits(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernelwatch, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(kernelwatch, "_IDLE_SECONDS", 0.1)
    ended = threading.Event()
    machine.kernel.on_hang(ended.set)
    machine.say(HUNG)
    with watching_kernel(machine.kernel):
        assert ended.wait(20)


def test_cpu_time_is_that_of_the_process() -> None:
    before, times = read_activity(os.getpid()), os.times()
    assert before is not None
    assert before.cpu_seconds > times.user + times.system - 0.1  # and its threads' wait for a CPU
    assert read_activity(2**22 + 1) is None


# a QEMU that is stopped ----------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "100"]) as sleeping:
        yield sleeping.pid
        sleeping.kill()


def wait_for_state(pid: int, *, is_stopped: bool) -> None:
    def is_so() -> bool | None:
        state = read_activity(pid)
        return (state is not None and state.is_stopped == is_stopped) or None

    until(is_so, within=20, waiting_for="the process's state")


def test_state_of_a_process_tells_whether_it_is_stopped(process: int) -> None:
    wait_for_state(process, is_stopped=False)
    os.kill(process, signal.SIGSTOP)
    wait_for_state(process, is_stopped=True)
    os.kill(process, signal.SIGCONT)
    wait_for_state(process, is_stopped=False)


def test_stopped_qemu_ends_the_waits_within_seconds_and_is_named(machine: Machine) -> None:
    machine.run(5, 1.0)
    machine.is_stopped = True
    machine.run(5, 0.0)
    assert (machine.kernel.is_stopped, machine.ended) == (True, 1)
    standstill = find_standstill(machine.kernel, Console(machine.console))
    assert standstill is not None
    assert (standstill.reason, standstill.evidence) == ("host-stopped", FINE.strip())


def test_stopped_qemu_with_a_hung_task_is_a_stopped_qemu(machine: Machine) -> None:
    machine.say(HUNG)
    machine.is_stopped = True
    machine.run(60, 0.0)
    assert (machine.kernel.is_stopped, machine.kernel.hung, machine.ended) == (True, None, 1)


@given(states=st.lists(st.booleans(), max_size=30))
def test_only_a_qemu_that_stays_stopped_is_given_up(
    tmp_path_factory: pytest.TempPathFactory, states: list[bool]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    for machine.is_stopped in states:
        machine.run(1, 1.0)
    words = "".join("T" if is_stopped else "R" for is_stopped in states)
    assert machine.kernel.is_stopped == ("TTT" in words)
