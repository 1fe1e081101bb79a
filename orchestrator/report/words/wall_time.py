"""What a report says about how long a trial takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from orchestrator.analysis.trial import TrialResult

_LEAST = 0.01
"""Share of a trial from which on a stage is listed."""


def describe_wall_time(results: Sequence[TrialResult]) -> Iterator[str]:
    """Yield a sentence with the runner's wall time of a trial and of its stages: medians of the
    trials that count. `counts` passes are in it: they give no times of the kernel."""
    trials = [result for result in results if result.kind == "measured" and result.stages]
    if not trials:
        return
    whole = median(_sum_trial(trial) for trial in trials)
    stages: dict[str, list[float]] = {}
    for trial in trials:
        for name, seconds in trial.stages:
            stages.setdefault(name, []).append(seconds)
    medians = {name: median(seconds) for name, seconds in stages.items()}
    listed = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in medians.items() if seconds >= _LEAST * whole
    )
    yield (
        f"A trial takes {whole:.0f} s of the runner (median of {len(trials)}; no measure of a"
        f" kernel): {listed}."
    )


def _sum_trial(trial: TrialResult) -> float:
    return sum(seconds for _, seconds in trial.stages) if trial.seconds is None else trial.seconds
