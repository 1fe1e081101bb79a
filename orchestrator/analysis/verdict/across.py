"""Compare an arm of a run with that of another: nights, machines, versions of a tool. Pure.

The comparison is made like that of any run, from other trials: the first run's trials of the arm
are the baseline, the second's the candidate. They ran days apart and so are not pairs. The
variable is the arm, as in a run: its kernel and its settings. If the other arm has the same kernel
and settings in both runs, each trial is judged by its ratio to the trial of that arm beside it,
so that what differed between the nights cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from orchestrator.analysis.conditions.conditions import compare_conditions, is_recorded_in_all
from orchestrator.analysis.conditions.variable import find_variable
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.analysis.verdict.stopping import count_planned
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.model import BothArms
from orchestrator.evidence.plan import Plan, SettingsRecord
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, ArmName, Metric


@dataclass(frozen=True)
class SavedRun:
    """A run as it is read from disk."""

    name: str
    """The run's folder, as people see it."""
    scenario: Scenario
    plan: Plan
    results: tuple[TrialResult, ...]
    configs: Mapping[ArmName, str | None]
    """Configuration of each arm's kernel; None if it was not recorded."""

    @property
    def planned(self) -> int:
        """Number of trials of the complete run, as planned when it was made, maybe by another
        version of barometer."""
        if self.scenario.trials.until is None:
            return len(self.plan.trials)
        return count_planned(self.scenario, self.results, self.plan.accel)

    @property
    def lacks(self) -> int:
        """Number of planned trials that are missing."""
        return max(0, self.planned - len(self.results))

    def settings(self, arm: ArmName) -> SettingsRecord:
        """Return the arm's settings as they are in plan.json."""
        settings = self.plan.arm_settings
        return settings[arm] if settings is not None else SettingsRecord()

    def set_up(self, arm: ArmName) -> tuple[object, ...]:
        """Return a key that is equal for the same kernel with the same settings."""
        settings = self.settings(arm)
        digest = self.plan.kernels[arm].digest
        return digest, settings.cmdline, settings.parameters, settings.sysfs

    def of_arm(self, arm: ArmName, role: ArmName) -> list[TrialResult]:
        """Return the trials of an arm as trials of the arm `role`, for a comparison with another
        run."""
        return [
            replace(result, arm=role, name=f"{self.name}/{result.name}")
            for result in self.results
            if result.arm == arm
        ]


def plan_across(first: SavedRun, second: SavedRun, arm: ArmName) -> Plan:
    """Return the plan of a run that would have the arm of both runs as its two arms."""
    kernels = BothArms[KernelRecord](
        baseline=first.plan.kernels[arm], candidate=second.plan.kernels[arm]
    )
    settings = BothArms[SettingsRecord](
        baseline=first.settings(arm), candidate=second.settings(arm)
    )
    return first.plan.model_copy(update={"kernels": kernels, "arm_settings": settings})


def compare_runs(
    first: SavedRun,
    second: SavedRun,
    arm: ArmName,
    allow: Sequence[str] = (),
    usual_change: Callable[[Scenario, Metric], float | None] | None = None,
) -> tuple[Scenario, Comparison]:
    """Compare the second run's arm with the first's. Return the scenario that it is judged by, and
    the comparison. The scenario is the first run's; every metric that it has an expectation for is
    expected not to regress. `usual_change` returns by how much a metric's ratio changes from night
    to night, as far as earlier runs tell: no more than that is called a difference.

    Raises EvidenceError if the numbers of the two runs are not of one kind.
    """
    accels = (first.plan.accel, second.plan.accel)
    if accels[0] != accels[1]:
        raise EvidenceError(
            f"{first.name} ran with accel {accels[0]}, {second.name} with {accels[1]}: their"
            " numbers are not of one kind",
            reason=Reason.NOT_COMPARABLE,
        )
    if first.scenario.workload != second.scenario.workload:
        raise EvidenceError(
            f"{first.name} ran the workload {first.scenario.workload}, {second.name}"
            f" {second.scenario.workload}",
            reason=Reason.NOT_COMPARABLE,
        )
    expect: dict[Metric, object] = dict.fromkeys(first.scenario.expect, "not-regressed")
    scenario = first.scenario.model_copy(update={"expect": expect})
    before, after = first.of_arm(arm, "baseline"), second.of_arm(arm, "candidate")
    sides: dict[str, list[dict[str, str]]] = {
        role: [r.conditions for r in results if r.kind != "invalid"]
        for role, results in zip(ARMS, (before, after), strict=True)
    }
    checked = compare_conditions(
        sides,
        (first.configs.get(arm), second.configs.get(arm)),
        [*scenario.judgement.allow, *allow],
    )
    plan = plan_across(first, second, arm)
    kernels = plan.named_kernels()
    results = [*before, *after]
    planned = len(results) + first.lacks + second.lacks
    other = next(name for name in ARMS if name != arm)
    references: list[TrialResult] = []
    if first.set_up(other) == second.set_up(other):
        references = [*first.of_arm(other, "baseline"), *second.of_arm(other, "candidate")]
    comparison = replace(
        compare_trials(
            scenario, kernels, results, planned, accels[0], checked, paired=False,
            references=references,
            floors=None if usual_change is None else partial(usual_change, first.scenario),
        ),
        variable=find_variable(plan, checked if is_recorded_in_all(sides) else None),
    )  # fmt: skip
    return scenario, comparison
