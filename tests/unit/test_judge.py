"""The files that judging leaves in a run, and what it does if it cannot write."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import boots_of
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.base.errors import EvidenceError
from orchestrator.evidence.layout import RunDir, TrialDir
from orchestrator.report.exports.perfetto import perfetto_trace
from orchestrator.run.judging import judge as judging
from orchestrator.run.judging.judge import stop_rule
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from tests.unit.fabricated import map_trial
from tests.unit.manifests import HOST, NO_SETTINGS, PLAN, plan_of
from tests.unit.recorded import MEASURED, copied_run, rewrite, sealed
from tests.unit.recorded import judge_and_save as judge
from tests.unit.scenarios import MAPS, map_scenario
from tests.unit.stable import numbers_in

TRACES = ["0001-baseline-guest-1.pftrace", "0002-candidate-guest-1.pftrace"]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of two trials with a plain and a traced boot each."""
    return RunDir(copied_run(tmp_path / "run"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_trace_of_each_traced_boot_is_written(run: RunDir) -> None:
    _, comparison, _ = judge(run)
    assert names(run.path) == [
        "comparison.json", "junit.xml", "kcidb.json", "plan.json", "report.html", "report.txt",
        "results.csv", "results.ktap", "scenario.toml", "timelines", "trials",
    ]  # fmt: skip
    assert names(run.path / "timelines") == TRACES
    boots = [boot for of_arm in boots_of(comparison).values() for boot in of_arm]
    for name, boot in zip(TRACES, boots, strict=True):
        assert (run.path / "timelines" / name).read_bytes() == perfetto_trace(boot)


def test_traces_are_the_same_every_time(run: RunDir) -> None:
    judge(run)
    before = {path: path.read_bytes() for path in (run.path / "timelines").iterdir()}
    judge(run)
    assert {path: path.read_bytes() for path in (run.path / "timelines").iterdir()} == before


def test_files_for_other_tools_say_the_same(run: RunDir) -> None:
    judge(run)
    suite = ET.parse(run.path / "junit.xml").getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == (
        "debian-6.12-vs-7", "5", "0",
    )  # fmt: skip
    [trial] = suite.findall(f"testcase[@name='{MEASURED}']")
    assert trial.get("time") == "99.867"
    *_, last = (run.path / "results.ktap").read_text().splitlines()
    assert re.match(r"ok 1 debian-6\.12-vs-7 # improved\b", last)
    assert {"bar_map_cost", "pfn_lookups_per_map"} <= {*re.findall(r"\w+", last)}
    tests = json.loads((run.path / "kcidb.json").read_text())["tests"]
    assert (tests[0]["status"], tests[0]["path"]) == ("PASS", "barometer.debian-6_12-vs-7.verdict")
    assert tests[-1]["start_time"] == "2026-11-22T22:48:20+00:00"
    header, row = (run.path / "results.csv").read_text().splitlines()
    assert row.startswith("2026-11-22T22:48:20+00:00,debian-6.12-vs-7/tcg,")
    assert len(header.split(",")) == len(row.split(","))


def test_files_for_other_tools_are_the_same_wherever_a_run_is_judged(
    run: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    judge(run)
    judge(RunDir(tmp_path / "copy"))
    for name in ("junit.xml", "results.ktap", "kcidb.json", "results.csv"):
        assert (run.path / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("started", 7), ("started", "yesterday"), ("started", "2026-11-22T22:48:20"),
        ("started", "0001-01-01T00:00:00+23:00"), ("seconds", "long"), ("seconds", -1),
        ("seconds", float("inf")), ("pair", True),
    ],
)  # fmt: skip
def test_manifest_with_a_wrong_value_names_its_key(run: RunDir, key: str, value: object) -> None:
    path = run.trials_path / MEASURED / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(EvidenceError, match=f"{MEASURED}/manifest.json: {key}") as caught:
        judge(run)
    assert caught.value.reason == "bad-evidence"


def test_run_is_complete_by_the_plan_that_it_was_begun_with(run: RunDir) -> None:
    path = run.path / "plan.json"
    plan = json.loads(path.read_text())
    for planned, counts in (
        (plan["trials"], None),
        ([*plan["trials"] * 2][:3], ["2", "3"]),
    ):
        path.write_text(json.dumps(plan | {"trials": planned}))
        _, comparison, report = judge(run)
        assert comparison.planned == len(planned)
        incomplete = [line for line in report.splitlines() if "NOT COMPLETE" in line]
        assert [numbers_in(line.partition("NOT COMPLETE")[2])[:2] for line in incomplete] == (
            [] if counts is None else [counts]
        )


def test_evidence_is_left_as_it_was(run: RunDir) -> None:
    judge(run)
    assert [trial.verify() for trial in run.trials()] == [None, None]
    assert all(not (trial.path / "timelines").exists() for trial in run.trials())


def test_trial_that_does_not_count_has_no_trace(run: RunDir) -> None:
    with (run.trials_path / MEASURED / "map.json").open("a") as file:
        file.write(" ")
    judge(run)
    assert names(run.path / "timelines") == TRACES[:1]


def test_run_without_a_traced_boot_has_no_folder_of_traces(run: RunDir) -> None:
    for trial in run.trials():
        outcome = {"kind": "invalid", "by_bench": True, "stage": "host-boot", "message": "hung",
                   "reason": "host-hang", "evidence": ""}  # fmt: skip
        sealed(trial.path, outcome=outcome)
    judge(run)
    assert not (run.path / "timelines").exists()


@pytest.mark.parametrize("refused", ["mkdir", "open"])
def test_folder_that_may_not_be_written_to_is_a_warning(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    allowed = getattr(Path, refused)

    def refusing(path: Path, *arguments: Any, **more: Any) -> Any:
        if "timelines" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *arguments, **more)

    monkeypatch.setattr(Path, refused, refusing)
    _, comparison, report = judge(run)
    assert choose_exit_code(comparison) == 0
    assert (run.path / "report.txt").read_text() == report
    [warning] = caplog.records
    assert warning.levelname == "WARNING"
    assert re.search(r"\btimelines\b.*\[Errno 13\]", warning.getMessage())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EEXIST])
def test_report_is_not_lost_with_the_traces(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refusing(path: Path, *arguments: Any, **more: Any) -> Any:
        raise OSError(number, "so it is", str(path))

    monkeypatch.setattr(Path, "mkdir", refusing)
    _, _, report = judge(run)
    assert (run.path / "report.txt").read_text() == report
    assert re.search(rf"\btimelines\b.*\[Errno {number}\]", caplog.text)


def test_run_of_somebody_else_is_judged_with_warnings_alone(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing(path: Path, *arguments: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    opened = Path.open

    def refusing_new(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        return refusing(path) if "x" in mode else opened(path, mode, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", refusing)
    monkeypatch.setattr(Path, "open", refusing_new)
    _, comparison, report = judge(run)
    assert comparison.verdict == "improved"
    assert "improved" in report
    for record, file in zip(caplog.records, ("report", "page", "timelines"), strict=True):
        assert record.levelname == "WARNING"
        assert file in record.getMessage().split()
    assert names(run.path) == ["plan.json", "scenario.toml", "trials"]


def test_note_on_evidence_is_in_the_report_and_in_the_json(run: RunDir) -> None:
    trial = run.trials_path / MEASURED

    def slow(text: str) -> str:
        facts = json.loads(text)
        return json.dumps(facts | {"settings": facts["settings"] | {"clocksource": "hpet"}})

    rewrite(trial / "host/facts.json", slow)
    sealed(trial)
    _, _, report = judge(run)
    [line] = [line for line in report.splitlines() if "clock-source" in line]
    assert {"candidate", "hpet"} <= {*re.findall(r"\w+", line)}
    arms = json.loads((run.path / "comparison.json").read_text())["arms"]
    assert arms["baseline"]["notes"] == []
    [note] = arms["candidate"]["notes"]
    assert (note["trial"], note["name"]) == (MEASURED, "clock-source")


def test_boots_in_the_json_are_those_of_the_evidence(run: RunDir) -> None:
    judge(run)
    rows = json.loads((run.path / "comparison.json").read_text())["boots"]
    large = [row for row in rows if row["bar"] == "1GiB BAR"]
    for kind in ("map", "unmap"):
        for arm in ("baseline", "candidate"):
            assert sum(row[arm]["calls"] for row in large if row["kind"] == kind) == 12
    assert {row["before_mark"] for row in large} == {True, False}


def test_look_is_at_the_blocks_so_far_whatever_an_interrupted_run_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a part of a block could end a run that is then never complete."""
    chosen = map_scenario("host.accel=tcg", "trials={until = {}, control = false}")
    plan = make_plan(chosen)
    left = [planned for planned in plan if planned.pair <= 5]
    trials = [SimpleNamespace(path=Path(planned.name)) for planned in left]
    run = cast(RunDir, SimpleNamespace(trials=lambda: trials, plan=lambda: plan_of(accel="tcg")))
    read: list[str] = []
    seen: list[list[int]] = []

    def result(trial: TrialDir) -> TrialResult:
        read.append(trial.path.name)
        [planned] = [trial_ for trial_ in plan if trial_.name == trial.path.name]
        return TrialResult(planned.name, planned.arm, "measured", pair=planned.pair)

    def enough(scenario: Scenario, results: Sequence[TrialResult], accel: str) -> bool:
        seen.append(sorted({result.pair for result in results}))
        return False

    monkeypatch.setattr(judging, "read_result", result)
    monkeypatch.setattr(judging, "is_enough", enough)
    look = stop_rule(chosen)
    assert look is not None
    assert not look(run, 2)
    assert not look(run, 4)
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert read == [planned.name for planned in plan if planned.pair <= 4]


def knob_run(folder: Path, *, thp: str = "[always] madvise never") -> RunDir:
    """Make a run of one kernel in both arms. In the candidate a parameter is set, and `thp` is the
    policy for huge pages."""
    name = "vfio_iommu_type1.disable_hugepages"
    (folder / "trials").mkdir(parents=True)
    text = (
        MAPS.replace('"new"', '"old"')
        + f'parameters = {{ "{name}" = true }}\n[trace]\npasses = ["plain"]\n[device]\n'
        + 'bar = "4GiB"\n[map]\nsizes = ["1GiB", "2GiB", "full"]\n'
    )
    (folder / "scenario.toml").write_text(text)
    identity = {"release": "7.3.4", "source": "dir:old", "digest": "d1"}
    plan = PLAN | {
        "accel": "exact", "guest_kernel": None,
        "kernels": dict.fromkeys(("baseline", "candidate"), identity),
        "arm_settings": {"baseline": {}, "candidate": {"parameters": {name: "Y"}}},
        "trials": [
            {"name": f"{number:04d}-{arm}", "pair": 1, "arm": arm, "passes": ["plain"]}
            for number, arm in enumerate(("baseline", "candidate"), 1)
        ],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    for number, arm in enumerate(("baseline", "candidate"), 1):
        knob = arm == "candidate"
        value = "Y" if knob else "N"
        read = {"asked": "Y" if knob else None, "found": value}
        trial = map_trial(
            folder / "trials", arm, passes=("plain",), number=number, kernel=identity,
            arm_settings=NO_SETTINGS | {"parameters": {name: read}},
        )  # fmt: skip
        settings = {
            "transparent_hugepage": thp if knob else "[always] madvise never",
            "cmdline": "intel_iommu=on" + f" {name}=Y" * knob,
        }
        facts = HOST | {"settings": settings, "parameters": {name: value}}
        (trial / "host/facts.json").write_text(json.dumps(facts))
        sealed(trial)
    return RunDir.open(folder)


def test_run_of_one_knob_says_so_and_that_it_is_all(tmp_path: Path) -> None:
    run = knob_run(tmp_path / "run")
    _, comparison, report = judge(run)
    assert comparison.conditions is not None
    assert {d.name for d in comparison.conditions.differences if d.planned} == {
        "host.arm.parameters.vfio_iommu_type1.disable_hugepages",
        "host.parameters.vfio_iommu_type1.disable_hugepages",
    }
    assert comparison.conditions.unplanned == ()
    assert comparison.conditions.common["host.cmdline"] == "intel_iommu=on"
    number = len(comparison.conditions.common)
    paragraph = (
        "Arms differ in: vfio_iommu_type1.disable_hugepages: N | Y; nothing else (same kernel"
        f" 7.3.4). Checked: {number} conditions the same."
    )
    assert paragraph in " ".join(report.split())
    assert paragraph in " ".join((run.path / "report.html").read_text().split())
    saved = json.loads((run.path / "comparison.json").read_text())["variable"]
    assert saved["differs"] == [
        {"kind": "setting", "what": "vfio_iommu_type1.disable_hugepages", "baseline": "N",
         "candidate": "Y"},
    ]  # fmt: skip
    assert (saved["checked"], saved["unplanned"]) == (number, [])


def test_what_differs_besides_a_knob_makes_a_run_invalid(tmp_path: Path) -> None:
    run = knob_run(tmp_path / "run", thp="always madvise [never]")
    _, comparison, report = judge(run)
    assert comparison.verdict == "invalid"
    assert comparison.variable is not None
    assert comparison.variable.unplanned == ("host.thp",)
    assert "host.thp" in report


def test_plan_that_does_not_say_what_its_arms_are_is_bad_evidence(tmp_path: Path) -> None:
    run = knob_run(tmp_path / "run")
    plan = run.plan().to_json() | {"arm_settings": ["x"]}
    (run.path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(EvidenceError, match=r"plan\.json: arm_settings"):
        judge(run)
