"""The loop over the cells of a matrix: each is a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.base.errors import BenchError, key_named
from orchestrator.base.folderlock import only_writer
from orchestrator.base.reasons import Reason
from orchestrator.run.diskspace import no_space_explained
from orchestrator.run.judging.judge import stop_rule
from orchestrator.run.judging.matrix import MatrixDir
from orchestrator.run.trials import Runner, Schedule, run_plan
from orchestrator.scenario.factors import Cell, ScenarioFile
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import ARMS

_FAILED_CELLS = 2


def run_cells(file: ScenarioFile, cells: Sequence[Cell], out: Path, here: Runner) -> MatrixDir:
    """Run every trial of these cells that is not complete yet, cell by cell. Evidence goes below
    `out`.

    Goes on after a cell in which the bench failed; stops if that happens twice in a row. Raises
    ScenarioError if a cell requires something unavailable, and BenchError if nothing at all ran.
    """
    with no_space_explained(out), only_writer(out):
        with here.progress.stage("kernels of all cells"):
            _look_up_kernels(cells, here)
        matrix = MatrixDir.create(out, file, cells)
        failures: list[BenchError | None] = []
        for number, cell in enumerate(cells, 1):
            title = f"cell {cell.name} ({number} of {len(cells)})"
            failed: BenchError | None = None
            try:
                with here.progress.stage(title), key_named(f"cell {cell.name}"):
                    folder = matrix.path / "cells" / cell.name
                    if not run_plan(
                        cell.scenario, cell.text, folder, here, stop_rule(cell.scenario)
                    ):
                        failed = BenchError(
                            f"{title}: the bench kept failing", reason=Reason.CELL_FAILED
                        )
            except BenchError as exc:
                here.progress.note(f"{title}: {exc}")
                failed = exc
            failures.append(failed)
            if len(failures) >= _FAILED_CELLS and all(failures[-_FAILED_CELLS:]):
                here.progress.note("the bench failed in two cells in a row: stopping here")
                break
    if failures[-1] is not None and not any(matrix.runs().values()):
        raise failures[-1]
    return matrix


def is_every_cell_made(cells: Sequence[Cell], out: Path) -> bool:
    """True if every trial of these cells has been made (`Schedule.is_all_made`)."""
    schedules = {
        cell.name: Schedule.of(make_plan(cell.scenario), stop_rule(cell.scenario))
        for cell in cells
    }
    return all(schedule.is_all_made(out / "cells" / name) for name, schedule in schedules.items())


def _look_up_kernels(cells: Sequence[Cell], here: Runner) -> None:
    """Look up all kernels, so that a missing one is found before the first cell boots. Raises
    ScenarioError."""
    for cell in cells:
        for key, kernel in _list_kernels(cell).items():
            with key_named(f"cell {cell.name}"), key_named(key):
                here.kernels.describe(kernel)


def _list_kernels(cell: Cell) -> dict[str, Kernel]:
    scenario = cell.scenario
    kernels: dict[str, Kernel] = {f"arms.{arm}.kernel": scenario.arms[arm].kernel for arm in ARMS}
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        kernels["guest.kernel"] = scenario.guest.kernel
    return kernels
