"""The order of the trials: pairs, one host boot of each arm, flipped from pair to pair."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.scenario import ARMS, ArmName, Scenario


@dataclass(frozen=True)
class PlannedTrial:
    number: int
    """From 1, the order of execution."""
    pair: int
    """From 1."""
    arm: ArmName

    @property
    def name(self) -> str:
        return f"{self.number:04d}-{self.arm}"


def make_plan(scenario: Scenario) -> tuple[PlannedTrial, ...]:
    """Every trial in order. Drift of the machine falls on both arms alike: AB BA AB BA ..."""
    trials: list[PlannedTrial] = []
    for pair in range(1, scenario.trials.pairs + 1):
        flipped = (pair - 1 + scenario.trials.seed) % 2 == 1
        for arm in reversed(ARMS) if flipped else ARMS:
            trials.append(PlannedTrial(len(trials) + 1, pair, arm))
    return tuple(trials)
