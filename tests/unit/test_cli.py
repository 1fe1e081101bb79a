"""The command as a user has it, except the process: `run_verb` is all of `main` without
signals."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from orchestrator import __version__
from orchestrator.analysis.boot.timeline import Timeline, timeline_json
from orchestrator.base.errors import BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.cli.entry import run_verb
from orchestrator.evidence.layout import RunDir, TrialDir
from orchestrator.machine.metal import leasing
from orchestrator.machine.metal.keeper import LeftError
from orchestrator.machine.runner import state
from orchestrator.report.exports.perfetto import perfetto_trace
from orchestrator.report.text.brief import LINES
from orchestrator.report.text.timeline_text import text_timeline
from orchestrator.run import ab, doctor
from orchestrator.run import cells as cell_loop
from orchestrator.run.judging import judge as judging
from orchestrator.run.judging import judgefolder
from orchestrator.run.judging.judge import Run
from orchestrator.run.kernels import RunKernels
from orchestrator.run.trials import Enough, Runner
from orchestrator.scenario.factors import Cell, ScenarioFile
from orchestrator.scenario.machines import MetalHost, NestedHost
from orchestrator.scenario.model import Scenario
from tests.unit.checkups import parse as parse_checkup
from tests.unit.checkups import read as read_checkup
from tests.unit.fabricated import sealed_map_trial
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.recorded import FAILED, MEASURED, RUN, copied, copied_run, rewrite, sealed
from tests.unit.scenarios import MAPS, METAL, MINIMAL
from tests.unit.timelines import booted

Said = pytest.CaptureFixture[str]


@pytest.fixture
def barometer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.setenv("BAROMETER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BAROMETER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(typer.main, "get_command", get_command)
    return Command(monkeypatch)


get_command = functools.cache(typer.main.get_command)


class Command:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["barometer", *map(str, arguments)])
        return run_verb()


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    for name in ("old", "new", "guest"):
        folder_kernel(tmp_path / name, f"7.0-{name}")
    path = tmp_path / "small.toml"
    path.write_text(MINIMAL)
    return path


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run whose candidate is better."""
    return copied_run(tmp_path / "run")


def test_version_is_printed(barometer: Command, capsys: Said) -> None:
    assert barometer("--version") == 0
    assert capsys.readouterr().out == f"barometer {__version__}\n"


def test_help_has_every_word_of_its_text(barometer: Command, capsys: Said) -> None:
    barometer("plan", "--help")  # Rich would take words in brackets for markup
    assert "Only this cell of a matrix; repeatable." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["report", "-h"]])
def test_help_is_no_error(barometer: Command, capsys: Said, arguments: list[str]) -> None:
    assert barometer(*arguments) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["plan"],
        ["plan", "x.toml", "--nonsense"],
        ["plan", "x.toml", "--pairs", "0"],
        ["plan", "x.toml", "--pairs", "many"],
        ["report"],
        ["timeline"],
    ],
)
def test_wrong_command_line_is_exit_code_2(
    barometer: Command, capsys: Said, arguments: list[str]
) -> None:
    assert barometer(*arguments) == 2
    assert capsys.readouterr().err.startswith("barometer: error: ")


def test_plan_shows_trials_and_exact_kernels(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    assert barometer("plan", scenario, "--pairs", 2, "--set", "device.bar=1GiB") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == (
        "small: guest-boot, ivshmem with a BAR of 1GiB, passes plain, timing, counts"
    )
    assert f"baseline   dir:{scenario.parent}/old (7.0-old)" in out
    assert f"guest      dir:{scenario.parent}/guest (7.0-guest)" in out
    assert [line.split()[0] for line in out.splitlines()[4:]] == [
        "power", "0001-warm-up", "0002-baseline", "0003-candidate", "0004-candidate",
        "0005-baseline",
    ]  # fmt: skip


def test_plan_shows_what_the_arms_are_set_to(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    settings = (
        "--set", "arms.candidate.cmdline=iommu.strict=1  nosmt",
        "--set", 'arms.candidate.parameters={"vfio.p" = true}',
        "--set", 'arms.candidate.sysfs={"/sys/kernel/x" = 3}',
    )  # fmt: skip
    assert barometer("plan", scenario, *settings) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  candidate "))
    assert [line.strip() for line in lines[at + 1 : at + 4]] == [
        "command line iommu.strict=1 nosmt", "vfio.p = Y", "/sys/kernel/x = 3",
    ]  # fmt: skip
    assert lines[at + 4].startswith("  guest ")
    assert barometer("plan", scenario, *settings, "--json") == 0
    [cell] = json.loads(capsys.readouterr().out)["cells"]
    assert cell["arm_settings"]["baseline"] == {"cmdline": "", "parameters": {}, "sysfs": {}}
    assert cell["arm_settings"]["candidate"]["parameters"] == {"vfio.p": "Y"}


def test_plan_of_maps_shows_their_points(barometer: Command, capsys: Said, scenario: Path) -> None:
    scenario.write_text(MAPS)
    assert barometer("plan", scenario, "--set", 'map.sizes=["1GiB", "full"]') == 0
    out = capsys.readouterr().out
    assert out.startswith("maps: map, ivshmem with a BAR of 32GiB, passes plain, timing, counts\n")
    assert "points     1GiB/1GiB/cold, 1GiB/1GiB/warm, full/1GiB/cold, full/1GiB/warm\n" in out
    assert "guest" not in out


def test_plan_of_an_exact_guest_boot_shows_a_pass_for_each_trial(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    assert barometer("plan", scenario, "--set", "host.accel=exact") == 0
    lines = capsys.readouterr().out.splitlines()[5:]
    assert lines[0] == "  0001-baseline  pair 1, plain"
    assert lines[3] == "  0004-candidate  pair 1, timing"
    assert len(lines) == 6


def test_expectation_of_a_point_is_set_on_the_command_line(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    scenario.write_text(MAPS)
    metric = "pfn_lookups_per_map@full/1GiB/"
    assert barometer("plan", scenario, "--set", f'expect."{metric}cold"=improved') == 0
    assert barometer("plan", scenario, "--set", f'expect."{metric}tepid"=improved') == 2
    assert f'did you mean "{metric}cold"?' in capsys.readouterr().err


def test_report_of_maps_is_judged_like_any_other(
    barometer: Command, capsys: Said, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name, series in (("baseline", False), ("candidate", True)):
        sealed_map_trial(run / "trials", name, series=series, number=1 + series)
    plan = json.loads((RUN / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"accel": "exact", "guest_kernel": None}))
    expected = '"pfn_lookups_per_map@full/4KiB/warm" = "equivalent"'
    text = MAPS + (
        '[device]\nbar = "4GiB"\n[map]\nsizes = ["1GiB", "2GiB", "full"]\n'
        f'alignment = ["1GiB", "2MiB", "4KiB"]\n[expect]\nbar_map_cost = "improved"\n{expected}\n'
    )
    (run / "scenario.toml").write_text(text)
    assert barometer("report", run) == 0
    out = capsys.readouterr().out
    assert "bar_map_cost: improved" in out
    assert "expected: equivalent" in out
    saved = json.loads((run / "comparison.json").read_text())
    assert saved["arms"]["candidate"]["metrics"]["bar_map_cost"]["unit"] == "Ginsn"
    (run / "scenario.toml").write_text(text.replace('"equivalent"', '"improved"'))
    assert barometer("report", run) == 1


FACTORS = '[matrix]\n"guest.firmware" = ["seabios", "ovmf"]\n"device.count" = [1, 4]\n'


def test_plan_of_a_matrix_shows_every_cell_with_its_trials(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    scenario.write_text(MINIMAL + FACTORS)
    assert barometer("plan", scenario, "--set", "device.bar=1GiB") == 0
    out = capsys.readouterr().out
    assert out.startswith("small: 4 cells of 4\n\n")
    cells = out.split("\n\n")[1:]
    lines = cells[3].splitlines()
    assert lines.pop(5).startswith("  power ")
    assert lines == [
        'cell ovmf-4: guest.firmware = "ovmf", device.count = 4',
        "small-ovmf-4: guest-boot, 4 x ivshmem with a BAR of 1GiB, passes plain, timing, counts",
        f"  baseline   dir:{scenario.parent}/old (7.0-old)",
        f"  candidate  dir:{scenario.parent}/new (7.0-new)",
        f"  guest      dir:{scenario.parent}/guest (7.0-guest), ovmf",
        "  0001-baseline  pair 1, plain, timing, counts",
        "  0002-candidate  pair 1, plain, timing, counts",
    ]


def test_cell_is_planned_alone(barometer: Command, capsys: Said, scenario: Path) -> None:
    scenario.write_text(MINIMAL + FACTORS)
    assert barometer("plan", scenario, "--cell", "ovmf-1", "--cell", "seabios-1") == 0
    out = capsys.readouterr().out
    assert out.startswith("small: 2 cells of 4\n")
    assert out.index("cell seabios-1:") < out.index("cell ovmf-1:")
    assert barometer("plan", scenario, "--set", "matrix={}") == 0
    assert capsys.readouterr().out.startswith("small: guest-boot, ")


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("lines", "arguments", "expected"),
    [
        (FACTORS, ["--cell", "omvf-1"], 'no such cell; did you mean "ovmf-1"?'),
        ("", ["--cell", "ovmf-1"], "has no [matrix]"),
        (FACTORS, ["--set", "device.count=2"], "[matrix] gives device.count its value"),
        (FACTORS, ["--set", "host.phys_bits=38"], "cell seabios-4: device.count x device.bar"),
    ],
)
def test_wrong_cell_is_exit_code_2_before_anything_boots(
    barometer: Command, capsys: Said, scenario: Path, verb: str, lines: str,
    arguments: list[str], expected: str,
) -> None:  # fmt: skip
    scenario.write_text(MINIMAL + lines)
    assert barometer(verb, scenario, *arguments) == 2
    assert expected in capsys.readouterr().err


def test_report_of_a_matrix_judges_its_cells(
    barometer: Command, capsys: Said, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "matrix"
    for name in ("a", "b"):
        shutil.copytree(finished, run / "cells" / name)
    cells = [{"name": n, "folder": f"cells/{n}", "settings": {"x": n}} for n in ("a", "b")]
    facts = {"schema": 1, "scenario": "small", "cells": cells}
    (run / "matrix.json").write_text(json.dumps(facts))
    assert barometer("report", run, "--table") == 0
    out = capsys.readouterr().out
    assert out.startswith((run / "report.txt").read_text())
    assert out.splitlines()[-1] == f"run: {run}"
    assert "report of each cell: RUN/cells/NAME/report.txt" in out
    for name in ("a", "b"):
        assert len([*(run / f"cells/{name}/timelines").glob("*.pftrace")]) == 2
    assert barometer("report", run / "cells/b", "--table") == 0
    assert "\ndebian-6.12-vs-7: improved\n" in capsys.readouterr().out


def test_plan_leaves_nothing_behind(barometer: Command, scenario: Path, capsys: Said) -> None:
    before = sorted(scenario.parent.rglob("*"))
    barometer("plan", scenario)
    assert sorted(scenario.parent.rglob("*")) == before


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_wrong_scenario_is_exit_code_2_before_anything_boots(
    barometer: Command, capsys: Said, scenario: Path, verb: str
) -> None:
    assert barometer(verb, scenario, "--set", "device.bar=3GiB") == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"barometer: error: {scenario}: device.bar: a BAR is a power of")
    assert output.out == ""


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize("line", ['name = "again"', "[guest]", 'guest.kernel.dir = "other"'])
def test_key_that_a_scenario_has_twice_is_exit_code_2(
    barometer: Command, capsys: Said, scenario: Path, verb: str, line: str
) -> None:
    head, guest, rest = MINIMAL.partition("[guest]\n")
    text = MINIMAL + f"{line}\n" if line == "[guest]" else f"{head}{line}\n{guest}{rest}"
    scenario.write_text(text)
    assert barometer(verb, scenario) == 2
    assert f"barometer: error: {scenario}: not valid TOML: " in capsys.readouterr().err


def test_missing_scenario_is_exit_code_2(barometer: Command, capsys: Said, scenario: Path) -> None:
    assert barometer("plan", scenario.parent / "smal.toml") == 2
    assert f"hint: did you mean {scenario}?" in capsys.readouterr().err


def test_missing_kernel_is_exit_code_2(barometer: Command, capsys: Said, scenario: Path) -> None:
    assert barometer("plan", scenario, "--set", "arms.candidate.kernel.dir=none") == 2
    assert "none is not a folder" in capsys.readouterr().err


def test_report_of_a_better_candidate_is_exit_code_0(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    assert barometer("report", finished, "--table") == 0
    out = capsys.readouterr().out
    assert "\ndebian-6.12-vs-7: improved\n" in out
    assert out.splitlines()[-1] == f"run: {finished}"
    assert out.startswith((finished / "report.txt").read_text())
    assert "Maps and unmaps in one guest boot, up to the boot mark, emulated s" in out
    saved = json.loads((finished / "comparison.json").read_text())
    assert (saved["schema"], saved["verdict"]) == (2, "improved")
    assert saved["metrics"]["pfn_lookups_per_map"]["ratio"] == 1 / 262144
    assert saved["arms"]["candidate"]["kernel"]["release"] == "7.3.4+deb13-cloud-amd64"


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        ("[user]\nname = A Name\nemail = a@example.org\n", [], "A Name <a@example.org>"),
        ("[user]\nname = A Name\n", [], "(set git's user.name and user.email, then"),
        ("", [], "(set git's user.name and user.email, then"),
        ("[user\n", [], "(set git's user.name and user.email, then"),
        ("", ["--tester", "B <b@example.org>"], "B <b@example.org>"),
    ],
)
def test_tester_is_the_user_of_git_or_the_one_that_is_given(
    barometer: Command, capsys: Said, finished: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, config: str, arguments: list[str], expected: str,
) -> None:  # fmt: skip
    (tmp_path / "gitconfig").write_text(config)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)  # a repository would add its own configuration
    assert barometer("report", finished, "--table", *arguments) == 0
    assert f"\nTested-by: {expected}" in capsys.readouterr().out


@pytest.mark.parametrize("tester", ["B", "B <b@example.org>\nAcked-by: C <c@example.org>", ""])
def test_tester_that_is_no_tag_of_one_line_is_refused(
    barometer: Command, capsys: Said, finished: Path, tester: str
) -> None:
    for form in ([], ["--mail"]):
        assert barometer("report", finished, *form, "--tester", tester) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.endswith("reason: command-line\n")


def test_mail_is_printed_as_report_txt_begins(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    assert barometer("report", finished, "--mail", "--tester", "B <b@example.org>") == 0
    mail = capsys.readouterr().out
    assert mail.endswith("\nTested-by: B <b@example.org>\n")
    assert (finished / "report.txt").read_text().startswith(mail)
    for other in ("--table", "--json"):
        assert barometer("report", finished, "--mail", other) == 2
        assert capsys.readouterr().err.endswith("reason: command-line\n")


def test_report_where_there_is_no_git_has_no_tester(
    barometer: Command, capsys: Said, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert barometer("report", finished, "--table") == 0
    assert "\nTested-by: (set git's user.name" in capsys.readouterr().out


def test_report_says_the_same_every_time(barometer: Command, capsys: Said, finished: Path) -> None:
    barometer("report", finished)
    first = (finished / "comparison.json").read_bytes(), capsys.readouterr().out
    barometer("report", finished)
    assert ((finished / "comparison.json").read_bytes(), capsys.readouterr().out) == first


def test_report_of_a_worse_candidate_is_exit_code_1(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    scenario = finished / "scenario.toml"
    scenario.write_text(scenario.read_text().replace('"improved"', '"regressed"'))
    assert barometer("report", finished) == 1


def test_report_of_a_candidate_that_failed_is_exit_code_1(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    shutil.rmtree(finished / "trials" / MEASURED)
    failed = copied(finished / "trials", FAILED, under=MEASURED)
    sealed(failed, trial=MEASURED, arm="candidate")
    assert barometer("report", finished) == 1
    out = capsys.readouterr().out
    assert "is regressed: 1 of its 1 trial failed (guest-ended)" in " ".join(out.split())
    assert "0002-candidate: failed at guest-1-timing: guest-ended:" in " ".join(out.split())


def test_report_of_changed_evidence_is_exit_code_4(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    with (finished / "trials" / MEASURED / "map.json").open("a") as file:
        file.write(" ")
    assert barometer("report", finished) == 4
    assert "evidence-changed: map.json changed" in capsys.readouterr().out


def test_report_of_a_bench_that_failed_is_exit_code_3(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    outcome = {"kind": "invalid", "by_bench": True, "stage": "host-boot", "reason": "host-hang",
               "message": "hung", "evidence": ""}  # fmt: skip
    sealed(finished / "trials" / MEASURED, outcome=outcome)
    assert barometer("report", finished) == 3
    assert "host-hang: hung" in capsys.readouterr().out


def test_report_of_no_run_is_exit_code_2(barometer: Command, capsys: Said, tmp_path: Path) -> None:
    assert barometer("report", tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err


def test_report_of_an_unfinished_run_is_exit_code_4(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    shutil.rmtree(finished / "trials")
    assert barometer("report", finished) == 4
    assert "trials     0 of 2, NOT COMPLETE: baseline none" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["plan.json", f"trials/{MEASURED}/manifest.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}'])
def test_report_of_broken_records_is_exit_code_4(
    barometer: Command, capsys: Said, finished: Path, name: str, text: str
) -> None:
    (finished / name).write_text(text)
    assert barometer("report", finished) == 4
    assert str(finished) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kernels": {}}, "plan.json: kernels.baseline: Field required"),
        ({"kernels": []}, "plan.json: kernels: "),
        ({"guest_kernel": {"release": "6.12"}}, "plan.json: guest_kernel.source: Field required"),
        ({"guest_kernel": None}, "guest_kernel is null, and the workload is guest-boot"),
        ({"accel": "fast"}, "plan.json: accel: "),
        ({"accel_reason": None}, "plan.json: accel_reason: "),
    ],
)
def test_plan_that_barometer_did_not_write_is_exit_code_4(
    barometer: Command, capsys: Said, finished: Path, change: dict[str, Any], expected: str
) -> None:
    plan = json.loads((finished / "plan.json").read_text())
    (finished / "plan.json").write_text(json.dumps(plan | change))
    assert barometer("report", finished) == 4
    assert expected in capsys.readouterr().err


def test_report_on_a_full_disk_is_exit_code_3(
    barometer: Command, capsys: Said, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "rename", full)
    assert barometer("report", finished) == 3
    assert f"no space left on the disk of {finished}" in capsys.readouterr().err


def test_report_of_a_run_without_its_scenario_is_exit_code_4(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    (finished / "scenario.toml").unlink()
    assert barometer("report", finished) == 4


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Timeline]:
    """The timelines that the trials contain; a test may change the list."""
    found = [booted()]
    monkeypatch.setattr("orchestrator.run.judging.judge.read_timelines", lambda trial: found)
    return found


def test_timeline_of_a_trial_is_text(
    barometer: Command, capsys: Said, finished: Path, traced: list[Timeline]
) -> None:
    assert barometer("timeline", finished / "trials" / MEASURED) == 0
    assert capsys.readouterr().out == text_timeline(booted())


def test_timelines_of_several_boots_follow_one_another(
    barometer: Command, capsys: Said, finished: Path, traced: list[Timeline]
) -> None:
    traced.append(booted("candidate"))
    assert barometer("timeline", finished / "trials" / MEASURED) == 0
    out = capsys.readouterr().out
    assert out == text_timeline(booted()) + "\n" + text_timeline(booted("candidate"))
    assert barometer("timeline", finished / "trials" / MEASURED, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [boot["trial"] for boot in document["boots"]] == ["0001-baseline", "0002-candidate"]


def test_timeline_is_one_json_document(
    barometer: Command, capsys: Said, finished: Path, traced: list[Timeline]
) -> None:
    trace = finished / "trace.perfetto"
    trial = finished / "trials" / MEASURED
    assert barometer("timeline", trial, "--json", "--perfetto", trace) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "boots": [timeline_json(booted())]}
    assert trace.exists()


def test_timeline_is_written_for_perfetto(
    barometer: Command, capsys: Said, finished: Path, traced: list[Timeline]
) -> None:
    traced.append(booted("candidate"))
    trace = finished / "trace.perfetto"
    assert barometer("timeline", finished / "trials" / MEASURED, "--perfetto", trace) == 0
    assert trace.read_bytes() == b"".join(map(perfetto_trace, traced))
    assert capsys.readouterr().out.splitlines()[-1] == f"perfetto: {trace}"


def test_trace_that_cannot_be_written_is_exit_code_2(
    barometer: Command, capsys: Said, finished: Path, traced: list[Timeline]
) -> None:
    trace = finished / "none/trace.perfetto"
    assert barometer("timeline", finished / "trials" / MEASURED, "--perfetto", trace) == 2
    assert f"{trace} cannot be written: No such file" in capsys.readouterr().err


def test_timeline_of_no_trial_is_exit_code_4(
    barometer: Command, capsys: Said, tmp_path: Path, traced: list[Timeline]
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert barometer("timeline", folder) == 4
        assert f"{folder} holds no trial" in capsys.readouterr().err


@pytest.mark.parametrize("workload", ["guest-boot", "map"])
def test_timeline_of_a_trial_without_a_traced_boot_says_what_it_has(
    barometer: Command, capsys: Said, tmp_path: Path, workload: str
) -> None:
    if workload == "map":
        trial = sealed_map_trial(tmp_path, passes=("plain", "counts")).path
    else:
        trial = copied(tmp_path)
        sealed(
            trial,
            passes=["plain", "counts"],
            guests=[{"index": 0, "pass": "plain", "memory": 512 << 20}],
        )
    assert barometer("timeline", trial) == 4
    err = capsys.readouterr().err
    assert "no traced guest boot" in err
    assert "passes: plain, counts" in err
    assert 'pass "timing" of the workload guest-boot' in err


def test_timeline_of_a_trial_that_ended_before_its_traced_boot_is_exit_code_4(
    barometer: Command, capsys: Said, tmp_path: Path
) -> None:
    trial = copied(tmp_path, FAILED)
    sealed(trial)
    assert barometer("timeline", trial) == 4
    assert capsys.readouterr().out == ""


def test_timeline_of_a_trial_that_ended_before_its_traced_boot_says_why(
    barometer: Command, capsys: Said, tmp_path: Path
) -> None:
    trial = copied(tmp_path, FAILED)
    sealed(trial)
    assert barometer("timeline", trial) == 4
    assert "hint: it ended at guest-1-timing: " in capsys.readouterr().err


# the recorded trials, with nothing replaced ----------------------------------------------------


def test_recorded_boot_is_shown_with_its_phases_maps_and_causes(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    assert barometer("timeline", finished / "trials" / MEASURED) == 0
    out = capsys.readouterr().out
    assert out.startswith("0002-candidate guest-1, host 7.3.4+deb13-cloud-amd64\nboot ")
    assert "kernel: BAR sizing, 01:00.0" in out
    assert "map of 01:00.0 BAR 2 (1GiB), enabling" in out
    assert "marks: a line's time is from kvm:kvm_pio" in out
    assert max(map(len, out.splitlines())) <= 100


def test_recorded_boot_as_json_has_every_map_and_unmap(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    assert barometer("timeline", finished / "trials/0001-baseline", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)["boots"]
    assert (found["trial"], found["guest"], found["unit"]) == (
        "0001-baseline", "guest-1", "emulated s",
    )  # fmt: skip
    large = [
        o for o in found["operations"] if (o["bar"], o["bytes"]) == ("01:00.0 BAR 2", 1 << 30)
    ]
    assert [o["kind"] for o in large] == ["map", "unmap"] * 12
    assert all(o["seconds"] == pytest.approx(0.5) for o in large if o["kind"] == "map")
    for operation in found["operations"]:
        assert sum(operation["parts"].values()) == pytest.approx(operation["seconds"], abs=1e-6)


def test_recorded_boot_is_the_trace_that_judging_writes(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    assert barometer("report", finished) == 0
    trace = finished / "trace.perfetto"
    assert barometer("timeline", finished / "trials" / MEASURED, "--perfetto", trace) == 0
    written = finished / "timelines/0002-candidate-guest-1.pftrace"
    assert trace.read_bytes() == written.read_bytes()


def test_timelines_that_cannot_be_saved_are_no_failure(
    barometer: Command, capsys: Said, finished: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if target.name.endswith(".pftrace"):
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    assert barometer("report", finished, "--table") == 0
    assert "the timelines are not saved: " in caplog.text
    assert capsys.readouterr().out.startswith((finished / "report.txt").read_text())


def test_timeline_of_changed_evidence_is_exit_code_4(
    barometer: Command, capsys: Said, finished: Path, traced: list[Timeline]
) -> None:
    trial = finished / "trials" / MEASURED
    with (trial / "map.json").open("a") as file:
        file.write(" ")
    assert barometer("timeline", trial) == 4
    assert "map.json changed since it was collected" in capsys.readouterr().err


def losing(trial: Path) -> None:
    """Report lost events in the tracer's own statistics: its ring was too small."""
    rewrite(
        trial / "host/stats-guest-1.txt", lambda text: text.replace("overrun: 0", "overrun: 7", 1)
    )


def test_boot_whose_trace_lost_events_is_shown_as_invalid(
    barometer: Command, capsys: Said, tmp_path: Path
) -> None:
    trial = copied(tmp_path)
    losing(trial)
    sealed(trial)
    why = "lost-events: the trace of guest-1 lost 7 events"
    assert barometer("timeline", trial) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"INVALID: {why}", "0002-candidate guest-1, host 7.3.4+deb13-cloud-amd64"]
    assert any("map of 01:00.0 BAR 2 (1GiB), enabling" in line for line in lines)
    assert barometer("timeline", trial, "--json") == 4
    [shown] = json.loads(capsys.readouterr().out)["boots"]
    assert shown["invalid"] == why
    assert shown["operations"]


def test_traced_boot_of_a_trial_that_failed_later_is_shown_as_invalid(
    barometer: Command, capsys: Said, tmp_path: Path
) -> None:
    trial = copied(tmp_path)
    outcome = {"kind": "failed", "by_bench": False, "stage": "map-counts", "reason": "host-panic",
               "message": "the host's kernel is broken", "evidence": ""}  # fmt: skip
    sealed(trial, outcome=outcome)
    trace = tmp_path / "trace.perfetto"
    assert barometer("timeline", trial, "--perfetto", trace) == 4
    assert capsys.readouterr().out.startswith("INVALID: host-panic: the host's kernel is broken\n")
    assert trace.stat().st_size
    assert barometer("timeline", trial, "--json") == 4
    [shown] = json.loads(capsys.readouterr().out)["boots"]
    assert shown["invalid"] == "host-panic: the host's kernel is broken"
    losing(trial)  # a fault of the trace itself is reported first
    sealed(trial)
    assert barometer("timeline", trial, "--json") == 4
    [shown] = json.loads(capsys.readouterr().out)["boots"]
    assert shown["invalid"].startswith("lost-events: ")


def test_boot_that_counts_is_not_invalid(barometer: Command, capsys: Said, finished: Path) -> None:
    assert barometer("timeline", finished / "trials" / MEASURED, "--json") == 0
    [shown] = json.loads(capsys.readouterr().out)["boots"]
    assert shown["invalid"] is None


@pytest.mark.parametrize(
    "outcome", [{}, {"kind": "failed", "stage": "s", "message": "m", "evidence": ""}]
)
def test_manifest_without_a_whole_outcome_is_exit_code_4(
    barometer: Command, capsys: Said, finished: Path, outcome: dict[str, str]
) -> None:
    path = finished / "trials" / MEASURED / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outcome": outcome}))
    for arguments in (["report", finished], ["timeline", path.parent]):
        assert barometer(*arguments) == 4
        assert f"{path}: outcome" in capsys.readouterr().err


def test_timeline_of_a_matrix_names_its_trials(
    barometer: Command, capsys: Said, finished: Path, tmp_path: Path
) -> None:
    matrix = tmp_path / "matrix"
    for name in ("a", "b"):
        shutil.copytree(finished, matrix / "cells" / name)
    assert barometer("timeline", matrix) == 2
    names = [
        f"{matrix}/cells/{cell}/trials/{trial}"
        for cell in ("a", "b")
        for trial in ("0001-baseline", "0002-candidate")
    ]
    assert f"hint: its trials are {', '.join(names)}\n" in capsys.readouterr().err


def test_perfetto_is_loaded_only_when_a_trace_is_written() -> None:
    program = (
        "import sys, orchestrator.run.ab, orchestrator.run.judging.judge\n"
        "print(*(m for m in sys.modules if m.startswith(('google.', 'perfetto'))))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == ""


def test_schema_is_json(barometer: Command, capsys: Said) -> None:
    assert barometer("schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "barometer scenario"


def test_clean_with_nothing_to_do_says_so(barometer: Command, capsys: Said) -> None:
    assert barometer("clean") == 0
    assert capsys.readouterr().out == "nothing to clean\n"
    assert barometer("clean", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "done": []}


def test_clean_lists_what_it_did_as_json(
    barometer: Command, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "clean_killed_runs", lambda: iter(["run 1: ended QEMU 7"]))
    assert barometer("clean", "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == ["run 1: ended QEMU 7"]


def test_plan_as_json_has_every_trial_of_every_cell(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    assert barometer("plan", scenario, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    [cell] = document["cells"]
    assert (document["schema"], document["scenario"], cell["name"]) == (1, "small", None)
    assert cell["kernels"] == {
        arm: f"dir:{scenario.parent}/{name} (7.0-{name})"
        for arm, name in (("baseline", "old"), ("candidate", "new"), ("guest", "guest"))
    }
    assert cell["trials"][0] == {
        "name": "0001-baseline", "pair": 1, "arm": "baseline",
        "passes": ["plain", "timing", "counts"],
    }  # fmt: skip
    assert cell["device"]["bar"] == "32GiB"
    scenario.write_text(MINIMAL + FACTORS)
    assert barometer("plan", scenario, "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["name"] for cell in cells] == ["seabios-1", "seabios-4", "ovmf-1", "ovmf-4"]
    assert cells[3]["settings"] == {"guest.firmware": "ovmf", "device.count": 4}
    assert cells[3]["scenario"] == "small-ovmf-4"


def test_plan_of_maps_as_json_has_no_guest(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    scenario.write_text(MAPS)
    assert barometer("plan", scenario, "--json") == 0
    [cell] = json.loads(capsys.readouterr().out)["cells"]
    assert cell["kernels"].keys() == {"baseline", "candidate"}
    assert cell["points"] == ["full/1GiB/cold", "full/1GiB/warm"]


def test_report_as_json_is_what_is_saved(barometer: Command, capsys: Said, finished: Path) -> None:
    assert barometer("report", finished, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document.pop("run"), document.pop("exit_code")) == (str(finished), 0)
    assert document == json.loads((finished / "comparison.json").read_text())


def test_json_leaves_the_exit_code_as_it_is(
    barometer: Command, capsys: Said, finished: Path
) -> None:
    text = finished / "scenario.toml"
    text.write_text(text.read_text().replace('"improved"', '"regressed"'))
    assert barometer("report", finished, "--json") == 1
    assert json.loads(capsys.readouterr().out)["exit_code"] == 1
    assert barometer("report", finished / "trials", "--json") == 2
    assert capsys.readouterr().out == ""


@pytest.fixture
def two_runs(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    return finished, shutil.copytree(finished, tmp_path / "another")


def test_compare_takes_the_first_run_as_the_measure(
    barometer: Command, capsys: Said, two_runs: tuple[Path, Path]
) -> None:
    # one pair of times each is too few to call them unchanged
    assert barometer("compare", *two_runs) == 4
    out = capsys.readouterr().out
    assert out.startswith(f"{two_runs[1]}\n  against {two_runs[0]}, candidate:\n")
    assert "  * pfn_lookups_per_map: equivalent, expected: not-regressed" in out
    assert barometer("compare", *two_runs, "--arm", "baseline", "--json") == 4
    document = json.loads(capsys.readouterr().out)
    assert (document["arm"], document["first"]) == ("baseline", str(two_runs[0]))
    [one] = document["comparisons"]
    assert (one["run"], one["exit_code"]) == (str(two_runs[1]), 4)
    assert one["metrics"]["pfn_lookups_per_map"]["ratio"] == 1


def test_compare_leaves_the_runs_as_they_were(
    barometer: Command, two_runs: tuple[Path, Path]
) -> None:
    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for run in two_runs for p in run.rglob("*") if p.is_file()}

    before = files()
    barometer("compare", *two_runs)
    assert files() == before


def test_compare_says_what_is_wrong_with_its_runs(
    barometer: Command, capsys: Said, two_runs: tuple[Path, Path]
) -> None:
    first, second = two_runs
    for words, code, expected in (
        ([first], 2, "compare needs two runs or more"),
        ([first, second, "--allow", "runer.qemu"], 2, '"runer.qemu"'),
        ([first, first], 2, "the same run is named twice"),
        ([first, second / "trials"], 4, "holds no run"),
    ):
        assert barometer("compare", *words) == code
        assert expected in capsys.readouterr().err
    (second / "matrix.json").write_text("{}")
    assert barometer("compare", first, second) == 2
    assert "each of its cells is a run" in capsys.readouterr().err


def test_plan_says_what_its_pairs_find_and_refuses_too_few(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    expect = ("--set", "expect={guest_boot_cost='improved', bar_map_cost='improved'}")
    words = ("plan", scenario, "--set", "host.accel=tcg", *expect)
    assert barometer(*words, "--pairs", 12) == 0
    assert len(re.findall(r"  power +\w+: 12 pairs find", capsys.readouterr().out)) == 2
    assert barometer(*words, "--pairs", 12, "--json") == 0
    [cell] = json.loads(capsys.readouterr().out)["cells"]
    assert cell["power"] == {
        "independent_pairs": 12,
        "metrics": {"guest_boot_cost": None, "bar_map_cost": None},
    }
    for verb in ("plan", "run"):
        assert barometer(verb, *words[1:], "--pairs", 10) == 2
        assert capsys.readouterr().err.endswith("reason: powerless\n")


def test_plan_says_when_a_run_without_a_number_of_pairs_ends(
    barometer: Command, capsys: Said, scenario: Path
) -> None:
    scenario.write_text(MAPS)
    words = ("--set", "trials={until={max_pairs=12}}", "--set", "host.accel=tcg")
    assert barometer("plan", scenario, *words) == 0
    assert (
        "at most 12 pairs, until the deciding metrics are known to 2%" in capsys.readouterr().out
    )


@pytest.fixture
def step_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    return path


def test_github_gets_a_summary_and_annotations(
    barometer: Command, capsys: Said, finished: Path, step_summary: Path
) -> None:
    step_summary.write_text("# of the step before\n")
    assert barometer("report", finished, "--github") == 0
    assert step_summary.read_text().startswith("# of the step before\n## ✅ debian")
    out = capsys.readouterr().out
    assert f"\nrun: {finished}\n" in out
    assert out.splitlines()[-1].startswith("::notice title=barometer debian-6.12-vs-7::improved")


def test_annotations_do_not_mix_with_json(
    barometer: Command, capsys: Said, finished: Path, step_summary: Path
) -> None:
    assert barometer("report", finished, "--github", "--json") == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["verdict"] == "improved"
    assert output.err.startswith("::notice title=")


def test_summary_of_a_comparison_names_its_runs(
    barometer: Command, capsys: Said, finished: Path, step_summary: Path
) -> None:
    other = shutil.copytree(finished, finished.with_name("other"))
    assert barometer("compare", finished, other, "--github") == 4  # one trial each: too few
    assert f"title=barometer {other} against {finished}%2C candidate::" in capsys.readouterr().out
    assert "other against" in step_summary.read_text()


@pytest.mark.parametrize("value", [None, "", "/no/such/folder/summary.md"])
def test_github_without_its_file_is_exit_code_2_before_anything_boots(
    barometer: Command, capsys: Said, scenario: Path, finished: Path, machine: list[str],
    monkeypatch: pytest.MonkeyPatch, value: str | None,
) -> None:  # fmt: skip
    if value is None:
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    else:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", value)
    assert barometer("run", scenario, "--github") == 2
    assert "--github: GITHUB_STEP_SUMMARY" in capsys.readouterr().err
    assert machine == []
    assert barometer("report", finished, "--github") == 2


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, finished: Path) -> list[str]:
    """Let runs boot nothing and copy the evidence in `finished`; return the names of the scenarios
    that ran."""
    ran: list[str] = []

    def run_plan(
        scenario: Scenario, text: str, out: Path, here: Runner, enough: Enough | None
    ) -> bool:
        ran.append(scenario.name)
        shutil.copytree(finished, out, dirs_exist_ok=True)
        return True

    def runner(
        kernels: RunKernels, progress: Progress, *, keep: bool, visit: object
    ) -> contextlib.AbstractContextManager[Runner]:
        nothing = cast(Any, None)
        return contextlib.nullcontext(Runner(kernels, nothing, nothing, progress, keep))

    monkeypatch.setattr(ab, "ready_runner", runner)
    monkeypatch.setattr(ab, "run_plan", run_plan)
    monkeypatch.setattr(cell_loop, "run_plan", run_plan)
    return ran


def test_run_ends_with_twelve_lines_at_most_that_report_prints_again(
    barometer: Command, capsys: Said, scenario: Path, tmp_path: Path, machine: list[str]
) -> None:
    run = tmp_path / "out"
    assert barometer("run", scenario, "--out", run) == 0
    assert machine == ["small"]
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= LINES
    assert "bar_map_cost: improved" in out
    assert str(run / "report.html") in out
    assert out.splitlines()[-1] == f"run: {run}"
    assert not (run / "matrix.json").exists()
    assert barometer("report", run) == 0
    assert capsys.readouterr().out == out
    command = next(line for line in out.splitlines() if line.startswith("table "))
    assert barometer(*command.split()[2:]) == 0
    assert capsys.readouterr().out == f"{(run / 'report.txt').read_text()}\nrun: {run}\n"


@pytest.mark.parametrize("when", ["its last trial", "judging"])
@pytest.mark.parametrize("metal", [False, True])
def test_run_that_is_interrupted_when_all_trials_are_made_is_judged(
    barometer: Command, capsys: Said, scenario: Path, tmp_path: Path, machine: list[str],
    finished: Path, monkeypatch: pytest.MonkeyPatch, when: str, metal: bool,
) -> None:  # fmt: skip
    """On a metal host it is unknown whether the machine was put back."""
    interrupted: list[object] = []

    def interrupt(*arguments: object) -> None:
        if not interrupted:
            interrupted.append(arguments)
            raise KeyboardInterrupt("SIGTERM")

    if when == "judging":
        judge_it = judging.judge

        def judge(run: RunDir, tester: str | None) -> Run:
            interrupt()
            return judge_it(run, tester)

        monkeypatch.setattr(judgefolder, "judge", judge)
    else:

        def run_plan(scenario: Scenario, text: str, out: Path, *rest: Any) -> None:
            shutil.copytree(finished, out)
            interrupt()

        monkeypatch.setattr(ab, "run_plan", run_plan)
    if metal:
        monkeypatch.setattr(ab, "MetalHost", NestedHost)
    run = tmp_path / "again"
    assert barometer("run", scenario, "--out", run, "--json") == (130 if metal else 0)
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert (document["verdict"], document["exit_code"]) == ("improved", 130 if metal else 0)
    assert "interrupted by SIGTERM" in output.err
    assert (run / "report.html").exists()
    assert len(interrupted) == 1


def test_matrix_that_is_interrupted_when_all_trials_are_made_is_judged(
    barometer: Command, capsys: Said, scenario: Path, tmp_path: Path, machine: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scenario.write_text(MINIMAL + FACTORS)
    begin = cell_loop.run_cells
    made: list[str] = []

    def run_cells(file: ScenarioFile, cells: tuple[Cell, ...], *rest: Any) -> None:
        begin(file, cells[:-1] if not made else cells, *rest)
        made.append("")
        raise KeyboardInterrupt

    monkeypatch.setattr(ab, "run_cells", run_cells)
    assert barometer("run", scenario, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().out == ""
    assert barometer("run", scenario, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("small: improved, 4 cells\n")


def test_run_that_is_interrupted_in_a_trial_is_exit_code_130(
    barometer: Command, capsys: Said, scenario: Path, tmp_path: Path, machine: list[str],
    monkeypatch: pytest.MonkeyPatch, finished: Path,
) -> None:  # fmt: skip
    def run_plan(scenario: Scenario, text: str, out: Path, *rest: Any) -> None:
        shutil.copytree(finished, out)
        shutil.rmtree(out / "trials" / MEASURED)
        raise KeyboardInterrupt

    monkeypatch.setattr(ab, "run_plan", run_plan)
    assert barometer("run", scenario, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out/report.txt").exists()


def test_run_of_a_matrix_ends_with_the_table_of_its_cells(
    barometer: Command, capsys: Said, scenario: Path, tmp_path: Path, machine: list[str]
) -> None:
    scenario.write_text(MINIMAL + FACTORS)
    assert barometer("run", scenario, "--out", tmp_path / "out", "--cell", "ovmf-4") == 0
    assert capsys.readouterr().out.startswith("small: improved, 1 of 4 cells\n")
    assert barometer("run", scenario, "--out", tmp_path / "out") == 0
    assert machine == [f"small-{name}" for name in (
        "ovmf-4", "seabios-1", "seabios-4", "ovmf-1", "ovmf-4",
    )]  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("small: improved, 4 cells\n")
    assert out.splitlines()[-1] == f"run: {tmp_path}/out"


def test_run_is_one_json_document_and_github_gets_its_cells(
    barometer: Command, capsys: Said, scenario: Path, tmp_path: Path, machine: list[str],
    step_summary: Path,
) -> None:  # fmt: skip
    assert barometer("run", scenario, "--out", tmp_path / "one", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"], document["run"]) == ("improved", f"{tmp_path}/one")
    scenario.write_text(MINIMAL + FACTORS)
    assert barometer("run", scenario, "--out", tmp_path / "out", "--json", "--github") == 0
    output = capsys.readouterr()
    assert len(json.loads(output.out)["cells"]) == 4
    assert output.err.count("::notice ") == 4
    assert step_summary.read_text().count("## ✅ ") == 4


def test_run_into_a_folder_with_something_else_is_refused(
    barometer: Command, capsys: Said, scenario: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter").write_text("dear")
    assert barometer("run", scenario, "--out", tmp_path / "out", "--set", "arms.x=1") == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["letter"]


def test_unwritable_text_of_a_scenario_is_no_bug(
    barometer: Command, capsys: Said, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xff")
    assert barometer("plan", tmp_path / "s.toml") == 2


def signalled(program: str, number: signal.Signals, state: Path) -> tuple[int, str]:
    """Send a signal to a process whose verb `wait` prints "waiting". Return its exit code and its
    standard error."""
    with subprocess.Popen(
        [sys.executable, "-c", program, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "BAROMETER_STATE": str(state)},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        child.send_signal(number)
        _, said = child.communicate(timeout=30)
    return child.returncode, said


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_is_exit_code_130(name: str, tmp_path: Path) -> None:
    """The process is separate and runs a verb that waits."""
    program = (
        "import signal, sys, orchestrator.cli as c\n"
        # whoever runs the tests may be under nohup, which has SIGHUP ignored
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"
        "@c.app.command()\n"
        "def wait() -> None:\n"
        "    print('waiting', flush=True); signal.pause()\n"
        "c.main()\n"
    )
    code, said = signalled(program, signal.Signals[name], tmp_path)
    assert code == 130
    assert f"interrupted by {name}" in said


def test_what_an_interrupt_breaks_is_no_bug(tmp_path: Path) -> None:
    """threading.Condition raises this if it is interrupted while it takes its lock again."""
    program = (
        "import signal, orchestrator.cli as c\n"
        "@c.app.command()\n"
        "def wait() -> None:\n"
        "    try:\n        print('waiting', flush=True); signal.pause()\n"
        "    finally:\n        raise RuntimeError('release unlocked lock')\n"
        "c.main()\n"
    )
    code, said = signalled(program, signal.SIGTERM, tmp_path)
    assert code == 130
    assert "bug" not in said


def test_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m orchestrator.cli schema | head -c 1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("{", "")


def test_output_that_was_closed_from_the_beginning_is_no_bug() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m orchestrator.cli schema >&-"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_trial_of_the_run_is_left_as_it_was(
    barometer: Command, finished: Path, capsys: Said
) -> None:
    barometer("report", finished)
    assert TrialDir.open(finished / "trials" / MEASURED).verify() is None


@pytest.mark.parametrize("verb", ["run", "ab"])
def test_out_that_cannot_be_a_run_is_found_before_anything_is_built(
    barometer: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    kernel = folder_kernel(tmp_path / "kernel")
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(MINIMAL.replace('"old"', f'"{kernel}"'))
    questions: dict[str, list[object]] = {
        "run": ["run", scenario],
        "ab": ["ab", "--base", f"dir:{kernel}", "--candidate", f"dir:{kernel}/../kernel"],
    }
    asked = questions[verb]
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    for name, why in (("file", "is not a folder"), ("full", "is not empty and holds no run")):
        assert barometer(*asked, "--out", tmp_path / name) == 2
        assert f"--out {tmp_path / name}: {why}" in capsys.readouterr().err
    assert (tmp_path / "full/thesis.txt").read_text() == "mine"


def test_path_that_cannot_be_used_is_no_bug(
    barometer: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    base = ["ab", "--base", f"tree:{tmp_path}/file/linux", "--series", "x.patch"]
    assert barometer(*base) == 2
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(MINIMAL)
    assert barometer("timeline", tmp_path / "file/trial") != 70
    assert "bug" not in capsys.readouterr().err


def test_doctor_says_what_is_in_the_way(
    barometer: Command, capsys: Said, monkeypatch: pytest.MonkeyPatch, scenario: Path
) -> None:
    raw = read_checkup("emulated-runner")
    monkeypatch.setattr(doctor, "examine", lambda *_, **_how: parse_checkup(raw))
    assert barometer("doctor") == 0
    assert "runs nested hosts: yes, emulated" in capsys.readouterr().out
    raw["programs"]["mmdebstrap"] = None
    assert barometer("doctor", "--scenario", scenario) == 3
    assert "scenario small: no (programs)" in capsys.readouterr().out
    assert barometer("doctor", "--scenario", scenario, "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["uses"] == {"nested": {"possible": False, "in_the_way": ["programs"]}}
    assert barometer("doctor", "--host", "a b") == 2


def test_doctor_of_this_machine_is_quick(barometer: Command, capsys: Said) -> None:
    """This is the real doctor; the target is 5 seconds on an idle machine."""
    started = time.monotonic()
    assert barometer("doctor", "--json") in (0, 3)
    assert time.monotonic() - started < 20
    names = {finding["name"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert {"qemu", "series", "memory", "large-bar"} <= names


def test_doctor_is_asked_of_one_cell(barometer: Command, capsys: Said, scenario: Path) -> None:
    scenario.write_text(scenario.read_text() + '[matrix]\n"device.bar" = ["1GiB", "2GiB"]\n')
    assert barometer("doctor", "--scenario", scenario) == 2
    assert "its matrix has 2 cells" in capsys.readouterr().err


Recovered = list[tuple[MetalHost, Path, dict[str, bool]]]


@pytest.fixture
def recovered(monkeypatch: pytest.MonkeyPatch) -> Recovered:
    """Records requests to put a machine back. Something is left if the address has a digit."""
    recovered: Recovered = []

    def recover(spec: MetalHost, scratch: Path, progress: Progress, **asked: bool) -> bool:
        assert scratch.parent.is_dir()  # private, and removed afterwards
        recovered.append((spec, scratch, asked))
        return any(letter.isdigit() for letter in spec.address)

    monkeypatch.setattr(leasing, "recover_machine", recover)
    return recovered


def test_machine_is_recovered_by_its_address(
    barometer: Command, recovered: Recovered, capsys: Said
) -> None:
    assert barometer("recover", "root@gpu1.lab") == 0
    assert capsys.readouterr().out == "root@gpu1.lab: put back as it was\n"
    more = ("--ssh-config", "lab.conf", "--deadline", 300, "--wait", 7, "--keep-kernel")
    assert barometer("recover", "gpu", *more) == 0
    assert capsys.readouterr().out == "gpu: nothing to recover\n"
    (first, scratch, plain), (second, _, keeping) = recovered
    assert plain == {"keep_kernel": False, "power_cycle": False}
    assert keeping == {"keep_kernel": True, "power_cycle": False}
    assert first == MetalHost(kind="metal", address="root@gpu1.lab", wait=120)
    assert not scratch.parent.exists()
    assert second == MetalHost(
        kind="metal", address="gpu", ssh_config=Path("lab.conf"), deadline=300, wait=7
    )


def test_machine_is_recovered_as_its_scenario_says(
    barometer: Command, recovered: Recovered, tmp_path: Path
) -> None:
    path = tmp_path / "metal.toml"
    more = 'power_cycle = "ipmitool power cycle"\ndeadline = 900\nssh_config = "lab.conf"\n'
    path.write_text(METAL.replace("[device]", f"{more}[device]"))
    assert barometer("recover", path) == 0
    assert barometer("recover", path, "--power-cycle", "--deadline", 180) == 0
    (spec, _, plain), (hurried, _, cycling) = recovered
    assert plain == {"keep_kernel": False, "power_cycle": False}
    assert cycling == {"keep_kernel": False, "power_cycle": True}
    assert hurried == spec.model_copy(update={"deadline": 180})
    assert (spec.address, spec.power_cycle, spec.deadline, spec.wait, spec.ssh_config) == (
        "root@gpu1.lab", "ipmitool power cycle", 900, 120, tmp_path / "lab.conf",
    )  # fmt: skip


def test_machine_is_recovered_as_the_scenario_of_a_matrix_says(
    barometer: Command, recovered: Recovered, tmp_path: Path
) -> None:
    path = tmp_path / "metal.toml"
    path.write_text(METAL + '[matrix]\n"device.bar" = ["1GiB", "2GiB"]\n')
    assert barometer("recover", path) == 0
    assert [spec.address for spec, *_ in recovered] == ["root@gpu1.lab"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL, 'host.kind is "nested", and there is nothing to put back'),
        (METAL + '[matrix]\n"host.address" = ["gpu1", "gpu2"]\n',
         "its cells have 2 machines\nhint: barometer recover gpu1; barometer recover gpu2\n"),
    ],
)  # fmt: skip
def test_scenario_that_names_no_machine_or_several_is_not_recovered(
    barometer: Command, recovered: Recovered, tmp_path: Path, capsys: Said, text: str,
    expected: str,
) -> None:  # fmt: skip
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert barometer("recover", path) == 2
    assert f"{path}: {expected}" in capsys.readouterr().err
    assert recovered == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-oProxyCommand=x"], "o such option"),
        (["--", "-oProxyCommand=x"], '-oProxyCommand=x: "-oProxyCommand=x"'),
        (["a b"], 'a b: "a b"'),
        (["missing.toml"], "missing.toml"),
        (["gpu1", "--deadline", "7201"], "7200"),
        (["gpu1", "--deadline", "179"], "deadline"),
        (["gpu1", "--power-cycle"], "--power-cycle: "),
        (["metal.toml", "--power-cycle"], "host.power_cycle"),
        (["metal.toml", "--ssh-config", "x"], "--ssh-config: "),
    ],
)
def test_machine_that_cannot_be_asked_for_is_no_bug(
    barometer: Command, recovered: Recovered, capsys: Said, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("metal.toml").write_text(METAL)
    assert barometer("recover", *arguments) == 2
    assert expected in capsys.readouterr().err
    assert recovered == []


def test_failure_to_put_back_is_the_benchs(
    barometer: Command, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def fails(*_: object, **__: bool) -> bool:
        raise BenchError("gpu1 could not be put back as it was", reason=Reason.NOT_PUT_BACK)

    def leaves(*_: object, **__: bool) -> bool:
        raise LeftError("gpu1 is put back, but for what it lists", reason=Reason.UNREADABLE)

    monkeypatch.setattr(leasing, "recover_machine", leaves)
    assert barometer("recover", "gpu1") == 4
    capsys.readouterr()
    monkeypatch.setattr(leasing, "recover_machine", fails)
    assert barometer("recover", "gpu1") == 3
    assert capsys.readouterr().err == (
        "barometer: error: gpu1 could not be put back as it was\nreason: not-put-back\n"
    )


def test_a_plan_refuses_what_a_run_would_refuse(
    barometer: Command, capsys: Said, tmp_path: Path
) -> None:
    """Not only its words: a series that is not there is found before anything boots."""
    scenario = tmp_path / "series.toml"
    scenario.write_text(
        'name = "it"\nworkload = "map"\n[device]\nbar = "4GiB"\n'
        f'[arms.baseline]\nkernel = {{ tree = "{tmp_path}/linux" }}\n'
        f'[arms.candidate]\nkernel = {{ tree = "{tmp_path}/linux", series = ["fix.mbox"] }}\n'
    )
    assert barometer("plan", scenario) == 2
    assert "arms.baseline.kernel" in capsys.readouterr().err
