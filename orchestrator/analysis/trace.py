"""tracefs text to events, and events to DMA maps and unmaps of the BAR."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.abi import MAP_DMA, UNMAP_DMA
from orchestrator.errors import EvidenceError

# ` CPU 0/KVM-339  [001] .....  28.412785: ioctl_in: (vfio_iommu_type1_ioctl+0x4/..) cmd=0x3b71`
_EVENT = re.compile(
    r"^\s*(?P<task>.+)-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\]\s+\S+\s+(?P<time>\d+(?:\.\d+)?): "
    r"(?P<name>\w+): (?P<rest>.*)$"
)
_FIELD = re.compile(r"(\w+)=(-?0x[0-9a-fA-F]+|-?\d+)\b")


@dataclass(frozen=True)
class Event:
    name: str
    pid: int
    """The thread."""
    time: float
    """Seconds of the trace clock. The text has microseconds; or, of x86-tsc, ticks, which are
    nanoseconds and instructions on an exact host."""
    fields: dict[str, int] = field(default_factory=dict)


def parse_trace(text: str) -> Iterator[Event]:
    """Every event of a tracefs `trace` file, in file order. Comment lines start with `#`.

    Raises EvidenceError at a line that is neither, so that a garbled trace is no empty one.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith(("#", "CPU:")):
            continue
        match = _EVENT.match(line)
        if match is None:
            raise EvidenceError(
                f"trace line {number} is not an event: {line[:120]!r}", reason="bad-trace"
            )
        fields = {name: _number(value) for name, value in _FIELD.findall(match["rest"])}
        time = match["time"]
        seconds = float(time) if "." in time else int(time) / 1e9
        yield Event(match["name"], int(match["pid"]), seconds, fields)


def _number(text: str) -> int:
    return int(text, 16 if "0x" in text else 10)


@dataclass(frozen=True)
class Operation:
    """One DMA map or unmap. Times in seconds of the trace clock; sizes in bytes."""

    kind: str
    """map, unmap (both by ioctl), or release: the last unmap, when QEMU's container is closed."""
    start: float
    seconds: float
    iova: int
    size: int
    result: int
    """What the ioctl returned: 0, or a negative errno. 0 for a release."""
    pages: int | None = None
    """What vfio_pin_pages_remote returned, in base pages (map)."""
    pin_seconds: float | None = None
    iommu_seconds: float | None = None
    """iommu_map (map) or iommu_unmap_fast (unmap)."""
    walk_seconds: float | None = None
    """unmap: from vfio_unmap_unpin's entry to iommu_unmap_fast, the iova_to_phys walk."""
    unpin_seconds: float | None = None


def operations(events: Sequence[Event], size: int) -> list[Operation]:
    """Maps and unmaps of `size` bytes, in order of their start.

    Entry and return are paired within a thread. Raises EvidenceError for an ioctl that began
    and never returned, and for a record without one of its values.
    """
    try:
        return _operations(events, size)
    except KeyError as exc:
        # a probe prints `q16=(fault)` when it could not read the caller's memory
        raise EvidenceError(
            f"a map or unmap in the trace has no value for {exc}", reason="bad-trace"
        ) from exc


def _operations(events: Sequence[Event], size: int) -> list[Operation]:
    found: list[Operation] = []
    stacks: dict[tuple[int, str], list[Event]] = defaultdict(list)
    inner: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        base, _, side = event.name.rpartition("_")
        if side == "in":
            stacks[event.pid, base].append(event)
        elif side == "out" and base:
            entries = stacks[event.pid, base]
            if not entries:  # the other half was filtered, or began before the trace did
                continue
            entry = entries.pop()
            if base == "ioctl":
                operation = _by_ioctl(entry, event, inner.pop(event.pid, []))
                if operation is not None and operation.size == size:
                    found.append(operation)
            elif base == "unmap" and not stacks[event.pid, "ioctl"]:
                operation = _release(entry, event, inner.pop(event.pid, []))
                if operation.size == size:
                    found.append(operation)
        inner[event.pid].append(event)
    # an unmap_in that its filter let pass has the size of a BAR at least, like the others
    unfinished = [
        e for (_, base), left in stacks.items() if base in ("ioctl", "unmap") for e in left
    ]
    if unfinished:
        raise EvidenceError(
            f"{len(unfinished)} maps or unmaps began and never returned in the trace",
            reason="unpaired-trace",
        )
    return sorted(found, key=lambda operation: operation.start)


def _by_ioctl(entry: Event, exit_: Event, inner: list[Event]) -> Operation | None:
    command = entry.fields.get("cmd")
    if command == MAP_DMA:
        pinned = _span(inner, "pin")
        pages = [e.fields["ret"] for e in inner if e.name == "pin_out"]
        return Operation(
            "map", entry.time, _seconds(entry, exit_),
            iova=entry.fields["q16"], size=entry.fields["q24"], result=exit_.fields["ret"],
            pages=sum(pages) if pages else None, pin_seconds=pinned,
            iommu_seconds=_span(inner, "imap"),
        )  # fmt: skip
    if command == UNMAP_DMA:
        return Operation(
            "unmap", entry.time, _seconds(entry, exit_),
            iova=entry.fields["q8"], size=entry.fields["q16"], result=exit_.fields["ret"],
            iommu_seconds=_span(inner, "iun"), walk_seconds=_walk(inner),
            unpin_seconds=_span(inner, "unpin"),
        )  # fmt: skip
    return None


def _release(entry: Event, exit_: Event, inner: list[Event]) -> Operation:
    return Operation(
        "release", entry.time, _seconds(entry, exit_),
        iova=entry.fields["iova"], size=entry.fields["size"], result=0,
        iommu_seconds=_span(inner, "iun"), walk_seconds=_walk([*inner, entry]),
        unpin_seconds=_span(inner, "unpin"),
    )  # fmt: skip


def _seconds(entry: Event, exit_: Event) -> float:
    """Without the dust of binary fractions: no text has steps below 1 ns."""
    return round(exit_.time - entry.time, 9)


def _span(events: list[Event], base: str) -> float | None:
    """Sum of the times between entries and returns of one function."""
    entries = [e.time for e in events if e.name == f"{base}_in"]
    exits = [e.time for e in events if e.name == f"{base}_out"]
    if not entries or len(entries) != len(exits):
        return None
    return round(sum(exits) - sum(entries), 9)


def _walk(events: list[Event]) -> float | None:
    starts = [e.time for e in events if e.name == "unmap_in"]
    ends = [e.time for e in events if e.name == "iun_in"]
    return round(ends[0] - starts[0], 9) if starts and ends else None


# `/sys/kernel/tracing/per_cpu/cpuN/stats`
_LOST = re.compile(r"(?m)^(overrun|commit overrun|dropped events): ([1-9]\d*)$")
# ` GROUP event  HITS  MISSES` of kprobe_profile
_PROFILE = re.compile(r"(?m)^\s*(\w+)\s+(\d+)\s+(\d+)\s*$")


def lost_events(stats: str) -> int:
    """Events that the ring buffers lost, from the per-CPU `stats` files."""
    return sum(int(count) for _, count in _LOST.findall(stats))


def missed_probes(profile: str) -> dict[str, int]:
    """Event -> hits a probe missed, from kprobe_profile lines; only those above 0."""
    return {name: int(misses) for name, _, misses in _PROFILE.findall(profile) if int(misses)}


def probe_hits(profile: str) -> dict[str, int]:
    """Event -> hits, from kprobe_profile lines; dropped and filtered hits included."""
    return {name: int(hits) for name, hits, _ in _PROFILE.findall(profile)}
