"""Group-sequential levels: how strict each look at a run with `trials.until` must be, so that all
looks together err as seldom as one. Pure.

After n of N pairs, a share t = n / N of the run's information is known. A bound of Wang and
Tsiatis's family holds the standardized statistic at that look to c * t^(shape - 1/2); shape 0 is
O'Brien and Fleming's bound, 1/2 Pocock's. The constant c follows from the looks and the wanted
error by numerical integration: the statistic, as a sum, has independent normal steps between
looks, so its density after each look is that before it, cut at the bounds and convolved with the
step (Armitage, McPherson and Rowe 1969). The signed rank is compared by the probability that
belongs to each bound, exactly; it has those steps in the limit, and ci/bench/sequential.py
simulates how near to that it is from ten pairs on.

Sources: O'Brien and Fleming 1979; Wang and Tsiatis 1987; Jennison and Turnbull, Group Sequential
Methods, 2000, chapters 2 (bounds) and 9 (repeated intervals), 19.2 (the integration). A repeated
interval has, at each look, the ratios that the bound at that look does not reject; it covers the
truth at whichever look the run ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

ALPHA = 0.002
"""Largest adjusted p with which a difference is called one, in a run of a fixed number of pairs.
Many metrics and nights are looked at."""
ALPHA_UNTIL = 0.004
"""The same over all looks of a run with `trials.until`. The run goes on after an unclear look, so
that few calls are wasted: at most 1 % of all nights may be a false alarm, failures and slow trials
included (ci/bench/verdicts.py)."""
ERROR = 0.025
"""Probability that the truth is beyond one end of an interval, and that a change of exactly the
margin is called equivalent."""
LEAST_FOR_P = 10
"""Least number of pairs for a p: with nine the smallest possible p is 2/2^9, above ALPHA."""
_STEP, _MOST_LOOKS = 4, 8
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)
"""Gauss and Legendre's rule between two bounds; 64 points give the same six digits."""


@dataclass(frozen=True)
class Levels:
    """What counts at one look."""

    difference: float = ALPHA
    """Largest adjusted p, two-sided, with which a difference is called one."""
    error: float = ERROR
    """Probability that the truth is beyond one end of the interval."""


@lru_cache
def choose_looks(most_pairs: int) -> tuple[int, ...]:
    """Return the numbers of pairs after which a run of at most so many pairs is looked at: 10, 14,
    ..., or fewer looks in a long run. They are even: a block is two pairs."""
    step = _STEP
    while LEAST_FOR_P + step * (_MOST_LOOKS - 1) < most_pairs:
        step += 2
    return (*range(LEAST_FOR_P, most_pairs, step), most_pairs)


def levels_at(pairs: int, most_pairs: int) -> Levels:
    """Return the levels of a run with `until` after so many of `most_pairs` pairs: those of the
    last look so far."""
    looks = choose_looks(most_pairs)
    look = next((n for n in reversed(looks) if n <= pairs), looks[0])
    return Levels(
        difference=2 * _tail_beyond_bound(look, most_pairs, ALPHA_UNTIL, 0.25),
        error=_tail_beyond_bound(look, most_pairs, 2 * ERROR, 0.0),
    )


def _tail_beyond_bound(look: int, most_pairs: int, error: float, shape: float) -> float:
    constant = bound_constant(choose_looks(most_pairs), error, shape)
    return NormalDist().cdf(-constant * (look / most_pairs) ** (shape - 0.5))


@lru_cache
def bound_constant(looks: tuple[int, ...], error: float, shape: float) -> float:
    """Return c, with which the bounds c * t^(shape - 1/2) of both sides are crossed with the
    probability `error` if there is no difference."""
    low, high = 0.0, 10.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        if crossing_probability(looks, middle, shape) > error:
            low = middle
        else:
            high = middle
    return high


def crossing_probability(looks: tuple[int, ...], constant: float, shape: float) -> float:
    """Return the probability that a statistic without a difference crosses a bound at any of the
    looks."""
    times = np.array(looks) / looks[-1]
    # of the statistic as a sum, whose variance after each look is the time; nothing is beyond nine
    # deviations
    bounds = np.minimum(constant * times**shape, 9 * np.sqrt(times))
    sums, density, masses = np.zeros(1), np.ones(1), np.ones(1)
    before = 0.0
    for time, bound in zip(times, bounds, strict=True):
        at = bound * _NODES
        variance = time - before
        steps = np.exp(-((at[:, None] - sums) ** 2) / (2 * variance))
        density = steps @ (density * masses) / math.sqrt(2 * math.pi * variance)
        sums, masses, before = at, bound * _WEIGHTS, time
    return 1 - float(density @ masses)
