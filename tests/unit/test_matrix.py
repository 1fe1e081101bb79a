"""The loop over the cells of a matrix, with runs that boot nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, BenchError, EvidenceError, ScenarioError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.run import cells as cell_loop
from orchestrator.run import kernels as run_kernels
from orchestrator.run.cells import run_cells
from orchestrator.run.judging.matrix import MatrixDir, judge_cells
from orchestrator.run.kernels import RunKernels
from orchestrator.run.trials import Enough, Runner
from orchestrator.scenario.factors import ScenarioFile, parse_scenarios
from orchestrator.scenario.model import Scenario
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.recorded import MEASURED, RUN, copied, sealed, unpatched

FACTORS = '[matrix]\n"guest.firmware" = ["seabios", "ovmf"]\n"device.count" = [1, 4]\n'
CELLS = ["seabios-1", "seabios-4", "ovmf-1", "ovmf-4"]
Plan = Callable[[Path], bool]


class Fixture:
    """A machine on which a cell does what a test prescribes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self.folder = monkeypatch, folder
        self.out = folder / "run"
        self.begun: list[str] = []
        for name in ("old", "new", "guest"):
            folder_kernel(folder / name, f"7.0-{name}")
        self.file = self.parsed(FACTORS)
        self.here = Runner(
            RunKernels(Cache(folder / "cache")),
            cast(Any, None),
            cast(Any, SimpleNamespace()),
            Progress(),
        )

    def parsed(self, factors: str, *overrides: str) -> ScenarioFile:
        text = (RUN / "scenario.toml").read_text()
        for arm, name in (("baseline", "old"), ("candidate", "new")):
            head, section, rest = text.partition(f"[arms.{arm}]\n")
            text = head + section + f'kernel = {{ dir = "{name}" }}\n' + rest.partition("\n")[2]
        return parse_scenarios(text + factors, "x.toml", self.folder, overrides)

    def run(self, plan: Plan, *cells: str, file: ScenarioFile | None = None) -> MatrixDir:
        def begin(
            scenario: Scenario, text: str, out: Path, here: Runner, enough: Enough | None
        ) -> bool:
            self.begun.append(out.name)
            return plan(out)

        self._monkeypatch.setattr(cell_loop, "run_plan", begin)
        self._monkeypatch.setattr(
            run_kernels, "describe_kernel", lambda kernel, cache: str(kernel)
        )
        file = file or self.file
        return run_cells(file, file.select_cells(cells), self.out, self.here)


@pytest.fixture
def fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fixture:
    return Fixture(monkeypatch, tmp_path)


def measured(out: Path) -> bool:
    """Write a run whose candidate is better."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("scenario.toml", "plan.json"):
        shutil.copy(RUN / name, out)
    if not (out / "trials").exists():
        unpatched(out / "trials")
        copied(out / "trials")
    return True


def failing(*cells: str, error: BarometerError | None = None, begins: bool = True) -> Plan:
    """Return a plan for which the bench fails in these cells: in their trials, or before, with
    `error`."""

    def plan(out: Path) -> bool:
        if out.name not in cells:
            return measured(out)
        if begins:
            measured(out)
        if error is not None:
            raise error
        return False

    return plan


def listed(found: MatrixDir) -> list[str]:
    return [cell.name for cell in found.record().cells]


def test_every_cell_is_a_run_in_a_folder_of_its_own(fixture: Fixture) -> None:
    found = fixture.run(measured)
    assert fixture.begun == CELLS
    assert found.record().to_json() == {
        "schema": 1, "scenario": "debian-6.12-vs-7", "of": 4,
        "cells": [
            {"name": f"{firmware}-{count}", "folder": f"cells/{firmware}-{count}",
             "settings": {"guest.firmware": firmware, "device.count": count}}
            for firmware in ("seabios", "ovmf") for count in (1, 4)
        ],
    }  # fmt: skip
    assert (fixture.out / "scenario.toml").read_text() == fixture.file.text
    assert sorted(p.name for p in fixture.out.iterdir()) == [
        "cells", "matrix.json", "scenario.toml",
    ]  # fmt: skip


def test_matrix_is_judged_by_its_cells(fixture: Fixture) -> None:
    found = fixture.run(measured)
    report, code, document, suites, *_ = judge_cells(found).save()
    assert code == 0
    assert [suite.exit_code for suite in suites] == [0] * 4
    assert report.startswith("debian-6.12-vs-7: improved, 4 cells\n")
    assert (fixture.out / "report.txt").read_text() == report
    saved = json.loads((fixture.out / "comparison.json").read_text())
    assert saved == json.loads(json.dumps(document))
    assert (saved["schema"], saved["scenario"], saved["verdict"]) == (
        2, "debian-6.12-vs-7", "improved",
    )  # fmt: skip
    assert list(saved["cells"]) == CELLS
    assert len(ET.parse(fixture.out / "junit.xml").getroot()) == 4
    assert "\n1..4\n" in (fixture.out / "results.ktap").read_text()
    for name in CELLS:
        cell = fixture.out / "cells" / name
        assert (cell / "kcidb.json").exists()
        assert saved["cells"][name] == json.loads((cell / "comparison.json").read_text())
        assert "\ndebian-6.12-vs-7: improved\n" in (cell / "report.txt").read_text()


def regressed(cell: Path) -> None:
    scenario = cell / "scenario.toml"
    scenario.write_text(scenario.read_text().replace('"improved"', '"regressed"'))


def by_bench(cell: Path) -> None:
    outcome = {"kind": "invalid", "by_bench": True, "stage": "host-boot", "reason": "host-hang",
               "message": "hung", "evidence": ""}  # fmt: skip
    sealed(cell / "trials" / MEASURED, outcome=outcome)


def not_run(cell: Path) -> None:
    shutil.rmtree(cell)


@pytest.mark.parametrize(
    ("changes", "code", "verdict"),
    [
        ([regressed], 1, "improved"),
        ([by_bench], 3, "invalid"),
        ([not_run], 4, "invalid"),
        ([by_bench, not_run], 4, "invalid"),
        ([not_run, regressed, by_bench], 1, "invalid"),
    ],
)
def test_exit_code_is_1_where_any_cells_is_and_else_the_largest(
    fixture: Fixture, changes: list[Callable[[Path], None]], code: int, verdict: str
) -> None:
    found = fixture.run(measured)
    for name, change in zip(CELLS, changes, strict=False):
        change(fixture.out / "cells" / name)
    report, found_code, *_ = judge_cells(found).save()
    assert (found_code, report.split(": ")[1].split(",")[0]) == (code, verdict)


def test_cell_that_has_not_run_is_said_to_be(fixture: Fixture) -> None:
    found = fixture.run(measured)
    not_run(fixture.out / "cells/ovmf-1")
    report, *_ = judge_cells(found).save()
    assert "ovmf-1: not run\n" in report
    assert (
        "\nok 3 debian-6.12-vs-7-ovmf-1 # SKIP not run\n"
        in (fixture.out / "results.ktap").read_text()
    )
    assert json.loads((fixture.out / "comparison.json").read_text())["cells"]["ovmf-1"] is None


def test_cell_whose_bench_failed_does_not_keep_the_next_from_running(fixture: Fixture) -> None:
    fixture.run(failing("seabios-1", "ovmf-1"))
    assert fixture.begun == CELLS


@pytest.mark.parametrize(
    "error", [None, BenchError("no mirror", reason=Reason.MIRROR_UNREACHABLE)]
)
@pytest.mark.parametrize(("failed", "begun"), [(CELLS[:2], 2), (CELLS[1:3], 3), (CELLS[2:], 4)])
def test_bench_that_fails_in_two_cells_in_a_row_ends_the_run(
    fixture: Fixture, failed: list[str], begun: int, error: BenchError | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fixture.run(failing(*failed, error=error))
    assert fixture.begun == CELLS[:begun]
    text = capsys.readouterr().err
    assert "two cells in a row: stopping here" in text
    assert ("no mirror" in text) == (error is not None)


def test_bench_on_which_nothing_ran_is_an_error(fixture: Fixture) -> None:
    with pytest.raises(BenchError, match="no mirror"):
        fixture.run(
            failing(
                *CELLS,
                error=BenchError("no mirror", reason=Reason.MIRROR_UNREACHABLE),
                begins=False,
            )
        )


def test_what_a_cell_cannot_have_is_said_with_its_name(fixture: Fixture) -> None:
    with pytest.raises(ScenarioError, match=r"^cell seabios-4: no iommufd$"):
        fixture.run(
            failing(
                "seabios-4", error=ScenarioError("no iommufd", reason=Reason.KERNEL_LACKS_OPTION)
            )
        )


def test_kernel_that_is_missing_is_found_before_the_first_cell_runs(fixture: Fixture) -> None:
    file = fixture.parsed('[matrix]\n"guest.kernel" = [{ dir = "guest" }, { dir = "none" }]\n')
    with pytest.raises(ScenarioError, match=r"^cell none: guest.kernel: .*none is not a folder"):
        run_cells(file, file.cells, fixture.out, fixture.here)
    assert not fixture.out.exists()


def test_interrupted_matrix_is_taken_up_again(fixture: Fixture) -> None:
    def interrupted(out: Path) -> bool:
        if out.name == "ovmf-1":
            raise KeyboardInterrupt
        return measured(out)

    with pytest.raises(KeyboardInterrupt):
        fixture.run(interrupted)
    assert listed(MatrixDir(fixture.out)) == CELLS
    fixture.begun.clear()
    found = fixture.run(measured)
    assert fixture.begun == CELLS  # each cell resumes by itself
    assert judge_cells(found).save()[1] == 0


def test_chosen_cells_run_alone_and_others_join_them(fixture: Fixture) -> None:
    assert listed(fixture.run(measured, "ovmf-4")) == ["ovmf-4"]
    assert fixture.begun == ["ovmf-4"]
    found = fixture.run(measured, "seabios-4")
    assert fixture.begun == ["ovmf-4", "seabios-4"]
    assert listed(found) == ["seabios-4", "ovmf-4"]
    assert judge_cells(found).save()[1] == 0
    assert listed(fixture.run(measured)) == CELLS


def test_matrix_of_another_scenario_is_not_taken_up(fixture: Fixture) -> None:
    fixture.run(measured)
    with pytest.raises(ScenarioError, match="holds a run of another scenario"):
        fixture.run(measured, file=fixture.parsed(FACTORS, "trials.pairs=2"))


def test_folder_with_something_else_is_left_alone(fixture: Fixture) -> None:
    measured(fixture.out)
    before = sorted(fixture.out.rglob("*"))
    with pytest.raises(ScenarioError, match="is not empty"):
        fixture.run(measured)
    assert (fixture.begun, sorted(fixture.out.rglob("*"))) == ([], before)


def test_matrix_is_run_by_one_process_at_a_time(fixture: Fixture) -> None:
    link = fixture.folder / "link"
    fixture.out.mkdir()
    link.symlink_to(fixture.out)
    with only_writer(link), pytest.raises(ScenarioError) as caught:
        fixture.run(measured)
    assert (caught.value.reason, fixture.begun) == ("run-exists", [])
    fixture.run(measured)


LISTS = (
    "[]", "{}", "3", "[3]", '[{"name": "a"}]', '[{"name": 1, "folder": "", "settings": {}}]',
    '[{"name": "a", "folder": "../another/run", "settings": {}}]',
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"schema": 1, "scenario": "x"}',
        *(f'{{"schema": 1, "scenario": "x", "cells": {cells}}}' for cells in LISTS),
    ],
)  # fmt: skip
def test_broken_record_is_refused(fixture: Fixture, text: str) -> None:
    fixture.out.mkdir()
    (fixture.out / "matrix.json").write_text(text)
    with pytest.raises(EvidenceError) as caught:
        judge_cells(MatrixDir(fixture.out)).save()
    assert str(fixture.out / "matrix.json") in str(caught.value)
