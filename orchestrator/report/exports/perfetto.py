"""A guest boot's timeline as a Perfetto trace, for ui.perfetto.dev and trace_processor.

Importing this module loads Perfetto's protobuf, which takes longer than writing a trace does. So
import it only where a file is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    CounterDescriptor,
    DebugAnnotation,
    Trace,
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)

from orchestrator.analysis.boot.timeline import RAM, DmaStep, Timeline

Facts = Mapping[str, int | float | str | None]

_SEQUENCE = 1
_SCALES = {
    "s": "seconds",
    "emulated s": "seconds of an emulated host: compare them with one another only",
    "Ginsn": "1 s is 10^9 instructions, not wall time",
}


def perfetto_trace(timeline: Timeline) -> bytes:
    """Return the trace, always the same bytes for the same timeline. The traces of several
    timelines can be concatenated into one trace.

    A timestamp is nanoseconds since QEMU's exec; on an exact host, instructions. Packets name no
    clock, and there is no ClockSnapshot, so a reader takes the timestamps as the trace's own time.
    A snapshot would tie them to a machine's clock, but emulated seconds and instructions belong to
    no such clock. A clock scoped to the sequence cannot be read without a snapshot. The name of
    the outermost track says what a second stands for.

    Nothing is before QEMU's exec. If a slice overlaps its predecessor on a track, it begins at the
    predecessor's end. Such an overlap is only rounding, because phases do not overlap, and QEMU
    does one map or unmap at a time.
    """
    head = f"{timeline.trial} {timeline.guest}, host {timeline.release}"
    trace = _Writer(f"{head} ({_SCALES[timeline.unit]})")
    trace.slices("phases", (_Slice(p.name, p.start, p.seconds) for p in timeline.phases))
    for bar in sorted(dict.fromkeys(s.bar for s in timeline.steps), key=RAM.__eq__):
        steps = (s for s in timeline.steps if s.bar == bar)
        trace.slices(
            f"maps: {bar}", (_Slice(s.kind, s.start, s.seconds, _facts(s), s.parts) for s in steps)
        )
    trace.slices(
        "zaps",
        (
            _Slice("zap", z.start, z.seconds, {"cause": z.cause, "phase": z.phase})
            for z in timeline.zaps
        ),
    )
    # A counter keeps its value until the next one, so it is set at the start of the time it
    # covers.
    trace.counter(
        "QEMU CPU",
        "%",
        (
            (start, 100 * (later - used) / (end - start))
            for (start, used), (end, later) in pairwise(timeline.cpu_use)
            if end > start
        ),
    )
    trace.instants("marks", _marks(timeline))
    trace.instants("console", ((when, line, {}) for when, line in timeline.console))
    return trace.serialized()


def _facts(step: DmaStep) -> Facts:
    return {
        "bytes": step.size, "cause": step.cause, "phase": step.phase, "result": step.result,
        "faults": step.faults, "host CPU": step.cpu, "attributed share": step.attributed_share,
    }  # fmt: skip


def _marks(timeline: Timeline) -> Iterable[tuple[float, str, Facts]]:
    yield 0.0, "QEMU's exec", {note.name: note.text for note in timeline.notes}
    bound = {f"late by at most, {timeline.unit}": timeline.mark_bound}
    yield timeline.boot_seconds, "boot mark", bound | {"known from": timeline.mark_source}
    if timeline.ssh_seconds is not None:
        yield timeline.ssh_seconds, "SSH-ready", {}
    yield timeline.end_seconds, "QEMU's end", {}


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


@dataclass(frozen=True)
class _Slice:
    name: str
    start: float
    seconds: float
    facts: Facts = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)


class _Writer:
    """Writes tracks below one root track. The root has their common name and no events."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._descriptors: list[TracePacket] = []
        self._events: list[TracePacket] = []
        self._root = self._track(TrackDescriptor(child_ordering=TrackDescriptor.EXPLICIT), name)

    def slices(self, track: str, slices: Iterable[_Slice]) -> None:
        """Add slices to a track. The parts of a slice are drawn within it, one after another from
        its start. The rest of the slice is named `other`."""
        if not (ordered := sorted(slices, key=lambda s: (s.start, s.seconds))):
            return
        uuid, free = self._child(track), 0
        for whole in ordered:
            begin = max(free, _ns(whole.start))
            free = max(begin, _ns(whole.start + whole.seconds))
            self._begin(uuid, begin, whole.name, whole.facts)
            inner, spent = begin, whole.start
            for part, seconds in whole.parts.items():
                spent += seconds
                end = min(free, max(inner, _ns(spent)))
                self._begin(uuid, inner, part)
                self._end(uuid, end)
                inner = end
            if whole.parts and free - inner > 1:  # one nanosecond is rounding
                self._begin(uuid, inner, "other")
                self._end(uuid, free)
            self._end(uuid, free)

    def instants(self, track: str, instants: Iterable[tuple[float, str, Facts]]) -> None:
        if not (listed := list(instants)):
            return
        uuid = self._child(track)
        for when, name, facts in listed:
            event = TrackEvent(
                type=TrackEvent.TYPE_INSTANT, name=name, debug_annotations=_annotations(facts)
            )
            self._add(uuid, _ns(when), event)

    def counter(self, track: str, unit: str, values: Iterable[tuple[float, float]]) -> None:
        if not (listed := list(values)):
            return
        uuid = self._child(track, CounterDescriptor(unit_name=unit))
        for when, value in listed:
            event = TrackEvent(type=TrackEvent.TYPE_COUNTER, double_counter_value=value)
            self._add(uuid, _ns(when), event)

    def serialized(self) -> bytes:
        # Sorting is stable: events at one time on a track keep their order.
        events = sorted(self._events, key=lambda packet: packet.timestamp)
        return Trace(packet=[*self._descriptors, *events]).SerializeToString(deterministic=True)

    def _child(self, name: str, counter: CounterDescriptor | None = None) -> int:
        descriptor = TrackDescriptor(
            parent_uuid=self._root, sibling_order_rank=len(self._descriptors), counter=counter
        )
        return self._track(descriptor, name)

    def _track(self, descriptor: TrackDescriptor, name: str) -> int:
        """Add a track and return its uuid. The uuid is made from the names, so that tracks of
        several boots in one file have different uuids."""
        digest = sha256(f"{self._name}\n{name}".encode()).digest()
        descriptor.name, descriptor.uuid = name, int.from_bytes(digest[:7])
        self._descriptors.append(
            TracePacket(trusted_packet_sequence_id=_SEQUENCE, track_descriptor=descriptor)
        )
        return descriptor.uuid

    def _begin(self, uuid: int, when: int, name: str, facts: Facts | None = None) -> None:
        event = TrackEvent(
            type=TrackEvent.TYPE_SLICE_BEGIN,
            name=name,
            debug_annotations=_annotations(facts or {}),
        )
        self._add(uuid, when, event)

    def _end(self, uuid: int, when: int) -> None:
        self._add(uuid, when, TrackEvent(type=TrackEvent.TYPE_SLICE_END))

    def _add(self, uuid: int, when: int, event: TrackEvent) -> None:
        event.track_uuid = uuid
        self._events.append(
            TracePacket(timestamp=when, trusted_packet_sequence_id=_SEQUENCE, track_event=event)
        )


def _annotations(facts: Facts) -> Iterable[DebugAnnotation]:
    for name, value in facts.items():
        match value:
            case int() if value >= 1 << 63:  # such a size unmaps all that there could be
                yield DebugAnnotation(name=name, uint_value=value)
            case int():
                yield DebugAnnotation(name=name, int_value=value)
            case float():
                yield DebugAnnotation(name=name, double_value=value)
            case str():
                yield DebugAnnotation(name=name, string_value=value)
