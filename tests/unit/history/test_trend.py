"""Change points: planted steps are found at their night, noise alone shows none, counts are exact;
and what moved in that night is named. How often is measured by ci/bench/trends.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ci.bench import trends
from orchestrator.evidence.noise import MOST_NIGHTS
from orchestrator.history.moves import Move, explain_change, find_moves, read_trend
from orchestrator.history.store import Point, Series, Store
from orchestrator.history.trend import ChangePoint, find_changes
from orchestrator.history.wording import describe_cause, format_trend, trend_json
from orchestrator.run.judging.noise import machine_of, recall_noise
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.history.made import CONDITIONS, night_of
from tests.unit.scenarios import scenario

HISTORIES = 40


def point(value: float, index: int = 0, kernel: str = "k") -> Point:
    return Point(index, f"{index:05}", "", "", value, None, None, 1.0, value, kernel, kernel)


def test_most_planted_steps_are_found_and_noise_shows_none() -> None:
    """Steps of 3 % in the recorded noise of an unmap: 99 of 100 are found within a night, and one
    history of 300 without a step shows one (ci/bench/trends.py)."""
    noise = trends.measured_noises()["noise-map bar_unmap_seconds"]
    random = np.random.default_rng(7)
    found, alarms = 0, 0
    for _ in range(HISTORIES):
        logs = trends.draw_history(noise, random, trends.NIGHTS)
        alarms += bool(find_changes(trends.points_of(logs), "s"))
        at = int(random.integers(10, trends.NIGHTS - 10))
        step = math.log(1.03) * (np.arange(trends.NIGHTS) >= at)
        changes = find_changes(trends.points_of(logs + step), "s")
        found += [abs(change.index - at) <= 1 for change in changes] == [True]
    assert found >= 0.9 * HISTORIES
    assert alarms <= 2


@given(
    at=st.integers(8, 40), rest=st.integers(8, 40), seed=st.integers(0, 1000),
    size=st.floats(1.05, 3.0), is_faster=st.booleans(),
)  # fmt: skip
def test_a_clear_step_is_found_where_it_is(
    at: int, rest: int, seed: int, size: float, is_faster: bool
) -> None:
    factor = 1 / size if is_faster else size
    logs = np.random.default_rng(seed).normal(0, 0.002, at + rest)
    logs[at:] += math.log(factor)
    [change] = find_changes(trends.points_of(logs), "s")
    assert change.index == at
    assert change.earliest <= at <= change.latest
    assert change.factor == pytest.approx(factor, rel=0.01)
    assert change.alarms < 0.002


@given(seed=st.integers(0, 1000), at=st.integers(0, 39), size=st.floats(-2, 2), unit=st.booleans())
def test_one_busy_night_is_no_step(seed: int, at: int, size: float, unit: bool) -> None:
    logs = np.random.default_rng(seed).normal(0, 0.003, 40)
    logs[at] += size
    assert find_changes(trends.points_of(logs), "s" if unit else "Ginsn") == []


@settings(max_examples=10)
@given(
    at=st.integers(10, 30), nights=st.integers(1, 3), size=st.floats(0.02, 1),
    comes_back=st.booleans(),
)  # fmt: skip
def test_three_nights_are_too_few_for_a_step(
    at: int, nights: int, size: float, comes_back: bool
) -> None:
    """Neither three busy nights nor the first three of a new level are called; nor a night before
    them, as if it were the fourth, unless that one is far off by chance."""
    called = 0
    for seed in range(50):
        logs = np.random.default_rng(seed).normal(0, 0.002, 40 if comes_back else at + nights)
        logs[at : at + nights] += size
        called += find_changes(trends.points_of(logs), "s") != []
    assert called <= 1


@given(st.lists(st.integers(0, 3), max_size=30))
def test_counts_are_exact(values: list[int]) -> None:
    changes = find_changes([point(float(v)) for v in values], "count")
    nights = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    assert [c.index for c in changes] == nights
    assert all((c.before, c.after) == (values[c.index - 1], values[c.index]) for c in changes)


def test_steps_below_the_floor_and_short_histories_show_none() -> None:
    values = [1.0] * 50 + [1.005] * 50
    assert find_changes([point(v) for v in values], "s") == []
    assert find_changes([point(v) for v in (1.0, 1.0, 1.0, 9.0, 9.0, 9.0)], "s") == []
    assert find_changes([], "s") == []


def test_nights_without_a_ratio_do_not_move_the_night() -> None:
    points = [point(1.0)] * 10 + [point(2.0)] * 10
    points[3:3] = [point(1.0)._replace(ratio=None)] * 2
    [change] = find_changes(points, "s")
    assert change.index == 12


# conditions --------------------------------------------------------------------------------------

BASE = {"host.qemu": "10.0.2", "host.packages.ovmf": "1", "host.kernel.release": "6.12",
        "barometer": "0.1.0", "host.arm.cmdline": "a"}  # fmt: skip


def moves(*changes: Mapping[str, str | None]) -> list[Move]:
    """Return the moves of a history whose nights differ so from the first."""
    nights = [BASE]
    for change in changes:
        merged = {**BASE, **change}
        nights.append({name: value for name, value in merged.items() if value is not None})
    return find_moves([point(1.0)] * len(nights), nights)


def test_every_condition_that_moved_is_named_but_the_kernels() -> None:
    found = moves({"host.qemu": "10.1", "host.kernel.release": "7", "host.arm.cmdline": "b"}, {})
    assert found == [
        Move(1, "host.qemu", "10.0.2", "10.1"),
        Move(2, "host.qemu", "10.1", "10.0.2"),
    ]
    assert [move.kind for move in found] == ["QEMU", "QEMU"]


def test_a_condition_that_only_one_barometer_recorded_did_not_move() -> None:
    assert moves({"host.new": "1"}, {"barometer": None, "host.packages.ovmf": None}) == []
    [new] = moves({"host.packages.qemu-system": "10"})
    assert (new.before, new.after) == ("absent", "10")


@pytest.mark.parametrize(
    ("moved", "kernel", "cause"),
    [(True, False, "machine"), (False, True, "kernel"), (True, True, "both"),
     (False, False, "unknown")],
)  # fmt: skip
def test_a_change_has_a_cause(moved: bool, kernel: bool, cause: str) -> None:
    points = [point(1.0, i, "new" if kernel and i >= 5 else "old") for i in range(10)]
    move = [Move(5, "host.qemu", "10.0.2", "10.1")] if moved else []
    others = [Move(2, "host.qemu", "9", "10.0.2")]
    change = explain_change(ChangePoint(5, 4, 6, 1.0, 2.0, 0.0), points, [*others, *move])
    assert change.cause == cause
    assert change.moves == tuple(move)
    assert ("the machine, not the kernel" in describe_cause(change)) == (cause == "machine")


def nights(
    place: str, ratios: Sequence[float], moved_at: int, kernel_at: int
) -> tuple[Store, Series]:
    store = Store.open(place)
    for day, ratio in enumerate(ratios):
        conditions: dict[ArmName, dict[str, str]] = {
            arm: {**of_arm, "host.qemu": "10.1" if day >= moved_at else "10.0.2"}
            for arm, of_arm in CONDITIONS.items()
        }
        kernel = "new" if day >= kernel_at else "old"
        store.add(night_of(day, {"guest_boot_cost": ratio}, conditions=conditions, kernel=kernel))
    [series] = store.series()
    return store, series


def test_a_trend_is_read_from_the_store(place: str) -> None:
    ratios = [1.0 + 0.001 * (day % 3) for day in range(20)]
    ratios[12:] = [ratio * 1.2 for ratio in ratios[12:]]
    store, series = nights(place, ratios, moved_at=12, kernel_at=99)
    with store:
        trend = read_trend(store, series)
        [change] = trend.changes
        assert change.point.index == 12
        assert change.cause == "machine"
        [move] = change.moves
        assert move.name == "host.qemu"
        text = format_trend(trend)
        assert "2026-01-13" in text
        assert "host.qemu 10.0.2 -> 10.1" in text
        assert trend_json(trend)["changes"]
        assert read_trend(store, series, last=5).changes == ()


def test_power_and_floors_are_drawn_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAROMETER_STATE", str(tmp_path / "state"))
    place = str(tmp_path / "history.db")
    question = scenario()
    assert recall_noise(question, "bar_map_cost") is None
    monkeypatch.setenv("BAROMETER_HISTORY", place)
    with Store.open(place) as store:
        for day in range(MOST_NIGHTS + 5):
            store.add(night_of(
                day, {"bar_map_cost": 1.0}, machine=machine_of(question.host),
                scenario=question.name, pairs=6,
            ))  # fmt: skip
    noise = recall_noise(question, "bar_map_cost")
    assert noise is not None
    assert (len(noise.nights), noise.spread, noise.nights[-1].trials) == (MOST_NIGHTS, 0.01, 12)
    (tmp_path / "history.db").write_text("no database, " * 1000)
    assert recall_noise(question, "bar_map_cost") is None
