"""Traces are read back with the protobuf's classes, by the rules of trace_processor: events of a
track are in time order, and an end closes the slice that began last."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    DebugAnnotation,
    Trace,
    TrackDescriptor,
    TrackEvent,
)

from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Phase, Timeline, Zap
from orchestrator.report.exports.perfetto import perfetto_trace
from tests.unit.stable import has_in_order
from tests.unit.timelines import BAR, FIRMWARE, GIB, SIZING, booted, in_ginsn, step, with_steps

NS = 10**9


@dataclass(frozen=True)
class Slice:
    name: str
    start: int
    end: int
    depth: int
    facts: dict[str, object] = field(default_factory=dict)


@dataclass
class Track:
    descriptor: TrackDescriptor
    events: list[tuple[int, TrackEvent]] = field(default_factory=list)

    def slices(self) -> list[Slice]:
        """Return the slices in the order of their beginnings. An end without a beginning and a
        slice that is left open are errors."""
        slices: list[Slice] = []
        open_slices: list[int] = []
        for when, event in self.events:
            if event.type == TrackEvent.TYPE_SLICE_BEGIN:
                open_slices.append(len(slices))
                facts = facts_of(event.debug_annotations)
                slices.append(Slice(event.name, when, -1, len(open_slices) - 1, facts))
            elif event.type == TrackEvent.TYPE_SLICE_END:
                number = open_slices.pop()
                slices[number] = replace(slices[number], end=when)
        assert not open_slices
        return slices

    def instants(self) -> list[tuple[str, int]]:
        assert {event.type for _, event in self.events} <= {TrackEvent.TYPE_INSTANT}
        return [(event.name, when) for when, event in self.events]


def facts_of(annotations: Iterable[DebugAnnotation]) -> dict[str, object]:
    return {a.name: getattr(a, a.WhichOneof("value") or "") for a in annotations}


def read(written: bytes) -> dict[str, Track]:
    """Return every track by its name, the outermost one as `root`."""
    trace = Trace.FromString(written)
    tracks: dict[int, Track] = {}
    time = 0
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            assert descriptor.uuid not in {0, *tracks}
            assert not descriptor.parent_uuid or descriptor.parent_uuid in tracks
            tracks[descriptor.uuid] = Track(descriptor)
        else:
            assert packet.timestamp >= time
            time = packet.timestamp
            tracks[packet.track_event.track_uuid].events.append((time, packet.track_event))
    named = {
        track.descriptor.name if track.descriptor.parent_uuid else "root": track
        for track in tracks.values()
    }
    assert len(named) == len(tracks)
    return named


def test_tracks_are_under_one_that_says_whose_boot_and_what_a_second_is() -> None:
    tracks = read(perfetto_trace(booted()))
    root = tracks.pop("root").descriptor
    assert root.name == (
        "0001-baseline guest-1, host 6.12.107+deb13"
        " (seconds of an emulated host: compare them with one another only)"
    )
    assert list(tracks) == [
        "phases", f"maps: {BAR}", "maps: RAM", "zaps", "QEMU CPU", "marks", "console",
    ]  # fmt: skip
    assert {track.descriptor.parent_uuid for track in tracks.values()} == {root.uuid}
    assert root.child_ordering == TrackDescriptor.EXPLICIT
    ranks = [track.descriptor.sibling_order_rank for track in tracks.values()]
    assert ranks == sorted(set(ranks))


def test_instructions_are_not_passed_off_as_seconds() -> None:
    root = read(perfetto_trace(in_ginsn(booted())))["root"].descriptor
    assert has_in_order(root.name, "1 s", "10^9", "instructions")
    real = read(perfetto_trace(replace(booted(), unit="s")))["root"].descriptor
    assert real.name.endswith("(seconds)")


def test_phases_are_slices_at_nanoseconds_since_exec() -> None:
    boot = booted()
    slices = read(perfetto_trace(boot))["phases"].slices()
    assert [(s.name, s.start, s.end, s.depth) for s in slices] == [
        (p.name, round(p.start * NS), round(p.end * NS), 0) for p in boot.phases
    ]


def test_map_has_its_parts_in_order_and_the_rest_as_other() -> None:
    operation = step(2.0, 8.0, parts={"lookup": 5.0, "fault": 1.0}, faults=None, cpu=1, result=-12)
    tracks = read(perfetto_trace(with_steps(booted(), [operation])))
    [whole, *parts] = tracks[f"maps: {BAR}"].slices()
    assert (whole.name, whole.start, whole.end, whole.depth) == ("map", 2 * NS, 10 * NS, 0)
    assert whole.facts == {
        "bytes": 32 * GIB, "cause": "sizing BAR 2", "phase": SIZING, "result": -12, "host CPU": 1,
        "attributed share": 0.75,
    }  # fmt: skip
    assert [(s.name, s.start, s.end, s.depth) for s in parts] == [
        ("lookup", 2 * NS, 7 * NS, 1), ("fault", 7 * NS, 8 * NS, 1), ("other", 8 * NS, 10 * NS, 1),
    ]  # fmt: skip


def test_whole_rest_is_what_json_calls_other() -> None:
    operation = step(2.0, 8.0, parts={"lookups": 5.0, "faults": 1.0})
    [*_, other] = read(perfetto_trace(with_steps(booted(), [operation])))[f"maps: {BAR}"].slices()
    assert (other.name, (other.end - other.start) / NS) == ("other", operation.other)


def test_parts_that_are_all_leave_no_other() -> None:
    tracks = read(perfetto_trace(booted()))
    firmware = [s for s in tracks[f"maps: {BAR}"].slices() if s.facts.get("phase") == FIRMWARE]
    assert firmware[0].facts["faults"] == 32
    names = [s.name for s in tracks[f"maps: {BAR}"].slices()]
    # four maps have parts and a rest, one has parts only; unmaps have none
    assert (names.count("map"), names.count("unmap")) == (5, 6)
    assert (names.count("lookups"), names.count("faults"), names.count("other")) == (5, 1, 4)
    assert [s.name for s in tracks["maps: RAM"].slices()] == ["map"]


def test_parts_stay_within_their_slice() -> None:
    operation = step(2.0, 1.0, parts={"lookup": 0.9, "fault": 0.9, "iommu_map": 0.1})
    tracks = read(perfetto_trace(with_steps(booted(), [operation])))
    [whole, *parts] = tracks[f"maps: {BAR}"].slices()
    assert [p.end for p in parts] == [round(2.9 * NS), whole.end, whole.end]


@pytest.mark.parametrize("size", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_step_may_be_of_all_that_there_could_be(size: int) -> None:
    """QEMU unmaps the whole address space when the guest's own IOMMU is switched."""
    operation = step(2.0, 8.0, kind="unmap", bar=IOVA, size=size)
    [whole] = read(perfetto_trace(with_steps(booted(), [operation])))[f"maps: {IOVA}"].slices()
    assert whole.facts["bytes"] == size


def test_zaps_marks_and_console_are_there() -> None:
    boot = booted()
    tracks = read(perfetto_trace(boot))
    [zap] = tracks["zaps"].slices()
    assert (zap.name, zap.end - zap.start) == ("zap", 40_000)
    assert zap.facts == {"cause": "sizing BAR 2", "phase": SIZING}
    assert boot.ssh_seconds is not None
    assert tracks["marks"].instants() == [
        ("QEMU's exec", 0),
        ("boot mark", round(boot.boot_seconds * NS)),
        ("SSH-ready", round(boot.ssh_seconds * NS)),
        ("QEMU's end", round(boot.end_seconds * NS)),
    ]
    mark = facts_of(tracks["marks"].events[1][1].debug_annotations)
    assert mark == {
        "late by at most, emulated s": 0.01, "known from": "the watch agent, every 10 ms"
    }  # fmt: skip
    notes = facts_of(tracks["marks"].events[0][1].debug_annotations)
    assert notes == {"cpus-kept": "the guest's CPUs were kept in place"}
    assert [name for name, _ in tracks["console"].instants()] == [line for _, line in boot.console]


def test_bound_of_the_marks_that_is_not_known_is_not_said() -> None:
    written = perfetto_trace(replace(booted(), mark_bound=None, mark_source="the agent"))
    [mark] = [e for _, e in read(written)["marks"].events if e.name == "boot mark"]
    assert facts_of(mark.debug_annotations) == {"known from": "the agent"}


def test_cpu_use_is_a_share_of_one_cpu_between_two_samples() -> None:
    track = read(perfetto_trace(booted()))["QEMU CPU"]
    assert track.descriptor.counter.unit_name == "%"
    assert [(when, event.double_counter_value) for when, event in track.events] == [
        (0, 50.0), (NS, 100.0), (3 * NS, 150.0),
    ]  # fmt: skip


def test_boot_of_which_little_is_known_has_fewer_tracks() -> None:
    bare = replace(
        booted(), ssh_seconds=None, phases=(), steps=(), zaps=(), console=(), cpu_use=((0, 0),)
    )
    tracks = read(perfetto_trace(bare))
    assert list(tracks) == ["root", "marks"]
    assert [name for name, _ in tracks["marks"].instants()] == [
        "QEMU's exec", "boot mark", "QEMU's end",
    ]  # fmt: skip


def test_nothing_is_before_exec() -> None:
    early = replace(
        with_steps(booted(), [step(-1.0, 0.5), step(-0.25, 0.5)]),
        console=((-0.001, "early"),),
        phases=(Phase("p", -1e-9, 1.0),),
    )
    tracks = read(perfetto_trace(early))
    assert [(s.start, s.end) for s in tracks[f"maps: {BAR}"].slices()] == [(0, 0), (0, NS // 4)]
    assert tracks["console"].instants() == [("early", 0)]


def test_no_clock_is_named() -> None:
    trace = Trace.FromString(perfetto_trace(booted()))
    assert not any(
        p.HasField("timestamp_clock_id") or p.HasField("clock_snapshot") for p in trace.packet
    )


def test_boots_in_one_file_keep_apart() -> None:
    both = perfetto_trace(booted("baseline")) + perfetto_trace(booted("candidate"))
    descriptors = [
        p.track_descriptor for p in Trace.FromString(both).packet if p.HasField("track_descriptor")
    ]
    assert len({d.uuid for d in descriptors}) == len(descriptors) == 16


def test_bytes_are_the_same_in_every_process() -> None:
    program = (
        "import hashlib; from tests.unit.timelines import booted;"
        "from orchestrator.report.exports.perfetto import perfetto_trace;"
        "print(hashlib.sha256(perfetto_trace(booted())).hexdigest())"
    )
    shown = {
        subprocess.check_output(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}
        )
        for seed in ("1", "2")
    }
    assert len(shown) == 1


# random timelines ------------------------------------------------------------------------------
# Times of the trace clock have steps of a microsecond. A length of 0 and neighbours without a gap
# are as likely as others.

_LENGTHS = st.integers(0, 20_000_000).map(lambda us: us / 1e6) | st.just(0.0)
_PARTS = st.dictionaries(st.text(max_size=4), st.floats(0, 2), max_size=4)


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Generate (start, seconds) that do not overlap, except for rounding."""
    made, at = [], 0.0
    for gap, seconds in draw(st.lists(st.tuples(_LENGTHS, _LENGTHS), max_size=12)):
        made.append((at + gap, seconds))
        at += gap + seconds
    return made


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    steps = []
    for start, seconds in draw(rows()):
        parts = {name: share * seconds for name, share in draw(_PARTS).items()}
        steps.append(
            DmaStep(
                draw(st.sampled_from(["map", "unmap"])),
                draw(st.sampled_from([BAR, "02:00.0 BAR 0", RAM])),
                draw(st.integers(0, 1 << 48)), "p", draw(st.text(max_size=5)), start, seconds,
                parts, draw(st.sampled_from([0, -12])),
            )
        )  # fmt: skip
    return replace(
        booted(),
        phases=tuple(Phase(draw(st.text()), *row) for row in draw(rows())),
        steps=tuple(draw(st.permutations(steps))),
        zaps=tuple(Zap(*row, "p", "c") for row in draw(rows())),
        console=tuple(draw(st.lists(st.tuples(st.floats(-1, 1e5), st.text()), max_size=8))),
        cpu_use=tuple(draw(rows())),
    )


def nested(slices: list[Slice]) -> Iterator[tuple[Slice, list[Slice]]]:
    """Yield each outer slice and the inner ones that follow it."""
    for number, whole in enumerate(slices):
        if whole.depth == 0:
            rest = slices[number + 1 :]
            last = next((n for n, s in enumerate(rest) if s.depth == 0), len(rest))
            yield whole, rest[:last]


@given(timelines())
def test_any_timeline_has_slices_that_nest_and_follow_one_another(timeline: Timeline) -> None:
    written = perfetto_trace(timeline)
    assert perfetto_trace(timeline) == written
    tracks = read(written)  # asserts time order, known tracks, nothing negative
    spans: list[Phase | Zap | DmaStep] = [*timeline.phases, *timeline.zaps, *timeline.steps]
    outer = inner = 0
    for name, track in tracks.items():
        if name in ("root", "marks", "console", "QEMU CPU"):
            continue
        free = 0
        for whole, parts in nested(track.slices()):
            assert free <= whole.start <= whole.end
            free = whole.end
            edge = whole.start
            for part in parts:
                assert part.depth == 1
                assert edge == part.start <= part.end <= whole.end
                edge = part.end
            assert not parts or whole.end - edge <= 1
            outer, inner = outer + 1, inner + sum(part.name != "other" for part in parts)
    assert outer == len(spans)
    named = sum(name != "other" for step in timeline.steps for name in step.parts)
    assert inner == named


@given(timelines())
def test_no_slice_is_moved_by_more_than_rounding(timeline: Timeline) -> None:
    tracks = read(perfetto_trace(timeline))
    placed: dict[str, Sequence[Phase | Zap]] = {"phases": timeline.phases, "zaps": timeline.zaps}
    for track, spans in placed.items():
        slices = tracks[track].slices() if spans else []
        for shown, span in zip(slices, spans, strict=True):
            assert shown.start / 1e9 == pytest.approx(span.start, abs=3e-9)
            assert shown.end / 1e9 == pytest.approx(span.start + span.seconds, abs=3e-9)
