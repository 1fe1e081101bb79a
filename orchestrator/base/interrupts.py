"""SIGINT, SIGTERM and SIGHUP: barometer ends within ten seconds, whatever it is stuck in.

The first signal raises KeyboardInterrupt in the main thread. As the exception leaves each block,
everything is ended and put back. A second thread makes sure that the main thread comes to its end:
it ends this process's own machines at once, so that nobody waits for them; it reports every ten
seconds what is still being put back on other people's machines; and it ends the process if the
main thread is stuck.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

EXIT_CODE = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WAY_OUT_SECONDS = 8.0
"""Seconds that the main thread has to come to its end, not counting the time in which something is
put back."""
_SAY_SECONDS = 10.0
_SAME_SECONDS = 1.0
"""Seconds within which two signals are one Ctrl-C, which a terminal and a wrapper may both pass
on."""

_log = logging.getLogger("barometer")


class _Duty(NamedTuple):
    description: str
    otherwise: str


_at_once: list[Callable[[], object]] = []
_duties: list[_Duty] = []
_is_requested = False
_is_raised = False
_is_lost = False
"""True if Python dropped the KeyboardInterrupt: it does so in a destructor, and in a callback of
the garbage collector."""


@contextlib.contextmanager
def at_once(action: Callable[[], object]) -> Iterator[None]:
    """Have a signal during the block call `action` in a thread of its own, without waiting for the
    main thread."""
    _at_once.append(action)
    try:
        yield
    finally:
        _at_once.remove(action)


@contextlib.contextmanager
def duty(description: str, otherwise: str) -> Iterator[None]:
    """Declare that the end of the block puts something back, which may take its time.
    `otherwise` is the command that does it if this process does not."""
    _duties.append(mine := _Duty(description, otherwise))
    try:
        yield
    finally:
        _duties.remove(mine)


def is_requested() -> bool:
    """True if a signal has come. What fails from then on fails because of it."""
    return _is_requested


def install() -> None:
    """Install the handlers, in the main thread of the command. Ignored signals (nohup) stay
    ignored."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # C code writes the number there at once, even while the main thread runs no Python
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    sys.unraisablehook = _unraisable
    threading.Thread(target=_watch, args=(reader,), name="interrupts", daemon=True).start()


def settle() -> None:
    """Ignore further signals, if one has come: the command is over, and they must not change its
    exit code. At its end Python restores their default action, which would kill the process."""
    if _is_requested:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _raise(number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but only once: a second signal must not cut the way out short."""
    global _is_requested, _is_raised  # noqa: PLW0603  # a process has one way out
    if not _is_raised:
        _is_requested = _is_raised = True
        raise KeyboardInterrupt(signal.Signals(number).name)


def _unraisable(dropped: sys.UnraisableHookArgs) -> None:
    global _is_raised, _is_lost
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        _is_raised, _is_lost = False, True
    else:
        sys.__unraisablehook__(dropped)


def _watch(reader: int) -> None:
    global _is_lost  # noqa: PLW0603
    number = signal.Signals(os.read(reader, 1)[0])
    name = number.name
    for action in [*_at_once]:
        threading.Thread(target=action, daemon=True).start()
    first = free_since = time.monotonic()
    reported_at = first - _SAY_SECONDS
    while True:
        is_again = select.select([reader], [], [], 0.1)[0] and signal.SIGINT in os.read(reader, 64)
        now = time.monotonic()
        if _is_lost:
            _is_lost = False
            first = now  # the signal sent below is no second Ctrl-C
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        if is_again and now - first > _SAME_SECONDS:
            _end("ended at once by a second Ctrl-C")
        if duties := [*_duties]:
            free_since = now
            if now - reported_at >= _SAY_SECONDS:
                reported_at = now
                for each in duties:
                    _say(
                        f"interrupted by {name} {now - first:.0f} s ago: {each.description}."
                        f" A second Ctrl-C ends this at once and leaves it to: {each.otherwise}"
                    )
        elif now - free_since > _WAY_OUT_SECONDS:
            _end(f"interrupted by {name}, and stuck")


def _end(why: str) -> NoReturn:
    main = sys._current_frames().get(threading.main_thread().ident or 0)
    _log.debug("the main thread is at\n%s", "".join(traceback.format_stack(main)) if main else "?")
    _kill_children()
    left = [each.otherwise for each in [*_duties]]
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # a live line hides the cursor
    _say(f"{why}; what is left to do: {', '.join([*left, 'barometer clean'])}")
    os._exit(EXIT_CODE)


def _kill_children() -> None:
    """Kill the children that lead a process group, and their groups: builds, programs that are
    waited for."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # proc_pid_stat(5), fields 4 and 5
            parent, group = map(int, stat.read_text().rpartition(")")[2].split()[1:3])
            if parent == os.getpid() and group == int(stat.parent.name):
                os.killpg(group, signal.SIGKILL)


def _say(text: str) -> None:
    """Print on standard error, unless nobody reads there: this thread must not block."""
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"barometer: {text}\n".encode())
