"""One arm of a run against the same arm of another: nights, machines, versions of a tool. Pure.

It is the comparison of any run, but for its trials: those of the first run's arm are the baseline,
those of the second's the candidate. They ran days apart and so are no pairs. Where the other arm
booted the same kernel in both runs it is the control: what it shows is the bench's, not the
kernel's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.analysis.comparison import Comparison, compare, with_control
from orchestrator.analysis.conditions import conditions
from orchestrator.analysis.stopping import planned_trials
from orchestrator.analysis.trial import TrialResult
from orchestrator.errors import EvidenceError
from orchestrator.scenario import ARMS, ArmName, Metric, Scenario


@dataclass(frozen=True)
class SavedRun:
    """A run as it is read from disk."""

    name: str
    """For people: its folder."""
    scenario: Scenario
    plan: dict[str, Any]
    results: tuple[TrialResult, ...]
    configs: Mapping[ArmName, str | None]
    """Of the arms' kernels, where they were recorded."""

    @property
    def planned(self) -> int:
        """How many trials make it complete: as it was planned then, maybe by another version."""
        listed = self.plan.get("trials")
        if self.scenario.trials.until is None and isinstance(listed, list):
            return len(listed)
        return planned_trials(self.scenario, self.results, self.plan["accel"])

    @property
    def lacks(self) -> int:
        """Trials that it is to have and has not."""
        return max(0, self.planned - len(self.results))

    def of_arm(self, arm: ArmName, role: ArmName) -> list[TrialResult]:
        """The trials of an arm, in the role of one in another comparison."""
        return [
            replace(result, arm=role, name=f"{self.name}/{result.name}")
            for result in self.results
            if result.arm == arm
        ]


def compare_runs(
    first: SavedRun, second: SavedRun, arm: ArmName, allow: Sequence[str] = ()
) -> tuple[Scenario, Comparison]:
    """The second run's arm against the first's, and the scenario that it is judged by: the
    first's, with every metric that it has an expectation of expected not to regress.

    Raises EvidenceError for runs whose numbers are not of one kind.
    """
    accels = (first.plan["accel"], second.plan["accel"])
    if accels[0] != accels[1]:
        raise EvidenceError(
            f"{first.name} ran with accel {accels[0]}, {second.name} with {accels[1]}: their"
            " numbers are not of one kind",
            reason="not-comparable",
        )
    if first.scenario.workload != second.scenario.workload:
        raise EvidenceError(
            f"{first.name} ran the workload {first.scenario.workload}, {second.name}"
            f" {second.scenario.workload}",
            reason="not-comparable",
        )
    expect: dict[Metric, Any] = dict.fromkeys(first.scenario.expect, "not-regressed")
    scenario = first.scenario.model_copy(update={"expect": expect})
    before, after = first.of_arm(arm, "baseline"), second.of_arm(arm, "candidate")
    found = conditions(
        {
            role: [r.conditions for r in results if r.kind != "invalid"]
            for role, results in zip(ARMS, (before, after), strict=True)
        },
        (first.configs.get(arm), second.configs.get(arm)),
        [*scenario.judgement.allow, *allow],
    )
    kernels = {
        role: {key: run.plan["kernels"][arm][key] for key in ("release", "source")}
        for role, run in zip(ARMS, (first, second), strict=True)
    }
    results = [*before, *after]
    planned = len(results) + first.lacks + second.lacks
    comparison = compare(scenario, kernels, results, planned, accels[0], found, paired=False)
    other = next(name for name in ARMS if name != arm)
    if first.plan["kernels"][other]["digest"] != second.plan["kernels"][other]["digest"]:
        return scenario, comparison
    controls = [*first.of_arm(other, "baseline"), *second.of_arm(other, "candidate")]
    beside = compare(scenario, kernels, controls, len(controls), accels[0], paired=False)
    return scenario, with_control(comparison, beside)
