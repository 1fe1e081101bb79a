"""Scaling law: the growth of a map's cost with its size, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import linear_regression
from typing import Literal

from orchestrator.formats.abi import LEAVES

_WORST = 0.2
"""A line is no law if it misses any cost by more than this share of that cost."""


@dataclass(frozen=True)
class Law:
    """cost = fixed + per_unit * (size / unit)"""

    kind: Literal["flat", "linear"]
    """flat: the cost grows with the number of 1 GiB leaves; linear: with the number of pages, or
    of leaves of 2 MiB."""
    unit: str
    """Step of the walk: 4KiB, 2MiB, 1GiB."""
    fixed: float
    """Seconds."""
    per_unit: float
    """Seconds."""
    residual: float
    """The largest deviation of a cost from the law, as a share of that cost."""

    def at(self, size: int) -> float:
        return self.fixed + self.per_unit * size / LEAVES[self.unit]


def fit_scaling_law(points: Sequence[tuple[int, float]], unit: str) -> Law | None:
    """Return the law of `points`, each (bytes, seconds > 0). `unit`: step of the walk, as the
    counts show it.

    None if there are fewer than three sizes, which almost any line would fit, or if no line fits.
    """
    if len({size for size, _ in points}) < 3:
        return None
    sizes, costs = zip(*points, strict=True)
    slope, fixed = linear_regression([size / LEAVES[unit] for size in sizes], costs)
    law = Law("flat" if unit == "1GiB" else "linear", unit, fixed, slope, 0.0)
    residual = max(abs(law.at(size) - cost) / cost for size, cost in points)
    if slope <= 0 or residual > _WORST:
        return None
    return replace(law, residual=residual)
