"""The end of a run: at most twelve lines, whatever was compared."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.bisection import Bisection
from orchestrator.analysis.verdict.comparison import compare_trials
from orchestrator.evidence.faults import Attempt
from orchestrator.evidence.layout import RunDir
from orchestrator.report.text.brief import LINES, bisect_brief, matrix_brief, run_brief
from orchestrator.report.words.columns import WIDTH
from orchestrator.run.judging.judge import read_saved_run
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, METRICS, Metric
from tests.unit.recorded import RUN
from tests.unit.report.test_bisect import STEPS, commit
from tests.unit.report.test_matrix import KERNELS, cell
from tests.unit.scenarios import scenario
from tests.unit.stable import has_in_order

RECORDED = Path(__file__).parents[3] / "fixtures/recorded"
PLAN = RunDir(RUN).plan()


def lines_of(text: str, folder: Path) -> list[str]:
    """Return the lines: at most twelve, and only those with a path are too wide."""
    lines = text.split("\n")
    assert len(lines) <= LINES
    assert not [line for line in lines if len(line) > WIDTH and str(folder) not in line]
    assert "" not in lines
    return lines


def brief(
    results: list[TrialResult], folder: Path, chosen: Scenario | None = None, planned: int = 2
) -> list[str]:
    chosen = chosen or scenario()
    comparison = compare_trials(chosen, KERNELS, results, planned, "tcg")
    return lines_of(run_brief(chosen.device.bar, comparison, PLAN, folder), folder)


def measured(values: dict[Metric, tuple[float, float]]) -> list[TrialResult]:
    return [
        TrialResult(arm, arm, "measured", samples={m: (v[i],) for m, v in values.items()})
        for i, arm in enumerate(ARMS)
    ]


@pytest.mark.parametrize("name", ["debian-6.12-vs-7", "map-exact", "levels", "metal"])
def test_recorded_run_ends_with_its_verdict_and_its_folder(name: str) -> None:
    saved = read_saved_run(RunDir.open(RECORDED / name))
    comparison = compare_trials(
        saved.scenario, KERNELS, saved.results, saved.planned, saved.plan.accel
    )
    text = run_brief(saved.scenario.device.bar, comparison, saved.plan, RECORDED / name)
    lines = lines_of(text, RECORDED / name)
    assert comparison.verdict in lines[0] + lines[1]
    assert lines[-1] == f"run: {RECORDED / name}"
    assert any(line.startswith("trials ") for line in lines)
    for metric in comparison.deciding[:2]:
        assert any(line.startswith(f"  * {metric}") for line in lines)


def test_end_of_the_main_job_is_the_one_that_the_documentation_shows() -> None:
    saved = read_saved_run(RunDir.open(RECORDED / "debian-6.12-vs-7"))
    kernels = saved.plan.named_kernels()
    comparison = compare_trials(
        saved.scenario, kernels, saved.results, saved.planned, saved.plan.accel
    )
    folder = Path("/home/me/runs/debian-6.12-vs-7-20261130-093000")
    shown = (RECORDED.parents[1] / "docs/how-to/run.md").read_text()
    shown = shown.replace(f"report     {folder}/report.html\n", "")  # no such file here
    brief = run_brief(saved.scenario.device.bar, comparison, saved.plan, folder)
    assert f"\n{brief}\n" in shown


def test_what_regressed_beside_is_never_left_out(tmp_path: Path) -> None:
    chosen = scenario("expect={bar_map_cost='improved'}")
    values: dict[Metric, tuple[float, float]] = {
        "bar_map_cost": (8.0, 0.001), "bar_unmap_cost": (1.0, 19.0),
    }  # fmt: skip
    lines = brief(measured(values), tmp_path, chosen)
    assert [line for line in lines if has_in_order(line, "one DMA unmap", "19x")]


def test_report_is_named_where_there_is_one_and_paths_are_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    lines = brief(measured({"bar_map_cost": (1.0, 1.0)}), folder)
    assert not [line for line in lines if "report.html" in line]
    (folder / "report.html").write_text("")
    lines = brief(measured({"bar_map_cost": (1.0, 1.0)}), folder)
    assert f"report     {folder}/report.html" in lines
    assert [line for line in lines if line.endswith(f" barometer report '{folder}' --table")]


def test_trials_that_do_not_count_are_told_as_far_as_there_is_room(tmp_path: Path) -> None:
    failed = [
        TrialResult(f"{n:04d}-{arm}", arm, "failed", reason="host-panic", stage="host-boot",
                    message="x" * 500, repeated=(Attempt(arm, "host-crash", "bench"),))
        for n in range(20) for arm in ARMS
    ]  # fmt: skip
    lines = brief(failed, tmp_path, planned=60)
    assert len(lines) == LINES
    text = " ".join(" ".join(lines).split())
    assert has_in_order(text, "40", "60", "NOT COMPLETE")
    assert re.search(r"20 failed \(host-panic\), \w+ 20 times", text)
    assert re.search(r"0000-baseline: .*\bhost-boot\b.*\bhost-panic\b.*\bxxx", text)


_COSTS = st.floats(1e-9, 1e9)
_RESULTS = st.dictionaries(st.sampled_from(sorted(METRICS)), st.tuples(_COSTS, _COSTS), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_RESULTS, st.lists(st.text(max_size=300), max_size=5), st.integers(2, 9))
def test_it_is_twelve_lines_whatever_was_found(
    tmp_path: Path, values: dict[Metric, tuple[float, float]], messages: list[str], planned: int
) -> None:
    expectations = ", ".join(f"{metric}='improved'" for metric in values)
    bad = [
        replace(TrialResult(f"{n}-candidate", "candidate", "invalid"), reason="bug", message=text)
        for n, text in enumerate(messages)
    ]
    results = [*measured(values), *bad]
    brief(results, tmp_path, scenario(f"expect={{{expectations}}}"), planned)
    brief(results, tmp_path, planned=planned)


@pytest.mark.parametrize("number", [1, 8, 64])
def test_matrix_begins_with_its_worst_cells(tmp_path: Path, number: int) -> None:
    same, worse = (cell({"bar_map_cost": (1.0, value)}) for value in (0.01, 50.0))
    cells = {f"cell-{n}-{'y' * 60}": same for n in range(number - 1)} | {"worst": worse}
    lines = lines_of(matrix_brief("factors", "regressed", cells, tmp_path, of=number), tmp_path)
    assert re.match(rf"factors: regressed, {number} cell", lines[0])
    assert re.match(r"  worst: regressed\b", lines[1])
    shown = sum(line.startswith("  ") and "more" not in line for line in lines)
    assert shown == min(number, 7 if number > 8 else 8)
    assert number <= 8 or has_in_order("\n".join(lines), str(number - 7), "more")


def test_cell_that_has_not_run_is_said_to_be(tmp_path: Path) -> None:
    text = matrix_brief("factors", "invalid", {"a": None}, tmp_path, of=1)
    [line] = [line for line in text.splitlines() if line.startswith("  a: ")]
    assert not {"improved", "regressed", "equivalent", "invalid"} & {*re.findall(r"\w+", line)}


@pytest.mark.parametrize("number", [0, 1, 2, 40])
def test_bisection_ends_with_its_commits_and_its_folder(tmp_path: Path, number: int) -> None:
    commits = tuple(commit(n, "a subject " * 20) for n in range(number))
    bisection = Bisection("bar_map_cost", STEPS, commits)
    lines = lines_of(bisect_brief(bisection, tmp_path), tmp_path)
    assert lines[-1] == f"bisection: {tmp_path}"
    assert f"3 steps: {tmp_path}/bisect.txt" in lines
    assert any("good 11 Minsn" in line for line in lines)
    assert number < 1 or commits[0].short in lines[0] + lines[1]


def test_bisection_of_which_nothing_is_known(tmp_path: Path) -> None:
    lines_of(bisect_brief(Bisection("bar_map_cost", (), ()), tmp_path), tmp_path)
