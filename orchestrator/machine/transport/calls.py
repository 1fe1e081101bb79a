"""Calls into a library that may never return, each on a daemon thread.

A wait within libvirt or paramiko has no deadline, and no signal interrupts it. Here the caller
waits instead, with one deadline for the whole call. The handler of a signal, which Python runs in
the main thread, never runs in the middle of the library's code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

_T = TypeVar("_T")
LOOK_SECONDS = 5.0
"""Seconds between two looks whether a call is waited for in vain, as nobody is there to answer it.
On a busy machine only such a look tells that from a call that takes long."""
_LOOKS = 2
"""Looks in a row that have to find that: a process may be stopped for a moment."""


class _Worker:
    """A thread that makes one call after another. With a thread for each call, KeyboardInterrupt
    could get lost: Python forgets an ended thread in a callback of the garbage collector, and
    drops an exception that is raised in such a callback."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._work, name="calls", daemon=True).start()

    def make(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            self._calls.get()()
            _idle.append(self)


_idle: list[_Worker] = []


def _worker() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


class Call(Generic[_T]):
    """A call that begins when its result is requested."""

    def __init__(
        self, function: Callable[[], _T], *, undo: Callable[[_T], object] = lambda _value: None
    ) -> None:
        """`undo` gets a value that arrives after the caller has given up."""
        self._function, self._undo = function, undo
        self._lock = threading.Lock()
        # Locked until the call returns. An event's wait() is Python, and breaks if a signal's
        # handler raises in the middle of it ("release unlocked lock").
        self._running = threading.Lock()
        self._running.acquire()
        self._ended = threading.Event()
        self._is_over = self._is_given_up = False
        self._values: list[_T] = []
        self._error: BaseException | None = None

    def _work(self) -> None:
        try:
            self._values.append(self._function())
        except BaseException as exc:  # noqa: BLE001  # result() raises it
            self._error = exc
        finally:
            del self._function  # an error in flight must not keep the call's objects alive
            with self._lock:
                self._is_over, is_late = True, self._is_given_up
            self._running.release()
            try:
                if is_late:
                    self._drop_result()
            finally:
                self._ended.set()

    def result(self, within: float, is_in_vain: Callable[[], bool] = lambda: False) -> _T:
        """Return the function's value, or raise its exception. Raises TimeoutError if the function
        takes longer than `within` seconds, or if it proves to be waited for in vain (see
        LOOK_SECONDS). Then, as after an interrupt, it goes on without its caller."""
        looks, left, end = 0, within, time.monotonic() + within
        try:
            _worker().make(self._work)
            while not self._running.acquire(timeout=min(left, LOOK_SECONDS)):
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                looks = looks + 1 if is_in_vain() else 0
                if looks == _LOOKS:
                    raise TimeoutError
                left = max(0.0, end - time.monotonic())
        except BaseException:
            with self._lock:
                self._is_given_up, is_over = True, self._is_over
            if is_over:
                _worker().make(self._drop_result)
            raise
        if (error := self._error) is not None:
            try:
                raise error
            finally:
                self._error = error = None  # else the error and its traceback hold one another
        return self._values.pop()

    def has_ended(self, within: float) -> bool:
        """Wait up to `within` seconds for the end of a call that was given up, and of its undo.
        True if both have ended."""
        return self._ended.wait(within)

    def _drop_result(self) -> None:
        self._error = None
        while self._values:
            self._undo(self._values.pop())


def in_time(function: Callable[[], _T], within: float) -> _T:
    """Return the value of `function`, or raise its exception. Raises TimeoutError after `within`
    seconds."""
    return Call(function).result(within)
