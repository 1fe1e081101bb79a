from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.timeline import DmaStep, Note, Phase, Timeline, Zap, timeline_json
from tests.unit.analysis.boots import recorded_timeline

STEP = DmaStep(
    kind="map", bar="01:00.0 BAR 2", size=1 << 30, phase="kernel: init", cause="enabling",
    start=2.0, seconds=0.5, parts={"lookups": 0.3, "IOMMU map": 0.1}, faults=3,
)  # fmt: skip
TIMELINE = Timeline(
    trial="0001-baseline", guest="guest-1", release="7.3.4", unit="s", boot_seconds=4.0,
    ssh_seconds=None, end_seconds=6.0,
    phases=(Phase("QEMU start", 0.0, 1.0), Phase("kernel: init", 1.0, 5.0)),
    steps=(STEP, replace(STEP, kind="unmap", start=5.0)),
    zaps=(Zap(1.5, 0.001, "kernel: init", "sizing BAR 0"),), console=((1.0, "Linux"),),
    mark_bound=0.1, mark_source="the agent's", notes=(Note("clock-step", "set"),),
)  # fmt: skip


def test_phase_ends_where_the_next_begins() -> None:
    assert Phase("x", 1.0, 0.5).end == 1.5


def test_share_of_an_operation_is_what_its_parts_are_of_it() -> None:
    assert STEP.attributed_share == pytest.approx(0.8)
    assert replace(STEP, parts={}).attributed_share == 0
    assert replace(STEP, parts={"lookups": 0.6}).attributed_share == 1
    assert replace(STEP, seconds=0.0).attributed_share == 1


@pytest.mark.parametrize(
    ("phases", "share"),
    [
        ((Phase("a", 0.0, 4.0),), 1.0),
        ((Phase("a", 0.0, 1.0), Phase("b", 3.0, 9.0)), 0.5),
        ((Phase("a", 0.0, 9.0), Phase("b", 5.0, 9.0)), 1.0),
        ((Phase("a", -2.0, 3.0),), 0.25),
        ((), 0.0),
    ],
)
def test_share_of_a_boot_is_what_its_phases_are_of_it(
    phases: tuple[Phase, ...], share: float
) -> None:
    assert replace(TIMELINE, phases=phases).attributed_share == pytest.approx(share)


def test_boot_of_no_length_has_no_share() -> None:
    assert replace(TIMELINE, boot_seconds=0.0).attributed_share == 0


def test_steps_before_the_mark_are_the_boots() -> None:
    assert TIMELINE.steps_before_mark() == [STEP]


def test_json_has_all_of_it() -> None:
    assert timeline_json(TIMELINE) == {
        "trial": "0001-baseline", "guest": "guest-1", "release": "7.3.4",
        "unit": "s", "invalid": None, "boot_seconds": 4.0, "ssh_seconds": None, "end_seconds": 6.0,
        "attributed_share": 1.0,
        "phases": [
            {"name": "QEMU start", "start": 0.0, "seconds": 1.0},
            {"name": "kernel: init", "start": 1.0, "seconds": 5.0},
        ],
        "operations": [
            {"kind": kind, "bar": "01:00.0 BAR 2", "bytes": 1 << 30, "phase": "kernel: init",
             "cause": "enabling", "start": start, "seconds": 0.5,
             "parts": {"lookups": 0.3, "IOMMU map": 0.1, "other": 0.1}, "result": 0, "cpu": 0,
             "faults": 3, "attributed_share": 0.8}
            for kind, start in (("map", 2.0), ("unmap", 5.0))
        ],
        "zaps": [{"start": 1.5, "seconds": 0.001, "phase": "kernel: init",
                  "cause": "sizing BAR 0"}],
        "marks": {"bound_seconds": 0.1, "source": "the agent's"}, "systemd": {},
        "notes": [{"name": "clock-step", "text": "set"}],
    }  # fmt: skip


def test_json_says_why_a_boot_does_not_count() -> None:
    invalid = replace(TIMELINE, invalid="lost-events: lost 3")
    assert timeline_json(invalid) == timeline_json(TIMELINE) | {"invalid": "lost-events: lost 3"}


def test_recorded_boot_is_json() -> None:
    timeline = recorded_timeline()
    document = json.loads(json.dumps(timeline_json(timeline)))
    assert len(document["operations"]) == len(timeline.steps)
    assert document["attributed_share"] == pytest.approx(1.0)
    assert document["boot_seconds"] == timeline.boot_seconds


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=5), st.floats(0, 10))
def test_share_is_never_more_than_all(spans: list[tuple[float, float]], boot: float) -> None:
    phases = tuple(Phase("x", start, seconds) for start, seconds in spans)
    assert 0 <= replace(TIMELINE, phases=phases, boot_seconds=boot).attributed_share <= 1
