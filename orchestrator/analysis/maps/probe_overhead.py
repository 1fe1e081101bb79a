"""Overhead of the probes: the passes with probes against the one without, at the same points."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from statistics import median, median_low

from orchestrator.analysis.maps.maps import MapPass


@dataclass(frozen=True)
class ProbeCost:
    """Cost of one point under all passes. Seconds of the host's clock."""

    point: str
    """SIZE/ALIGNMENT/STATE"""
    plain_map: float
    plain_unmap: float
    instrument: float
    """Two readings of the clock with nothing between them: the clock's share of the headline."""
    call: float
    """An ioctl that does nothing, measured like a map: system call and interpreter."""
    passes: dict[str, tuple[float, float]]
    """Seconds of one map and one unmap under the passes timing and counts."""


def compute_probe_costs(passes: MappingType[str, MapPass]) -> list[ProbeCost]:
    """Return the cost of the largest map at the best alignment, in each state, under the passes
    that have it."""
    plain = passes.get("plain")
    if plain is None:
        return []
    under = {which: _medians(map_pass) for which, map_pass in passes.items() if which != "plain"}
    largest = max(plain.places, key=lambda place: place.mapping.size).name
    costs = []
    for point, (map_seconds, unmap_seconds) in _medians(plain).items():
        probed = {which: points[point] for which, points in under.items() if point in points}
        if point.rpartition("/")[0] == largest:
            costs.append(
                ProbeCost(point, map_seconds, unmap_seconds, median(plain.clock_seconds),
                     median(plain.empty_seconds), probed)
            )  # fmt: skip
    return costs


def _medians(map_pass: MapPass) -> dict[str, tuple[float, float]]:
    result = {}
    for place in map_pass.places:
        for state in sorted({s.state for s in place.samples} - {"prime"}):
            samples = place.of_state(state)
            result[f"{place.name}/{state}"] = (
                median_low(s.map_seconds for s in samples),
                median_low(s.unmap_seconds for s in samples),
            )  # fmt: skip
    return result
