"""Rank statistics: p, and the order statistics that bound an interval. Pure.

The null distributions are exact up to the sizes below, and normal beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_EXACT_UP_TO = 60
"""Largest number of pairs for which the null distribution of the signed rank is computed. Beyond
it, the normal approximation is good enough."""
_EXACT_P_UP_TO, _EXACT_P_UP_TO_TIED = 50, 13
"""Largest numbers of pairs, without and with ties, for which scipy's p is exact. Beyond them scipy
uses the normal approximation."""


def signed_rank_p(d: NDArray[np.float64]) -> float:
    """Return the p of scipy's `wilcoxon(d, zero_method="zsplit")`. With ties scipy enumerates the
    signs, which takes a hundred times as long."""
    if not np.any(d):
        return 1.0
    sizes = np.abs(d)
    tied = len(np.unique(sizes)) < len(d) or not np.all(d)
    if len(d) > (_EXACT_P_UP_TO_TIED if tied else _EXACT_P_UP_TO):
        from scipy import stats  # noqa: PLC0415  # a second to import

        return float(stats.wilcoxon(d, zero_method="zsplit").pvalue)
    ordered = np.sort(sizes)
    # twice the rank, since ties have ranks of halves
    first, last = (np.searchsorted(ordered, sizes, side) for side in ("left", "right"))
    ranks = first + last + 1
    below = np.cumsum(_rank_sums(ranks[d != 0]))
    rank_sum = int(ranks[d > 0].sum())
    return min(1.0, 2 * float(min(below[rank_sum], below[-1 - rank_sum])))


def _rank_sums(ranks: Iterable[int]) -> NDArray[np.float64]:
    """Return the probability of each sum of the ranks whose sign is +, if both signs are equally
    likely."""
    ways = np.array([1.0])
    for rank in ranks:
        more = np.zeros(len(ways) + rank)
        more[: len(ways)] += ways / 2
        more[rank:] += ways / 2
        ways = more
    return ways


@lru_cache
def signed_rank_below(n: int) -> NDArray[np.float64]:
    """Return the probability that the signed rank of n pairs is i or less, for each i."""
    return np.cumsum(_rank_sums(range(1, n + 1)))


@lru_cache
def signed_rank_index(n: int, error: float) -> int | None:
    """Return the index, counted from 0 at either end, of those order statistics of the (d_i + d_j)
    / 2 of n pairs beyond which the truth lies with a probability of at most `error` on each side.
    None if n is too small for that."""
    total = n * (n + 1) // 2
    if n > _EXACT_UP_TO:
        return _normal_index(total / 2, math.sqrt(n * (n + 1) * (2 * n + 1) / 24), error)
    return _last_index(signed_rank_below(n)[: total // 2], error)


@lru_cache
def rank_sum_index(n: int, m: int, error: float) -> int | None:
    """Return the same index for the n x m differences of two arms without pairs."""
    if n * m > 2500:
        return _normal_index(n * m / 2, math.sqrt(n * m * (n + m + 1) / 12), error)
    # ways[k][u]: in how many ways k of the first i ranks have U = u (Mann and Whitney 1947)
    ways = np.zeros((n + 1, n * m + 1))
    ways[0, 0] = 1.0
    for i in range(1, n + m + 1):
        for k in range(min(i, n), 0, -1):
            if 0 <= (step := i - k) <= m:
                ways[k, step:] += ways[k - 1, : n * m + 1 - step]
    return _last_index(np.cumsum(ways[n] / ways[n].sum())[: n * m // 2], error)


def find_median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the two values between which the median of the population lies with 95 % or more,
    whatever its distribution: order statistics, of the sign test. None for fewer than six."""
    n, below = len(values), 0.0
    index = -1
    while index + 1 < n // 2 and below + math.comb(n, index + 1) / 2**n <= 0.025:
        index += 1
        below += math.comb(n, index) / 2**n
    ordered = sorted(values)
    return None if index < 0 else (ordered[index], ordered[n - 1 - index])


def _last_index(below: NDArray[np.float64], error: float) -> int | None:
    """`below[i]`: the probability that the truth is beyond order statistic i of one end."""
    index = int(np.searchsorted(below, error, "right")) - 1
    return None if index < 0 else index


def _normal_index(mean: float, deviation: float, error: float) -> int:
    return max(0, round(mean + NormalDist().inv_cdf(error) * deviation) - 1)
