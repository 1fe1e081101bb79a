"""What a run is doing now: one live line on a terminal, plain lines when piped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

log = logging.getLogger("barometer")


class Progress:
    """Stages with their elapsed time. Stages nest; the innermost one is the live line."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._stack: list[tuple[str, float]] = []
        self._detail = ""
        self._lock = threading.Lock()
        self._label = ""
        self._lanes: list[Progress] = []

    @contextmanager
    def lane(self, label: str) -> Iterator[Progress]:
        """Progress of something that goes on beside others: its lines begin with `label`, and
        the live line shows where each of them is."""
        lane = Progress(self._console)
        lane._label, lane._lock = label, self._lock
        self._lanes.append(lane)
        try:
            yield lane
        finally:
            self._lanes.remove(lane)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs, then how long it took; in red when it raised."""
        started = time.monotonic()
        depth = len(self._stack)
        self._stack.append((name, started))
        self._detail = ""
        outermost = depth == 0 and self._console.is_terminal and not self._label
        live = Live(
            get_renderable=self._line,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        if outermost:
            live.start()
        elif not self._console.is_terminal:
            self._print(depth, f"{name} ...")
        try:
            yield
        except BaseException:
            self._print(depth, f"({name}: failed after {time.monotonic() - started:.1f} s)", "red")
            raise
        else:
            self._print(depth, f"{name}: {time.monotonic() - started:.1f} s")
        finally:
            self._stack.pop()
            self._detail = ""
            if outermost:
                live.stop()

    def detail(self, text: str) -> None:
        """The last thing seen inside the current stage; shown on the live line only."""
        self._detail = text

    def note(self, text: str) -> None:
        """A line that stays."""
        self._print(len(self._stack), text)

    def _print(self, depth: int, text: str, style: str = "") -> None:
        with self._lock:
            head = f"{self._label}: " if self._label else ""
            line = head + "  " * depth + text
            self._console.print(line, style=style, markup=False, soft_wrap=True)

    def _line(self) -> Text:
        if not self._stack:
            return Text("")
        now = time.monotonic()
        total = now - self._stack[0][1]
        words = [lane._now(now) for lane in [*self._lanes]]
        text = f"[{total:5.0f} s] " + ("  ".join(filter(None, words)) or self._now(now))
        return Text(text[: max(20, self._console.width - 1)], no_wrap=True, overflow="ellipsis")

    def _now(self, now: float) -> str:
        if not (innermost := self._stack[-1:]):  # a lane's may have ended in its own thread
            return ""
        ((name, started),) = innermost
        head = f"{self._label}: " if self._label else ""
        return f"{head}{name} {now - started:.0f} s  {self._detail}"
