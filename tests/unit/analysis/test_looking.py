from __future__ import annotations

from typing import Any

import pytest

from orchestrator.analysis.maps.probe_overhead import ProbeCost, compute_probe_costs
from orchestrator.formats.units import GIB
from tests.unit.answers import by_1gib, by_2mib, map_pass, point, sample


def plain(*points: dict[str, Any]) -> Any:
    return map_pass(*points, counted=False)


def timed(map_ns: int, unmap_ns: int, *states: str) -> dict[str, Any]:
    return by_1gib(map_ns=map_ns, unmap_ns=unmap_ns, states=states or ("cold", "warm"))


def test_without_a_plain_pass_there_is_nothing_to_compare_with() -> None:
    assert compute_probe_costs({}) == []
    assert compute_probe_costs({"timing": plain(by_1gib()), "counts": map_pass(by_1gib())}) == []


def test_pass_that_nobody_looked_at_has_what_it_costs_itself() -> None:
    cold, warm = compute_probe_costs({"plain": plain(by_2mib(16 * GIB), timed(100, 1000))})
    assert cold == ProbeCost("full/1GiB/cold", 100e-9, 1000e-9, 150e-9, 1000e-9, {})
    assert (warm.point, warm.passes) == ("full/1GiB/warm", {})


def test_cost_is_of_the_largest_map_at_the_best_alignment() -> None:
    small = point("1GiB/1GiB", GIB, {"1GiB": 1})
    passes = {
        "plain": plain(small, timed(100, 1000), by_2mib()),
        "timing": plain(timed(110, 1001)),
        "counts": map_pass(small, timed(300, 5000), by_2mib()),
    }
    cold, warm = compute_probe_costs(passes)
    assert cold == ProbeCost(
        "full/1GiB/cold", 100e-9, 1000e-9, 150e-9, 1000e-9,
        {"timing": (110e-9, 1001e-9), "counts": (300e-9, 5000e-9)},
    )  # fmt: skip
    assert warm.point == "full/1GiB/warm"


def test_only_the_passes_that_have_a_point_are_held_against_it() -> None:
    passes = {
        "plain": plain(timed(100, 1000)),
        "timing": plain(timed(110, 1001, "warm")),
        "counts": map_pass(timed(300, 5000)),
    }
    assert [(cost.point, {*cost.passes}) for cost in compute_probe_costs(passes)] == [
        ("full/1GiB/cold", {"counts"}), ("full/1GiB/warm", {"timing", "counts"}),
    ]  # fmt: skip


def test_repeats_are_reduced_to_their_median_and_primes_left_out() -> None:
    trial = timed(0, 0, "prime", "warm", "warm", "warm")
    for taken, ns in zip(trial["samples"], (10**9, 100, 1000, 120), strict=True):
        taken["map_ns"], taken["unmap_ns"] = ns, 2 * ns
    [cost] = compute_probe_costs({"plain": plain(trial), "timing": plain(timed(1, 1))})
    assert (cost.point, cost.plain_map, cost.plain_unmap) == ("full/1GiB/warm", 120e-9, 240e-9)


def test_of_two_repeats_the_lower_counts() -> None:
    trial = timed(7, 1, "warm")
    trial["samples"].append(sample("warm", 32 * GIB, {"1GiB": 32}, map_ns=9))
    [cost] = compute_probe_costs({"plain": plain(trial), "timing": plain(trial)})
    assert cost.plain_map == pytest.approx(7e-9)
