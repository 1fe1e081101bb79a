"""What a machine remembers of the noise of its runs: a small file in the state folder.

For each machine, scenario and metric it has the last nights: how far trials of one kernel lay
apart, and what the arms' ratio was. `barometer run` adds a night when it has judged a run;
`barometer plan` says from it what a plan can find.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Literal

from pydantic import Field

from orchestrator.base.errors import EvidenceError
from orchestrator.evidence.layout import write_json
from orchestrator.evidence.model import Count, Evidence, parse_evidence
from orchestrator.scenario.vocabulary import Metric

NAME = "noise.json"
MOST_NIGHTS = 100
"""Nights that are kept of a metric: a bench changes, and older ones say little."""
LEAST_NIGHTS = 5
"""Fewest changes from night to night that have quartiles worth a word."""
_FENCES = 3.0
"""Interquartile ranges above the upper quartile, beyond which a change is unusual (Tukey's outer
fence)."""
Share = Annotated[float, Field(ge=0)]


class NightNoise(Evidence):
    """A run of several pairs."""

    at: str
    """When the run's first trial began, ISO 8601. A run that is judged again is known by it."""
    trials: Count
    """Trials that the spread is from."""
    spread: Share
    """Robust standard deviation of a trial's log, from the pairs."""
    ratio: Annotated[float, Field(gt=0)]
    """Candidate / baseline."""


class MetricNoise(Evidence):
    machine: str
    scenario: str
    metric: Metric
    nights: Annotated[tuple[NightNoise, ...], Field(min_length=1)]

    @property
    def spread(self) -> float:
        """Spread of a usual night."""
        return median(night.spread for night in self.nights)

    @property
    def trials(self) -> int:
        return sum(night.trials for night in self.nights)

    @property
    def since(self) -> str:
        """Date of the first night."""
        return min(night.at for night in self.nights)[:10]

    @property
    def usual_change(self) -> float | None:
        """Largest usual change of the ratio from one night to the next, as a share: what is beyond
        it is an outlier among all changes so far. None if there were too few nights."""
        logs = [math.log(night.ratio) for night in sorted(self.nights, key=lambda n: n.at)]
        changes = [abs(after - before) for before, after in pairwise(logs)]
        if len(changes) < LEAST_NIGHTS:
            return None
        lower, _, upper = quantiles(changes, n=4, method="inclusive")
        return math.expm1(upper + _FENCES * (upper - lower))


class NoiseMemory(Evidence):
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    metrics: tuple[MetricNoise, ...] = ()

    def find(self, machine: str, scenario: str, metric: Metric) -> MetricNoise | None:
        key = (machine, scenario, metric)
        return next((m for m in self.metrics if (m.machine, m.scenario, m.metric) == key), None)

    def add(
        self, machine: str, scenario: str, nights: Sequence[tuple[Metric, NightNoise]]
    ) -> NoiseMemory:
        """Return a memory that has these nights, too. One that it has is replaced."""
        metrics = {(m.machine, m.scenario, m.metric): m for m in self.metrics}
        for metric, night in nights:
            key = (machine, scenario, metric)
            before = metrics[key].nights if key in metrics else ()
            kept = [*(n for n in before if n.at != night.at), night]
            kept.sort(key=lambda n: n.at)
            metrics[key] = MetricNoise(
                machine=machine, scenario=scenario, metric=metric,
                nights=tuple(kept[-MOST_NIGHTS:]),
            )  # fmt: skip
        return NoiseMemory(schema=1, metrics=tuple(metrics.values()))


def load_noise(folder: Path) -> NoiseMemory:
    """Return the memory in a state folder; an empty one if there is none, or if it is damaged: it
    is a help, and no evidence."""
    with contextlib.suppress(OSError, EvidenceError):
        return parse_evidence(NoiseMemory, (folder / NAME).read_bytes(), NAME)
    return NoiseMemory(schema=1)


def save_noise(folder: Path, memory: NoiseMemory) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, memory.model_dump(mode="json", by_alias=True))
