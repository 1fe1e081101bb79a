"""Slow trials: an arm that is slow now and then, while its median stays where it was. Pure.

A trial is slow if it costs more than both arms' medians by a factor, the guard: as much as noise
hardly reaches, and at least so much that a fifth of such trials would cost an arm the margin of
equivalence on its mean. Both arms' numbers of slow trials are compared by Fisher's exact test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from orchestrator.evidence.faults import chance

LEAST_FOR_TAIL = 6
"""Least number of trials of each arm of which slow ones are told: fewer have no usual spread."""
SLOW_SHARE = 0.2
"""Share of slow trials that equivalence has to exclude."""
_DEVIATIONS = 5.0
"""Robust standard deviations beyond which a trial is slow."""
_RISK = 0.02
"""Largest probability of calling an arm equivalent of whose trials SLOW_SHARE are slow."""
_RISK_AT_ONCE = 0.01
"""The same at one look of a run with `until`, which has several."""
_EXCLUDED = 0.05
"""A share of slow trials is excluded if so few slow ones are less probable than this."""


@dataclass(frozen=True)
class Tail:
    limit: float
    """Cost above which a trial is slow, in the metric's unit."""
    baseline_slow: int
    candidate_slow: int
    baseline_trials: int
    candidate_trials: int
    p: float
    """One-sided p of Fisher's test, for the arm with the larger share of slow trials."""
    excluded_share: float
    """The run excludes, with 95 % confidence, that a larger share of the candidate's boots is
    slow."""

    @property
    def is_worse(self) -> bool:
        """True if a larger share of the candidate's trials is slow."""
        candidate = self.candidate_slow * self.baseline_trials
        return candidate > self.baseline_slow * self.candidate_trials

    @property
    def excess(self) -> int:
        """Number of slow trials that one arm has more than the other."""
        return abs(self.candidate_slow - self.baseline_slow)

    @property
    def permits_equivalence(self) -> bool:
        """True unless one arm has so many slow trials more that a fifth of its trials may be slow.
        One trial more hardly counts: equivalence of few trials excludes less, and says so
        (`excluded_share`)."""
        return not self.excess or _at_most(self.excess, self._trials, SLOW_SHARE) <= _RISK

    @property
    def is_settled(self) -> bool:
        """True if there are enough trials to exclude, at one of several looks, that a fifth of an
        arm's trials is slow."""
        return _at_most(self.excess, self._trials, SLOW_SHARE) <= _RISK_AT_ONCE

    @property
    def _trials(self) -> int:
        return min(self.baseline_trials, self.candidate_trials)


def find_tail(baseline: Sequence[float], candidate: Sequence[float], margin: float) -> Tail | None:
    """Return the slow trials of both arms, in numbers. None if there are too few trials, or if
    values have no logarithm."""
    if min(len(baseline), len(candidate)) < LEAST_FOR_TAIL or min(*baseline, *candidate) <= 0:
        return None
    middles = (median(baseline), median(candidate))
    deviation = 1.4826 * median(
        abs(math.log(value / middle))
        for values, middle in zip((baseline, candidate), middles, strict=True)
        for value in values
    )
    guard = max(1 + margin / SLOW_SHARE, math.exp(min(_DEVIATIONS * deviation, 100.0)))
    limit = guard * max(middles)
    slow, other_slow = (sum(v > limit for v in values) for values in (candidate, baseline))
    of, of_other = len(candidate), len(baseline)
    return Tail(
        limit, other_slow, slow, of_other, of,
        p=min(chance(slow, of, other_slow, of_other), chance(other_slow, of_other, slow, of)),
        excluded_share=excluded_share(slow, of),
    )  # fmt: skip


@lru_cache
def excluded_share(slow: int, trials: int) -> float:
    """Return the share of slow boots that so few slow trials exclude with 95 % confidence
    (Clopper and Pearson 1934): 9.5 % if none of 30 is slow."""
    if slow >= trials:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(slow, trials, middle) > _EXCLUDED else (low, middle)
    return high


@lru_cache
def _at_most(number: int, trials: int, share: float) -> float:
    """Return the probability of at most so many slow trials if this share of boots is slow."""
    if share <= 0:
        return 1.0
    if share >= 1:
        return float(number >= trials)

    def log_ways(k: int) -> float:
        return math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)

    slow, fast = math.log(share), math.log1p(-share)
    return math.fsum(
        math.exp(log_ways(k) + k * slow + (trials - k) * fast)
        for k in range(min(number, trials) + 1)
    )
