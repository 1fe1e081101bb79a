"""Measure how often a verdict is right: simulated nights, judged by the code for real ones.

    .venv/bin/python ci/bench/verdicts.py [NIGHTS]

Each night is a run with `until` at its default settings (precision, margin, floor, at most 30
pairs, control, warm-up) and one metric, whose trials are noise around a known ratio. Only the
trials are simulated: the plan, the order, the looks and the verdict are the program's. Seeds
are fixed. The noise has the recorded size and one of these kinds:

- normal     normal noise of the logs
- heavy      Student's t with 3 degrees of freedom; one trial in twenty is far slower
- bimodal    three trials in ten take a path that is slower by 1.5 times that size; each path
             has a third of the noise
- drifting   normal, plus a trend of about four times that size over the night and a random walk
- recorded   runs of one kernel against itself, from fixtures/recorded/noise.json: stretches of
             eight consecutive trials, so that a drift in them is kept

Prints the shares of nights that call a difference (false alarms, if both arms are the same), that
call equivalence, that the control ends, and whose 95 % interval covers the truth; and the pairs
used.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median, pstdev

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import compare_trials
from orchestrator.analysis.verdict.stopping import count_planned
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import current_name

RECORDED = Path(__file__).parents[2] / "fixtures/recorded/noise.json"
METRIC = "bar_map_cost"
RATIOS = (1.0, 1.03, 1.05)
"""No difference; the margin of equivalence; a difference to detect."""
SCENARIO = f"""
name = "night"
workload = "map"
host.accel = "tcg"
arms.baseline.kernel.dir = "/a"
arms.candidate.kernel.dir = "/b"
trials.until = {{}}
expect.{METRIC} = "not-regressed"
"""
Noise = Callable[[random.Random, int], list[float]]
"""(draw, trials) -> the deviation of each trial's log, in the order of the trials."""


def normal(cv: float, draw: random.Random, n: int) -> list[float]:
    return [draw.gauss(0, cv) for _ in range(n)]


def heavy(cv: float, draw: random.Random, n: int) -> list[float]:
    def one() -> float:
        t3 = draw.gauss(0, 1) / math.sqrt(draw.gammavariate(1.5, 2) / 3)
        return cv * t3 / math.sqrt(3) + (draw.expovariate(1 / (3 * cv)) * (draw.random() < 0.05))

    return [one() for _ in range(n)]


def bimodal(cv: float, draw: random.Random, n: int) -> list[float]:
    return [draw.gauss(0, cv / 3) + 3 * cv / 2 * (draw.random() < 0.3) for _ in range(n)]


def drifting(cv: float, draw: random.Random, n: int) -> list[float]:
    trend, walk, found = draw.gauss(0, 4 * cv), 0.0, []
    for i in range(n):
        walk += draw.gauss(0, cv / 4)
        found.append(draw.gauss(0, cv) + walk + trend * i / n)
    return found


def recorded(runs: Sequence[Sequence[float]], draw: random.Random, n: int) -> list[float]:
    found: list[float] = []
    while len(found) < n:
        run = draw.choice(runs)
        start = draw.randrange(len(run))
        found += [run[(start + i) % len(run)] for i in range(8)]
    return found[:n]


@dataclass(frozen=True)
class Night:
    called: bool
    right: bool
    """True if a difference was called, in the right direction."""
    equivalent: bool
    invalid: bool
    covered: bool
    pairs: int


def one_night(noise: Noise, ratio: float, seed: int) -> Night:
    scenario, _ = parse_scenario(SCENARIO, "night")
    draw = random.Random(seed)
    plan = make_plan(scenario.model_copy(
        update={"trials": scenario.trials.model_copy(update={"seed": seed})}
    ))  # fmt: skip
    offs = noise(draw, len(plan))
    results = [
        TrialResult(
            trial.name, trial.arm, "measured", pair=trial.pair,
            samples={METRIC: (math.exp(off) * (ratio if trial.arm == "candidate" else 1.0),)},
        )
        for trial, off in zip(plan, offs, strict=True)
    ]  # fmt: skip
    return _judged(scenario, seed, results, ratio)


def _judged(scenario: Scenario, seed: int, results: list[TrialResult], ratio: float) -> Night:
    scenario = scenario.model_copy(
        update={"trials": scenario.trials.model_copy(update={"seed": seed})}
    )
    results = results[: count_planned(scenario, results, "tcg")]
    [metric] = compare_trials(scenario, {}, results, len(results), "tcg").metrics
    low, high = metric.effect.interval or (0.0, math.inf)
    right = {"improved": ratio < 1, "regressed": ratio > 1}
    return Night(
        called=metric.verdict in right,
        right=right.get(metric.verdict, False),
        equivalent=metric.verdict == "equivalent",
        invalid=metric.verdict == "invalid",
        covered=low <= ratio <= high,
        pairs=metric.effect.estimate.pairs,
    )


def noises() -> dict[str, Noise]:
    runs = json.loads(RECORDED.read_text())["runs"]
    logs = [[math.log(v / median(run["values"])) for v in run["values"]] for run in runs]
    cv = median(
        spread(log)
        for run, log in zip(runs, logs, strict=True)
        if current_name(run["metric"]) == METRIC
    )
    found: dict[str, Noise] = {
        kind.__name__: partial(kind, cv) for kind in (normal, heavy, bimodal, drifting)
    }
    for run, log in zip(runs, logs, strict=True):
        print(
            f"{run['run']}, {run['metric']}: {len(log)} trials, coefficient of variation"
            f" {pstdev(log):.1%}, without outliers {spread(log):.1%}"
        )
    print(f"normal, heavy, bimodal and drifting have that of {METRIC}: {cv:.2%}")
    return found | {"recorded": partial(recorded, logs)}


def spread(logs: Sequence[float]) -> float:
    """Return a robust standard deviation, which ignores outliers: 1.4826 times the median absolute
    deviation."""
    middle = median(logs)
    return 1.4826 * median(abs(log - middle) for log in logs)


def main() -> None:
    nights = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{nights} nights each, default settings")
    print("noise      ratio   called   right  equivalent  invalid  covered  pairs")
    with ProcessPoolExecutor() as pool:
        for name, noise in noises().items():
            for ratio in RATIOS:
                of = pool.map(partial(one_night, noise, ratio), range(nights), chunksize=50)
                found = list(of)

                def share(what: str, found: list[Night] = found) -> float:
                    return 100 * fmean(getattr(night, what) for night in found)

                print(
                    f"{name:<10} {ratio:.3f}  {share('called'):5.2f} %  {share('right'):5.1f} %"
                    f"     {share('equivalent'):5.1f} %  {share('invalid'):5.2f} %"
                    f"  {share('covered'):5.1f} %  {fmean(n.pairs for n in found):5.1f}"
                )


if __name__ == "__main__":
    main()
