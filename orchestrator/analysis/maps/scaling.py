"""Scaling law: the growth of a map's cost with its size, by least squares of the relative errors:
each cost counts as much as any other, however large it is.

A law is only fitted to four sizes or more that span a factor of eight, and holds between the
smallest and the largest of them. Its exponent is the slope in a doubly logarithmic plot: 1 if the
cost is proportional to the size, less if part of it is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.formats.abi import LEAVES

LEAST_SIZES, LEAST_SPAN = 4, 8
"""Fewest sizes, and least factor between the largest and the smallest: almost any line fits three
sizes, and any growth looks straight over a small range."""
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
    smallest: int
    """Bytes of the smallest size that the law is fitted to."""
    largest: int
    exponent: float
    """b of cost = a * size^b."""
    exponent_interval: tuple[float, float]
    """95 % interval of the exponent, from the deviations of the logs from their line (Student's
    t)."""

    def covers(self, size: int) -> bool:
        """True if the law says something of this size."""
        return self.smallest <= size <= self.largest

    def at(self, size: int) -> float:
        return self.fixed + self.per_unit * size / LEAVES[self.unit]


def fit_scaling_law(points: Sequence[tuple[int, float]], unit: str) -> Law | None:
    """Return the law of `points`, each (bytes, seconds > 0). `unit`: step of the walk, as the
    counts show it.

    None if there are too few sizes, if they span too little, or if no line fits.
    """
    sizes, costs = np.array([size for size, _ in points]), np.array([cost for _, cost in points])
    if len({*sizes.tolist()}) < LEAST_SIZES or sizes.max() < LEAST_SPAN * sizes.min():
        return None
    # relative errors: each equation is divided by its cost
    columns = np.stack([1 / costs, sizes / LEAVES[unit] / costs], axis=1)
    # scaled, since the number of pages is a million times 1
    norms = np.sqrt((columns**2).sum(axis=0))
    (fixed, slope), *_ = np.linalg.lstsq(columns / norms, np.ones(len(costs)), rcond=None)
    fixed, slope = float(fixed / norms[0]), float(slope / norms[1])
    exponent, interval = _fit_exponent(np.log(sizes), np.log(costs))
    law = Law(
        "flat" if unit == "1GiB" else "linear", unit, fixed, slope, 0.0,
        int(sizes.min()), int(sizes.max()), exponent, interval,
    )  # fmt: skip
    residual = max(abs(law.at(size) - cost) / cost for size, cost in points)
    if slope <= 0 or residual > _WORST:
        return None
    return replace(law, residual=residual)


def _fit_exponent(
    sizes: NDArray[np.float64], costs: NDArray[np.float64]
) -> tuple[float, tuple[float, float]]:
    """Return the slope of the costs' logs over those of the sizes, and its 95 % interval."""
    from scipy import special  # noqa: PLC0415  # slow to import, and few runs have a law

    centred = sizes - sizes.mean()
    slope = float(centred @ costs / (centred @ centred))
    deviations = costs - costs.mean() - slope * centred
    freedom = len(sizes) - 2
    error = math.sqrt(float(deviations @ deviations) / freedom / float(centred @ centred))
    reach = float(special.stdtrit(freedom, 0.975)) * error
    return slope, (slope - reach, slope + reach)
