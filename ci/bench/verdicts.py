"""Measure how often a verdict is right: simulated nights, judged by the code for real ones.

    .venv/bin/python ci/bench/verdicts.py [NIGHTS [KIND ...]]

Each night is a run with `until` at its default settings (precision, margin, floor, at most 30
pairs, control, warm-up) and one metric, whose trials are noise around a known ratio. Only the
trials are simulated: the plan, the order, the attempts, the looks and the verdict are the
program's. Seeds are fixed. The noise has the recorded size and one of these kinds:

- normal      normal noise of the logs
- heavy       Student's t with 3 degrees of freedom; one trial in twenty is far slower
- bimodal     three trials in ten take a path that is slower by 1.5 times that size; each path has
              a third of the noise
- drifting    normal, plus a trend of about four times that size over the night and a random walk
- correlated  each trial has 0.9 of the deviation of the one before it
- wide        normal, 10 %
- outliers    normal; one trial in fifty costs 1.5 to 5 times as much
- steps       normal; twice a night the machine gets slower or faster by about five times that size
- failing     normal; half a percent, one or two percent of the attempts fail, in both arms alike
- boots       `host.fresh_boots = false`: what a boot adds is five times as large as the noise of a
              trial
- slow        normal; the candidate is five times as slow in one boot of ten, or of five
- pairs       as slow, in a run of 30 pairs instead of `until`
- nights      two runs of 10 pairs, each in a night that is slower or faster by as much as its
              trials differ: the candidates are compared by their ratios to the same baseline, or
              alone
- recorded    runs of one kernel against itself, from fixtures/recorded/noise.json: stretches of
              eight consecutive trials, so that a drift in them is kept

Prints the shares of nights that call a difference (false alarms, if both arms are the same), that
call it in the right direction, that call equivalence, that end inconclusive because of a failure,
that the control ends, and whose 95 % interval covers the truth; and the pairs used.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean, median, pstdev

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.analysis.verdict.stopping import count_planned
from orchestrator.evidence.faults import ATTEMPTS, Attempt, counts, next_turn
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import PlannedTrial, make_plan
from orchestrator.scenario.vocabulary import ARMS, WARM_UP, current_name

RECORDED = Path(__file__).parents[2] / "fixtures/recorded/noise.json"
METRIC = "bar_map_cost"
RATIOS = (1.0, 1.03, 1.05)
"""No difference; the margin of equivalence; a difference to detect."""
SCENARIO = """
name = "night"
workload = "map"
host.accel = "tcg"
host.fresh_boots = {fresh_boots}
arms.baseline.kernel.dir = "/a"
arms.candidate.kernel.dir = "/b"
trials.{trials}
expect.{metric} = "not-regressed"
"""
Noise = Callable[[random.Random, Sequence[PlannedTrial]], list[float]]
"""Returns the deviation of each trial's log, in the order of the trials."""


def normal(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    return [draw.gauss(0, cv) for _ in plan]


def heavy(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    def deviate() -> float:
        t3 = draw.gauss(0, 1) / math.sqrt(draw.gammavariate(1.5, 2) / 3)
        return cv * t3 / math.sqrt(3) + (draw.expovariate(1 / (3 * cv)) * (draw.random() < 0.05))

    return [deviate() for _ in plan]


def bimodal(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    return [draw.gauss(0, cv / 3) + 3 * cv / 2 * (draw.random() < 0.3) for _ in plan]


def drifting(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    trend, walk, deviations = draw.gauss(0, 4 * cv), 0.0, []
    for i in range(len(plan)):
        walk += draw.gauss(0, cv / 4)
        deviations.append(draw.gauss(0, cv) + walk + trend * i / len(plan))
    return deviations


def correlated(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    deviations = [draw.gauss(0, cv)]
    for _ in plan[1:]:
        deviations.append(0.9 * deviations[-1] + draw.gauss(0, cv * math.sqrt(1 - 0.9**2)))
    return deviations


def outliers(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    return [
        draw.gauss(0, cv) + (draw.random() < 0.02) * math.log(draw.uniform(1.5, 5)) for _ in plan
    ]


def steps(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    times = [(draw.randrange(len(plan)), draw.gauss(0, 5 * cv)) for _ in range(2)]
    return [
        draw.gauss(0, cv) + sum(step for at, step in times if number >= at)
        for number, _ in enumerate(plan)
    ]


def boots(cv: float, draw: random.Random, plan: Sequence[PlannedTrial]) -> list[float]:
    deviations, of_boot, running = [], 0.0, ""
    for planned in plan:
        if planned.boots != running:
            of_boot, running = draw.gauss(0, 5 * cv), planned.boots
        deviations.append(of_boot + draw.gauss(0, cv))
    return deviations


def slow(
    cv: float, share: float, draw: random.Random, plan: Sequence[PlannedTrial]
) -> list[float]:
    return [
        draw.gauss(0, cv) + math.log(5) * (planned.arm == "candidate" and draw.random() < share)
        for planned in plan
    ]


def recorded(
    runs: Sequence[Sequence[float]], draw: random.Random, plan: Sequence[PlannedTrial]
) -> list[float]:
    deviations: list[float] = []
    while len(deviations) < len(plan):
        run = draw.choice(runs)
        start = draw.randrange(len(run))
        deviations += [run[(start + i) % len(run)] for i in range(8)]
    return deviations[: len(plan)]


@dataclass(frozen=True)
class Night:
    called: bool
    right: bool
    """True if a difference was called, in the right direction."""
    equivalent: bool
    undecided: bool
    """True if the night is inconclusive because of a failure that nobody is charged with."""
    invalid: bool
    covered: bool
    pairs: int


@dataclass(frozen=True)
class Kind:
    noise: Noise
    failing: float = 0.0
    """Probability that an attempt at a trial fails."""
    fresh_boots: bool = True
    trials: str = "until = {}"
    ratios: tuple[float, ...] = RATIOS
    night: Callable[[float, int], Night] | None = None
    """Makes a night of another sort, from ratio and seed."""
    is_slow: bool = False
    """True if the candidate is slow now and then, so that `regressed` is right at any ratio."""


@cache
def scenario_of(fresh_boots: bool, trials: str) -> Scenario:
    text = SCENARIO.format(fresh_boots=str(fresh_boots).lower(), trials=trials, metric=METRIC)
    return parse_scenario(text, "night")[0]


def one_night(kind: Kind, ratio: float, seed: int) -> Night:
    if kind.night is not None:
        return kind.night(ratio, seed)
    scenario = scenario_of(kind.fresh_boots, kind.trials)
    scenario = scenario.model_copy(
        update={"trials": scenario.trials.model_copy(update={"seed": seed})}
    )
    draw = random.Random(seed)
    plan = make_plan(scenario)
    deviations = kind.noise(draw, plan)
    measured = [
        TrialResult(
            trial.name, trial.arm, "measured", pair=trial.pair,
            samples={METRIC: (math.exp(deviation) * (ratio if trial.arm == "candidate" else 1),)},
        )
        for trial, deviation in zip(plan, deviations, strict=True)
    ]  # fmt: skip
    results = [*attempt_all(plan, measured, lambda: draw.random() < kind.failing)]
    results = results[: count_planned(scenario, results, "tcg")]
    comparison = compare_trials(scenario, {}, results, len(results), "tcg")
    return _outcome(comparison, ratio, results, is_slow=kind.is_slow)


def _outcome(
    comparison: Comparison, ratio: float, results: Sequence[TrialResult], *, is_slow: bool = False
) -> Night:
    [metric] = comparison.metrics
    low, high = metric.effect.interval or (0.0, math.inf)
    right = {"improved": ratio < 1, "regressed": ratio > 1 or is_slow}
    return Night(
        called=comparison.verdict in right,
        right=right.get(comparison.verdict, False),
        equivalent=comparison.verdict == "equivalent",
        undecided=comparison.verdict == "inconclusive" and comparison.has_undecided,
        invalid=comparison.verdict == "invalid",
        covered=low <= ratio <= high,
        pairs=max(result.pair for result in results),
    )


def two_nights(cv: float, alone: bool, ratio: float, seed: int) -> Night:
    """Compare the candidate of one night with that of another."""
    draw = random.Random(seed)
    scenario = scenario_of(fresh_boots=True, trials="pairs = 10")
    sides: dict[str, list[TrialResult]] = {"baseline": [], "candidate": []}
    for night, role in enumerate(ARMS):
        of_night = draw.gauss(0, cv)
        for planned in make_plan(scenario):
            factor = ratio if planned.arm == "candidate" and night else 1.0
            value = factor * math.exp(of_night + draw.gauss(0, cv))
            if planned.arm in sides:
                sides[planned.arm].append(
                    TrialResult(
                        f"{night}/{planned.name}", role, "measured", pair=planned.pair,
                        samples={METRIC: (value,)},
                    )
                )  # fmt: skip
    results = sides["candidate"]
    comparison = compare_trials(
        scenario, {}, results, len(results), "tcg", paired=False,
        references=() if alone else sides["baseline"],
    )  # fmt: skip
    return _outcome(comparison, ratio, results)


def attempt_all(
    plan: Sequence[PlannedTrial], measured: Sequence[TrialResult], fails: Callable[[], bool]
) -> Iterator[TrialResult]:
    """Yield each trial with its attempts, a block of two pairs after the other. A trial that fails
    is attempted again as run/trials.py does it: in turns of both arms, at most four attempts and
    one for every four trials of a block more."""
    made: list[Attempt] = []
    for first in range(0, len(plan), 5):
        block = range(first, min(first + 5, len(plan)))
        tries: dict[int, list[Attempt]] = {}
        for index in block:
            tries[index] = [Attempt(plan[index].boots, "guest-hang" if fails() else "")]
            made += tries[index] if plan[index].arm != WARM_UP else []
        left = 4 + len(block) // 4
        for index in block:
            trial = plan[index]
            while left and trial.arm != WARM_UP and tries[index][-1].reason:
                turn = next_turn(made, trial.boots, alone=False)
                tried = counts(tries[index], trial.boots).failed
                if turn is None or (turn == trial.boots and tried >= ATTEMPTS):
                    break
                left -= 1
                attempt = Attempt(turn, "guest-hang" if fails() else "")
                made.append(attempt)
                # the last attempt is that of the trial itself
                at = len(tries[index]) - (turn != trial.boots)
                tries[index].insert(at, attempt)
            yield _with_attempts(measured[index], tries[index])


def _with_attempts(result: TrialResult, attempts: Sequence[Attempt]) -> TrialResult:
    *repeated, last = attempts
    if not last.reason:
        return replace(result, repeated=tuple(repeated))
    return TrialResult(
        result.name, result.arm, "failed", last.reason, pair=result.pair, charge="undecided",
        repeated=tuple(repeated),
    )  # fmt: skip


def make_kinds() -> dict[str, Kind]:
    runs = json.loads(RECORDED.read_text())["runs"]
    logs = [[math.log(v / median(run["values"])) for v in run["values"]] for run in runs]
    cv = median(
        spread(log)
        for run, log in zip(runs, logs, strict=True)
        if current_name(run["metric"]) == METRIC
    )
    for run, log in zip(runs, logs, strict=True):
        print(
            f"{run['run']}, {run['metric']}: {len(log)} trials, coefficient of variation"
            f" {pstdev(log):.1%}, without outliers {spread(log):.1%}"
        )
    print(f"all kinds but wide and recorded have that of {METRIC}: {cv:.2%}")
    alike = (normal, heavy, bimodal, drifting, correlated, outliers, steps)
    kinds = {kind.__name__: Kind(partial(kind, cv)) for kind in alike}
    kinds["wide"] = Kind(partial(normal, 0.10))
    for percent in (0.5, 1.0, 2.0):
        kinds[f"failing {percent:g} %"] = Kind(partial(normal, cv), percent / 100)
    kinds["boots"] = Kind(partial(boots, cv), fresh_boots=False)
    kinds["boots, 30 pairs"] = Kind(
        partial(boots, cv), fresh_boots=False, trials="pairs = 30", ratios=(1.0, 1.05)
    )
    for share in (0.1, 0.2):
        for name, trials in (("slow", "until = {}"), ("pairs", "pairs = 30")):
            kinds[f"{name} {share:.0%}"] = Kind(
                partial(slow, cv, share), trials=trials, ratios=(1.0,), is_slow=True
            )
    for alone in (False, True):
        name = "nights, alone" if alone else "nights"
        kinds[name] = Kind(partial(normal, cv), night=partial(two_nights, cv, alone))
    return kinds | {"recorded": Kind(partial(recorded, logs))}


def spread(logs: Sequence[float]) -> float:
    """Return a robust standard deviation, which ignores outliers: 1.4826 times the median absolute
    deviation."""
    middle = median(logs)
    return 1.4826 * median(abs(log - middle) for log in logs)


def main() -> None:
    nights = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    wanted = sys.argv[2:]
    print(f"{nights} nights each, default settings; shares in %")
    kinds = make_kinds()
    print("noise           ratio  called  right  equivalent  undecided  invalid  covered  pairs")
    with ProcessPoolExecutor() as pool:
        for name, kind in kinds.items():
            if wanted and name.split()[0].strip(",") not in wanted:
                continue
            for ratio in kind.ratios:
                of = [*pool.map(partial(one_night, kind, ratio), range(nights), chunksize=20)]

                def share(what: str, of: Sequence[Night] = of) -> float:
                    return 100 * fmean(getattr(night, what) for night in of)

                print(
                    f"{name:<15} {ratio:.3f}  {share('called'):6.2f} {share('right'):6.2f}"
                    f"  {share('equivalent'):10.2f}  {share('undecided'):9.2f}"
                    f"  {share('invalid'):7.2f}  {share('covered'):7.2f}"
                    f"  {fmean(n.pairs for n in of):5.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
