"""How the cost of a map grows with its size: the scaling law, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Literal

from orchestrator.abi import LEAVES, PAGE

LEAST_VISIT = 50e-9
"""Seconds (50 instructions, where those are counted) that the walk of one leaf takes at least:
several function calls and cache lines. What costs less for each leaf of a size does not walk that
size's leaves. Costs seen are 130 to 1400 instructions."""


@dataclass(frozen=True)
class Law:
    """cost = fixed + per_unit * (size / unit)"""

    kind: Literal["flat", "linear"]
    """flat: the cost of a 1 GiB leaf, at most; linear: of each page or each 2 MiB."""
    unit: str
    """The leaf whose number the cost goes with: 4KiB, 2MiB, 1GiB."""
    fixed: float
    """Seconds."""
    per_unit: float
    """Seconds."""
    residual: float
    """The largest deviation of a cost from the law, as a share of that cost."""

    def at(self, size: int) -> float:
        return self.fixed + self.per_unit * size / LEAVES[self.unit]


def scaling_law(points: Sequence[tuple[int, float]]) -> Law | None:
    """The law of (bytes, seconds); None for less than three sizes, which would fit any line."""
    if len({size for size, _ in points}) < 3:
        return None
    sizes, costs = zip(*points, strict=True)
    slope, fixed = linear_regression([size / PAGE for size in sizes], costs)
    unit = next(
        (name for name, size in LEAVES.items() if slope * size / PAGE >= LEAST_VISIT), "1GiB"
    )
    law = Law(
        "flat" if unit == "1GiB" else "linear", unit, fixed, slope * LEAVES[unit] / PAGE, 0.0
    )
    residual = max(abs(law.at(size) - cost) / cost for size, cost in points)
    return Law(law.kind, law.unit, law.fixed, law.per_unit, residual)
