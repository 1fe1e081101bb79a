"""Signals to processes that are stuck, or have something to put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# A process that prints "now" when it may be interrupted; BODY is what it does from then on.
PROGRAM = """
import os, signal, sys, threading, time
from orchestrator.base import interrupts
interrupts._WAY_OUT_SECONDS, interrupts._SAY_SECONDS, interrupts._SAME_SECONDS = 1.0, 0.2, 0.5
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
interrupts.install()
def now():
    print("now", flush=True)
try:
{body}
except KeyboardInterrupt as exc:
    print(f"out by {{exc}}", flush=True)
"""
SECONDS = 20.0


@contextmanager
def process(body: str) -> Iterator[subprocess.Popen[str]]:
    program = PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines()))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        try:
            yield child
        finally:
            child.kill()


def interrupted(body: str, *signals: signal.Signals, pause: float = 0.8) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a process that gets these
    signals."""
    with process(body) as child:
        for number in signals:
            child.send_signal(number)
            time.sleep(pause)
        out, errors = child.communicate(timeout=SECONDS)
    return child.returncode, out, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_is_raised_in_the_main_thread(number: signal.Signals) -> None:
    code, out, errors = interrupted("now(); signal.pause()", number, pause=0)
    assert (code, out, errors) == (0, f"out by {number.name}\n", "")


def test_second_signal_does_not_cut_the_way_out_short() -> None:
    body = "try:\n    now(); signal.pause()\nfinally:\n    time.sleep(0.6); print('done')"
    code, out, _ = interrupted(body, signal.SIGINT, signal.SIGTERM, signal.SIGINT, pause=0.1)
    assert (code, out) == (0, "done\nout by SIGINT\n")


STUCK = """
def be_stuck():
    try:
        now()
        time.sleep(60)
    except BaseException:
        be_stuck()
be_stuck()
"""


def test_process_that_does_not_come_out_is_ended() -> None:
    code, _, errors = interrupted(STUCK, signal.SIGTERM, pause=0.2)
    assert code == 130
    assert "barometer clean" in errors


def test_children_of_a_process_that_is_ended_end_with_it() -> None:
    child = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "def now():\n    print('now', child.pid, flush=True)\n"
    )
    with process("now()\n" + child + STUCK) as stuck:
        assert stuck.stdout is not None
        pid = int(stuck.stdout.readline().split()[1])
        time.sleep(0.2)
        stuck.send_signal(signal.SIGINT)
        assert stuck.wait(SECONDS) == 130
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("it goes on")


def test_interrupt_that_python_drops_is_raised_again() -> None:
    body = (
        "class Slow:\n"
        "    def __del__(self):\n"
        "        now(); time.sleep(0.3)\n"
        "Slow()\n"
        "time.sleep(60)"
    )
    code, out, errors = interrupted(body, signal.SIGINT, pause=0)
    assert (code, out, errors) == (0, "out by SIGINT\n", "")


def test_machines_are_ended_before_the_main_thread_has_come_anywhere() -> None:
    body = (
        "plug = threading.Event()\n"
        "with interrupts.at_once(plug.set):\n"
        "    try:\n        now(); signal.pause()\n"
        "    finally:\n        print(plug.wait(9), flush=True)"
    )
    code, out, _ = interrupted(body, signal.SIGINT, pause=0)
    assert (code, out) == (0, "True\nout by SIGINT\n")


DUTY = (
    "with interrupts.duty('lab is being put back', 'barometer recover lab'):\n"
    "    try:\n        now(); signal.pause()\n"
    "    finally:\n        time.sleep({seconds})"
)


def test_what_must_be_put_back_takes_its_time_and_is_named() -> None:
    code, out, errors = interrupted(DUTY.format(seconds=1.5), signal.SIGTERM, pause=0)
    assert (code, out) == (0, "out by SIGTERM\n")
    assert 3 <= len(errors.splitlines()) <= 9
    assert errors.count("barometer recover lab") == errors.count("lab is being put back")


def test_second_ctrl_c_ends_it_at_once_and_says_what_is_left() -> None:
    started = time.monotonic()
    code, out, errors = interrupted(DUTY.format(seconds=60), signal.SIGINT, signal.SIGINT)
    assert (code, out) == (130, "")
    assert "barometer recover lab" in errors.splitlines()[-1]
    assert time.monotonic() - started < SECONDS


def test_other_second_signals_do_not() -> None:
    body = DUTY.format(seconds=2)
    code, out, _ = interrupted(body, signal.SIGINT, signal.SIGTERM)
    assert (code, out) == (0, "out by SIGINT\n")
