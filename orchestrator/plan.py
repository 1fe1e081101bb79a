"""The order of the trials: pairs, one host boot of each arm, flipped from pair to pair."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.scenario import ARMS, ArmName, Pass, Scenario


@dataclass(frozen=True)
class PlannedTrial:
    number: int
    """From 1, the order of execution."""
    pair: int
    """From 1."""
    arm: ArmName
    passes: tuple[Pass, ...]

    @property
    def name(self) -> str:
        return f"{self.number:04d}-{self.arm}"


def make_plan(scenario: Scenario) -> tuple[PlannedTrial, ...]:
    """Every trial in order. Drift of the machine falls on both arms alike: AB BA AB BA ...

    An exact host carries one guest boot, so there each pass of a guest boot is a trial of its own.
    """
    passes = scenario.trace.passes
    apart = scenario.workload == "guest-boot" and scenario.host.accel == "exact"
    boots = [(which,) for which in passes] if apart else [passes]
    trials: list[PlannedTrial] = []
    for pair in range(1, scenario.trials.pairs + 1):
        flipped = (pair - 1 + scenario.trials.seed) % 2 == 1
        for boot in boots:
            for arm in reversed(ARMS) if flipped else ARMS:
                trials.append(PlannedTrial(len(trials) + 1, pair, arm, boot))
    return tuple(trials)
