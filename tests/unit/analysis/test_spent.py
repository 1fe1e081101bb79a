"""Where a boot's seconds went: whatever overlaps, they add up to the boot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.boot import read_timelines
from orchestrator.analysis.boot.spent import UNEXPLAINED, split_boot, summarize_spent
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Phase, Timeline, Zap
from orchestrator.evidence.layout import TrialDir
from tests.unit.timelines import booted

RECORDED = Path(__file__).parents[3] / "fixtures/recorded"
TIMES = st.floats(0, 50, allow_nan=False)
SECONDS = st.floats(0, 20, allow_nan=False)
STEPS = st.builds(
    lambda kind, bar, start, seconds: DmaStep(kind, bar, 4096, "kernel", "", start, seconds),
    st.sampled_from(["map", "unmap"]),
    st.sampled_from([RAM, IOVA, "01:00.0 BAR 2"]),
    TIMES, SECONDS,
)  # fmt: skip
ZAPS = st.builds(lambda start, seconds: Zap(start, seconds, "kernel", ""), TIMES, SECONDS)


def with_phases(timeline: Timeline, lengths: list[float], first: float) -> Timeline:
    phases, at = [], first
    for index, length in enumerate(lengths):
        phases.append(Phase(("QEMU", "firmware: entry", "kernel: init")[index % 3], at, length))
        at += length
    return replace(timeline, phases=tuple(phases))


@given(
    st.lists(STEPS, max_size=12), st.lists(ZAPS, max_size=4), st.lists(SECONDS, max_size=6),
    st.floats(-5, 20), st.floats(0.001, 60),
)  # fmt: skip
def test_the_costs_of_a_boot_add_up_to_it(
    steps: list[DmaStep], zaps: list[Zap], lengths: list[float], first: float, end: float
) -> None:
    bare = replace(booted(), steps=tuple(steps), zaps=tuple(zaps), boot_seconds=end)
    timeline = with_phases(bare, lengths, first)
    spent = split_boot(timeline)
    assert spent.named + spent.unexplained == pytest.approx(end, abs=1e-6)
    assert min([spent.unexplained, spent.zaps, *spent.own.values()]) >= -1e-9
    assert all(0 <= seconds <= step.seconds + 1e-9 for step, seconds in spent.steps)
    costs = summarize_spent(timeline)
    assert sum(costs.values()) == pytest.approx(end, abs=1e-6)
    assert list(costs.values()) == sorted(costs.values(), reverse=True)


def test_what_two_threads_do_at_a_time_counts_once() -> None:
    steps = (
        DmaStep("map", RAM, 4096, "QEMU", "", 1.0, 4.0),
        DmaStep("map", "01:00.0 BAR 2", 4096, "QEMU", "", 2.0, 1.0),
        DmaStep("unmap", RAM, 4096, "QEMU", "", 4.0, 3.0),
    )
    timeline = replace(booted(), steps=steps, zaps=(), phases=(), boot_seconds=10.0)
    spent = split_boot(timeline)
    assert [seconds for _, seconds in spent.steps] == [4.0, 0.0, 2.0]
    assert spent.unexplained == pytest.approx(4.0)


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(path.parent, id=f"{path.parents[2].name}-{path.parent.name}")
        for path in sorted(RECORDED.rglob("manifest.json"))
        if (path.parent / "host/trace-guest-1.txt.gz").exists()
    ],
)
def test_recorded_guest_boots_are_accounted_for(trial: Path) -> None:
    """The figure to reach: 95 % of each boot has a name."""
    for timeline in read_timelines(TrialDir.open(trial)):
        costs = summarize_spent(timeline)
        assert costs[UNEXPLAINED] <= 0.05 * timeline.boot_seconds
