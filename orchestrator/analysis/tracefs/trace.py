"""Parse tracefs text into events, and pair events into DMA maps and unmaps of the BAR."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.formats.abi import MAP_DMA, UNMAP_DMA

# ` CPU 0/KVM-339  [001] .....  28.412785: ioctl_in: (vfio_iommu_type1_ioctl+0x4/..) cmd=0x3b71`
_EVENT = re.compile(r"\s*.+?-(\d+)\s+\[(\d+)\]\s+\S+\s+(\d+(?:\.\d+)?): (\w+): ?(.*)", re.DOTALL)
_FIELD = re.compile(r"(\w+)=(-?0x[0-9a-fA-F]+|-?\d+)\b")


class Event:
    """One record of a trace."""

    __slots__ = ("cpu", "name", "pid", "text", "time")

    def __init__(self, name: str, pid: int, time: float, text: str = "", cpu: int = 0) -> None:
        self.name = name
        self.pid = pid
        """The thread."""
        self.time = time
        """Seconds of the trace clock. The trace's text has microseconds. With the clock x86-tsc it
        has ticks; on an exact host a tick is one nanosecond and one instruction."""
        self.text = text
        """The rest of the record, after the name."""
        self.cpu = cpu

    @property
    def fields(self) -> dict[str, int]:
        """The values of a probe: `ret=-22`, `size=0x1000`."""
        return {name: _number(value) for name, value in _FIELD.findall(self.text)}


def parse_trace(text: str) -> Iterator[Event]:
    """Yield every event of a tracefs `trace` file, in file order. Comment lines start with `#`.

    Raises EvidenceError at a line that is neither an event nor a comment, so that a garbled trace
    is not taken for an empty one.
    """
    for number, line in enumerate(io.StringIO(text), 1):
        match = _EVENT.fullmatch(line.rstrip("\n"))
        if match is None:
            if not line.strip() or line.startswith(("#", "CPU:")):
                continue
            raise EvidenceError(
                f"trace line {number} is not an event: {line[:120]!r}", reason=Reason.BAD_TRACE
            )
        pid, cpu, time, name, rest = match.groups()
        seconds = float(time) if "." in time else int(time) / 1e9
        yield Event(name, int(pid), seconds, rest, int(cpu))


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
    """Return value of the ioctl: 0, or a negative errno. 0 for a release."""
    unmapped: int | None = None
    """unmap: the bytes that the ioctl reports as unmapped; 0 if nothing was mapped there."""
    pages: int | None = None
    """map: base pages that vfio_pin_pages_remote returned, in all of its calls."""
    pin_seconds: float | None = None
    iommu_seconds: float | None = None
    """iommu_map (map) or iommu_unmap_fast (unmap)."""
    walk_seconds: float | None = None
    """unmap: the iova_to_phys walk, from the entry of vfio_unmap_unpin to that of
    iommu_unmap_fast."""
    unpin_seconds: float | None = None
    faults: int = 0
    """map: calls of fixup_user_fault, if those are probed."""
    fault_seconds: float | None = None
    inside_seconds: float | None = None
    """unmap: vfio_unmap_unpin, which contains walk, IOMMU unmap and unpin."""
    sync_seconds: float | None = None
    """unmap: iommu_iotlb_sync (vfio_sync_unpin), from the end of iommu_unmap_fast to the unpin."""
    around_seconds: float | None = None
    """VFIO's bookkeeping. map: from the ioctl's entry to the pin, from the pin to iommu_map, and
    from the end of iommu_map to the ioctl's return. unmap: the ioctl without vfio_unmap_unpin."""
    pid: int = 0
    """The thread."""
    cpu: int = 0
    address: int | None = None
    """map: virtual address of the mapped range in the process."""

    @property
    def end(self) -> float:
        return self.start + self.seconds


_PARTS = frozenset(
    f"{base}_{side}" for base in ("pin", "imap", "iun", "unmap", "unpin", "fault")
    for side in ("in", "out")
)  # fmt: skip
_OUTER = frozenset({"ioctl_in", "ioctl_out"})


class Pairing:
    """Collects maps and unmaps by pairing the entry and the return of each function within a
    thread."""

    def __init__(self) -> None:
        self._found: list[Operation] = []
        self._stacks: dict[tuple[int, str], list[Event]] = defaultdict(list)
        self._inner: dict[int, list[Event]] = defaultdict(list)

    def take(self, event: Event) -> None:
        """Take one event. Raises EvidenceError if a record lacks one of its values."""
        if event.name not in _PARTS and event.name not in _OUTER:
            return
        try:
            self._take(event)
        except KeyError as exc:
            # a probe prints `q16=(fault)` if it could not read the caller's memory
            raise EvidenceError(
                f"a map or unmap in the trace has no value for {exc}", reason=Reason.BAD_TRACE
            ) from exc

    def _take(self, event: Event) -> None:
        base, _, side = event.name.rpartition("_")
        stack = self._stacks[event.pid, base]
        if side == "in":
            stack.append(event)
        elif stack:  # else the other half was filtered, or began before the trace did
            entry = stack.pop()
            if base == "ioctl":
                operation = _by_ioctl(entry, event, self._inner.pop(event.pid, []))
                if operation is not None:
                    self._found.append(operation)
                return
            if base == "unmap" and not self._stacks[event.pid, "ioctl"]:
                self._found.append(
                    _release(entry, event, [*self._inner.pop(event.pid, []), event])
                )
                return
        if base != "ioctl":
            self._inner[event.pid].append(event)

    def finish(self) -> list[Operation]:
        """Return the operations, sorted by their start. Raises EvidenceError if one never
        returned."""
        unfinished = [
            e for (_, base), left in self._stacks.items() if base in ("ioctl", "unmap")
            for e in left
        ]  # fmt: skip
        if unfinished:
            raise EvidenceError(
                f"{len(unfinished)} maps or unmaps began and never returned in the trace",
                reason=Reason.UNPAIRED_TRACE,
            )
        return sorted(self._found, key=lambda operation: operation.start)


def pair_operations(events: Iterable[Event], size: int) -> list[Operation]:
    """Return the maps and unmaps of `size` bytes, in order of their start. Raises as `Pairing`."""
    pairing = Pairing()
    for event in events:
        pairing.take(event)
    return [operation for operation in pairing.finish() if operation.size == size]


def _by_ioctl(entry: Event, exit_: Event, inner: list[Event]) -> Operation | None:
    request, answered = entry.fields, exit_.fields
    command = request.get("cmd")
    if command == MAP_DMA:
        pages = [e.fields["ret"] for e in inner if e.name == "pin_out"]
        return Operation(
            "map", entry.time, _seconds(entry, exit_),
            iova=request["q16"], size=request["q24"], result=answered["ret"],
            address=request["q8"], pages=sum(pages) if pages else None,
            pin_seconds=_span(inner, "pin"),
            iommu_seconds=_span(inner, "imap"),
            faults=sum(e.name == "fault_in" for e in inner),
            fault_seconds=_span(inner, "fault"),
            around_seconds=_sum(
                _around(entry, exit_, inner, "pin_in", "imap_out"),
                _between(inner, "pin_out", "imap_in"),
            ),
            pid=entry.pid, cpu=entry.cpu,
        )  # fmt: skip
    if command == UNMAP_DMA:
        unmap = Operation(
            "unmap", entry.time, _seconds(entry, exit_), iova=request["q8"], size=request["q16"],
            result=answered["ret"], unmapped=answered.get("q16"), pid=entry.pid, cpu=entry.cpu,
            around_seconds=_around(entry, exit_, inner, "unmap_in", "unmap_out"),
        )  # fmt: skip
        return _with_parts(unmap, inner)
    return None


def _release(entry: Event, exit_: Event, inner: list[Event]) -> Operation:
    request = entry.fields
    release = Operation(
        "release", entry.time, _seconds(entry, exit_), iova=request["iova"], size=request["size"],
        result=0, pid=entry.pid, cpu=entry.cpu,
    )  # fmt: skip
    return _with_parts(release, inner)


def _with_parts(unmap: Operation, inner: list[Event]) -> Operation:
    return replace(
        unmap, iommu_seconds=_span(inner, "iun"), walk_seconds=_walk(inner),
        unpin_seconds=_span(inner, "unpin"), inside_seconds=_span(inner, "unmap"),
        sync_seconds=_between(inner, "iun_out", "unpin_in"),
    )  # fmt: skip


def _seconds(entry: Event, exit_: Event) -> float:
    """Return the time between two events. It is rounded to 1 ns, the smallest step of a trace's
    text, to remove errors of binary fractions."""
    return round(exit_.time - entry.time, 9)


def _around(entry: Event, exit_: Event, inner: list[Event], first: str, last: str) -> float | None:
    """Return the seconds of an ioctl before the first event `first` and after the last event
    `last`."""
    starts = [e.time for e in inner if e.name == first]
    ends = [e.time for e in inner if e.name == last]
    if not starts or not ends:
        return None
    return round(starts[0] - entry.time + exit_.time - ends[-1], 9)


def _between(events: list[Event], end: str, start: str) -> float | None:
    """Return the seconds from the event `end` to the event `start`, or None unless each is there
    exactly once."""
    ends = [e.time for e in events if e.name == end]
    starts = [e.time for e in events if e.name == start]
    return round(starts[0] - ends[0], 9) if len(ends) == len(starts) == 1 else None


def _sum(*seconds: float | None) -> float | None:
    known = [part for part in seconds if part is not None]
    return round(sum(known), 9) if known else None


def _span(events: list[Event], base: str) -> float | None:
    """Return the total time in one function, from its entries to its returns."""
    entries = [e.time for e in events if e.name == f"{base}_in"]
    exits = [e.time for e in events if e.name == f"{base}_out"]
    if not entries or len(entries) != len(exits):
        return None
    return round(sum(exits) - sum(entries), 9)


def _walk(events: list[Event]) -> float | None:
    starts = [e.time for e in events if e.name == "unmap_in"]
    ends = [e.time for e in events if e.name == "iun_in"]
    if starts and not ends:  # one IOMMU unmap of another size, as with virtio before v6.16
        ends = [e.time for e in events if e.name == "unpin_in"]
    return round(ends[0] - starts[0], 9) if starts and ends else None


# `/sys/kernel/tracing/per_cpu/cpuN/stats`
_LOST = re.compile(r"(?m)^(overrun|commit overrun|dropped events): ([1-9]\d*)$")
# ` GROUP event  HITS  MISSES` of kprobe_profile
_PROFILE = re.compile(r"(?m)^\s*(\w+)\s+(\d+)\s+(\d+)\s*$")


def count_lost_events(stats: str) -> int:
    """Return the number of events that the ring buffers lost, from the per-CPU `stats` files."""
    return sum(int(count) for _, count in _LOST.findall(stats))


def parse_missed_probes(profile: str) -> dict[str, int]:
    """Return event -> number of hits that its probe missed, from kprobe_profile lines. Events
    without missed hits are left out."""
    return {name: int(misses) for name, _, misses in _PROFILE.findall(profile) if int(misses)}


def parse_probe_hits(profile: str) -> dict[str, int]:
    """Return event -> number of hits, from kprobe_profile lines. Hits that were dropped or
    filtered count, too."""
    return {name: int(hits) for name, hits, _ in _PROFILE.findall(profile)}
