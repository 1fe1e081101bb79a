"""The trace of a guest boot, read once: the kernel's probes, QEMU's events, the agent's lines."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from orchestrator.analysis.boot.qemu import (
    BarPlace,
    QemuEvent,
    Region,
    parse_bar_place,
    parse_event,
    parse_region_added,
)
from orchestrator.analysis.tracefs.trace import Event, Operation, Pairing, parse_trace
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.watch import parse_start, parse_threads

# `barometer C 169229582420 "text"`: a line of the watch agent
_AGENT = re.compile(r"barometer ([A-Z]) (\d+) ?(.*)", re.DOTALL)
# `169229582420 ...`, after `barometer P 169229582420 `: nanoseconds of CPU that QEMU has used
_CPU_USE = re.compile(r"\s*(\d{1,20})(?:\s|$)", re.ASCII)
_MARKER = "tracing_mark_write"
_MSR = re.compile(r"msr_write ([0-9a-f]+) = 0x([0-9a-f]+)")


@dataclass
class BootTrace:
    """Contents of the trace of one guest boot. Times are seconds of the trace clock."""

    operations: list[Operation] = field(default_factory=list)
    qemu: list[QemuEvent] = field(default_factory=list)
    console: list[tuple[float, str]] = field(default_factory=list)
    """(when, line) as the watch agent received it."""
    feeds: list[tuple[float, int]] = field(default_factory=list)
    """(when, thread) of the line feeds that the guest sent."""
    msrs: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(when, thread, register, value) of each write of an MSR by the guest."""
    execs: dict[int, float] = field(default_factory=dict)
    """Time at which a process became QEMU, by its pid."""
    marks: dict[str, float] = field(default_factory=dict)
    cpu_use: list[tuple[float, float]] = field(default_factory=list)
    agent_clock: list[tuple[float, float]] = field(default_factory=list)
    """(trace clock, CLOCK_MONOTONIC) of each of the agent's lines."""
    zaps: list[tuple[float, float, int]] = field(default_factory=list)
    """(when, seconds, thread)"""
    iommu_maps: list[tuple[int, int]] = field(default_factory=list)
    """(IOVA, bytes) of the kernel's own tracepoint iommu:map."""
    pid: int = 0
    """Process ID of QEMU."""
    threads: set[int] = field(default_factory=set)
    """Threads of that process at the boot mark."""
    mark_line: int | None = None
    """Index of the boot mark in `console`."""
    events: int = 0

    @property
    def bar_places(self) -> list[tuple[float, BarPlace]]:
        """(when, place) of each BAR of a device that is passed through to the guest."""
        return [
            (event.time, place) for event in self.qemu
            if (place := parse_bar_place(event)) is not None and place.device == "vfio-pci"
        ]  # fmt: skip

    @property
    def regions(self) -> list[Region]:
        """Regions that QEMU had VFIO map."""
        return [region for e in self.qemu if (region := parse_region_added(e)) is not None]


def read_boot(text: str, threads: Collection[int] | None = None) -> BootTrace:
    """Read the trace of one guest boot, in time and memory linear in its size. `threads`: the
    threads of its QEMU; records of other threads are left out.

    Raises EvidenceError for a garbled trace and for maps that never returned.
    """
    boot, pairing = BootTrace(), Pairing()
    zapping: dict[int, float] = {}
    for event in parse_trace(text):
        name = event.name
        # the exec may be that of a caller, from which QEMU leaves by a fork (-daemonize)
        is_anyones = name in (_MARKER, "sched_process_exec")
        if threads is not None and event.pid not in threads and not is_anyones:
            continue
        boot.events += 1
        if name == _MARKER:
            _take_marker(boot, event)
        elif name == "kvm_pio":
            boot.feeds.append((event.time, event.pid))
        elif name == "kvm_msr":
            if (match := _MSR.search(event.text)) is not None:
                register, value = int(match[1], 16), int(match[2], 16)
                boot.msrs.append((event.time, event.pid, register, value))
        elif name == "sched_process_exec":
            boot.execs[event.pid] = event.time
        elif name == "map":
            fields = event.fields
            boot.iommu_maps.append((fields.get("iova", 0), fields.get("size", 0)))
        elif name == "zap_in":
            zapping[event.pid] = event.time
        elif name == "zap_out":
            if (start := zapping.pop(event.pid, None)) is not None:
                boot.zaps.append((start, round(event.time - start, 9), event.pid))
        else:
            pairing.take(event)
    boot.operations = pairing.finish()
    return boot


def _take_marker(boot: BootTrace, event: Event) -> None:
    if (qemu_event := parse_event(event.text, event.time)) is not None:
        boot.qemu.append(qemu_event)
    elif (match := _AGENT.match(event.text)) is not None:
        kind, at, rest = match.groups()
        boot.agent_clock.append((event.time, int(at) / 1e9))
        if not _take_agent(boot, event.time, kind, rest):
            raise EvidenceError(
                f"a line of the watch agent is malformed: {event.text[:120]!r}",
                reason=Reason.BAD_TRACE,
            )


def _take_agent(boot: BootTrace, time: float, kind: str, rest: str) -> bool:
    """Take one line of the watch agent. Returns False if it is malformed."""
    if kind == "C":
        boot.console.append((time, _words(rest)))
    elif kind == "E":
        event_name, _, detail = rest.partition(" ")
        if event_name == "mark" and "mark" not in boot.marks and boot.console:
            boot.mark_line = len(boot.console) - 1
        boot.marks.setdefault(event_name, time)
        if event_name == "started":
            if (start := parse_start(detail)) is None:
                return False
            boot.pid = start.pid
        elif event_name == "threads":
            if (threads := parse_threads(detail)) is None:
                return False
            boot.threads = threads
    elif kind == "P":
        if (used := _CPU_USE.match(rest)) is None:
            return False
        boot.cpu_use.append((time, int(used[1]) / 1e9))
    return True


def _words(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except (ValueError, RecursionError):  # cut short: the kernel takes 1 KiB at a time
        return quoted.strip('"')
