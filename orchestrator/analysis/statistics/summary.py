"""The trials of one arm in two numbers: their middle, and how far they lie apart. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, median_low, quantiles

LEAST_FOR_QUARTILES = 4
"""Least number of trials: fewer have no middle half."""


@dataclass(frozen=True)
class Summary:
    middle: float
    """The median; for an even number of instruction counts the lower of the middle two, as in an
    effect."""
    spread: float | None
    """Half of the interquartile range; for two or three trials half of the whole range. In the
    unit of the values. None for one trial."""


def summarize(unit: str, values: Sequence[float]) -> Summary:
    """Summarize at least one value. `unit`: s, count or Ginsn."""
    middle = median_low(values) if unit == "Ginsn" else median(values)
    if len(values) < 2:
        return Summary(middle, None)
    low, high = min(values), max(values)
    if len(values) >= LEAST_FOR_QUARTILES:
        low, _, high = quantiles(values, n=4, method="inclusive")
    return Summary(middle, (high - low) / 2)
