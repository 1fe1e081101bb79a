"""A run of a scenario file with a [matrix]: a folder of runs, one for each cell.

RUN/scenario.toml matrix.json comparison.json report.txt junit.xml results.ktap
RUN/cells/NAME/                          an ordinary run, that can be judged alone
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.analysis.comparison import Comparison, worst
from orchestrator.errors import BenchError, EvidenceError, ScenarioError, key_named
from orchestrator.evidence.layout import RunDir, need_keys, read_json, write_json
from orchestrator.factors import Cell, ScenarioFile
from orchestrator.folderlock import LOCK, only_writer
from orchestrator.judge import Judged, judged_whole, looks_of, save
from orchestrator.kernels import describe
from orchestrator.report.brief import matrix_brief
from orchestrator.report.cases import Suite, code_of, not_run
from orchestrator.report.junit import junit_xml
from orchestrator.report.ktap import ktap
from orchestrator.report.matrix import matrix_report
from orchestrator.run import Runner, all_made, no_space_explained, run_plan
from orchestrator.scenario import ARMS, Scenario

_FAILED_CELLS = 2
_NOT_RUN = EvidenceError.exit_code


class MatrixDir:
    """One run of a matrix: its scenario file and a run for each cell."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def is_at(path: Path) -> bool:
        return (path / "matrix.json").is_file()

    @classmethod
    def create(cls, path: Path, file: ScenarioFile, cells: Sequence[Cell]) -> MatrixDir:
        """Begin a run of these cells, or take the same run up again, maybe with other cells.

        Raises ScenarioError if the folder holds something else.
        """
        names = {cell.name for cell in cells}
        matrix = cls(path)
        if cls.is_at(path):
            if (path / "scenario.toml").read_text() != file.text:
                raise ScenarioError(
                    f"{path} holds a run of another scenario",
                    hint="give another --out, or the scenario it was started with to go on",
                    reason="run-exists",
                )
            names |= {cell["name"] for cell in matrix.facts()["cells"]}
        # matrix.json is written last: without it nothing has run yet
        elif path.exists() and not {p.name for p in path.iterdir()} <= {"scenario.toml", LOCK}:
            raise ScenarioError(
                f"{path} is not empty and holds no run of a [matrix]", reason="run-exists"
            )
        path.mkdir(parents=True, exist_ok=True)
        (path / "scenario.toml").write_text(file.text)
        listed = [
            {"name": cell.name, "folder": f"cells/{cell.name}", "settings": cell.settings}
            for cell in file.cells
            if cell.name in names
        ]
        facts = {"schema": 1, "scenario": file.name, "cells": listed}
        write_json(path / "matrix.json", facts)
        return matrix

    def facts(self) -> dict[str, Any]:
        """Return matrix.json. Raises EvidenceError if it cannot be read."""
        path = self.path / "matrix.json"
        facts: dict[str, Any] = read_json(path)
        need_keys(path, facts, ("scenario", "cells"))
        cells = facts["cells"]
        if not isinstance(cells, list) or not cells or not all(map(_is_listed, cells)):
            raise EvidenceError(
                f"{path} does not list cells with name, folder and settings", reason="bad-evidence"
            )
        return facts

    def runs(self) -> dict[str, RunDir | None]:
        """Return the run of each cell by the cell's name; None if it has not begun."""
        folders = {cell["name"]: self.path / cell["folder"] for cell in self.facts()["cells"]}
        return {
            name: RunDir.open(folder) if (folder / "plan.json").is_file() else None
            for name, folder in folders.items()
        }


def _is_listed(cell: Any) -> bool:
    return isinstance(cell, dict) and all(
        isinstance(cell.get(key), kind)
        for key, kind in (("name", str), ("folder", str), ("settings", dict))
    )


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
                        cell.scenario, cell.text, folder, here, looks_of(cell.scenario)
                    ):
                        failed = BenchError(f"{title}: the bench kept failing")
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


def all_cells_made(cells: Sequence[Cell], out: Path) -> bool:
    """True if every trial of these cells has been made. `all_made` is the same for one run."""
    return all(
        all_made(cell.scenario, out / "cells" / cell.name, looks_of(cell.scenario))
        for cell in cells
    )


def _look_up_kernels(cells: Sequence[Cell], here: Runner) -> None:
    """Look up all kernels, so that a missing one is found before the first cell boots. Raises
    ScenarioError."""
    seen = set()
    for cell in cells:
        for key, kernel in _kernels(cell.scenario).items():
            if kernel not in seen:
                with key_named(f"cell {cell.name}"), key_named(key):
                    describe(kernel, here.cache)
                seen.add(kernel)


def _kernels(scenario: Scenario) -> dict[str, Any]:
    kernels: dict[str, Any] = {f"arms.{arm}.kernel": scenario.arms[arm].kernel for arm in ARMS}
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        kernels["guest.kernel"] = scenario.guest.kernel
    return kernels


def judge_cells(matrix: MatrixDir, tester: str | None = None) -> Judged:
    """Judge all cells together, each as a suite. The exit code is 1 if any cell has 1, else the
    largest. The result is saved in the run, and each cell's own in the cell. `tester` is that of
    `judge`."""
    found: dict[str, Comparison | None] = {}
    documents: dict[str, dict[str, object] | None] = {}
    suites: list[Suite] = []
    emulated = False
    name = str(matrix.facts()["scenario"])
    for cell, run in matrix.runs().items():
        if run is None:
            found[cell] = documents[cell] = None
            suites.append(not_run(f"{name}-{cell}", _NOT_RUN))
            continue
        _, comparison, of_cell = judged_whole(run, tester)
        found[cell] = comparison
        documents[cell] = of_cell.document
        suites += of_cell.suites
        emulated = emulated or run.plan().accel == "tcg"
    verdict = worst("invalid" if c is None else c.verdict for c in found.values())
    report = matrix_report(name, verdict, found, emulated=emulated)
    whole = {"schema": 1, "scenario": name, "verdict": verdict, "cells": documents}
    texts = {"report.txt": report, "junit.xml": junit_xml(suites), "results.ktap": ktap(suites)}
    save(matrix.path, whole, texts)
    brief = matrix_brief(name, verdict, found, matrix.path)
    return Judged(report, code_of(suites), whole, tuple(suites), brief)
