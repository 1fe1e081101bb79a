"""The noise that a machine remembers."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.noise import (
    LEAST_NIGHTS,
    MOST_NIGHTS,
    NAME,
    MetricNoise,
    NightNoise,
    NoiseMemory,
    load_noise,
    save_noise,
)
from orchestrator.run.judging.judge import Run
from orchestrator.run.judging.noise import recall_noise, remember_noise
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.report.made import measured, run

EMPTY = NoiseMemory(schema=1)


def night(number: int, spread: float = 0.01, ratio: float = 1.0) -> NightNoise:
    at = f"2026-{1 + number // 28:02d}-{1 + number % 28:02d}T22:00:00+00:00"
    return NightNoise(at=at, trials=20, spread=spread, ratio=ratio)


def remembered(nights: list[NightNoise]) -> MetricNoise:
    memory = EMPTY
    for one in nights:
        memory = memory.add("gpu1", "nightly", [("bar_map_cost", one)])
    found = memory.find("gpu1", "nightly", "bar_map_cost")
    assert found is not None
    return found


def test_memory_is_kept_by_machine_scenario_and_metric(tmp_path: Path) -> None:
    nights = [("bar_map_cost", night(3)), ("guest_boot_cost", night(3))]
    memory = EMPTY.add("gpu1", "nightly", nights)
    save_noise(tmp_path / "state", memory)
    loaded = load_noise(tmp_path / "state")
    assert loaded == memory
    assert loaded.find("gpu2", "nightly", "bar_map_cost") is None
    assert loaded.find("gpu1", "other", "bar_map_cost") is None
    found = loaded.find("gpu1", "nightly", "guest_boot_cost")
    assert found is not None
    assert (found.since, found.trials, found.spread) == ("2026-01-04", 20, 0.01)


def test_run_that_is_judged_again_is_one_night() -> None:
    found = remembered([night(1, 0.01), night(2, 0.02), night(1, 0.03)])
    assert [n.spread for n in found.nights] == [0.03, 0.02]


def test_old_nights_are_forgotten() -> None:
    found = remembered([night(n) for n in range(MOST_NIGHTS + 7)])
    assert len(found.nights) == MOST_NIGHTS
    assert found.since == night(7).at[:10]


@given(st.lists(st.floats(0.9, 1.1), min_size=LEAST_NIGHTS + 1, max_size=20))
def test_usual_change_has_three_quartile_ranges_above_the_upper_quartile(
    ratios: list[float],
) -> None:
    found = remembered([night(n, ratio=ratio) for n, ratio in enumerate(ratios)])
    usual = found.usual_change
    assert usual is not None
    changes = [max(a / b, b / a) - 1 for a, b in pairwise(ratios)]
    # never below the upper quartile of the changes
    assert usual >= statistics.quantiles(changes, n=4, method="inclusive")[2] - 1e-9
    assert remembered([night(n) for n in range(LEAST_NIGHTS)]).usual_change is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "metrics": 3}'])
def test_damaged_memory_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert load_noise(tmp_path) == EMPTY


def test_judged_run_is_remembered_and_recalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAROMETER_STATE", str(tmp_path))
    draw = random.Random(1)
    results = [
        measured(arm, pair, bar_map_cost=draw.gauss(1, 0.02)) for pair in range(12) for arm in ARMS
    ]
    made = run(results)
    assert recall_noise(made.scenario, "bar_map_cost") is None
    for _ in range(2):
        remember_noise(
            Run(tmp_path, made.scenario, made.comparison, made.plan, "", "", made.suite)
        )
    found = recall_noise(made.scenario, "bar_map_cost")
    assert found is not None
    assert (len(found.nights), found.trials) == (1, 24)
    assert 0.005 < found.spread < 0.05
