"""The order of the trials: blocks of two pairs, the second with the arms in the opposite order;
warm-up and control."""

from __future__ import annotations

import random
from dataclasses import dataclass

from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, CONTROL, WARM_UP, ArmName, Pass, Role

CONTROL_FROM = 10
"""Fewest pairs with which a control is worth its trial in each block."""


@dataclass(frozen=True)
class PlannedTrial:
    number: int
    """Position in the order of execution, from 1."""
    pair: int
    """Number of the pair, from 1; 0 for a warm-up. A control has the number of the last pair of
    its block."""
    arm: Role
    passes: tuple[Pass, ...]

    @property
    def name(self) -> str:
        return f"{self.number:04d}-{self.arm}"

    @property
    def boots(self) -> ArmName:
        """The arm whose kernel it boots."""
        return "candidate" if self.arm == "candidate" else "baseline"


def make_plan(scenario: Scenario) -> tuple[PlannedTrial, ...]:
    """Return every trial in order, up to the largest possible number of pairs.

    Drift of the machine affects both arms alike: a block of two pairs is AB BA or BA AB, which is
    drawn with the seed. The place of the block's control is drawn, too: before, between or after
    its pairs. A plan with fewer pairs is the beginning of one with more, except for warm-up and
    control.

    An exact host can boot one guest only, so there each pass of a guest boot is a trial of its
    own.
    """
    trials, passes = scenario.trials, scenario.trace.passes
    apart = scenario.workload == "guest-boot" and scenario.host.exact
    boots = [(which,) for which in passes] if apart else [passes]
    planned: list[PlannedTrial] = []

    def add(pair: int, arm: Role, boot: tuple[Pass, ...]) -> None:
        planned.append(PlannedTrial(len(planned) + 1, pair, arm, boot))

    if has_warm_up(scenario):
        for boot in boots:
            add(0, WARM_UP, boot)
    draw = random.Random(trials.seed)
    flipped = trials.seed % 2 == 1
    for first in range(1, trials.most_pairs + 1, 2):
        pairs = [pair for pair in (first, first + 1) if pair <= trials.most_pairs]
        at = 2 * draw.randrange(len(pairs) + 1)  # never within a pair
        order: list[tuple[int, Role]] = []
        for pair in pairs:
            order += [(pair, arm) for arm in (reversed(ARMS) if flipped else ARMS)]
            flipped = not flipped
        if has_control(scenario):
            order.insert(at, (pairs[-1], CONTROL))
        for boot in boots:
            for pair, arm in order:
                add(pair, arm, boot)
        flipped = draw.random() < 0.5
    return tuple(planned)


def has_warm_up(scenario: Scenario) -> bool:
    trials = scenario.trials
    if trials.warm_up == "auto":
        return trials.most_pairs > 1 and not scenario.host.exact
    return trials.warm_up


def has_control(scenario: Scenario) -> bool:
    trials = scenario.trials
    if trials.control == "auto":
        return trials.most_pairs >= CONTROL_FROM
    return trials.control
