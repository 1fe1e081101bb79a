"""What a run would do: the trials in order and the exact kernels, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.analysis.verdict.effect import (
    FEW_FLOOR,
    OF_BOOTS,
    OF_MAPS_IN_BOOTS,
    OF_UNMAPS_IN_BOOTS,
    ONE_PAIR_FLOOR,
    Resolution,
)
from orchestrator.analysis.verdict.power import FOUND, Power, compute_power
from orchestrator.base.errors import key_named
from orchestrator.evidence.noise import MetricNoise
from orchestrator.formats.units import format_size
from orchestrator.report.words.quantities import plural
from orchestrator.report.words.wording import describe_guest
from orchestrator.scenario.factors import Cell, ScenarioFile, format_toml
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.trials import Arm
from orchestrator.scenario.vocabulary import ARMS, Metric

Describe = Callable[[Kernel], str]
"""Function that looks up a kernel and names its exact version."""
Recall = Callable[[Scenario, Metric], MetricNoise | None]
"""Function that recalls the noise of a metric in earlier runs."""
_SPREADS = (0.01, 0.05)
"""Spreads that a plan is judged by if no earlier run tells its own."""


def text_preview(
    file: ScenarioFile, cells: Sequence[Cell], describe: Describe, recall: Recall
) -> str:
    lines = [f"{file.name}: {len(cells)} cells of {len(file.cells)}"] * file.has_matrix
    for cell in cells:
        if file.has_matrix:
            settings = (f"{key} = {format_toml(value)}" for key, value in cell.settings.items())
            lines.append(f"\ncell {cell.name}: {', '.join(settings)}")
        lines += _lines(cell, describe, recall)
    return "\n".join(lines)


def json_preview(
    file: ScenarioFile, cells: Sequence[Cell], describe: Describe, recall: Recall
) -> dict[str, object]:
    return {
        "schema": 1, "scenario": file.name,
        "cells": [_cell_json(cell, describe, recall) for cell in cells],
    }  # fmt: skip


def _lines(cell: Cell, describe: Describe, recall: Recall) -> Iterator[str]:
    scenario = cell.scenario
    number = f"{scenario.device.count} x " * (scenario.device.count > 1)
    yield (
        f"{scenario.name}: {scenario.workload}, {number}{scenario.device.kind} with a BAR of "
        f"{format_size(scenario.device.bar)}, passes {', '.join(scenario.trace.passes)}"
    )
    for arm in ARMS:
        with key_named(f"arms.{arm}.kernel"):
            yield f"  {arm:<10} {describe(scenario.arms[arm].kernel)}"
        for setting in _settings(scenario.arms[arm]):
            yield f"  {'':<10} {setting}"
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        with key_named("guest.kernel"):
            kernel = describe(scenario.guest.kernel)
        yield f"  {'guest':<10} {kernel}{describe_guest(scenario.guest)}"
    else:
        points = ", ".join(point.name for point in scenario.points())
        yield f"  {'points':<10} {points}"
    if (until := scenario.trials.until) is not None:
        yield (
            f"  {'pairs':<10} at most {scenario.trials.most_pairs} pairs, until the deciding"
            f" metrics are known to {100 * until.precision:g}%"
        )
    for text in _power_texts(scenario, recall):
        yield f"  {'power':<10} {text}"
    for trial in make_plan(scenario):
        where = f"pair {trial.pair}, " * (trial.pair > 0)
        yield f"  {trial.name}  {where}{', '.join(trial.passes)}"


def _power_texts(scenario: Scenario, recall: Recall) -> Iterator[str]:
    """Yield what the longest run of the plan can find, for each noisy metric that decides."""
    power = compute_power(scenario)
    if not power.metrics:
        yield "every number of this plan is exact: any difference is found"
        return
    most = scenario.trials.most_pairs
    pairs = plural(most, "pair")
    if power.pairs != most:
        pairs += f" ({power.pairs} independent ones, for trials share boots)"
    if power.shift is None and scenario.host.exact:
        yield (
            f"{pairs}: of a boot's instructions a change by {_beyond(OF_BOOTS)} is found, of its"
            f" maps' {_beyond(OF_MAPS_IN_BOOTS)}, of its unmaps' {_beyond(OF_UNMAPS_IN_BOOTS)}"
        )
        return
    if power.shift is None:
        factor = FEW_FLOOR if power.pairs > 1 else ONE_PAIR_FLOOR
        yield f"{pairs}: of times a change by a factor of {factor:g} or more is found"
        return
    for metric in power.metrics:
        noise = recall(scenario, metric)
        if noise is None:
            known = ", ".join(
                f"{_change(power, spread)} at a spread of {spread:.0%}" for spread in _SPREADS
            )
            yield f"{metric}: {pairs} find {known}; no earlier run tells the spread"
        else:
            usual = noise.usual_change
            yield (
                f"{metric}: {pairs} find {_change(power, noise.spread)} in {FOUND:.0%} of runs, at"
                f" a spread of {noise.spread:.1%} in {noise.trials} trials since {noise.since}"
                + (f"; a night changes it by {usual:.1%} at most" if usual is not None else "")
            )


def _beyond(resolution: Resolution) -> str:
    return f"more than {resolution.ratio - 1:.0%}"


def _change(power: Power, spread: float) -> str:
    change = power.find_change(spread)
    return "no change" if change is None else f"a change of {change:.1%}"


def _settings(arm: Arm) -> Iterator[str]:
    """Yield a line for each setting of an arm."""
    if arm.cmdline:
        yield f"command line {' '.join(arm.cmdline.split())}"
    for name, value in (*arm.parameters.items(), *arm.sysfs.items()):
        yield f"{name} = {value}"


def _cell_json(cell: Cell, describe: Describe, recall: Recall) -> dict[str, object]:
    scenario = cell.scenario
    power = compute_power(scenario)
    kernels: dict[str, Kernel] = {arm: scenario.arms[arm].kernel for arm in ARMS}
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        kernels["guest"] = scenario.guest.kernel
    return {
        "name": cell.name or None, "settings": cell.settings, "scenario": scenario.name,
        "workload": scenario.workload, "device": scenario.device.model_dump(mode="json"),
        "kernels": {name: describe(kernel) for name, kernel in kernels.items()},
        "arm_settings": {arm: scenario.arms[arm].settings for arm in ARMS},
        "points": [point.name for point in scenario.points()],
        "trials": [
            {"name": trial.name, "pair": trial.pair, "arm": trial.arm, "passes": trial.passes}
            for trial in make_plan(scenario)
        ],
        "power": {
            "independent_pairs": power.pairs,
            "metrics": {
                metric: _power_json(power, recall(scenario, metric)) for metric in power.metrics
            },
        },
    }  # fmt: skip


def _power_json(power: Power, noise: MetricNoise | None) -> dict[str, object] | None:
    """Return the change that a plan finds, as a share; None without an earlier run. `finds` is
    None if only a large factor is found."""
    if noise is None:
        return None
    return {
        "finds": power.find_change(noise.spread), "spread": noise.spread, "trials": noise.trials,
        "since": noise.since, "usual_change": noise.usual_change,
    }  # fmt: skip
