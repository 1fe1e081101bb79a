"""Calls into a library that may never return, each on a daemon thread.

A wait within libvirt or paramiko has no deadline, and no signal interrupts it. Here the caller
waits instead, with one deadline for the whole call. The handler of a signal, which Python runs in
the main thread, never runs in the middle of the library's code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

_T = TypeVar("_T")


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

    def result(self, within: float) -> _T:
        """Return the function's value, or raise its exception. Raises TimeoutError if the function
        takes longer than `within` seconds; then, as after an interrupt, it goes on without its
        caller."""
        try:
            _worker().make(self._work)
            if not self._running.acquire(timeout=within):
                raise TimeoutError
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
