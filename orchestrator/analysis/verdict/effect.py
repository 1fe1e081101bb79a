"""Effect between two arms' values of one metric: its ratio, interval, p and verdict. Pure.

Times of host boots are noisy, and not normal: heavy tails, two modes, a machine that slows down.
So nothing here assumes a distribution. Trials come in pairs, one of each arm, one after the other.
The log ratios d = log(candidate / baseline) of the pairs are judged. They are symmetric around the
effect if the noise of both arms is alike, whatever its distribution, and slow drift cancels in
them, being the same on both sides:

- estimate: the Hodges-Lehmann estimator, the median of all (d_i + d_j) / 2, i <= j (Hodges and
  Lehmann 1963);
- interval: two order statistics of the same averages. Their coverage is known exactly from the
  null distribution of Wilcoxon's signed rank; it is the nearest to 95 % (for six pairs 93.75 %);
- p: Wilcoxon's signed-rank test, which is the permutation test that swaps the arms within pairs.

Arms without pairs (a control, two runs of different days) are judged by the two-sample forms: the
differences of all logs, Mann and Whitney's U. `ci/bench/verdicts.py` measures the false alarms,
power and coverage of these verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median, median_low
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["improved", "regressed", "equivalent", "inconclusive", "invalid"]
Basis = Literal["count", "exact", "trials", "few"]
"""Basis of a verdict. count: numbers that are the same in every trial of an arm. exact:
instruction counts, to their resolution. trials: the statistics above. few: too few trials for
them."""

ALPHA = 0.002
"""Largest adjusted p of a change that is called a difference. A run with trials.until is judged up
to a dozen times; with this limit, at most 1 % of such runs call a difference if there is none."""
CONFIDENCE = 0.95
LEAST_FOR_INTERVAL = 6
"""Least number of pairs, or of trials of each arm, for an interval."""
LEAST_FOR_P = 10
"""Least number of pairs for a p: with nine the smallest possible p is 2/2^9, above ALPHA."""
FEW_FLOOR = 2.0
"""Least factor between the arms' medians that is a difference if there are too few trials for
statistics. The arms must not overlap, either. No noise that was recorded comes near it."""


@dataclass(frozen=True)
class Resolution:
    """Instruction counts of two host boots are the same number if they are this near."""

    ratio: float
    ginsn: float
    """Counts no further apart than this, in 10^9 instructions, are the same whatever their
    ratio."""


OF_MAPS = Resolution(1.0005, 400e-9)
"""Maps without a guest: they differ by the timer's phase, or by an allocation that took another
path. ci/bench/exact.py measures it."""
OF_MAPS_IN_BOOTS = Resolution(1.15, 5e-6)
"""Maps of a guest boot: an unpatched kernel's work for a page depends on the shape of QEMU's maple
tree, which differs from boot to boot (1065 to 1197 instructions seen)."""
OF_UNMAPS_IN_BOOTS = Resolution(1.02, 5e-6)
"""Unmaps of a guest boot: timers and preemption come between. Boots of one kernel were 0.2 %
apart, unmaps that are not preempted 1.2 %."""
OF_BOOTS = Resolution(1.15, 3.0)
"""A guest boot from QEMU's start, its maps included; firmware and kernel wait for timers of their
own: ten boots of one kernel were up to 2.3 Ginsn apart."""

_EXACT_UP_TO = 60
"""Largest number of pairs for which the null distribution of the signed rank is computed. Beyond
it, the normal approximation is good enough."""
_EXACT_P_UP_TO, _EXACT_P_UP_TO_TIED = 50, 13
"""Largest numbers of pairs, without and with ties, for which scipy's p is exact. Beyond them scipy
uses the normal approximation."""


@dataclass(frozen=True)
class Rule:
    """Limits of what counts as a difference, and of what counts as none."""

    margin: float = 0.03
    """Equivalent: the interval lies within 1 / (1 + margin) .. 1 + margin."""
    floor: float = 0.01
    """A ratio nearer to 1 than this is never called a difference."""


@dataclass(frozen=True)
class Estimate:
    basis: Basis
    pairs: int
    """Complete pairs; for arms without pairs, the trials of the smaller arm."""
    ratio: float | None
    """Candidate / baseline: below 1 the candidate is cheaper. None if the baseline is 0."""
    interval: tuple[float, float] | None = None
    """95 % interval of the ratio. None if there are too few trials, or if there is no noise."""
    p: float | None = None
    """Two-sided. None if there are too few trials, or if there is no noise."""
    apart: bool = False
    """True if the trials of the two arms do not overlap."""
    far: bool = False
    """True if the arms' medians differ by FEW_FLOOR."""
    same: bool = False
    """True if the arms' numbers are the same; only for numbers without noise."""


@dataclass(frozen=True)
class Effect:
    """An estimate and its verdict."""

    estimate: Estimate
    verdict: Verdict
    p_adjusted: float | None = None
    """p, adjusted for the metrics that are judged together (Holm 1979)."""

    @property
    def ratio(self) -> float | None:
        return self.estimate.ratio

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.estimate.interval

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval, as a share of the larger arm."""
        if self.interval is None or self.ratio is None:
            return None
        low, high = self.interval
        return (high - low) / 2 / max(1.0, self.ratio)


def estimate_ratio(
    unit: str,
    baseline: Sequence[float],
    candidate: Sequence[float],
    pairs: Sequence[tuple[float, float]] | None,
    resolution: Resolution = OF_MAPS,
) -> Estimate:
    """Estimate the effect between two arms with at least one value each. `unit`: s, count or
    Ginsn; `resolution` applies to Ginsn only. `pairs`: the values of the complete pairs, baseline
    first; None if the arms have no pairs."""
    low, high = sorted((median(baseline), median(candidate)))
    estimate = _estimate(unit, baseline, candidate, pairs, resolution)
    return replace(estimate, far=high >= FEW_FLOOR * low)


def _estimate(
    unit: str,
    baseline: Sequence[float],
    candidate: Sequence[float],
    pairs: Sequence[tuple[float, float]] | None,
    resolution: Resolution,
) -> Estimate:
    if unit == "Ginsn":
        return _exact(baseline, candidate, resolution)
    constant = len({*baseline}) == 1 == len({*candidate})
    nothing = not any(baseline) and not any(candidate)  # 0 s: it never happened
    if constant and (unit == "count" or nothing):
        ratio, same = _ratio(baseline[0], candidate[0]), baseline[0] == candidate[0]
        number = _number(baseline, candidate, pairs)
        return Estimate("count", number, ratio, apart=not same, same=same)
    apart = max(candidate) < min(baseline) or min(candidate) > max(baseline)
    if apart and unit == "count":  # counts have no noise: a difference has a cause
        ratio = _ratio(median(baseline), median(candidate))
        return Estimate("count", _number(baseline, candidate, pairs), ratio, apart=True)
    if min(*baseline, *candidate) <= 0:  # these have no logarithm
        ratio = _ratio(median(baseline), median(candidate))
        return Estimate("few", _number(baseline, candidate, pairs), ratio, apart=apart)
    if pairs is None:
        return _unpaired(baseline, candidate, apart=apart)
    return _paired(baseline, candidate, pairs, apart=apart)


def _number(baseline: Sequence[float], candidate: Sequence[float],
            pairs: Sequence[tuple[float, float]] | None) -> int:  # fmt: skip
    return min(len(baseline), len(candidate)) if pairs is None else len(pairs)


def _ratio(baseline: float, candidate: float) -> float | None:
    if baseline == candidate:
        return 1.0
    return candidate / baseline if baseline else None


def _exact(
    baseline: Sequence[float], candidate: Sequence[float], resolution: Resolution
) -> Estimate:
    # chance only adds to an instruction count, so the lower of two is taken
    before, after = median_low(baseline), median_low(candidate)
    low, high = sorted((before, after))
    same = high <= low * resolution.ratio or high - low <= resolution.ginsn
    overlap = min(candidate) <= max(baseline) and min(baseline) <= max(candidate)
    pairs = min(len(baseline), len(candidate))
    return Estimate("exact", pairs, _ratio(before, after), apart=not (same or overlap), same=same)


def _paired(
    baseline: Sequence[float], candidate: Sequence[float], pairs: Sequence[tuple[float, float]],
    *, apart: bool,
) -> Estimate:  # fmt: skip
    n = len(pairs)
    if n == 0:
        return Estimate("few", 0, _ratio(median(baseline), median(candidate)), apart=apart)
    logs = np.log(np.array(pairs))
    d = np.sort(logs[:, 1] - logs[:, 0])
    averages, at = np.empty(n * (n + 1) // 2), 0
    for i in range(n):
        averages[at : at + n - i] = (d[i:] + d[i]) / 2
        at += n - i
    ratio, interval = _middle(averages, signed_rank_index(n) if n >= LEAST_FOR_INTERVAL else None)
    if n < LEAST_FOR_P:
        return Estimate("few", n, ratio, interval, apart=apart)
    return Estimate("trials", n, ratio, interval, signed_rank_p(d), apart)


def _unpaired(baseline: Sequence[float], candidate: Sequence[float], *, apart: bool) -> Estimate:
    from scipy import stats  # noqa: PLC0415  # a second to import, which few verdicts need

    n = min(len(baseline), len(candidate))
    before, after = np.log(np.array(baseline)), np.log(np.array(candidate))
    differences = (after[:, None] - before[None, :]).ravel()
    index = None
    if n >= LEAST_FOR_INTERVAL:
        index = rank_sum_index(len(baseline), len(candidate))
    ratio, interval = _middle(differences, index)
    if 2 / math.comb(len(baseline) + len(candidate), n) > ALPHA:
        return Estimate("few", n, ratio, interval, apart=apart)
    p = stats.mannwhitneyu(before, after).pvalue
    return Estimate("trials", n, ratio, interval, float(p), apart)


def _middle(
    values: NDArray[np.float64], index: int | None
) -> tuple[float, tuple[float, float] | None]:
    """Return exp of the median and of the order statistics `index` from both ends. Reorders the
    values in place, rather than copy them: thousands of pairs have millions of values."""
    middle = len(values) // 2
    ends = [] if index is None else [index, len(values) - 1 - index]
    values.partition([middle - 1, middle, *ends] if middle else [0])
    centre = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    if index is None:
        return float(np.exp(centre)), None
    low, high = (float(np.exp(values[end])) for end in ends)
    return float(np.exp(centre)), (low, high)


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
def signed_rank_index(n: int) -> int:
    """Return the index, counted from 0 at either end, of those order statistics of the (d_i + d_j)
    / 2 of n pairs that bound the interval: the two whose coverage is nearest to 95 %."""
    total = n * (n + 1) // 2
    if n > _EXACT_UP_TO:
        return _normal_index(total / 2, math.sqrt(n * (n + 1) * (2 * n + 1) / 24))
    return _nearest_index(np.cumsum(_rank_sums(range(1, n + 1)))[: total // 2])


@lru_cache
def rank_sum_index(n: int, m: int) -> int:
    """Return the same index for the n x m differences of two arms without pairs."""
    if n * m > 2500:
        return _normal_index(n * m / 2, math.sqrt(n * m * (n + m + 1) / 12))
    # ways[k][u]: in how many ways k of the first i ranks have U = u (Mann and Whitney 1947)
    ways = np.zeros((n + 1, n * m + 1))
    ways[0, 0] = 1.0
    for i in range(1, n + m + 1):
        for k in range(min(i, n), 0, -1):
            if 0 <= (step := i - k) <= m:
                ways[k, step:] += ways[k - 1, : n * m + 1 - step]
    return _nearest_index(np.cumsum(ways[n] / ways[n].sum())[: n * m // 2])


def _nearest_index(below: NDArray[np.float64]) -> int:
    """Return the index with the coverage nearest to CONFIDENCE. `below[i]`: the probability that
    the truth is beyond order statistic i of one end."""
    return int(np.argmin(np.abs(1 - 2 * below - CONFIDENCE)))


def _normal_index(mean: float, deviation: float) -> int:
    return max(0, round(mean - 1.959964 * deviation) - 1)


def judge_effect(estimate: Estimate, rule: Rule, p: float | None) -> Effect:
    """Judge an estimate. `p`: its p value, adjusted for the metrics that are judged together with
    it."""
    return Effect(estimate, _verdict(estimate, rule, p), p)


def _verdict(estimate: Estimate, rule: Rule, p: float | None) -> Verdict:
    ratio = math.inf if estimate.ratio is None else estimate.ratio
    direction: Verdict = "improved" if ratio < 1 else "regressed"
    if estimate.basis in ("count", "exact"):
        if estimate.same:
            return "equivalent"
        return direction if estimate.apart else "inconclusive"
    size = max(ratio, 1 / ratio) if ratio else math.inf
    if estimate.apart and estimate.far:
        return direction
    if p is not None and p <= ALPHA and size >= 1 + rule.floor:
        return direction
    if estimate.interval is not None:
        low, high = estimate.interval
        if 1 / (1 + rule.margin) < low and high < 1 + rule.margin:
            return "equivalent"
    return "inconclusive"


def adjust_holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust each p for all of them together, by Holm's method: the smallest times their number,
    and so on. None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    out: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        out[i] = largest
    return out


def is_precise(effect: Effect, precision: float) -> bool:
    """True if more trials are of no use: the effect is known to `precision` of the baseline, and
    its verdict is clear. Numbers without noise need one trial."""
    if effect.estimate.basis in ("count", "exact"):
        return True
    if effect.interval is None:
        return False
    low, high = effect.interval
    if effect.estimate.basis == "few" and not low <= 1 <= high:
        return False  # perhaps a difference, which so few trials cannot call
    width = effect.half_width
    clear = effect.verdict in ("improved", "regressed", "equivalent")
    return clear and width is not None and width <= precision
