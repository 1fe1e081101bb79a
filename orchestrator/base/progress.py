"""Show what a command is doing: one live line on a terminal. A pipe gets plain lines, at least one
every 30 s, whatever the command waits for."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.base.errors import LastStageEnded
from orchestrator.base.printable import escape_unprintable

_SILENCE_SECONDS = 25.0
"""A line is printed after this many seconds of silence. The rest of the 30 s is a reserve for a
busy machine."""
_DETAIL_COLUMNS = 120
_of_thread = threading.local()
"""Its attribute `progress` is the Progress that shows the innermost stage of the thread."""


class ErrorConsole(Console):
    """Console on standard error. It raises BrokenPipeError if the reader has gone. Rich would end
    the process with exit code 1, which is that of a regression."""

    def __init__(self, *, is_live: bool = False) -> None:
        live = None if is_live else False
        super().__init__(stderr=True, highlight=False, force_interactive=live)

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Progress:
    """Stages with their elapsed time. Stages nest; the innermost one is the live line. `silence`:
    seconds after which a log gets a line with the current state."""

    def __init__(self, console: Console | None = None, silence: float = _SILENCE_SECONDS) -> None:
        self._console = console or _standard_error()
        self._silence = silence
        self._task: tuple[str, float] | None = None
        self._stack: list[tuple[str, float]] = []
        self._waits_for = ""
        self._detail = ""
        self._lock = threading.RLock()
        self._printed = 0.0
        self._label = ""
        self._root = self
        self._lanes: list[Progress] = []
        self._live_line: Live | None = None
        self._is_paused = False

    @contextmanager
    def task(self, name: str) -> Iterator[Progress]:
        """Show the current state until the block ends. Between stages `name` is shown. Within
        another task this has no effect."""
        if self._root._task is not None:
            yield self
            return
        self._task = name, time.monotonic()
        try:
            self._live_line = self._live() if self._console.is_interactive else None
            with self._live_line or self._timer():
                yield self
        finally:
            self._task = self._live_line = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to somebody else while the block runs."""
        root = self._root
        root._is_paused = True
        if root._live_line is not None:
            root._live_line.stop()
        try:
            yield
        finally:
            root._is_paused = False
            if root._live_line is not None:
                root._live_line.start(refresh=True)

    @contextmanager
    def lane(self, label: str) -> Iterator[Progress]:
        """Yield the progress of work that runs in parallel with others: its lines begin with
        `label`, and the root shows the state of each lane."""
        lane = Progress(self._console)
        lane._label, lane._lock, lane._root = label, self._lock, self._root
        self._lanes.append(lane)
        try:
            yield lane
        finally:
            self._lanes.remove(lane)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs, then how long it took; in red if it failed."""
        with self.task(name), self._shows_this_thread():
            started = time.monotonic()
            depth = len(self._stack)
            self._stack.append((name, started))
            self._detail = ""
            if not self._console.is_interactive:
                self._print(depth, f"{name} ...")
            try:
                yield
            except LastStageEnded:
                self._print(depth, f"({name}: left out)")
                raise
            except BaseException:
                seconds = time.monotonic() - started
                self._print(depth, f"({name}: failed after {seconds:.1f} s)", "red")
                raise
            else:
                self._print(depth, f"{name}: {time.monotonic() - started:.1f} s")
            finally:
                self._stack.pop()
                self._detail = ""

    def detail(self, text: str) -> None:
        """Show `text` with the current stage, such as the last line of a console."""
        self._detail = text

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._print(len(self._stack), text)

    @contextmanager
    def _shows_this_thread(self) -> Iterator[None]:
        before = getattr(_of_thread, "progress", None)
        _of_thread.progress = self
        try:
            yield
        finally:
            _of_thread.progress = before

    def _live(self) -> Live:
        return Live(
            get_renderable=self._line,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @contextmanager
    def _timer(self) -> Iterator[None]:
        ended = threading.Event()
        self._printed = time.monotonic()
        timer = threading.Thread(target=self._break_silence, args=(ended,), daemon=True)
        timer.start()
        try:
            yield
        finally:
            ended.set()
            timer.join(1)  # not for ever: it may be writing to a pipe that nobody reads

    def _break_silence(self, ended: threading.Event) -> None:
        while not ended.wait(self._printed + self._silence - time.monotonic()):
            now = time.monotonic()
            if self._is_paused:
                self._printed = now
            if now - self._printed < self._silence:
                continue
            try:
                with self._lock:
                    for state in self._states(now):
                        self._print(0, self._total(now) + state)
            except (OSError, ValueError):  # nobody reads any more; the main thread finds that out
                return

    def _print(self, depth: int, text: str, style: str = "") -> None:
        with self._lock:
            head = f"{self._label}: " if self._label else ""
            line = escape_unprintable(head + "  " * depth + text)
            self._console.print(line, style=style, markup=False, soft_wrap=True)
            self._root._printed = time.monotonic()

    def _line(self) -> Text:
        """Return the live line."""
        now = time.monotonic()
        text = self._total(now) + "  ".join(self._states(now))
        return Text(text[: max(20, self._console.width - 1)], no_wrap=True, overflow="ellipsis")

    def _total(self, now: float) -> str:
        return f"[{now - self._task[1]:5.0f} s] " if self._task else ""

    def _states(self, now: float) -> list[str]:
        """Return the current state of each lane, or this progress's own state if there are no
        lanes."""
        return [*filter(None, (lane._now(now) for lane in [*self._lanes]))] or [self._now(now)]

    def _now(self, now: float) -> str:
        stage = self._stack[-1:] or [*filter(None, [self._task])]
        if not stage:  # a lane's stage may have ended in its own thread
            return ""
        ((name, started),) = stage
        head = f"{self._label}: " if self._label else ""
        seen = ": ".join(filter(None, (self._waits_for, _one_line(self._detail))))
        return f"{head}{name} {now - started:.0f} s  {seen}".rstrip()


@contextmanager
def waiting_for(event: str) -> Iterator[None]:
    """Show that the innermost stage of this thread waits for `event` until the block ends."""
    progress: Progress | None = getattr(_of_thread, "progress", None)
    if progress is None:
        yield
        return
    before, progress._waits_for = progress._waits_for, event
    try:
        yield
    finally:
        progress._waits_for = before


def _one_line(text: str) -> str:
    """Return a console's text as one short line. The text may be long and have control
    sequences."""
    text = text[: 2 * _DETAIL_COLUMNS]
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _DETAIL_COLUMNS else line[: _DETAIL_COLUMNS - 3] + "..."


def _standard_error() -> Console:
    """Return a console on standard error. It has no live line if standard error is no terminal,
    whatever FORCE_COLOR is, or if a CI system keeps a log of the terminal."""
    live = sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("CI")
    return ErrorConsole(is_live=live)
