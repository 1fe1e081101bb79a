"""Every output names every metric that regressed, over all recorded runs."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Failure, JUnitXml

from orchestrator.analysis.statistics.sequential import ALPHA, LEAST_FOR_P
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.across import compare_runs, plan_across
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.analysis.verdict.effect import Effect, Estimate, Rule
from orchestrator.analysis.verdict.outcome import (
    find_outcome,
    join_titles,
    outcome_json,
    pairs_to_decide,
)
from orchestrator.evidence.layout import RunDir
from orchestrator.evidence.plan import Plan
from orchestrator.report.exports.cases import build_suite
from orchestrator.report.exports.github import job_summary, workflow_commands
from orchestrator.report.exports.junit import junit_xml
from orchestrator.report.exports.kcidb import kcidb_objects
from orchestrator.report.exports.ktap import format_ktap
from orchestrator.report.html.html import html_matrix, html_report
from orchestrator.report.html.matrix_page import build_matrix_page
from orchestrator.report.text.mail_text import format_mail
from orchestrator.report.text.matrix_text import matrix_report
from orchestrator.report.text.run_text import CUT, text_report
from orchestrator.report.words.outcome_words import spell_points
from orchestrator.run.judging.judge import Run, judge, read_saved_run
from orchestrator.scenario.metrics import WORDS
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import HEADLINE_POINT, Metric
from tests.unit.examples import share
from tests.unit.manifests import plan_of
from tests.unit.report.made import RUNS as MADE
from tests.unit.report.pages import KERNELS, RECORDED
from tests.unit.report.test_sentence import measured
from tests.unit.scenarios import map_scenario, scenario

FOLDERS = sorted(
    path.parent
    for pattern in ("*/plan.json", "*/cells/*/plan.json", "verdicts/*/plan.json")
    for path in RECORDED.glob(pattern)
)
of_every_run = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


@functools.cache
def judged(folder: Path) -> Run:
    return judge(RunDir.open(folder), "A Tester <tester@example.org>")


def regressed(comparison: Comparison) -> list[Metric]:
    return [metric.name for metric in comparison.metrics if metric.verdict == "regressed"]


def unnamed(text: str, comparison: Comparison) -> list[str]:
    """Return the metrics that regressed and that the text names neither by their keys nor by title
    and points."""
    flat = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    missing = []
    for base, words in WORDS.items():
        every = [m for m in comparison.metrics if m.name.partition("@")[0] == base]
        names = [m.name for m in every if m.verdict == "regressed"]
        besides = [name for name in names if name not in comparison.deciding]
        rest = [name for name in names if not _is_named_alone(name, words.title, flat)]
        together = [
            f"{words.title} {which}"
            for count in {len(names), len(besides), len(rest)}
            for which in (f"at all {count} points", f"at {count} of {len(every)} points",
                          f"({count} of {len(every)} points)")
        ]  # fmt: skip
        if not any(text in flat for text in together):
            missing += rest
    return missing


def _is_named_alone(name: str, title: str, text: str) -> bool:
    point = name.partition("@")[2]
    by_title = re.escape(f"{title} ({point})") if point else rf"{title}(?! \(| at )"
    by_key = rf"(?<![\w@/]){re.escape(name)}(?![\w@/])"
    return any(re.search(pattern, text) for pattern in (by_title, by_key))


Output = Callable[[Scenario, Comparison, Plan], str]


def _text_head(chosen: Scenario, comparison: Comparison, plan: Plan) -> str:
    rest = text_report(chosen, comparison, plan).partition(CUT)[2]
    return rest.partition("\nbaseline ")[0]


def _mail(chosen: Scenario, comparison: Comparison, plan: Plan) -> str:
    return format_mail(chosen, comparison, plan, None)


def _page_head(chosen: Scenario, comparison: Comparison, plan: Plan) -> str:
    return html_report(chosen, comparison, plan).partition("<body>")[2].partition("<h2")[0]


def _summary(chosen: Scenario, comparison: Comparison, plan: Plan) -> str:
    text = job_summary([build_suite(comparison, plan)])
    return re.sub(r"\\(.)", r"\1", text.partition("<details>")[0])


def _annotation(chosen: Scenario, comparison: Comparison, plan: Plan) -> str:
    return workflow_commands([build_suite(comparison, plan)]).splitlines()[0]


def _matrix(chosen: Scenario, comparison: Comparison, plan: Plan) -> str:
    return matrix_report("all", comparison.verdict, {"cell": comparison}, of=1, emulated=False)


IN_WORDS: dict[str, Output] = {
    "report.txt": _text_head, "mail": _mail, "report.html": _page_head, "summary": _summary,
    "annotation": _annotation, "matrix": _matrix,
}  # fmt: skip


@of_every_run
@pytest.mark.parametrize("output", IN_WORDS)
def test_output_in_words_names_every_metric_that_regressed(folder: Path, output: str) -> None:
    run = judged(folder)
    text = IN_WORDS[output](run.scenario, run.comparison, run.plan)
    assert unnamed(text, run.comparison) == []
    if run.comparison.outcome.has_regressions:
        assert "improved, with regressions" in " ".join(text.split())


@of_every_run
def test_output_for_machines_has_every_metric_that_regressed_by_its_name(folder: Path) -> None:
    run = judged(folder)
    names = regressed(run.comparison)
    besides = {name for name in names if name not in run.comparison.deciding}
    cases = [case for suite in JUnitXml.fromstring(junit_xml([run.suite]).encode())
             for case in suite]  # fmt: skip
    failures = {c.name for c in cases if any(isinstance(r, Failure) for r in c.result)}
    assert besides <= failures
    assert {*names} <= {case.name for case in cases}
    lines = format_ktap([run.suite]).splitlines()
    assert besides <= {m[1] for line in lines if (m := re.match(r"  not ok \d+ (\S+) #", line))}
    chosen = run.scenario
    objects = kcidb_objects(chosen.host, chosen.device, chosen.workload, run.comparison, run.plan)
    tests = objects["tests"]
    assert isinstance(tests, list)
    failed = {t["misc"]["metric"] for t in tests if t["status"] == "FAIL" and "misc" in t
              and "metric" in t["misc"]}  # fmt: skip
    assert besides <= failed
    [listed] = [json.loads(json.dumps(run.document()))["outcome"]["regressed"]]
    assert Counter(entry["metric"] for entry in listed) == Counter(names)
    assert unnamed(run.suite.cases[0].message, run.comparison) == []


@of_every_run
def test_comparison_of_two_nights_names_what_regressed(folder: Path) -> None:
    """The second night's numbers of the candidate are three times as large, in all but one
    metric."""
    first = read_saved_run(RunDir.open(folder))
    spared = sorted({name for result in first.results for name in result.samples})[0]

    def slower(result: TrialResult) -> TrialResult:
        if result.arm != "candidate":
            return result
        samples = {
            name: values if name == spared else tuple(3 * value for value in values)
            for name, values in result.samples.items()
        }
        return replace(result, samples=samples)

    second = replace(first, name="second", results=tuple(map(slower, first.results)))
    chosen, comparison = compare_runs(first, second, "candidate")
    plan = plan_across(first, second, "candidate")
    assert regressed(comparison)
    for make in IN_WORDS.values():
        assert unnamed(make(chosen, comparison, plan), comparison) == []


def test_recorded_runs_have_regressions_beside_improvements() -> None:
    """Otherwise the tests above would test nothing."""
    titles = {folder.name: judged(folder).comparison.outcome.title for folder in FOLDERS}
    assert {name for name, title in titles.items() if title == "improved, with regressions"} == {
        "levels", "map-exact", "boot-exact",
    }  # fmt: skip
    assert titles["slower-unmap"] == "regressed"
    assert titles["placebo"] == "equivalent"
    assert len(regressed(judged(RECORDED / "levels").comparison)) == 24


@pytest.mark.parametrize("name", MADE)
def test_outcome_has_the_verdict_and_agrees_with_its_document(name: str) -> None:
    comparison = MADE[name][0]().comparison
    outcome = find_outcome(comparison)
    assert outcome.title.partition(",")[0] == comparison.verdict
    assert outcome_json(outcome)["title"] == outcome.title
    assert [name for group in outcome.regressed for name in group.names] == [
        entry["metric"] for entry in _listed(outcome_json(outcome)["regressed"])
    ]
    assert join_titles([outcome, None], outcome.verdict) == outcome.title


def _listed(value: object) -> Iterator[dict[str, object]]:
    assert isinstance(value, list)
    yield from value


PARTS = st.tuples(
    st.sampled_from(["1GiB", "2GiB", "32GiB", "full"]),
    st.sampled_from(["1GiB", "2MiB", "4KiB"]),
    st.sampled_from(["cold", "warm"]),
).map("/".join)


@given(st.sets(PARTS, min_size=1))
def test_points_are_spelled_as_a_shell_expands_them(points: set[str]) -> None:
    names = ["m" if point == HEADLINE_POINT else f"m@{point}" for point in points]
    spelled = spell_points(names)
    assert re.fullmatch(r"[\w{},/ ]+", spelled)
    shell = subprocess.run(
        ["bash", "-c", f"echo {spelled}"], capture_output=True, text=True, check=True, timeout=60
    )
    assert Counter(shell.stdout.split()) == Counter(points)


def test_point_of_another_form_is_told_as_it_is() -> None:
    assert spell_points(["m@x", "m", "m@1GiB/1GiB/cold"]) == "1GiB/1GiB/cold full/1GiB/warm x"


def effect(ratio: float, low: float, high: float, pairs: int) -> Effect:
    return Effect(Estimate("trials", pairs, ratio, (low, high), 0.4), "inconclusive", 0.4)


@given(st.floats(0.8, 1.25), st.floats(1.001, 1.5), st.integers(10, 30))
def test_more_pairs_are_estimated_for_a_wider_interval(
    ratio: float, half: float, pairs: int
) -> None:
    narrow = pairs_to_decide(effect(ratio, ratio / half, ratio * half, pairs), Rule(), 1)
    wide = pairs_to_decide(effect(ratio, ratio / half**2, ratio * half**2, pairs), Rule(), 1)
    assert narrow is not None
    assert wide is not None
    assert narrow <= wide


def test_pairs_that_would_decide_are_those_of_the_test() -> None:
    few = Effect(Estimate("few", 1, 1.1), "inconclusive")
    assert pairs_to_decide(few, Rule(), 1) == LEAST_FOR_P
    for deciding in (1, 2, 4):
        pairs = pairs_to_decide(few, Rule(), deciding)
        assert pairs is not None
        assert deciding * 2 / 2**pairs <= ALPHA
    # half the interval is 2 %, the change 0: within 3 % already
    assert pairs_to_decide(effect(1.0, 1 / 1.02, 1.02, 20), Rule(), 1) == LEAST_FOR_P
    # an interval of 10 % fits within 3 % when it is (log 1.1 / log 1.03)^2 = 10.4 times as tight
    assert pairs_to_decide(effect(1.0, 1 / 1.1, 1.1, 20), Rule(), 1) == 208
    exact = Effect(Estimate("exact", 1, 1.1), "inconclusive")
    assert pairs_to_decide(exact, Rule(), 1) is None


def test_page_of_a_matrix_has_a_row_for_each_cell_with_what_regressed() -> None:
    cells = {folder.name: judged(folder).comparison for folder in FOLDERS}
    links = {name: f"cells/{name}/report.html" for name in cells}
    page = build_matrix_page(
        "all", "improved", {**cells, "late": None}, links, of=len(cells) + 1, emulated=True
    )
    text = html_matrix(page)
    rows = dict(re.findall(r'<article class="cell">\s*<h2><a href="cells/([^/]+)/(.*?)</article>',
                           text, re.DOTALL))  # fmt: skip
    assert [*rows] == [*cells]
    for name, comparison in cells.items():
        assert unnamed(rows[name], comparison) == []
        assert comparison.outcome.title in rows[name]
        has_boots = any(r.findings.timelines for r in comparison.results)
        assert ("strip" in rows[name]) == has_boots
    assert "Not run: late" in text
    assert f"{len(cells) + 1} cells: " in text
    assert ", 1 not run" in text
    assert len(text.encode()) < 600_000


FACTORS = st.sampled_from([0.0001, 0.4, 0.97, 1.0, 1.04, 1.3, 2.5, 40.0])


@share(0.1)
@given(st.data(), st.booleans(), st.integers(1, 12))
def test_outputs_of_any_run_name_every_metric_that_regressed(
    data: st.DataObject, is_map: bool, pairs: int
) -> None:
    sizes = "map.sizes=['1GiB','full']", "map.alignment=['1GiB','4KiB']", "device.bar=4GiB"
    chosen = map_scenario(*sizes) if is_map else scenario()
    names = [*chosen.metrics()]
    factors = {name: data.draw(FACTORS, name) for name in names}
    deciding = data.draw(st.sets(st.sampled_from(names), max_size=5))
    expect = [f'expect."{name}"=not-regressed' for name in sorted(deciding)]
    chosen = map_scenario(*sizes, *expect) if is_map else scenario(*expect)
    accel = "exact" if is_map else "tcg"
    results = [
        trial for pair in range(1, pairs + 1)
        for trial in measured({name: (1 + pair % 3 / 9e3, factor * (1 + pair % 4 / 9e3))
                               for name, factor in factors.items()}, pair)
    ]  # fmt: skip
    comparison = compare_trials(chosen, KERNELS, results, len(results), accel)
    plan = plan_of(accel=accel, guest_kernel={"release": "6.12", "source": "s", "digest": "d"})
    for output, make in IN_WORDS.items():
        assert unnamed(make(chosen, comparison, plan), comparison) == [], output
