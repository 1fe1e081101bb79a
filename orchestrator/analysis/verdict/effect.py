"""Effect between two arms' values of one metric: its ratio, interval, p and verdict. Pure.

Times of host boots are noisy, and not normal: heavy tails, two modes, a machine that slows down.
So nothing here assumes a distribution. Trials come in pairs, one of each arm, in turns. The log
ratios d = log(candidate / baseline) of the pairs are judged. They are symmetric around the effect
if the noise of both arms is alike, whatever its distribution, and slow drift cancels in them,
being the same on both sides:

- estimate: the Hodges-Lehmann estimator, the median of all (d_i + d_j) / 2, i <= j (Hodges and
  Lehmann 1963);
- interval: two order statistics of the same averages. Their coverage is known exactly from the
  null distribution of Wilcoxon's signed rank, and is at least 95 %. A run that is looked at
  several times has the repeated interval, which is wider (statistics/sequential.py);
- p: Wilcoxon's signed-rank test, which is the permutation test that swaps the arms within pairs.

Arms without pairs (a control, two runs of different days) are judged by the two-sample forms: the
differences of all logs, Mann and Whitney's U. Trials that are slow now and then are judged besides
(statistics/tail.py). `ci/bench/verdicts.py` measures the false alarms, power and coverage of these
verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_low
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.statistics.ranks import (
    rank_sum_index,
    signed_rank_index,
    signed_rank_p,
)
from orchestrator.analysis.statistics.sequential import ALPHA, LEAST_FOR_P, Levels
from orchestrator.analysis.statistics.tail import Tail, find_tail

Verdict = Literal["improved", "regressed", "equivalent", "inconclusive", "invalid"]
Basis = Literal["count", "exact", "trials", "few"]
"""Basis of a verdict. count: numbers that are the same in every trial of an arm. exact:
instruction counts of maps, to their resolution. trials: the statistics above. few: too few trials
for them."""

LEAST_FOR_INTERVAL = 6
"""Least number of pairs, or of trials of each arm, for an interval."""
LEAST_FOR_EQUIVALENCE = 10
"""Least number of pairs with which noisy arms are called equivalent: fewer say nothing about boots
that are slow now and then."""
FEW_FLOOR = 2.0
"""Least factor between the arms' medians that is a difference if there are too few trials for
statistics. The arms must not overlap, either."""
ONE_PAIR_FLOOR = 10.0
"""The same of a single pair. Of the recorded times of one kernel, single pairs differed by a
factor of two in 3.3 % of cases, on a machine with other work to do; another pair has to confirm
that."""
_CLOCK = 1e-9
"""Finest step of any clock here: a nanosecond, or one instruction in Ginsn."""


@dataclass(frozen=True)
class Resolution:
    """How far apart instruction counts of two host boots may be, if they have one kernel."""

    ratio: float
    ginsn: float
    """Counts no further apart than this, in 10^9 instructions, are the same whatever their
    ratio."""
    exact: bool = False
    """True: the counts are the same every time, to this resolution, and one trial is enough.
    False: they are as noisy as times, and this is the widest noise that was seen."""

    def covers(self, low: float, high: float) -> bool:
        """True if two counts are no further apart than this."""
        return high <= low * self.ratio or high - low <= self.ginsn


OF_MAPS = Resolution(1.0005, 400e-9, exact=True)
"""Maps without a guest: they differ by the timer's phase, or by an allocation that took another
path. ci/bench/exact.py measures it."""
OF_MAPS_IN_BOOTS = Resolution(1.26, 5e-6)
"""Maps of a guest boot: an unpatched kernel's work for a page depends on the shape of QEMU's maple
tree, which differs from boot to boot. The recorded pages cost 997.6 to 1249.3 instructions."""
OF_UNMAPS_IN_BOOTS = Resolution(1.02, 5e-6)
"""Unmaps of a guest boot: timers and preemption come between. Boots of one kernel were 0.2 %
apart, unmaps that are not preempted 1.2 %."""
OF_BOOTS = Resolution(1.15, 3.0)
"""A guest boot from QEMU's start, its maps included; firmware and kernel wait for timers of their
own: ten boots of one kernel were up to 2.3 Ginsn apart."""


@dataclass(frozen=True)
class Rule:
    """Limits of what counts as a difference, and of what counts as none."""

    margin: float = 0.03
    """Equivalent: the interval lies within 1 / (1 + margin) .. 1 + margin."""
    floor: float = 0.01
    """A ratio nearer to 1 than this is never called a difference."""
    levels: Levels = field(default_factory=Levels)
    """What counts at the look at which the run is judged."""


@dataclass(frozen=True)
class Estimate:
    basis: Basis
    pairs: int
    """Complete pairs; for arms without pairs, the trials of the smaller arm."""
    ratio: float | None
    """Candidate / baseline: below 1 the candidate is cheaper. None if the baseline is 0."""
    interval: tuple[float, float] | None = None
    """95 % interval of the ratio; of a run with `until` the repeated one. None if there are too
    few trials, or if there is no noise."""
    p: float | None = None
    """Two-sided. None if there are too few trials, or if there is no noise."""
    apart: bool = False
    """True if the trials of the two arms do not overlap."""
    floor: float = FEW_FLOOR
    """Factor between the arms' medians from which a few trials are enough: FEW_FLOOR,
    ONE_PAIR_FLOOR for a single pair, or the resolution of an exact guest boot."""
    far: bool = False
    """True if the arms' medians differ by this factor."""
    unconfirmed: bool = False
    """True if a single pair differs by FEW_FLOOR, which another pair has to confirm."""
    same: bool = False
    """True if the arms' numbers are the same; only for numbers without noise."""
    within: float | None = None
    """Factor that the arms are at most apart, to the bench's resolution. It takes the place of an
    interval: for exact counts, and for few guest boots that are within the resolution."""
    tail: Tail | None = None
    """Slow trials of both arms; None if there are too few trials, or no noise."""


@dataclass(frozen=True)
class Effect:
    """An estimate and its verdict."""

    estimate: Estimate
    verdict: Verdict
    p_adjusted: float | None = None
    """p, adjusted for the metrics that are judged together (Holm 1979)."""
    tail_p_adjusted: float | None = None
    """p of the slow trials, adjusted in the same way."""

    @property
    def ratio(self) -> float | None:
        return self.estimate.ratio

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.estimate.interval

    @property
    def is_noisy(self) -> bool:
        """True if trials of one arm differ by chance."""
        return self.estimate.basis not in ("count", "exact")

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
    rule: Rule | None = None,
    *,
    confirmed: bool | None = None,
) -> Estimate:
    """Estimate the effect between two arms with at least one value each. `unit`: s, count or
    Ginsn; `resolution` applies to Ginsn only. `pairs`: the values of the independent pairs,
    baseline first; None if the arms have no pairs. `confirmed`: whether a difference by FEW_FLOOR
    needs no other pair, because there are several, or because a count proves it; by default, if
    there are several trials of each arm."""
    rule = rule or Rule()
    if unit == "Ginsn" and resolution.exact:
        return _exact(baseline, candidate, resolution)
    estimate = _estimate(unit, baseline, candidate, pairs, rule.levels.error)
    if estimate.basis == "count":
        return estimate
    estimate = replace(estimate, tail=find_tail(baseline, candidate, rule.margin))
    low, high = sorted((median(baseline), median(candidate)))
    if unit == "Ginsn":
        low, high = sorted((median_low(baseline), median_low(candidate)))
        within, floor = None, _share(resolution, low)
        if estimate.basis == "few" and high <= floor * low:
            within = _reach(baseline, candidate) * floor
        return replace(estimate, floor=floor, far=high > floor * low, within=within)
    if confirmed is None:
        confirmed = min(len(baseline), len(candidate)) > 1
    floor = FEW_FLOOR if confirmed else ONE_PAIR_FLOOR
    far = high >= floor * low
    unconfirmed = estimate.apart and not far and high >= FEW_FLOOR * low
    return replace(estimate, floor=floor, far=far, unconfirmed=unconfirmed)


def _estimate(
    unit: str,
    baseline: Sequence[float],
    candidate: Sequence[float],
    pairs: Sequence[tuple[float, float]] | None,
    error: float,
) -> Estimate:
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
        estimate = _unpaired(baseline, candidate, error, apart=apart)
    else:
        estimate = _paired(baseline, candidate, pairs, error, apart=apart)
    if estimate.interval is None or unit == "count":
        return estimate
    return replace(estimate, interval=_widen(estimate.interval, baseline, candidate))


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
    same = resolution.covers(low, high)
    overlap = min(candidate) <= max(baseline) and min(baseline) <= max(candidate)
    pairs = min(len(baseline), len(candidate))
    within = high / low if low > 0 else 1.0 if not high else math.inf
    if same and within > resolution.ratio:
        within = max(within, _share(resolution, low))
    if overlap and not same:
        within = _reach(baseline, candidate)
    return Estimate(
        "exact", pairs, _ratio(before, after), apart=not (same or overlap), same=same,
        within=within,
    )  # fmt: skip


def _reach(baseline: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the factor between the arms' extremes that are the furthest apart."""
    factors = (max(candidate), min(baseline)), (max(baseline), min(candidate))
    return max(high / low if low > 0 else math.inf for high, low in factors)


def _share(resolution: Resolution, count: float) -> float:
    """Return the factor that the resolution is of a count."""
    return max(resolution.ratio, 1 + resolution.ginsn / count if count > 0 else math.inf)


def _paired(
    baseline: Sequence[float], candidate: Sequence[float], pairs: Sequence[tuple[float, float]],
    error: float, *, apart: bool,
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
    index = signed_rank_index(n, error) if n >= LEAST_FOR_INTERVAL else None
    ratio, interval = _middle(averages, index)
    if n < LEAST_FOR_P:
        return Estimate("few", n, ratio, interval, apart=apart)
    return Estimate("trials", n, ratio, interval, signed_rank_p(d), apart)


def _unpaired(
    baseline: Sequence[float], candidate: Sequence[float], error: float, *, apart: bool
) -> Estimate:
    from scipy import stats  # noqa: PLC0415  # a second to import, which few verdicts need

    n = min(len(baseline), len(candidate))
    before, after = np.log(np.array(baseline)), np.log(np.array(candidate))
    differences = (after[:, None] - before[None, :]).ravel()
    index = None
    if n >= LEAST_FOR_INTERVAL:
        index = rank_sum_index(len(baseline), len(candidate), error)
    ratio, interval = _middle(differences, index)
    if 2 / math.comb(len(baseline) + len(candidate), n) > ALPHA:
        return Estimate("few", n, ratio, interval, apart=apart)
    p = stats.mannwhitneyu(before, after).pvalue
    return Estimate("trials", n, ratio, interval, float(p), apart)


def _widen(
    interval: tuple[float, float], baseline: Sequence[float], candidate: Sequence[float]
) -> tuple[float, float]:
    """Widen an interval by what the clock leaves open: each value is known to half a step."""
    step = clock_step([*baseline, *candidate])
    open_share = step / 2 * (1 / median(baseline) + 1 / median(candidate))
    low, high = interval
    return low * max(0.0, 1 - open_share), high * (1 + open_share)


def clock_step(values: Sequence[float]) -> float:
    """Return the largest step of which all values are multiples: 0.004 s of a clock that ticks 250
    times a second, and hardly a nanosecond of a fine one."""
    return math.gcd(*(round(value / _CLOCK) for value in values)) * _CLOCK


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


def judge_effect(
    estimate: Estimate, rule: Rule, p: float | None, tail_p: float | None = None
) -> Effect:
    """Judge an estimate. `p`, `tail_p`: its p values, adjusted for the metrics that are judged
    together with it."""
    verdict = _locate(estimate, rule, p)
    tail = estimate.tail
    if tail is not None:
        if tail_p is not None and tail_p <= rule.levels.difference:
            verdict = _add_tail(verdict, worse=tail.is_worse)
        elif verdict == "equivalent" and not tail.permits_equivalence:
            verdict = "inconclusive"
    return Effect(estimate, verdict, p, tail_p)


def _add_tail(verdict: Verdict, *, worse: bool) -> Verdict:
    """Return the verdict of an arm that is slow more often (`worse`), or less often. A faster arm
    that is slow more often is neither better nor worse."""
    if worse:
        return "inconclusive" if verdict == "improved" else "regressed"
    return "regressed" if verdict == "regressed" else "improved"


def _locate(estimate: Estimate, rule: Rule, p: float | None) -> Verdict:
    """Judge where the arms' numbers are, whatever single trials do."""
    ratio = math.inf if estimate.ratio is None else estimate.ratio
    direction: Verdict = "improved" if ratio < 1 else "regressed"
    if _differs(estimate, rule, p):
        return direction
    same = estimate.same if estimate.basis == "count" else _is_within(estimate, rule)
    return "equivalent" if same else "inconclusive"


def _differs(estimate: Estimate, rule: Rule, p: float | None) -> bool:
    """True if the arms' numbers differ, and by no less than is worth a word."""
    ratio = estimate.ratio
    if estimate.basis == "count":
        return estimate.apart
    if ratio and max(ratio, 1 / ratio) < 1 + rule.floor:
        return False
    if p is not None and p <= rule.levels.difference:
        return True
    return estimate.apart and (estimate.far or estimate.basis == "exact")


def _is_within(estimate: Estimate, rule: Rule) -> bool:
    """True if all that the effect may be lies within the margin."""
    if estimate.within is not None:
        return estimate.within <= 1 + rule.margin
    if estimate.interval is None or estimate.pairs < LEAST_FOR_EQUIVALENCE:
        return False
    low, high = estimate.interval
    return 1 / (1 + rule.margin) < low and high < 1 + rule.margin


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
    """True if more trials are of no use: the effect is known to `precision` of the baseline, its
    verdict is clear, and if that is that nothing changed, slow boots would have shown. Numbers
    without noise need one trial."""
    if not effect.is_noisy:
        return True
    if effect.interval is None:
        return False
    low, high = effect.interval
    if effect.estimate.basis == "few" and not low <= 1 <= high:
        return False  # perhaps a difference, which so few trials cannot call
    width = effect.half_width
    clear = effect.verdict in ("improved", "regressed", "equivalent")
    if effect.verdict == "equivalent" and (tail := effect.estimate.tail) is not None:
        clear = tail.is_settled
    return clear and width is not None and width <= precision
