"""What a run would do: the trials in order and the exact kernels, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.base.errors import key_named
from orchestrator.formats.units import format_size
from orchestrator.report.words.wording import describe_guest
from orchestrator.scenario.factors import Cell, ScenarioFile, format_toml
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.trials import Arm
from orchestrator.scenario.vocabulary import ARMS

Describe = Callable[[Kernel], str]
"""Function that looks up a kernel and names its exact version."""


def text_preview(file: ScenarioFile, cells: Sequence[Cell], describe: Describe) -> str:
    lines = [f"{file.name}: {len(cells)} cells of {len(file.cells)}"] * file.has_matrix
    for cell in cells:
        if file.has_matrix:
            settings = (f"{key} = {format_toml(value)}" for key, value in cell.settings.items())
            lines.append(f"\ncell {cell.name}: {', '.join(settings)}")
        lines += _lines(cell, describe)
    return "\n".join(lines)


def json_preview(
    file: ScenarioFile, cells: Sequence[Cell], describe: Describe
) -> dict[str, object]:
    return {
        "schema": 1, "scenario": file.name, "cells": [_cell_json(cell, describe) for cell in cells]
    }  # fmt: skip


def _lines(cell: Cell, describe: Describe) -> Iterator[str]:
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
    for trial in make_plan(scenario):
        where = f"pair {trial.pair}, " * (trial.pair > 0)
        yield f"  {trial.name}  {where}{', '.join(trial.passes)}"


def _settings(arm: Arm) -> Iterator[str]:
    """Yield a line for each setting of an arm."""
    if arm.cmdline:
        yield f"command line {' '.join(arm.cmdline.split())}"
    for name, value in (*arm.parameters.items(), *arm.sysfs.items()):
        yield f"{name} = {value}"


def _cell_json(cell: Cell, describe: Describe) -> dict[str, object]:
    scenario = cell.scenario
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
    }  # fmt: skip
