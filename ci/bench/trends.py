"""Measure how well change points of a history are found: `orchestrator/history/trend.py`.

    .venv/bin/python ci/bench/trends.py [HISTORIES]

Each history has 365 nights of one kernel against itself; each night is a run of 12 pairs, whose
ratio is the Hodges-Lehmann estimate, as in a report. Their trials are stretches of eight of
fixtures/recorded/noise.json, or noise of a kind that `ci/bench/verdicts.py` describes. Prints, for
each noise: the deviation of a night's log; the share of histories with a change point that nobody
planted; and for a planted step the share in which its night is found within one. `at best` is that
share for who knows that there is one step, its size and the distribution of the noise, and looks
for its night only (maximum likelihood): the noise itself allows no more.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from orchestrator.history.store import Point
from orchestrator.history.trend import find_changes, measure_spread

RECORDED = Path(__file__).parents[2] / "fixtures/recorded/noise.json"
NIGHTS = 365
PAIRS = 12
STRETCH = 8
STEPS = (1.03, 1.05, 1.10)
Noise = Callable[[np.random.Generator], NDArray[np.float64]]
"""Returns the log ratios of the pairs of a night."""


def recorded(values: NDArray[np.float64]) -> Noise:
    logs = np.log(values)

    def draw(random: np.random.Generator) -> NDArray[np.float64]:
        pairs: list[float] = []
        while len(pairs) < PAIRS:
            start = random.integers(0, len(logs) - STRETCH + 1)
            stretch = logs[start : start + STRETCH]
            # which arm is first is drawn, as in a plan
            pairs += [*(random.choice([-1, 1], STRETCH // 2) * (stretch[1::2] - stretch[::2]))]
        return np.array(pairs[:PAIRS])

    return draw


def normal(random: np.random.Generator) -> NDArray[np.float64]:
    return random.normal(0, 0.02, PAIRS)


def heavy(random: np.random.Generator) -> NDArray[np.float64]:
    return 0.01 * random.standard_t(2, PAIRS)


def busy(random: np.random.Generator) -> NDArray[np.float64]:
    """One night in ten is five times as noisy: others use the machine."""
    return random.normal(0, 0.1 if random.random() < 0.1 else 0.02, PAIRS)


def measured_noises() -> dict[str, Noise]:
    noises: dict[str, Noise] = {"normal": normal, "heavy": heavy, "busy": busy}
    for run in json.loads(RECORDED.read_text())["runs"]:
        noises[f"{run['run']} {run['metric']}"] = recorded(np.array(run["values"]))
    return noises


def draw_history(noise: Noise, random: np.random.Generator, nights: int) -> NDArray[np.float64]:
    """Return the log ratio of each night."""
    first, second = np.triu_indices(PAIRS)
    pairs = np.array([noise(random) for _ in range(nights)])
    return np.asarray(np.median((pairs[:, first] + pairs[:, second]) / 2, axis=1))


def points_of(logs: NDArray[np.float64]) -> list[Point]:
    return [
        Point(
            i, f"{i:05}", "", "equivalent", float(ratio), None, None, 1.0, float(ratio), "", None
        )
        for i, ratio in enumerate(np.exp(logs))
    ]


def locate_known_step(
    logs: NDArray[np.float64], size: float, density: Callable[..., NDArray[np.float64]]
) -> int:
    """Return the most likely night of a step whose size and noise are known. `density`: log of the
    noise's probability density."""
    gains = density(logs - size) - density(logs)  # of each night, if it is after the step
    return int(np.argmax(np.cumsum(gains[:0:-1])[::-1])) + 1


def estimate_density(logs: NDArray[np.float64]) -> Callable[..., NDArray[np.float64]]:
    """Return the log of the probability density of a night's noise, from many nights."""
    places = np.linspace(logs.min() - 0.2, logs.max() + 0.2, 4000)
    heights = np.log(gaussian_kde(logs[:20000])(places) + 1e-12)
    return lambda values: np.interp(values, places, heights)


def measure(name: str, noise: Noise, histories: int) -> None:
    random = np.random.default_rng(24)
    alarms, found, spreads = 0, dict.fromkeys(STEPS, 0), []
    drawn = [draw_history(noise, random, NIGHTS) for _ in range(histories)]
    density, known = estimate_density(np.concatenate(drawn)), 0
    for logs in drawn:
        spreads.append(measure_spread(logs))
        alarms += bool(find_changes(points_of(logs), "s"))
        at = int(random.integers(10, NIGHTS - 10))
        for step in STEPS:
            changed = logs + np.log(step) * (np.arange(NIGHTS) >= at)
            changes = find_changes(points_of(changed), "s")
            found[step] += any(abs(change.index - at) <= 1 for change in changes)
        size = float(np.log(STEPS[0]))
        least = locate_known_step(logs + size * (np.arange(NIGHTS) >= at), size, density)
        known += abs(least - at) <= 1
    rates = ", ".join(f"{step}: {100 * n / histories:.1f} %" for step, n in found.items())
    night, share = 100 * np.mean(spreads), 100 * alarms / histories
    best = f"{STEPS[0]} at best {100 * known / histories:.1f} %"
    print(
        f"{name}: a night {night:.2f} %, alarms {share:.2f} %; found {rates}; {best}", flush=True
    )


def main() -> None:
    histories = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for name, noise in measured_noises().items():
        measure(name, noise, histories)
    long = points_of(draw_history(normal, np.random.default_rng(1), 3000))
    start = time.perf_counter()
    find_changes(long, "s")
    print(f"3000 nights: {(time.perf_counter() - start) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
