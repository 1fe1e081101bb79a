"""Compute the cost of a guest boot's maps and unmaps, by operation and by arm, and explain why one
arm's boot is longer than the other's. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from statistics import median, median_low
from typing import Literal, NamedTuple

from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Timeline
from orchestrator.formats.units import format_size
from orchestrator.scenario.vocabulary import ARMS, ArmName

BootsByArm = Mapping[ArmName, Sequence[Timeline]]
"""Timelines of each arm. All have the same unit. An arm may have none."""

SMALL_SHARE = 0.001
"""Share of a boot. An operation with a smaller share in every arm gets no line of its own."""
NO_PHASE = "no phase"


# `kernel: BAR sizing, 01:00.0`, `sizing BARs 0, 1 and ROM of bridge 00:01.0`
_WHERE = re.compile(r", (?:bus )?[0-9a-f:.]+$")
_REGISTERS = re.compile(r"BARs? \d+(?:, \d+)*(?: and ROM)?|ROM")
_BRIDGE = re.compile(r" of bridge \S+")
_DEVICE = re.compile(r" of [0-9a-f:.]+$")


class OperationKind(NamedTuple):
    """A kind of operation, without the device's address and the numbers of BARs, so that it is the
    same in every boot. The dozen maps of a boot are of a few kinds."""

    kind: Literal["map", "unmap"]
    bar: str
    """`32GiB BAR`, RAM or guest IOVA."""
    phase: str
    cause: str

    @classmethod
    def of(cls, step: DmaStep) -> OperationKind:
        bar = step.bar if step.bar in (RAM, IOVA) else f"{format_size(step.size)} BAR"
        cause = _BRIDGE.sub(" of a bridge", _REGISTERS.sub("BARs", step.cause))
        return cls(
            step.kind, bar, _WHERE.sub("", step.phase), _DEVICE.sub(" of another device", cause)
        )


@dataclass(frozen=True)
class OperationCost:
    """Cost in one boot. If an arm has several boots, each value is the median."""

    calls: float
    one: float | None
    """Seconds of one call: the median of a boot's calls (the lower middle one if their number is
    even). None if there was no call."""
    total: float
    """Seconds."""
    share: float | None
    """total / length of the boot up to its mark. None for operations after the mark."""


OperationCosts = dict[ArmName, OperationCost]
Calls = dict[ArmName, list[defaultdict[OperationKind, list[float]]]]
"""Seconds of every call, in each boot of an arm."""


@dataclass(frozen=True)
class Row:
    operation: OperationKind
    costs: OperationCosts


@dataclass(frozen=True)
class BootDifference:
    """Difference of the boots up to their mark, candidate - baseline, in the timelines' unit."""

    baseline: float
    candidate: float
    """Length of each arm's boot up to its mark. If there are several boots, the median."""
    operations: dict[str, float]
    """Name of a total in CostTable -> its difference."""
    phases: dict[str, float]
    """Phase -> difference of its time without maps and unmaps. The largest difference is first."""

    @property
    def whole(self) -> float:
        return self.candidate - self.baseline

    @property
    def rest(self) -> float:
        """Difference that maps and unmaps do not explain. If an arm has several boots, it may
        differ from the sum of `phases`, which are differences of medians."""
        return self.whole - sum(self.operations.values())


@dataclass(frozen=True)
class CostTable:
    unit: str
    boots: dict[ArmName, tuple[float, ...]]
    """Length of each boot up to its mark. The table has no arms without a boot."""
    rows: tuple[Row, ...]
    """Rows of operations before the boot mark, the largest total first, without small
    operations."""
    small: int
    """Number of operations before the mark that are in no row."""
    others: OperationCosts
    """Cost of all small operations together."""
    totals: dict[str, OperationCosts]
    """Name -> costs of all maps or all unmaps before the mark, for each size of BAR (`maps of
    32GiB BARs`) and for RAM."""
    after: tuple[Row, ...]
    """Rows of operations after the mark, which are not part of the boot."""
    difference: BootDifference | None
    """None if an arm has no boot."""


def build_cost_table(timelines: BootsByArm) -> CostTable:
    boots = _arms(timelines)
    calls, later = _calls(boots, before=True), _calls(boots, before=False)
    rows = _rows(boots, calls, before=True)
    totals = _totals(boots, calls, rows)
    small = {
        row.operation
        for row in rows
        if all((cost.share or 0.0) < SMALL_SHARE for cost in row.costs.values())
    }
    if len(small) == 1:  # its own line tells more than a line "others"
        small = set()
    return CostTable(
        unit=next((boot.unit for of_arm in boots.values() for boot in of_arm), "s"),
        boots={arm: tuple(b.boot_seconds for b in of_arm) for arm, of_arm in boots.items()},
        rows=tuple(row for row in rows if row.operation not in small),
        small=len(small),
        others=_costs(boots, calls, small, before=True),
        totals=totals,
        after=tuple(_rows(boots, later, before=False)),
        difference=_difference(boots, totals),
    )


def cost_json(timelines: BootsByArm) -> list[dict[str, object]]:
    """Return every operation, for comparison.json: first those before the boot mark, then those
    after it, whose `share` is null. In both parts the largest total is first. Times are in the
    timelines' unit."""
    boots = _arms(timelines)
    return [
        {
            **row.operation._asdict(),
            "before_mark": before,
            **{arm: asdict(cost) for arm, cost in row.costs.items()},
        }
        for before in (True, False)
        for row in _rows(boots, _calls(boots, before=before), before=before)
    ]


def own_times(timeline: Timeline) -> dict[str, float]:
    """Return the seconds of each phase before the mark, minus the maps and unmaps that began in
    it. Phases that differ only in their device are added up. Time in no phase is under NO_PHASE,
    so the sum is the length of the boot without its maps and unmaps."""
    own: defaultdict[str, float] = defaultdict(float)
    for phase in timeline.phases:
        if seconds := timeline.before_mark(phase):
            own[_WHERE.sub("", phase.name)] += seconds
    unplaced = timeline.boot_seconds - sum(own.values())
    for step in timeline.steps_before_mark():
        if (phase_name := _WHERE.sub("", step.phase)) in own:
            own[phase_name] -= step.seconds
        else:
            unplaced -= step.seconds
    return {**own, NO_PHASE: unplaced}


def _arms(timelines: BootsByArm) -> BootsByArm:
    present: dict[ArmName, Sequence[Timeline]] = {
        arm: boots for arm in ARMS if (boots := timelines.get(arm))
    }
    return present


def _calls(boots: BootsByArm, *, before: bool) -> Calls:
    """Return the calls before the boot mark, or those after it."""
    calls: Calls = {}
    for arm, of_arm in boots.items():
        calls[arm] = [defaultdict(list) for _ in of_arm]
        for boot, of_boot in zip(of_arm, calls[arm], strict=True):
            for step in boot.steps:
                if (step.start < boot.boot_seconds) == before:
                    of_boot[OperationKind.of(step)].append(step.seconds)
    return calls


def _rows(boots: BootsByArm, calls: Calls, *, before: bool) -> list[Row]:
    """Return a row for each operation, sorted by the larger total of the two arms, the largest
    first. Rows with equal totals are in order of time."""
    operations = dict.fromkeys(
        operation for of_arm in calls.values() for of_boot in of_arm for operation in of_boot
    )
    rows = [Row(o, _costs(boots, calls, {o}, before=before)) for o in operations]
    return sorted(rows, key=lambda row: max(c.total for c in row.costs.values()), reverse=True)


def _costs(
    boots: BootsByArm, calls: Calls, operations: Set[OperationKind], *, before: bool
) -> OperationCosts:
    costs = {}
    for arm, of_arm in boots.items():
        seconds = [
            [s for operation in of_boot if operation in operations for s in of_boot[operation]]
            for of_boot in calls[arm]
        ]
        totals = [sum(of_boot) for of_boot in seconds]
        ones = [median_low(of_boot) for of_boot in seconds if of_boot]
        shares = [
            t / b.boot_seconds for t, b in zip(totals, of_arm, strict=True) if b.boot_seconds
        ]
        costs[arm] = OperationCost(
            calls=median(map(len, seconds)),
            one=median(ones) if ones else None,
            total=median(totals),
            share=median(shares) if before and shares else None,
        )
    return costs


def _totals(boots: BootsByArm, calls: Calls, rows: Sequence[Row]) -> dict[str, OperationCosts]:
    groups: defaultdict[str, set[OperationKind]] = defaultdict(set)
    for row in rows:
        operation = row.operation
        name = f"{operation.kind}s of {operation.bar}" + "s" * operation.bar.endswith("BAR")
        groups[name].add(operation)
    return {name: _costs(boots, calls, group, before=True) for name, group in groups.items()}


def _difference(boots: BootsByArm, totals: dict[str, OperationCosts]) -> BootDifference | None:
    if len(boots) < len(ARMS):
        return None
    whole = {arm: median(b.boot_seconds for b in of_arm) for arm, of_arm in boots.items()}
    own = {arm: [own_times(boot) for boot in of_arm] for arm, of_arm in boots.items()}
    names = dict.fromkeys(name for of_arm in own.values() for boot in of_arm for name in boot)
    took = {
        arm: {name: median(boot.get(name, 0.0) for boot in of_arm) for name in names}
        for arm, of_arm in own.items()
    }
    phases = {name: took["candidate"][name] - took["baseline"][name] for name in names}
    return BootDifference(
        baseline=whole["baseline"],
        candidate=whole["candidate"],
        operations={
            name: of["candidate"].total - of["baseline"].total for name, of in totals.items()
        },
        phases=dict(sorted(phases.items(), key=lambda phase: -abs(phase[1]))),
    )
