"""The verbs whose questions are short: `ab` and `bisect`."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.analysis.verdict.bisection import BisectCommit, Measured, Skipped
from orchestrator.base.progress import Progress
from orchestrator.machine.runner import accel
from orchestrator.report.text.brief import LINES
from orchestrator.run import ab
from orchestrator.run import kernels as run_kernels
from orchestrator.run import trials as running
from orchestrator.run.bisect import KernelBench, Question
from orchestrator.run.kernels import RunKernels
from orchestrator.run.trials import Enough, Runner
from orchestrator.scenario.factors import load_scenarios
from orchestrator.scenario.model import Scenario
from tests.unit.histories import straight
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.recorded import copied_run
from tests.unit.scenarios import MAPS
from tests.unit.test_cli import Command, Said, barometer

__all__ = ["barometer"]


class Fixture:
    """A machine whose runs boot nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = copied_run(folder / "found")
        self.ran: list[tuple[Scenario, Path]] = []
        self.texts: list[str] = []

    def run_plan(
        self, scenario: Scenario, text: str, out: Path, here: Runner, enough: Enough | None
    ) -> bool:
        self.ran.append((scenario, out))
        self.texts.append((out / "scenario.toml").read_text())  # exists before the run
        assert self.texts[-1] == text
        shutil.copytree(self.found, out, dirs_exist_ok=True)
        return True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fixture:
    fixture = Fixture(tmp_path)
    for name in ("old", "new"):
        folder_kernel(tmp_path / name, f"7.0-{name}")

    def runner(
        kernels: RunKernels, progress: Progress, *, keep: bool, visit: None = None
    ) -> contextlib.AbstractContextManager[Runner]:
        nothing = cast(Any, SimpleNamespace(version=lambda: {"qemu": "10.0.2"}))
        return contextlib.nullcontext(Runner(kernels, nothing, nothing, progress, keep))

    monkeypatch.chdir(tmp_path)
    for module in (ab, running):
        monkeypatch.setattr(module, "ready_runner", runner)
    for module in (ab, accel):
        monkeypatch.setattr(
            module, "choose_accel", lambda asked: (asked.replace("auto", "tcg"), "no KVM")
        )
    monkeypatch.setattr(ab, "run_plan", fixture.run_plan)
    monkeypatch.setattr(run_kernels, "check_kernel", lambda kernel, cache: None)
    return fixture


def test_ab_runs_the_scenario_that_it_leaves(
    barometer: Command, capsys: Said, machine: Fixture
) -> None:
    out = machine.folder / "out"
    assert barometer("ab", "--base", "dir:old", "--candidate", "dir:new", "--out", out) == 0
    ((scenario, folder),) = machine.ran
    assert folder == out
    assert (scenario.workload, scenario.nested.accel) == ("map", "exact")
    assert str(scenario.arms.baseline.kernel) == f"dir:{machine.folder}/old"
    assert str(scenario.arms.candidate.kernel) == f"dir:{machine.folder}/new"
    output = capsys.readouterr()
    assert f"scenario: {out}/scenario.toml\n" in output.err
    assert f"candidate: dir:{machine.folder}/new (7.0-new)\n" in output.err
    assert output.out.splitlines()[-1] == f"run: {out}"


def test_ab_goes_into_a_folder_of_its_own(barometer: Command, machine: Fixture) -> None:
    assert barometer("ab", "--base", "dir:old", "--candidate", "dir:new") == 0
    assert machine.ran[0][1].parent == machine.folder / "runs"
    assert machine.ran[0][1].name.startswith("ab-new-2")


def test_ab_takes_what_it_is_told(barometer: Command, machine: Fixture) -> None:
    assert barometer(
        "ab", "--base", "dir:old", "--accel", "kvm", "--workload", "guest-boot", "--bar", "4GiB",
        "--guest", "dir:new", "--pairs", 3, "--candidate-cmdline", "iommu.strict=1",
        "--candidate-param", "vfio.x=true", "--candidate-sysfs", "/sys/x=1",
        "--set", "judgement.margin=2%", "--json",
    ) == 0  # fmt: skip
    scenario = machine.ran[0][0]
    assert (scenario.nested.accel, scenario.workload, scenario.trials.pairs) == (
        "kvm", "guest-boot", 3,
    )  # fmt: skip
    assert scenario.arms.candidate.cmdline == "iommu.strict=1"
    assert scenario.arms.candidate.parameters == {"vfio.x": "Y"}
    assert scenario.arms.candidate.sysfs == {"/sys/x": "1"}
    assert scenario.judgement.margin == 0.02


def test_ab_writes_its_scenario_and_stops(
    barometer: Command, capsys: Said, machine: Fixture, tmp_path: Path
) -> None:
    path = tmp_path / "sub/my.toml"
    asked = ["ab", "--base", "deb:linux-image-cloud-amd64@trixie", "--series", "fix.mbox"]
    assert barometer(*asked, "--write", path) == 2
    assert "cannot be written" in capsys.readouterr().err
    path.parent.mkdir()
    assert barometer(*asked, "--write", path) == 0
    assert capsys.readouterr().out == f"scenario: {path}\n"
    assert machine.ran == []
    kernel = load_scenarios(path).cells[0].scenario.arms.candidate.kernel
    assert getattr(kernel, "series", ()) == (f"{tmp_path}/fix.mbox",)


def test_matrix_can_be_set_for_ab(
    barometer: Command, machine: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def run_cells(file: Any, cells: Any, out: Path, here: Runner) -> None:
        begun.extend(cell.name for cell in cells)
        raise KeyboardInterrupt

    monkeypatch.setattr(ab, "run_cells", run_cells)
    factor = 'matrix."map.backend"=["type1", "iommufd"]'
    assert barometer("ab", "--base", "dir:old", "--candidate", "dir:new", "--set", factor) == 130
    assert begun == ["type1", "iommufd"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Missing option '--base'"),
        (["--base", "v7.3"], "--base 'v7.3': names no kind"),
        (["--base", "dri:old"], 'did you mean "dir:"?'),
        (["--base", "dir:old"], "nothing differs"),
        (["--base", "dir:old", "--candidate", "module:new"], "module: "),
        (["--base", "dir:old", "--candidate", "dir:found"], "--candidate: "),
        (["--base", "dir:old", "--candidate", "dir:new", "--bar", "3GiB"], "nearest: 2GiB or"),
        (["--base", "dir:old", "--candidate", "dir:new", "--guest", "dir:new"], "--workload"),
        (["--base", "dir:old", "--candidate", "dir:new", "--set", "nme=x"], 'did you mean "name"'),
        (["--base", "dir:old", "--candidate", "dir:new", "--accel", "fast"], "--accel"),
        (["--base", "dir:old", "--candidate", "dir:new", "--out", "old/vmlinuz/x"], "--out"),
    ],
)
def test_ab_finds_what_is_wrong_before_anything_runs(
    barometer: Command, capsys: Said, machine: Fixture, arguments: list[str], expected: str
) -> None:
    assert barometer("ab", *arguments) == 2
    assert expected in capsys.readouterr().err
    assert machine.ran == []
    assert not (machine.folder / "runs").exists()


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of 20 commits. From c7 on they cost twice as much; c4 does not build."""
    straight(tmp_path / "linux", 20)

    def ends(self: KernelBench, question: Question, folder: Path) -> tuple[Measured, Measured]:
        return measured(0.01), measured(0.02)

    def step(
        self: KernelBench, question: Question, commit: BisectCommit, folder: Path
    ) -> Measured | Skipped:
        number = int(commit.subject[1:])
        if number == 4:
            return Skipped("build-failed", "it does not build")
        return measured(0.02 if number >= 7 else 0.01)

    monkeypatch.setattr(KernelBench, "measure_ends", ends)
    monkeypatch.setattr(KernelBench, "measure_step", step)
    return tmp_path / "linux"


def measured(value: float) -> Measured:
    return Measured("Ginsn", (value,), "7.3.0", "d1")


def test_bisect_ends_with_the_commit_and_its_folder(
    barometer: Command, capsys: Said, machine: Fixture, linux: Path
) -> None:
    asked = ["bisect", "--tree", linux, "--good", "c1", "--bad", "c19", "--out", "out"]
    assert barometer(*asked) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith(" is the first bad commit")
    assert "subject c7\n" in out
    assert out.splitlines()[-1] == f"bisection: {machine.folder}/out"
    assert len(out.splitlines()) <= LINES
    assert "c7\n" in (machine.folder / "out/bisect.txt").read_text()
    assert barometer(*asked, "--json") == 0  # a complete bisection is only printed again
    document = json.loads(capsys.readouterr().out)
    assert document.pop("bisection") == f"{machine.folder}/out"
    assert document.pop("exit_code") == 0
    assert document == json.loads((machine.folder / "out/bisect.json").read_text())
    assert document["first_bad"]["subject"] == "c7"


def test_bisect_is_inconclusive_where_skips_hide_the_commit(
    barometer: Command, capsys: Said, machine: Fixture, linux: Path
) -> None:
    asked = ["bisect", "--tree", linux, "--good", "c3", "--bad", "c5", "--json"]
    assert barometer(*asked) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 4
    assert [commit["subject"] for commit in document["one_of"]] == ["c5", "c4"]


def test_bisect_measures_as_a_scenario_file_does(
    barometer: Command, capsys: Said, machine: Fixture, linux: Path, tmp_path: Path
) -> None:
    (tmp_path / "maps.toml").write_text(MAPS)
    asked = ["bisect", "--tree", linux, "--good", "c1", "--bad", "c19", "--json"]
    options = ["--scenario", "maps.toml", "--set", "device.bar=1GiB"]
    assert barometer(*asked, *options, "--metric", "pfn_lookups_per_map", "--trials", 2) == 0
    question = json.loads(capsys.readouterr().out)["asked"]
    assert 'bar = "1GiB"' in question["scenario"]
    assert question["trials"] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--good", "c1"], "Missing option '--bad'"),
        (["--good", "c1", "--bad", "c99"], "near: c9"),
        (["--good", "c9", "--bad", "c2"], "is no ancestor"),
        (["--good", "c1", "--bad", "c2", "--tree", "found"], "--tree found"),
        (["--good", "c1", "--bad", "c2", "--metric", "bar_map"], 'did you mean "bar_map_cost"'),
        (["--good", "c1", "--bad", "c2", "--metric", "guest_boot_cost"], "is not measured"),
        (["--good", "c1", "--bad", "c2", "--on", "tree:linux"], "--on tree:linux: expected"),
        (["--good", "c1", "--bad", "c2", "--scenario", "x.toml", "--bar", "1GiB"], "exclude one"),
        (["--good", "c1", "--bad", "c2", "--scenario", "x.toml"], "x.toml: cannot be read"),
        (["--good", "c1", "--bad", "c2", "--trials", "0"], "--trials"),
        (["--good", "c1", "--bad", "c2", "--", "drivers"], "touches drivers"),
    ],
)
def test_bisect_finds_what_is_wrong_before_anything_is_built(
    barometer: Command, capsys: Said, machine: Fixture, linux: Path, arguments: list[str],
    expected: str,
) -> None:  # fmt: skip
    assert barometer("bisect", "--tree", linux, *arguments) == 2
    assert expected in capsys.readouterr().err
    assert not (machine.folder / "runs").exists()


def test_ab_can_be_planned_only(barometer: Command, capsys: Said, machine: Fixture) -> None:
    """What a plan can know is checked; nothing is measured, and no folder is made."""
    assert barometer("ab", "--base", "dir:old", "--candidate", "dir:new", "--plan") == 0
    shown = capsys.readouterr().out
    assert "0001-baseline" in shown
    assert "7.0-new" in shown
    assert not machine.ran
    assert not (machine.folder / "runs").exists()
