"""The rest of a map or unmap after its parts are subtracted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.timeline import timeline_json
from tests.unit.timelines import booted, step, with_steps


@pytest.mark.parametrize(
    ("parts", "other"),
    [
        ({}, 8.0),
        ({"lookups": 5.0, "faults": 1.0}, 2.0),
        ({"lookups": 8.0}, 0.0),
        ({"lookups": 8.1}, 0.0),
        ({"lookups": 0.1, "faults": 0.2, "IOMMU map": 7.7}, 0.0),
        ({"lookups": 7.999999999}, 1e-9),
    ],
)
def test_other_is_what_the_parts_leave_to_a_nanosecond(
    parts: dict[str, float], other: float
) -> None:
    assert step(0, 8.0, parts=parts).other == other


def test_json_has_the_rest_beside_the_parts() -> None:
    steps = [
        step(1, 8.0, parts={"lookups": 5.0, "faults": 1.0}, cpu=1), step(9, 2.0, kind="unmap"),
    ]  # fmt: skip
    operations: Any = timeline_json(with_steps(booted(), steps))["operations"]
    assert [operation["parts"] for operation in operations] == [
        {"lookups": 5.0, "faults": 1.0, "other": 2.0}, {"other": 2.0},
    ]  # fmt: skip
    assert [operation["cpu"] for operation in operations] == [1, 0]


def test_json_has_no_bound_of_marks_where_none_is_known() -> None:
    boot = replace(booted(), mark_bound=None, mark_source="the agent")
    assert json.loads(json.dumps(timeline_json(boot)))["marks"] == {
        "bound_seconds": None, "source": "the agent",
    }  # fmt: skip


@given(
    st.integers(0, 10**11),
    st.dictionaries(st.sampled_from(["lookups", "faults", "IOMMU map"]), st.floats(0, 1)),
)
def test_parts_and_other_are_the_whole(nanoseconds: int, shares: dict[str, float]) -> None:
    whole = nanoseconds / 1e9
    parts = {name: round(share * whole / 3, 9) for name, share in shares.items()}
    mapping = step(0, whole, parts=parts)
    document: Any = timeline_json(with_steps(booted(), [mapping]))
    [operation] = document["operations"]
    assert sum(operation["parts"].values()) == pytest.approx(whole, abs=3e-9)
    assert operation["parts"]["other"] >= 0
