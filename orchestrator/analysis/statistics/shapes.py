"""Samples that are not one cloud around one value: in two modes, or drifting. Pure.

Neither makes a verdict wrong (pairs and ranks see to that), but each has a cause that is worth
knowing: a CPU that throttles, a cache that fills, a boot that takes one of two paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

ShapeKind = Literal["bimodal", "drifting", "edge"]

LEAST = 12
"""Least number of trials in which a shape is looked for: fewer show none."""
_SEPARATION = 7.0
"""Least Ashman's D of two groups (Ashman, Bird and Zepf 1994). The best split of one normal cloud
has 2.7; by simulation one in a hundred clouds of a dozen trials has 7, with a gap."""
_LEAST_SHARE = 0.2
_P_OF_DRIFT, _LEAST_DRIFT = 0.001, 0.02
_LEAST_SAMPLES, _EDGE = 6, 1.2
"""Least number of samples of a trial, and factor between those beside their median, with which
that median is on the edge of two modes."""


@dataclass(frozen=True)
class Shape:
    kind: ShapeKind
    text: str
    """Observation, for people."""


def find_shapes(values: Sequence[float]) -> tuple[Shape, ...]:
    """Return the shapes of an arm's trials. `values` are in the order in which the trials ran."""
    if len(values) < LEAST or min(values) <= 0 or len(set(values)) < LEAST // 2:
        return ()
    logs = [math.log(value) for value in values]
    return tuple(shape for shape in (_bimodal(values, logs), _drifting(logs)) if shape)


def find_edge(trials: Iterable[Sequence[float]]) -> Shape | None:
    """Return the shape of trials whose samples have two modes, with the median at the edge of one:
    a sample more or less in either mode would move it to the other. Maps in a guest boot are such:
    some find page tables that others have filled. Each of `trials`: the samples of one trial."""
    for samples in trials:
        ordered, middle = sorted(samples), len(samples) // 2
        if len(ordered) < _LEAST_SAMPLES or ordered[0] <= 0:
            continue
        # one sample more or less moves the median by half a place
        if ordered[middle + 1] > _EDGE * ordered[middle - 2 + len(ordered) % 2]:
            cut = max(range(middle - 1, middle + 2), key=lambda i: ordered[i] / ordered[i - 1])
            return Shape(
                "edge",
                f"the median is at the edge of two modes of a trial's samples: {cut} up to"
                f" {ordered[cut - 1]:.4g}, {len(ordered) - cut} from {ordered[cut]:.4g}; their sum"
                " is not",
            )
    return None


def _bimodal(values: Sequence[float], logs: Sequence[float]) -> Shape | None:
    """Return the shape of two groups that are far apart, each tight: Ashman's D of the best split
    is large."""
    ordered = np.sort(np.array(logs))
    n = len(ordered)
    least = max(2, math.ceil(n * _LEAST_SHARE))
    cuts = np.arange(least, n - least + 1)
    low_sum = np.cumsum(ordered)[cuts - 1]
    high_sum = ordered.sum() - low_sum
    # the split that leaves the least sum of squares within its groups (Otsu 1979)
    best = int(cuts[np.argmax(low_sum**2 / cuts + high_sum**2 / (n - cuts))])
    low, high = ordered[:best], ordered[best:]
    spread = math.sqrt((low.var() + high.var()) / 2)
    separation = float(high.mean() - low.mean())
    gap = float(high[0] - low[-1])
    if separation < _SEPARATION * spread or gap < separation / 2:
        return None
    cut = math.exp(high[0])
    fast = [v for v in values if v < cut * (1 - 1e-12)]
    slow = [v for v in values if v >= cut * (1 - 1e-12)]
    return Shape(
        "bimodal",
        f"two modes: {len(fast)} trials around {median(fast):.4g}, {len(slow)} around"
        f" {median(slow):.4g}",
    )


def _drifting(logs: Sequence[float]) -> Shape | None:
    """Return the shape of a trend over the run, by Kendall's tau; its size is from the Theil-Sen
    slope."""
    from scipy import stats  # noqa: PLC0415  # a second to import, which few verdicts need

    order = range(len(logs))
    p = stats.kendalltau(order, logs).pvalue
    if p > _P_OF_DRIFT:
        return None
    whole = math.expm1(stats.theilslopes(logs, order).slope * (len(logs) - 1))
    if abs(whole) < _LEAST_DRIFT:
        return None
    return Shape(
        "drifting", f"drifts by {whole:+.1%} from the first trial to the last (p {p:.2g})"
    )
