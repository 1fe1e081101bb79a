"""What a plan can find, before anything runs. Pure.

A signed rank calls a difference if at most so many averages (d_i + d_j) / 2 of the pairs' log
ratios are on the other side (statistics/ranks.py). So a run finds every change above the negative
of that order statistic of its noise; a plan finds, in 95 of 100 runs, the 95 % quantile of that.
The noise is simulated as normal: with outliers a plan finds less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from statistics import NormalDist

import numpy as np

from orchestrator.analysis.statistics.ranks import signed_rank_index
from orchestrator.analysis.statistics.sequential import LEAST_FOR_P, Levels, levels_at
from orchestrator.analysis.verdict.comparison import Comparison
from orchestrator.analysis.verdict.effect import LEAST_FOR_EQUIVALENCE, LEAST_FOR_INTERVAL
from orchestrator.analysis.verdict.metrics import average_boots, pair_boots, values_by_pair
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.noise import NightNoise
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import ARMS, METRICS, ArmName, Metric

FOUND = 0.95
"""Share of runs in which a plan has to find a change."""
_RUNS = 2000
_SIMULATED_UP_TO = 60
"""Largest number of pairs whose runs are simulated. Beyond it, the normal approximation of the
signed rank is good enough; its efficiency against the mean is 3 / pi for normal noise."""
_HEADLINE: tuple[Metric, ...] = ("bar_map_cost",)


@dataclass(frozen=True)
class Power:
    """What the longest run of a plan can find."""

    metrics: tuple[Metric, ...]
    """Noisy metrics that decide together. None: every number of this plan is exact."""
    pairs: int
    """Independent pairs: fewer than pairs of trials if these share boots."""
    needed: int
    """Independent pairs with which a p can be small enough."""
    shift: float | None
    """Change of the log that is found in FOUND of the runs, in deviations of one trial. None if
    only a large factor is found."""
    floor: float
    """Smallest change that is called one."""

    def find_change(self, spread: float) -> float | None:
        """Return the smallest change that is found, as a share, at a spread of one trial's log."""
        if self.shift is None:
            return None
        return max(self.floor, math.expm1(min(self.shift * spread, 100.0)))


def compute_power(scenario: Scenario) -> Power:
    metrics = _noisy_metrics(scenario)
    pairs = _count_independent_pairs(scenario)
    most, until = scenario.trials.most_pairs, scenario.trials.until
    levels = Levels() if until is None else levels_at(most, most)
    level = levels.difference / max(1, len(metrics))
    shift = find_shift(pairs, level) if pairs >= LEAST_FOR_P else None
    needed = max(LEAST_FOR_P, math.ceil(math.log2(2 / level)))
    return Power(metrics, pairs, needed, shift, scenario.judgement.floor)


def check_power(scenario: Scenario) -> None:
    """Raise ScenarioError if a plan asks for statistics that its pairs cannot give: if no p can be
    small enough, or if noisy arms are expected to be equivalent in too few pairs. A few pairs that
    find a large factor are no mistake."""
    power, most = compute_power(scenario), scenario.trials.most_pairs
    if not power.metrics:
        return
    boots = "" if power.pairs == most else f", which share boots: {power.pairs} independent ones"
    if most >= LEAST_FOR_P and power.pairs < power.needed:
        deciding = ", ".join(power.metrics)
        raise ScenarioError(
            f"{most} pairs{boots}: no difference can be called, for {deciding} take"
            f" {power.needed} pairs",
            hint="take more pairs, or trials.until, or host.fresh_boots = true"
            if boots else "take more pairs, or trials.until",
            reason=Reason.POWERLESS,
        )  # fmt: skip
    alike = [name for name in power.metrics if scenario.expect.get(name) == "equivalent"]
    if alike and not scenario.host.exact and power.pairs < LEAST_FOR_EQUIVALENCE:
        raise ScenarioError(
            f'expect.{alike[0]} = "equivalent": {most} pairs{boots} cannot show that; it takes'
            f" {LEAST_FOR_EQUIVALENCE}",
            hint="take more pairs, or trials.until", reason=Reason.POWERLESS,
        )  # fmt: skip


def _noisy_metrics(scenario: Scenario) -> tuple[Metric, ...]:
    """Return the metrics with noise that decide a run. Without expectations one decides, which is
    known when the run is judged."""
    if scenario.workload == "map" and scenario.host.exact:
        return ()
    names = tuple(scenario.expect) or _HEADLINE
    return tuple(name for name in names if METRICS[name.partition("@")[0]] != "count")


def _count_independent_pairs(scenario: Scenario) -> int:
    if scenario.host.fresh_boots:
        return scenario.trials.most_pairs
    arms: list[ArmName] = [arm for t in make_plan(scenario) for arm in ARMS if t.arm == arm]
    return len(pair_boots([(arm, 1.0) for arm, _ in groupby(arms)]))


@lru_cache
def find_shift(pairs: int, level: float) -> float | None:
    """Return the change of the log, in deviations of one trial, that so many pairs find in FOUND
    of the runs. `level`: largest p. None if no p is that small."""
    index = signed_rank_index(pairs, level / 2)
    if index is None:
        return None
    if pairs > _SIMULATED_UP_TO:
        normal = NormalDist()
        quantiles = normal.inv_cdf(1 - level / 2) + normal.inv_cdf(FOUND)
        return math.sqrt(2) * quantiles / math.sqrt(pairs * 3 / math.pi)
    noise = np.random.default_rng(pairs).normal(0, math.sqrt(2), (_RUNS, pairs))
    first, second = np.triu_indices(pairs)
    averages = (noise[:, first] + noise[:, second]) / 2
    averages.partition(index, axis=1)
    return float(np.quantile(-averages[:, index], FOUND))


def measure_noise(
    comparison: Comparison, *, shares_boots: bool
) -> list[tuple[Metric, NightNoise]]:
    """Return the noise of each noisy metric of a run that has enough pairs."""
    started = [r.started for r in comparison.results if r.started]
    nights = []
    for metric in comparison.metrics:
        pairs = _pairs_of(comparison, metric.name, shares_boots=shares_boots)
        noisy = metric.effect.is_noisy and metric.ratio and len(pairs) >= LEAST_FOR_INTERVAL
        if noisy and metric.ratio and started and min(min(pair) for pair in pairs) > 0:
            d = np.log([after / before for before, after in pairs])
            deviation = 1.4826 * float(np.median(np.abs(d - np.median(d))))
            night = NightNoise(
                at=min(started), trials=2 * len(pairs), spread=deviation / math.sqrt(2),
                ratio=metric.ratio,
            )  # fmt: skip
            nights.append((metric.name, night))
    return nights


def _pairs_of(
    comparison: Comparison, name: Metric, *, shares_boots: bool
) -> Sequence[tuple[float, float]]:
    if shares_boots:
        return pair_boots(average_boots(comparison.results, name))
    before, after = (values_by_pair(comparison.results, arm, name) for arm in ARMS)
    return [(before[pair], after[pair]) for pair in before if pair in after]
