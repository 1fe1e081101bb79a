"""Wait with a deadline. Only this module imports tenacity. Times are seconds of the monotonic
clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from orchestrator.base import progress
from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.reasons import Reason

_T = TypeVar("_T")
_LAST_LOOK_SECONDS = 15.0


def until(
    check: Callable[[], _T | None],
    *,
    within: float,
    waiting_for: str,
    every: float = 0.05,
    error: type[BarometerError] = BenchError,
    reason: Reason = Reason.TIMEOUT,
    last_seen: Callable[[], str] = lambda: "",
) -> _T:
    """Call `check` until it returns a value that is not None; return that.

    `check` raises if it sees a failure, so that a failure ends the wait at once. After `within`
    seconds `error` is raised with `waiting_for` and the last thing seen.
    """
    retrying = Retrying(
        retry=retry_if_result(lambda value: value is None),
        stop=stop_after_delay(within),
        wait=wait_fixed(every),
    )
    try:
        with progress.waiting_for(waiting_for):
            return retrying(check)  # type: ignore[return-value]  # None is what is retried
    except RetryError as exc:
        raise error(
            f"no {waiting_for} within {within:.0f} s", evidence=last_seen(), reason=reason
        ) from exc


@contextmanager
def repeatedly(look: Callable[[], bool], *, every: float, name: str) -> Iterator[None]:
    """Call `look` every `every` seconds in a thread of its own, while the block runs and until it
    returns True. The block's end waits 15 s at most for a call that does not return."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(every) and not look():
            pass

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_LAST_LOOK_SECONDS)


class Stall:
    """Measures how long a value has not changed. This is a deadline for work of unknown length."""

    def __init__(self) -> None:
        self._value: object = None
        self._since = time.monotonic()

    def seconds(self, value: object) -> float:
        """Return the seconds since `value` was last different."""
        now = time.monotonic()
        if value != self._value:
            self._value, self._since = value, now
        return now - self._since
