"""Barometer as a library: a recorded run in a program."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.run import ab
from orchestrator.run.judging.judge import Judged
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.recorded import copied_run

ROOT = Path(__file__).parents[2]
MATRIX = 'matrix."map.backend"=["type1", "iommufd"]'
RECORDED = ROOT / "fixtures/recorded"
RESULTS = {"comparison.json", "junit.xml", "kcidb.json", "report.html", "report.txt",
           "results.csv", "results.ktap", "timelines"}  # fmt: skip


def test_the_example_of_the_documentation_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.S)
    monkeypatch.chdir(ROOT)
    exec(compile(program, "docs/library.md", "exec"), {})
    first, *metrics, last = capsys.readouterr().out.splitlines()
    assert first == "improved 0"
    assert {line.split()[0] for line in metrics} >= {"bar_map_cost", "pfn_lookups_per_map"}
    assert last == "32 []"


def test_judging_writes_nothing_until_it_is_saved(tmp_path: Path) -> None:
    folder = copied_run(tmp_path / "run")
    before = {path.name for path in folder.iterdir()}
    run = orchestrator.load(folder)
    assert run.comparison.verdict == "improved"
    assert run.exit_code == 0
    assert {path.name for path in folder.iterdir()} == before
    run.save()
    assert {path.name for path in folder.iterdir()} == before | RESULTS
    saved = (folder / "comparison.json").read_text()
    assert saved == json.dumps(run.document(), indent=1) + "\n"
    assert (folder / "report.txt").read_text() == run.report


def test_samples_are_the_values_of_the_measured_trials(tmp_path: Path) -> None:
    run = orchestrator.load(copied_run(tmp_path / "run"))
    assert [trial.name for trial in run.trials] == ["0001-baseline", "0002-candidate"]
    lookups = [sample for sample in run.samples() if sample.metric == "pfn_lookups_per_map"]
    assert [(s.role, s.trial, s.value, s.unit) for s in lookups] == [
        ("baseline", "0001-baseline", 262144, "count"),
        ("candidate", "0002-candidate", 1, "count"),
    ]  # fmt: skip
    for metric in run.comparison.metrics:
        for role, values in (("baseline", metric.baseline), ("candidate", metric.candidate)):
            of_role = [s.value for s in run.samples() if (s.metric, s.role) == (metric.name, role)]
            assert of_role == [*values]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError) as no_run:
        orchestrator.load(tmp_path)
    assert no_run.value.reason == "missing-evidence"
    with pytest.raises(ScenarioError) as matrix:
        orchestrator.load(RECORDED / "factors")
    assert matrix.value.reason == "not-a-run"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Let a comparison boot nothing; return the scenarios that were measured."""
    saved = copied_run(tmp_path / "found")
    scenarios: list[str] = []

    def measure(file: Any, cells: Any, folder: Path, *how: object, keep: bool) -> Judged:
        scenarios.append((folder / "scenario.toml").read_text())
        assert scenarios[-1] == file.text
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        judged = orchestrator.load(folder).save()
        return judged._replace(document={**judged.document, "run": str(folder)})

    for name in ("old", "new"):
        folder_kernel(tmp_path / name, f"7.0-{name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAROMETER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ab, "measure", measure)
    monkeypatch.setattr(ab, "choose_accel", lambda _asked: ("tcg", "no KVM"))
    return scenarios


def test_compare_measures_as_ab_does(
    machine: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = orchestrator.compare(
        "dir:old", "dir:new", bar="4GiB", parameters={"vfio.x": True}, out="out",
        overrides=["judgement.margin=2%"],
    )  # fmt: skip
    assert run.path == tmp_path / "out"
    assert run.comparison.verdict == "improved"
    assert 'accel = "exact"' in machine[0]
    assert 'bar = "4GiB"' in machine[0]
    assert capsys.readouterr() == ("", "")
    orchestrator.compare("dir:old", "dir:new", show_progress=True)
    assert "7.0-new" in capsys.readouterr().err
    assert [path.name[:7] for path in (tmp_path / "runs").iterdir()] == ["ab-new-"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "nothing-differs"),
        ({"candidate": "dri:new"}, "kernel-spelling"),
        ({"candidate": "dir:new", "guest": "dir:new"}, "scenario"),
        ({"candidate": "dir:new", "overrides": [MATRIX]}, "not-a-run"),
        ({"candidate": "dir:new", "out": "old"}, "run-exists"),
    ],
)
def test_compare_has_the_checks_of_ab(
    machine: list[str], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ScenarioError) as caught:
        orchestrator.compare("dir:old", **options)
    assert caught.value.reason == reason
    assert machine == []
    assert not (tmp_path / "runs").exists()


def test_all_names_are_there() -> None:
    for name in orchestrator.__all__:
        assert getattr(orchestrator, name)
    assert {*orchestrator.__all__} <= {*dir(orchestrator)}
    with pytest.raises(AttributeError):
        orchestrator.nonsense  # type: ignore[attr-defined]  # noqa: B018
