from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.statistics.shapes import LEAST, find_edge, find_shapes
from tests.unit.stable import numbers_in


def cloud(n: int = 20, seed: int = 0, cv: float = 0.01) -> list[float]:
    draw = random.Random(seed)
    return [math.exp(draw.gauss(0, cv)) for _ in range(n)]


def kinds(values: list[float]) -> list[str]:
    return [shape.kind for shape in find_shapes(values)]


def test_two_modes_are_found_and_counted() -> None:
    values = [v * (1.1 if i % 3 == 0 else 1.0) for i, v in enumerate(cloud(21))]
    [shape] = find_shapes(values)
    assert shape.kind == "bimodal"
    assert {"14", "7"} <= {*numbers_in(shape.text)}


def test_drift_is_found_and_sized() -> None:
    values = [v * (1 + 0.005 * i) for i, v in enumerate(cloud(21, cv=0.002))]
    [shape] = find_shapes(values)
    assert shape.kind == "drifting"
    assert float(numbers_in(shape.text)[0]) == pytest.approx(10.5, abs=0.5)
    [falling] = find_shapes([1 / v for v in values])
    assert float(numbers_in(falling.text)[0]) == pytest.approx(-9.5, abs=0.5)


@pytest.mark.parametrize("n", [LEAST, 20, 30])
def test_one_cloud_is_rarely_taken_for_two_or_for_a_drift(n: int) -> None:
    false_alarms = [kind for seed in range(300) for kind in kinds(cloud(n, seed))]
    assert len(false_alarms) <= 6


def test_one_wild_trial_is_no_mode() -> None:
    assert kinds([*cloud(20), 9.0]) == []


@given(st.lists(st.floats(0, 1e6), max_size=40))
def test_anything_has_a_shape_or_none(values: list[float]) -> None:
    find_shapes(values)


def test_constant_and_few_trials_have_none() -> None:
    assert kinds([1.0] * 30) == kinds([1.0, 2.0] * 5) == []
    assert kinds(cloud(LEAST - 1)) == []


@pytest.mark.parametrize(
    ("fast", "slow", "on_edge"),
    # the median of 12 is between the sixth and the seventh
    [(6, 6, True), (5, 7, True), (7, 5, True), (4, 8, False), (8, 4, False), (12, 0, False),
     (3, 3, True), (2, 2, False), (6, 5, True), (5, 6, True), (4, 7, False)],
)  # fmt: skip
def test_median_at_the_edge_of_two_modes_is_one(fast: int, slow: int, on_edge: bool) -> None:
    samples = [55.0 + i / 100 for i in range(fast)] + [120.0 + i / 100 for i in range(slow)]
    found = find_edge([[1.0] * 12, samples[::-1]])
    assert (found is not None) == on_edge
    assert found is None or found.kind == "edge"


@given(st.lists(st.floats(1.0, 1.19), min_size=1, max_size=30))
def test_samples_that_are_alike_have_no_edge(samples: list[float]) -> None:
    assert find_edge([samples]) is None
