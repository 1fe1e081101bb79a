from __future__ import annotations

import contextlib
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.analysis.tracefs.trace import (
    Event,
    Operation,
    count_lost_events,
    pair_operations,
    parse_missed_probes,
    parse_probe_hits,
    parse_trace,
)
from orchestrator.base.errors import EvidenceError
from orchestrator.formats.abi import MAP_DMA, UNMAP_DMA
from tests.unit.recorded import BAR, MEASURED, PAGES, RUN, TRACE, read

RECORDED = read(RUN / "trials" / MEASURED / TRACE)
LINE = (
    " CPU 0/KVM-317     [000] .....    77.177874: ioctl_in: (vfio_iommu_type1_ioctl+0x4/0x1a90"
    " [vfio_iommu_type1]) cmd=0x3b71 q8=0x7f9b00000000 q16=0x3fff80000000 q24=0x40000000"
)


@cache
def recorded_operations() -> list[Operation]:
    return pair_operations(parse_trace(RECORDED), BAR)


def event(name: str, time: float, pid: int = 1, **fields: int) -> Event:
    return Event(name, pid, time, " ".join(f"{key}={value}" for key, value in fields.items()))


def mapping(start: float, size: int = BAR, pid: int = 1, ret: int = 0) -> list[Event]:
    """A map of four events, 1 ms long, of which iommu_map takes 0.2 ms."""
    return [
        event("ioctl_in", start, pid, cmd=MAP_DMA, q8=1, q16=0x1000, q24=size),
        event("imap_in", start + 0.0002, pid, iova=0x1000, size=size),
        event("imap_out", start + 0.0004, pid, iova=0x1000, size=size, ret=0),
        event("ioctl_out", start + 0.001, pid, cmd=MAP_DMA, q8=1, q16=0x1000, ret=ret),
    ]


def test_event_line_is_parsed_with_a_task_name_that_has_blanks() -> None:
    [event] = parse_trace(LINE)
    assert (event.name, event.pid, event.time, event.cpu) == ("ioctl_in", 317, 77.177874, 0)
    assert event.fields == {
        "cmd": MAP_DMA, "q8": 0x7F9B00000000, "q16": 0x3FFF80000000, "q24": BAR,
    }  # fmt: skip


def test_ticks_of_the_tsc_are_nanoseconds() -> None:
    [event] = parse_trace(LINE.replace("77.177874", "123456789012"))
    assert event.time == 123.456789012


@pytest.mark.parametrize("task", ["kvm-nx-lpage-re-319", "a b-c-1", "<...>-22", "x: y=1-7"])
def test_task_name_may_look_like_anything(task: str) -> None:
    line = f" {task}  [001] d..1.   1.000001: zap: (f+0x4/0x40)"
    [event] = parse_trace(line)
    assert (event.name, event.pid) == ("zap", int(task.rpartition("-")[2]))


FTRACE = "    sh-7  [001] .....    1.000001: ioctl_in: (f+0x4/0x40) cmd=0x3b71"


def test_guest_may_print_what_looks_like_an_event() -> None:
    """It may do so with ftrace_dump_on_oops, for example."""
    line = f'   python3-303  [000] .....  20.500000: tracing_mark_write: barometer C 5 "{FTRACE}"'
    [event] = parse_trace(line)
    assert (event.name, event.pid, event.time) == ("tracing_mark_write", 303, 20.5)


def test_values_are_read_when_they_are_asked_for() -> None:
    event = Event("ioctl_in", 1, 2.0, "cmd=0x3b71 q8=(fault)")
    assert event.fields == {"cmd": MAP_DMA}
    assert Event("zap_in", 1, 2.0).fields == {}


def test_operation_has_its_thread_and_processor() -> None:
    operations = pair_operations(list(parse_trace(RECORDED)), BAR)
    assert {(o.pid, o.cpu) for o in operations} == {(311, 1), (309, 1)}
    assert operations[0].end == pytest.approx(26.141245)


def test_faults_of_a_map_are_counted_where_they_were_probed() -> None:
    first, second, *_ = [o for o in pair_operations(parse_trace(RECORDED), BAR) if o.kind == "map"]
    assert first.faults == 1
    assert first.fault_seconds == pytest.approx(26.140762 - 26.139905)
    assert (second.faults, second.fault_seconds) == (0, None)


def test_negative_and_decimal_values_are_parsed() -> None:
    [event] = parse_trace(" q-1 [000] ..... 1.5: pin_out: (a <- b) npage=262144 ret=-14 z=-0x10")
    assert event.fields == {"npage": 262144, "ret": -14, "z": -16}


def test_comments_and_blank_lines_are_no_events() -> None:
    assert list(parse_trace("# tracer: nop\n#\n\nCPU:1 [LOST 3 EVENTS]\n")) == []


def test_garbled_line_is_an_error_with_its_number() -> None:
    with pytest.raises(EvidenceError, match=r"\b3\b") as caught:
        list(parse_trace(f"# x\n{LINE}\n{LINE[:40]}\n"))
    assert caught.value.reason == "bad-trace"


@given(st.text(max_size=200))
def test_any_text_is_events_or_an_evidence_error(text: str) -> None:
    with contextlib.suppress(EvidenceError):
        list(parse_trace(text))


@given(st.text(alphabet="0123456789abcdefx=-+<() ", max_size=60))
def test_any_arguments_of_an_event_are_parsed(rest: str) -> None:
    [event] = parse_trace(f" q-1 [000] ..... 1.5: pin_out: {rest}")
    assert event.name == "pin_out"


@settings(deadline=None)
@given(st.integers(0, len(RECORDED)))
def test_trace_cut_anywhere_is_a_prefix_or_an_evidence_error(cut: int) -> None:
    whole = recorded_operations()
    try:
        operations = pair_operations(list(parse_trace(RECORDED[:cut])), BAR)
    except EvidenceError:
        return
    assert [o.start for o in operations] == [o.start for o in whole][: len(operations)]


def test_recorded_boot_has_twelve_maps_and_unmaps() -> None:
    operations = pair_operations(list(parse_trace(RECORDED)), BAR)
    kinds = [o.kind for o in operations]
    assert kinds == ["map", "unmap"] * 11 + ["map", "release"]
    assert {(o.iova, o.size, o.result) for o in operations} == {(0x3FFF80000000, BAR, 0)}
    maps = [o for o in operations if o.kind == "map"]
    assert {o.pages for o in maps} == {PAGES}
    assert maps[0].seconds == pytest.approx(26.141245 - 26.139537)
    assert maps[0].pin_seconds == pytest.approx(26.140981 - 26.139623)
    assert maps[0].iommu_seconds == pytest.approx(26.141216 - 26.140992)
    assert operations[-1].seconds == pytest.approx(54.987402 - 54.933085)
    assert operations[-1].walk_seconds == pytest.approx(54.981607 - 54.933085)
    assert operations[-1].unpin_seconds == pytest.approx(54.987371 - 54.981677)


def test_parts_of_an_operation_are_within_it() -> None:
    for operation in pair_operations(list(parse_trace(RECORDED)), BAR):
        for part in (operation.pin_seconds, operation.iommu_seconds, operation.walk_seconds):
            assert part is None or 0 <= part <= operation.seconds


def test_maps_of_another_size_do_not_count() -> None:
    assert pair_operations([*mapping(1, size=4096), *mapping(2)], BAR) == pair_operations(
        mapping(2), BAR
    )


def test_threads_are_paired_apart() -> None:
    first, second = mapping(1.0, pid=1), mapping(1.0003, pid=2)
    mixed = sorted([*first, *second], key=lambda e: e.time)
    operations = pair_operations(mixed, BAR)
    assert [(o.start, round(o.seconds, 6)) for o in operations] == [(1.0, 0.001), (1.0003, 0.001)]
    assert [round(o.iommu_seconds or 0, 6) for o in operations] == [0.0002, 0.0002]


def test_iommu_map_called_many_times_is_added_up() -> None:
    start, end = mapping(1)[0], mapping(1)[-1]
    pieces = [
        e
        for i in range(4)
        for e in (event("imap_in", 1 + i / 10), event("imap_out", 1.05 + i / 10))
    ]
    [operation] = pair_operations([start, *pieces, end], BAR)
    assert operation.iommu_seconds == pytest.approx(0.2)


def test_half_a_pair_inside_is_no_duration() -> None:
    events = mapping(1)
    del events[2]
    [operation] = pair_operations(events, BAR)
    assert operation.iommu_seconds is None


def test_what_an_earlier_map_did_is_not_charged_to_the_next() -> None:
    first, second = mapping(1), mapping(2)
    del second[1:3]
    assert pair_operations([*first, *second], BAR)[1].iommu_seconds is None


def test_return_without_an_entry_began_before_the_trace() -> None:
    assert pair_operations(mapping(1)[1:], BAR) == []


def test_map_that_never_returned_is_an_error() -> None:
    with pytest.raises(EvidenceError, match=r"\b1\b") as caught:
        pair_operations([*mapping(1), *mapping(2)[:-1]], BAR)
    assert caught.value.reason == "unpaired-trace"


def test_refused_map_keeps_its_errno() -> None:
    [operation] = pair_operations(mapping(1, ret=-12), BAR)
    assert operation.result == -12


def test_unmap_has_the_size_that_was_really_unmapped() -> None:
    events = [
        event("ioctl_in", 1, cmd=UNMAP_DMA, q8=0x1000, q16=BAR, q24=0),
        event("unmap_in", 1.1, iova=0x1000, size=BAR),
        event("iun_in", 1.4),
        event("iun_out", 1.5),
        event("unmap_out", 1.6, ret=0),
        event("ioctl_out", 2, cmd=UNMAP_DMA, q8=0x1000, q16=BAR, ret=0),
    ]
    [operation] = pair_operations(events, BAR)
    assert (operation.kind, operation.iova, operation.seconds) == ("unmap", 0x1000, 1)
    assert operation.walk_seconds == pytest.approx(0.3)
    assert operation.iommu_seconds == pytest.approx(0.1)


def test_value_that_a_probe_could_not_read_is_an_evidence_error() -> None:
    broken = LINE.replace("q16=0x3fff80000000", "q16=(fault)")
    returned = broken.replace("ioctl_in", "ioctl_out").replace("q24=0x40000000", "ret=0")
    with pytest.raises(EvidenceError, match="'q16'") as caught:
        pair_operations(list(parse_trace(f"{broken}\n{returned}\n")), BAR)
    assert caught.value.reason == "bad-trace"


def test_lost_events_are_added_up_over_processors() -> None:
    stats = "cpu0\nentries: 9\noverrun: 3\ncommit overrun: 0\ndropped events: 2\nread events: 8\n"
    assert count_lost_events(stats * 2) == 10
    assert count_lost_events(stats.replace("3", "0").replace("2", "0")) == 0


@pytest.mark.parametrize("kind", ["overrun", "commit overrun", "dropped events"])
def test_every_kind_of_loss_counts(kind: str) -> None:
    assert count_lost_events(f"cpu0\nentries: 9\n{kind}: 17\n") == 17


def test_profile_tells_hits_and_misses() -> None:
    profile = "  lookup      262144               0\n  walk    7     3\n"
    assert parse_probe_hits(profile) == {"lookup": 262144, "walk": 7}
    assert parse_missed_probes(profile) == {"walk": 3}
