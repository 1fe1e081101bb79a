"""A run of a scenario file with a [matrix]: a folder of runs, one for each cell.

RUN/scenario.toml matrix.json comparison.json report.txt report.html junit.xml results.ktap
RUN/cells/NAME/                          an ordinary run, that can be judged alone
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.verdict.comparison import Comparison, worst_verdict
from orchestrator.analysis.verdict.comparison_file import COMPARISON_SCHEMA
from orchestrator.analysis.verdict.effect import Verdict
from orchestrator.analysis.verdict.outcome import join_titles
from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.base.folderlock import LOCK
from orchestrator.base.plainfile import replace_file
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import RunDir, write_json
from orchestrator.evidence.matrix import MatrixRecord
from orchestrator.evidence.model import read_evidence
from orchestrator.report.exports.cases import Suite, combine_exit_codes, not_run
from orchestrator.report.exports.junit import junit_xml
from orchestrator.report.exports.ktap import format_ktap
from orchestrator.report.text.brief import matrix_brief
from orchestrator.report.text.matrix_text import matrix_report
from orchestrator.report.words.redact import NOTHING_HIDDEN, Redaction
from orchestrator.run.judging.judge import Judged, Run, judge, save_reports, warning_if_refused
from orchestrator.run.judging.private import find_private
from orchestrator.scenario.factors import Cell, ScenarioFile, parse_scenarios

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
                    reason=Reason.RUN_EXISTS,
                )
            names |= {cell.name for cell in matrix.record().cells}
        # matrix.json is written last: without it nothing has run yet
        elif path.exists() and not {p.name for p in path.iterdir()} <= {"scenario.toml", LOCK}:
            raise ScenarioError(
                f"{path} is not empty and holds no run of a [matrix]", reason=Reason.RUN_EXISTS
            )
        path.mkdir(parents=True, exist_ok=True)
        (path / "scenario.toml").write_text(file.text)
        listed = [
            {"name": cell.name, "folder": f"cells/{cell.name}", "settings": cell.settings}
            for cell in file.cells
            if cell.name in names
        ]
        facts = {"schema": 1, "scenario": file.name, "of": len(file.cells), "cells": listed}
        record = MatrixRecord.model_validate_json(json.dumps(facts))
        write_json(path / "matrix.json", record.to_json())
        return matrix

    def record(self) -> MatrixRecord:
        """Read matrix.json. Raises EvidenceError if it does not have its form."""
        return read_evidence(MatrixRecord, self.path / "matrix.json")

    def count_cells(self) -> int:
        """Return the number of the scenario's cells, chosen or not. Raises ScenarioError if
        scenario.toml is damaged."""
        record, path = self.record(), self.path / "scenario.toml"
        if record.of is None and path.exists():  # an older version's
            return len(parse_scenarios(path.read_text("utf-8"), str(path), self.path).cells)
        return len(record.cells) if record.of is None else record.of

    def runs(self) -> dict[str, RunDir | None]:
        """Return the run of each cell by the cell's name; None if it has not begun."""
        folders = {cell.name: self.path / cell.folder for cell in self.record().cells}
        return {
            name: RunDir.open(folder) if (folder / "plan.json").is_file() else None
            for name, folder in folders.items()
        }


@dataclass(frozen=True)
class Matrix:
    """The judged cells of a matrix, in memory: nothing is written until `save`."""

    path: Path
    scenario: str
    """Name of the scenario."""
    cells: Mapping[str, Run | None]
    """None for a cell that has not begun."""
    of: int
    """Number of the scenario's cells; `cells` has those that were chosen."""

    def save(self, *, redact: bool = True) -> Judged:
        """Save each cell's result in the cell, and that of the whole in the run. The exit code is
        1 if any cell has 1, else the largest."""
        documents: dict[str, Mapping[str, object] | None] = {}
        suites: list[Suite] = []
        for name, run in self.cells.items():
            judged = None if run is None else run.save(redact=redact)
            documents[name] = judged and judged.document
            suites += judged.suites if judged else [not_run(f"{self.scenario}-{name}", _NOT_RUN)]
        begun = [run for run in self.cells.values() if run is not None]
        comparisons = {name: run.comparison if run else None for name, run in self.cells.items()}
        verdict = worst_verdict(
            "invalid" if c is None else c.verdict for c in comparisons.values()
        )
        outcomes = [None if c is None else c.outcome for c in comparisons.values()]
        emulated = any(run.plan.accel == "tcg" for run in begun)
        report = matrix_report(self.scenario, verdict, comparisons, of=self.of, emulated=emulated)
        whole = {
            "schema": COMPARISON_SCHEMA,
            "scenario": self.scenario,
            "verdict": verdict,
            "outcome": {"title": join_titles(outcomes, verdict)},
            "cells_of": self.of,
            "cells": documents,
        }
        host = begun[0].scenario.host if begun else None
        hidden = find_private(host) if redact else NOTHING_HIDDEN
        texts = {
            "report.txt": report, "junit.xml": hidden.apply(junit_xml(suites)),
            "results.ktap": hidden.apply(format_ktap(suites)),
        }  # fmt: skip
        save_reports(self.path, whole, texts)
        self._save_page(verdict, comparisons, hidden, emulated=emulated)
        brief = matrix_brief(self.scenario, verdict, comparisons, self.path, of=self.of)
        mail = "\n".join(
            f"{name}:\n{'not run' if run is None else run.mail}"
            for name, run in self.cells.items()
        )
        return Judged(
            report, combine_exit_codes(suites), whole, tuple(suites), brief, mail, hidden
        )

    def _save_page(
        self, verdict: Verdict, comparisons: Mapping[str, Comparison | None], hidden: Redaction,
        *, emulated: bool,
    ) -> None:  # fmt: skip
        links = {
            name: f"{run.path.relative_to(self.path)}/report.html"
            for name, run in self.cells.items() if run is not None
        }  # fmt: skip
        with warning_if_refused("page"):
            # Imported only here: it loads the library for pages.
            from orchestrator.report.html.html import html_matrix  # noqa: PLC0415
            from orchestrator.report.html.matrix_page import build_matrix_page  # noqa: PLC0415

            page = build_matrix_page(
                self.scenario, verdict, comparisons, links, of=self.of, emulated=emulated
            )
            replace_file(self.path / "report.html", hidden.apply(html_matrix(page)))


def judge_cells(matrix: MatrixDir, tester: str | None = None) -> Matrix:
    """Judge all cells together, each as a suite. `tester` is that of `judge`."""
    runs = matrix.runs()
    cells = {cell: None if run is None else judge(run, tester) for cell, run in runs.items()}
    return Matrix(matrix.path, matrix.record().scenario, cells, matrix.count_cells())
