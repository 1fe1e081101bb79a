"""The watch agent's record of one guest boot, on the host's CLOCK_MONOTONIC."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from orchestrator.evidence.watch import parse_start


@dataclass(frozen=True)
class WatchedBoot:
    """Times in seconds of the host's CLOCK_MONOTONIC; None for an event that did not happen."""

    started: float | None = None
    """Start of QEMU's process (field 22 of /proc/PID/stat: steps of 10 ms)."""
    mark: float | None = None
    """Arrival of the boot mark's console line in the host."""
    ssh: float | None = None
    exit: float | None = None
    page_table_bytes: int | None = None
    """VmPTE of QEMU at the boot mark."""
    console: tuple[tuple[float, str], ...] = field(default=())

    @property
    def boot_seconds(self) -> float | None:
        """Time from the start of QEMU to the guest's userspace, to 10 ms."""
        return None if self.mark is None or self.started is None else self.mark - self.started

    @property
    def ssh_seconds(self) -> float | None:
        """Time from the start of QEMU to the banner of the guest's SSH server, to 20 ms."""
        return None if self.ssh is None or self.started is None else self.ssh - self.started


def parse_marks(text: str) -> WatchedBoot:
    """Parse the lines `E <ns> NAME [JSON]` and `C <ns> "console line"`. Others are skipped, as is
    a last line that was cut short."""
    times: dict[str, float] = {}
    tables: int | None = None
    console: list[tuple[float, str]] = []
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        at, _, rest = rest.partition(" ")
        if kind not in ("C", "E") or not at.isdecimal():
            continue
        seconds = int(at) / 1e9
        if kind == "E":
            name, _, detail = rest.partition(" ")
            if name == "started":
                if (start := parse_start(detail)) is not None:
                    times.setdefault("started", start.start_ns / 1e9)
            elif name == "tables" and detail.isdecimal():
                tables = int(detail)
            elif name in ("mark", "ssh", "exit"):
                times.setdefault(name, seconds)
        else:
            try:
                words = json.loads(rest)
            except (ValueError, RecursionError):
                continue
            if isinstance(words, str):
                console.append((seconds, words))
    return WatchedBoot(**times, page_table_bytes=tables, console=tuple(console))
