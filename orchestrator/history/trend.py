"""Change points of a series: since which night, how large, how sure. Pure.

Of costs the ratio of the arms is looked at: it does not move with the machine, since both arms are
measured on it in turns. The logs of the ratios are searched for steps by the PELT algorithm
(Killick, Fearnhead and Eckley 2012) as ruptures has it. What makes it sound for nights:

- A night that is far from its neighbours is pulled to them first: one busy night is no step.
- The noise is taken from the changes from night to night, by a median, so that steps and trends do
  not add to it. From few nights it is not well known, which Student's t allows for.
- A step has to explain so much that one is found by chance, anywhere in a history without any, in
  at most `_ALARMS` of the histories.

Counts have no noise: every night on which one changed is a change point. `ci/bench/trends.py`
measures how many steps are found, where, and how many are false.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ruptures
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.stats import t as student

from orchestrator.history.store import Point

_ALARMS = 0.002
"""Share of histories without a step in which one is found."""
_FLOOR = 0.01
"""Steps of a cost that are smaller than this share are not called, as in a run's verdict."""
_LEAST_SPREAD = 5e-4
"""Deviation of a night's log that is assumed at least: the resolution of exact maps."""
_LEAST_NIGHTS = 8
"""Fewest nights in which noise can be told from a step."""
_WINDOW = 7
_FENCE = 3.0
"""A night is at most so many deviations away from the median of its window."""
_SHORTEST = 4
"""Nights of the shortest level that is called. Three busy nights in a row are too frequent where
one in ten is busy: with 3, 1.1 % of such histories had a false step."""
_SHORTEST_FOUND = 3
"""Nights of the shortest level that is looked for: a step whose nights are too few yet must not be
called a night too early."""
_TRIMMED = 0.01
"""Share of the changes from night to night that may be steps."""
_LEFT = 0.957
"""Share of a normal deviation that is left without the largest hundredth."""
_EFFICIENCY = 0.37
"""Of the median absolute deviation: as many nights tell as much as this share of them would by the
standard deviation, if the noise is normal."""


@dataclass(frozen=True)
class ChangePoint:
    """A night from which on a series is at another level."""

    index: int
    """Of the first night at the new level."""
    earliest: int
    latest: int
    """First and last night that it can be, by about 95 %; both are `index` for a count."""
    before: float
    after: float
    """Level: of a cost the ratio candidate / baseline, of a count its value for the candidate."""
    alarms: float
    """Upper bound of the share of histories without a step that show one as clear as this; 0 for a
    count, which has no noise."""

    @property
    def factor(self) -> float | None:
        """The new level, relative to the old one; None if the old one is 0."""
        return self.after / self.before if self.before else None


def find_changes(points: Sequence[Point], unit: str) -> list[ChangePoint]:
    """Return the change points of a series, the oldest first. Nights without a ratio are left
    out."""
    if unit == "count":
        values = [point.candidate for point in points]
        return [
            ChangePoint(i, i, i, values[i - 1], values[i], 0.0)
            for i in range(1, len(values)) if values[i] != values[i - 1]
        ]  # fmt: skip
    ratios = {i: point.ratio for i, point in enumerate(points) if point.ratio}
    at, logs = [*ratios], np.log([*ratios.values()])
    return [
        ChangePoint(
            at[step.index], at[step.earliest], at[step.latest], step.before, step.after,
            step.alarms,
        )
        for step in _find_steps(logs)
    ]  # fmt: skip


def _find_steps(logs: NDArray[np.float64]) -> list[ChangePoint]:
    nights = len(logs)
    if nights < _LEAST_NIGHTS:
        return []
    spread = max(_LEAST_SPREAD, measure_spread(logs))
    middle = median_filter(logs, _WINDOW, mode="mirror")
    calm = np.clip(logs, middle - _FENCE * spread, middle + _FENCE * spread)
    spread = max(spread, _measure_uneven(calm))
    freedom = max(3.0, _EFFICIENCY * (nights - 1))
    limit = float(student.isf(_ALARMS / (2 * nights), freedom))
    search = ruptures.KernelCPD(kernel="linear", min_size=_SHORTEST_FOUND).fit(calm.reshape(-1, 1))
    ends = search.predict(pen=(limit * spread) ** 2)
    ends = _drop_unclear(calm, ends, limit * spread)
    steps = []
    for first, index, end in zip([0, *ends], ends[:-1], ends[1:], strict=False):
        before, after = calm[first:index].mean(), calm[index:end].mean()
        error = spread * math.sqrt(1 / (index - first) + 1 / (end - index))
        alarms = 2 * nights * float(student.sf(abs(after - before) / error, freedom))
        earliest, latest = _bounds(calm[first:end], index - first, spread)
        steps.append(
            ChangePoint(
                index, first + earliest, first + latest, math.exp(before), math.exp(after),
                min(1.0, alarms),
            )
        )  # fmt: skip
    return steps


def measure_spread(logs: NDArray[np.float64]) -> float:
    """Return the robust deviation of a night's log, from the changes from night to night."""
    changes = np.abs(np.diff(logs))
    return 1.4826 * float(np.median(changes)) / math.sqrt(2)


def _measure_uneven(calm: NDArray[np.float64]) -> float:
    """Return the deviation of a night's log from the changes from night to night, also if some
    nights are noisier than others, which a median does not show. The largest changes are left out:
    they may be steps."""
    changes = np.sort(np.abs(np.diff(calm)))
    kept = changes[: len(changes) - max(2, round(_TRIMMED * len(changes)))]
    return float(np.sqrt((kept**2).mean() / 2)) / _LEFT


def _drop_unclear(calm: NDArray[np.float64], ends: Sequence[int], limit: float) -> Sequence[int]:
    """Return the ends of the levels without those that are too short, and without steps that are
    then smaller than the floor or, by `limit`, no longer clear; one after the other."""
    ends = list(ends)
    while len(ends) > 1:
        starts = [0, *ends[:-1]]
        nights = np.diff([0, *ends])
        levels = [calm[start:end].mean() for start, end in zip(starts, ends, strict=True)]
        sizes = np.abs(np.diff(levels))
        clear = sizes / np.sqrt(1 / nights[:-1] + 1 / nights[1:])
        if nights[short := int(nights.argmin())] < _SHORTEST:
            beside = [step for step in (short - 1, short) if 0 <= step < len(sizes)]
            dropped = min(beside, key=sizes.__getitem__)
        elif sizes.min() < math.log1p(_FLOOR):
            dropped = int(sizes.argmin())
        elif clear.min() < limit:
            dropped = int(clear.argmin())
        else:
            break
        del ends[dropped]
    return ends


def _bounds(calm: NDArray[np.float64], index: int, spread: float) -> tuple[int, int]:
    """Return the first and the last night of the two levels' nights at which the step fits about
    as well as at `index`: by no more than chi-square's 95 % quantile of one degree worse."""
    total, nights = calm.sum(), len(calm)
    sizes = np.arange(1, nights)
    left = np.cumsum(calm)[:-1]
    explained = left**2 / sizes + (total - left) ** 2 / (nights - sizes)
    good = np.flatnonzero(explained >= explained[index - 1] - 3.841 * spread**2) + 1
    # only those that are joined to it
    low = high = index
    near = {int(night) for night in good}
    while low - 1 in near:
        low -= 1
    while high + 1 in near:
        high += 1
    return low, high
