"""Calls that never return, return late, or are interrupted."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from queue import SimpleQueue
from typing import Any

import pytest

from orchestrator.machine.transport import calls
from orchestrator.machine.transport.calls import Call, in_time

SECONDS = 20.0


class Failing:
    def __call__(self) -> None:
        raise ZeroDivisionError


def never() -> None:
    threading.Event().wait()


def fail() -> None:
    raise ZeroDivisionError


def test_result_and_error_are_the_functions() -> None:
    assert in_time(lambda: 7, SECONDS) == 7
    with pytest.raises(ZeroDivisionError):
        in_time(fail, SECONDS)


def test_call_that_never_returns_is_a_timeout_and_leaves_a_daemon_thread() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        in_time(never, 0.05)
    assert time.monotonic() - started < 5
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "calls")


def test_call_that_is_waited_for_in_vain_is_given_up_long_before_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "LOOK_SECONDS", 0.01)
    # in vain for a moment, then not, then for good
    looks = iter([True, False, True, True])
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        Call(never).result(600, lambda: next(looks))
    assert time.monotonic() - started < SECONDS
    assert next(looks, None) is None


def test_call_that_takes_long_and_is_not_waited_for_in_vain_has_its_whole_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "LOOK_SECONDS", 0.01)
    go = threading.Event()
    looks = list[float]()

    def look() -> bool:
        looks.append(time.monotonic())
        if len(looks) == 5:
            go.set()
        return False

    assert Call(lambda: go.wait(SECONDS)).result(SECONDS, look)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        Call(never).result(0.1, look)
    assert time.monotonic() - started > 0.09


def test_look_that_is_interrupted_gives_the_call_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LOOK_SECONDS", 0.01)

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Call(never).result(SECONDS, interrupted)


def test_value_that_comes_too_late_is_undone() -> None:
    go, undone = threading.Event(), list[int]()

    def late() -> int:
        go.wait(SECONDS)
        return 7

    call = Call(late, undo=undone.append)
    with pytest.raises(TimeoutError):
        call.result(0.01)
    assert not call.has_ended(0.01)
    go.set()
    assert call.has_ended(SECONDS)
    assert undone == [7]


def test_value_that_is_taken_is_not_undone() -> None:
    undone = list[int]()
    call = Call(lambda: 7, undo=undone.append)
    assert call.result(SECONDS) == 7
    assert call.has_ended(SECONDS)
    assert undone == []


def test_signal_ends_the_wait_and_what_comes_then_is_undone() -> None:
    go, undone = threading.Event(), list[int]()

    def late() -> int:
        go.wait(SECONDS)
        return 7

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        call = Call(late, undo=undone.append)
        with pytest.raises(KeyboardInterrupt):
            call.result(SECONDS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    go.set()
    assert call.has_ended(SECONDS)
    assert undone == [7]


def test_value_that_an_interrupt_comes_after_is_undone() -> None:
    """A signal's handler may run as the wait ends."""

    class Interrupting:
        def __init__(self, lock: Any) -> None:
            self._lock = lock

        def acquire(self, timeout: float) -> None:
            assert self._lock.acquire(timeout=timeout)
            raise KeyboardInterrupt

        def release(self) -> None:
            self._lock.release()

    undone = SimpleQueue[int]()
    call: Any = Call(lambda: 7, undo=undone.put)
    call._running = Interrupting(call._running)
    with pytest.raises(KeyboardInterrupt):
        call.result(SECONDS)
    assert undone.get(timeout=SECONDS) == 7


def test_error_on_its_way_holds_nothing_of_the_call() -> None:
    """libvirt keeps a connection open as long as an object of one of its domains exists."""
    work = Failing()
    ended = weakref.ref(work)
    gc.disable()
    try:
        call = Call(work)
        del work
        try:
            call.result(SECONDS)
        except ZeroDivisionError as exc:
            error = exc.with_traceback(None)
        assert ended() is None
        del error
    finally:
        gc.enable()
