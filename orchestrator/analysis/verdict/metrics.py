"""The metrics of a comparison: each one's values in both arms, the independent pairs that they
form, and the effect that these show. Pure.

The unit is the host boot. With fresh boots it is the trial, and a pair of trials is a pair of
boots. With `host.fresh_boots = false` consecutive trials of one arm share a boot: what differs
from boot to boot is then in all of them, so they count as one value, their geometric mean. The
boots of both arms alternate, and three in a row (A B A, then B A B) are one pair: the middle one
against both beside it. No boot is in two pairs, and steady drift cancels within each.

Trials of two nights are no pairs, and all trials of a night share what that night was like. If
both nights have the same other arm, each trial is divided by the trial of that arm beside it:
these ratios are compared, in which the night cancels. If not, one night is one value, and no p
belongs to that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.effect import (
    FEW_FLOOR,
    OF_BOOTS,
    OF_MAPS,
    OF_MAPS_IN_BOOTS,
    OF_UNMAPS_IN_BOOTS,
    Estimate,
    Resolution,
    Rule,
    estimate_ratio,
)
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.vocabulary import ARMS, CONTROL, METRICS, ArmName, Metric, Role

ArmValues = tuple[float, float]
"""Values of the baseline and of the candidate."""
_PROOFS: Mapping[Metric, tuple[Metric, ...]] = {
    "bar_map_cost": ("pfn_lookups_per_map",),
    "bar_unmap_cost": ("iova_lookups_per_unmap",),
    "bar_map_cost_per_boot": ("pfn_lookups_per_map", "bar_maps_per_boot"),
    "bar_unmap_cost_per_boot": ("iova_lookups_per_unmap", "bar_unmaps_per_boot"),
    "guest_boot_cost": ("pfn_lookups_per_map", "bar_maps_per_boot"),
    "guest_ssh_cost": ("pfn_lookups_per_map", "bar_maps_per_boot"),
}
"""Counts of what a time is spent on: one that differs as much, in the same direction, proves that
a difference of the time is no chance."""


class EstimatedMetric(NamedTuple):
    """A metric that both arms have, before its p is adjusted."""

    unit: str
    values: dict[Role, dict[int, float]]
    """Values of each role, by pair."""
    estimate: Estimate
    control: Estimate | None
    """Effect between the baseline and the control, if there is one."""
    is_ratio: bool = False
    """True if the effect is not between the values, but between their ratios to other trials."""


def estimate_metrics(
    results: Sequence[TrialResult],
    workload: Workload,
    accel: str,
    rule: Rule,
    *,
    shares_boots: bool = False,
    paired: bool = True,
    references: Sequence[TrialResult] = (),
) -> dict[Metric, EstimatedMetric]:
    """Estimate every metric that both arms have. `shares_boots`: consecutive trials of an arm
    share a boot. `paired`: False if the arms are of different nights; `references` are then the
    trials of the same other arm of each night, in the role of the arm that ran in that night."""
    estimates: dict[Metric, EstimatedMetric] = {}
    for name in _name_metrics(results):
        values = {role: values_by_pair(results, role, name) for role in (*ARMS, CONTROL)}
        if not values["baseline"] or not values["candidate"]:
            continue
        unit, resolution = unit_of(name, accel), resolution_of(workload, name)
        control = None
        if not paired:
            estimate = _estimate_nights(unit, values, resolution, rule)
            if estimate.basis not in ("count", "exact") and references:
                nights = [
                    _night_ratios(results, references, arm, name, shares_boots=shares_boots)
                    for arm in ARMS
                ]
                if all(nights):
                    # a ratio has no unit: what is known of instructions does not apply to it
                    estimate = estimate_ratio("s", nights[0], nights[1], None, rule=rule)
        elif shares_boots:
            estimate = _estimate_boots(unit, results, name, resolution, rule)
        else:
            estimate = _estimate_trials(unit, results, values, name, resolution, rule)
            if values[CONTROL]:
                before, beside = ([*values[role].values()] for role in ("baseline", CONTROL))
                control = estimate_ratio(unit, before, beside, None, resolution)
        estimates[name] = EstimatedMetric(unit, values, estimate, control, is_ratio=not paired)
    return estimates


def _estimate_trials(
    unit: str, results: Sequence[TrialResult], values: Mapping[Role, Mapping[int, float]],
    name: Metric, resolution: Resolution, rule: Rule,
) -> Estimate:  # fmt: skip
    before, after = values["baseline"], values["candidate"]
    pairs = [(before[pair], after[pair]) for pair in before if pair in after]
    confirmed = min(len(before), len(after)) > 1 or _is_proven(results, name)
    return estimate_ratio(
        unit, [*before.values()], [*after.values()], pairs, resolution, rule, confirmed=confirmed
    )


def _is_proven(results: Sequence[TrialResult], name: Metric) -> bool:
    """True if a count of what the time is spent on differs by FEW_FLOOR or more, in the same
    direction as the time, and in every trial."""
    base, at, point = name.partition("@")
    slower = _direction(results, name)
    return slower is not None and any(
        _direction(results, count + at + point) is slower for count in _PROOFS.get(base, ())
    )


def _direction(results: Sequence[TrialResult], name: Metric) -> bool | None:
    """Return whether every candidate's value is FEW_FLOOR of every baseline's or more (True), or
    the other way round (False), or neither (None)."""
    before, after = ([*values_by_pair(results, arm, name).values()] for arm in ARMS)
    if not before or not after:
        return None
    if min(after) >= FEW_FLOOR * max(before) and max(after) > 0:
        return True
    return False if min(before) >= FEW_FLOOR * max(after) and max(before) > 0 else None


def _estimate_boots(
    unit: str, results: Sequence[TrialResult], name: Metric, resolution: Resolution, rule: Rule
) -> Estimate:
    boots = average_boots(results, name)
    before, after = ([value for arm, value in boots if arm == role] for role in ARMS)
    confirmed = len(boots) > 3 or _is_proven(results, name)
    return estimate_ratio(
        unit, before, after, pair_boots(boots), resolution, rule, confirmed=confirmed
    )


def average_boots(results: Sequence[TrialResult], name: Metric) -> list[tuple[ArmName, float]]:
    """Return arm and value of each boot that trials shared, in the order in which they ran."""
    measured = [
        (arm, value) for result in results for arm in ARMS
        if result.arm == arm and result.kind == "measured"
        and (value := result.value(name)) is not None
    ]  # fmt: skip
    return [
        (arm, _geometric_mean([value for _, value in trials]))
        for arm, trials in groupby(measured, key=lambda trial: trial[0])
    ]


def pair_boots(boots: Sequence[tuple[ArmName, float]]) -> list[ArmValues]:
    """Return the independent pairs of boots whose arms alternate: three in a row are one, or two
    if there are no more."""
    if len(boots) == 2:
        of_both = dict(boots)
        return [(of_both["baseline"], of_both["candidate"])]
    pairs = []
    for first in range(0, len(boots) - 2, 3):
        (_, before), (arm, middle), (_, after) = boots[first : first + 3]
        beside = _geometric_mean((before, after))
        pairs.append((middle, beside) if arm == "baseline" else (beside, middle))
    return pairs


def _geometric_mean(values: Sequence[float]) -> float:
    if len(set(values)) == 1 or min(values) <= 0:
        return fmean(values)
    return math.exp(fmean(map(math.log, values)))


def _estimate_nights(
    unit: str, values: Mapping[Role, Mapping[int, float]], resolution: Resolution, rule: Rule
) -> Estimate:
    """Estimate the effect between two nights: each is one value."""
    before, after = ([*values[arm].values()] for arm in ARMS)
    estimate = estimate_ratio(unit, before, after, None, resolution, rule, confirmed=False)
    if estimate.basis in ("count", "exact"):
        return estimate
    return replace(estimate, basis="few", pairs=1, interval=None, p=None, within=None, tail=None)


def _night_ratios(
    results: Sequence[TrialResult], references: Sequence[TrialResult], night: ArmName,
    name: Metric, *, shares_boots: bool,
) -> list[float]:  # fmt: skip
    """Return the ratios of a night's trials to the reference's beside them; of boots, if trials
    share these."""
    if not shares_boots:
        of_night, beside = (values_by_pair(r, night, name) for r in (results, references))
        return [v / beside[pair] for pair, v in of_night.items() if beside.get(pair, 0) > 0]
    trials = [replace(r, arm="candidate") for r in results if r.arm == night]
    trials += [replace(r, arm="baseline") for r in references if r.arm == night]
    trials.sort(key=lambda result: result.name)  # names begin with the place in the order
    pairs = pair_boots(average_boots(trials, name))
    return [after / before for before, after in pairs if before > 0]


def unit_of(name: Metric, accel: str) -> str:
    """Return the metric's unit: count, s, or for a cost on an exact host Ginsn: 10^9
    instructions. That host's clocks advance by 1 ns with each instruction, so a clock that reads
    1 s has counted 1 Ginsn."""
    kind = METRICS[name.partition("@")[0]]
    if kind == "cost":
        return "Ginsn" if accel == "exact" else "s"
    return kind


def resolution_of(workload: Workload, name: Metric) -> Resolution:
    """Return how near two values of a metric in Ginsn must be to be the same number."""
    if workload == "map":
        return OF_MAPS
    if name.startswith("guest_"):
        return OF_BOOTS
    return OF_UNMAPS_IN_BOOTS if name.startswith("bar_unmap") else OF_MAPS_IN_BOOTS


def values_by_pair(results: Sequence[TrialResult], role: Role, name: Metric) -> dict[int, float]:
    """Return the metric's value of each measured trial that has one, by pair."""
    return {
        r.pair: value for r in results
        if r.arm == role and r.kind == "measured" and (value := r.value(name)) is not None
    }  # fmt: skip


def _name_metrics(results: Sequence[TrialResult]) -> list[Metric]:
    """Return every metric that was measured: in the order of METRICS, then point by point."""
    names = {name: None for result in results for name in result.samples}
    return [name for name in METRICS if name in names] + [n for n in names if "@" in n]
