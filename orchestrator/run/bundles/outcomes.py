"""What came out of a run, as a bundle has it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.analysis.trial import TrialResult
from orchestrator.run.bundles.record import ArmOutcomes, BundledMetric
from orchestrator.run.judging.judge import Run
from orchestrator.scenario.vocabulary import ArmName


def list_metrics(run: Run) -> Iterator[BundledMetric]:
    """Yield the numbers of a run as a bundle has them."""
    for metric in run.comparison.metrics:
        yield BundledMetric(
            name=metric.name, unit=metric.unit, baseline=metric.baseline,
            candidate=metric.candidate, ratio=metric.ratio, interval=metric.effect.interval,
        )  # fmt: skip


def find_conditions(trials: Sequence[TrialResult], arm: ArmName) -> dict[str, str]:
    """Return the conditions of an arm: those of its first measured trial, else of the trial that
    got furthest."""
    of_arm = [trial for trial in trials if trial.arm == arm]
    of_arm.sort(key=lambda trial: (trial.kind != "measured", -len(trial.conditions)))
    return of_arm[0].conditions if of_arm else {}


def count_outcomes(run: Run, arm: ArmName) -> ArmOutcomes:
    of_arm = [trial for trial in run.trials if trial.arm == arm]
    return ArmOutcomes(
        measured=sum(trial.kind == "measured" for trial in of_arm),
        failed=tuple(str(trial.reason) for trial in of_arm if trial.kind != "measured"),
    )
