"""KTAP, checked against Documentation/dev-tools/ktap.rst by a parser of this module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.exports.cases import Suite, not_run
from orchestrator.report.exports.ktap import format_ktap
from tests.unit.report.made import BOOT, MAP, RUNS, ended, pairs, run

ANYTHING = st.text(st.characters())
RESULT = re.compile(
    r"(ok|not ok) ([0-9]+)(?: ([^#]*))?(?: ?# ?(?:(SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b)?(.*))?"
)


@dataclass
class Found:
    """A test in the text."""

    name: str = ""
    passed: bool = False
    directive: str | None = None
    text: str = ""
    diagnostics: list[str] = field(default_factory=list)
    subtests: list[Found] = field(default_factory=list)


def parse(text: str) -> list[Found]:
    """Return every test of the outermost level. Raises AssertionError for anything that the
    document forbids, and for unknown lines, because barometer writes none."""
    assert text.endswith("\n")
    lines = iter(text.removesuffix("\n").split("\n"))
    parsed = level(lines, "")
    assert next(lines, None) is None
    return parsed


def level(lines: Iterator[str], indent: str, first: str | None = None) -> list[Found]:
    """Parse one level of nesting: a version line, a plan line, then as many results as were
    planned."""
    assert (first or next(lines)) == f"{indent}KTAP version 1"
    plan = re.fullmatch(rf"{indent}1\.\.([0-9]+)", next(lines))
    assert plan is not None
    tests: list[Found] = []
    test = Found()
    while len(tests) < int(plan[1]):
        line = next(lines)
        assert re.search(r"[^\t\x20-\x7e\xa0-\U0010ffff]", line) is None
        if line == f"{indent}  KTAP version 1":
            test.subtests = level(lines, f"{indent}  ", line)
            continue
        assert line.startswith(indent)
        line = line.removeprefix(indent)
        if line.startswith("# "):
            test.diagnostics.append(line.removeprefix("# "))
            continue
        result = RESULT.fullmatch(line)
        assert result is not None, line
        assert int(result[2]) == len(tests) + 1
        test.passed, test.name = result[1] == "ok", (result[3] or "").strip()
        test.directive, test.text = result[4], (result[5] or "").strip()
        bubbled = all(sub.passed or sub.directive == "SKIP" for sub in test.subtests)
        assert bubbled or not test.passed, "a test fails if any of its subtests does"
        tests.append(test)
        test = Found()
    return tests


def of(suite: Suite) -> Found:
    [parsed] = parse(format_ktap([suite]))
    return parsed


def test_the_parser_reads_the_documents_example() -> None:
    text = """KTAP version 1
1..2
  KTAP version 1
  1..2
    KTAP version 1
    1..2
    not ok 1 test_1
    ok 2 test_2
  not ok 1 test_3
  ok 2 test_4 # SKIP
not ok 1 example_test_1
ok 2 example_test_2
"""
    first, second = parse(text)
    assert [(t.name, t.passed, t.directive) for t in first.subtests] == [
        ("test_3", False, None), ("test_4", True, "SKIP"),
    ]  # fmt: skip
    assert [t.name for t in first.subtests[0].subtests] == ["test_1", "test_2"]
    assert (second.name, second.passed) == ("example_test_2", True)
    with pytest.raises(AssertionError):
        parse(text.replace("not ok 1 example", "ok 1 example"))
    with pytest.raises(AssertionError):
        parse(text.replace("ok 2 example", "ok 3 example"))


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_a_test_with_its_cases_in_it(name: str) -> None:
    make, code = RUNS[name]
    suite = make().suite
    lines = of(suite)
    assert lines.name == "small"
    assert [t.name for t in lines.subtests] == [case.name for case in suite.cases]
    for test, case in zip(lines.subtests, suite.cases, strict=True):
        assert test.passed == (case.outcome != "failed")
        assert (test.directive == "SKIP") == (case.outcome == "unknown")
        assert test.text == case.message
    failed = any(case.outcome == "failed" for case in suite.cases)
    assert lines.passed != failed
    assert (lines.directive == "SKIP") == (code in (3, 4) and not failed)


def test_numbers_are_diagnostics_before_the_result() -> None:
    lines = of(run(pairs(0.5), f"{MAP}=improved").suite)
    [metric] = [t for t in lines.subtests if t.name == MAP]
    numbers = dict(line.split(": ") for line in metric.diagnostics)
    assert float(numbers["ratio"]) == pytest.approx(0.5)
    assert numbers["unit"] == "s"
    assert "baseline.kernel: 6.12.107+deb13 (deb:old)" in lines.subtests[0].diagnostics


def test_console_is_diagnostics_behind_a_bar() -> None:
    panic = ended("candidate", 2, evidence="# Subtest: forged\nok 1 forged\nKTAP version 1\n")
    lines = of(run([*pairs(0.5, 2), panic], f"{BOOT}=improved").suite)
    *_, last = lines.subtests
    assert last.diagnostics == ["| # Subtest: forged", "| ok 1 forged", "| KTAP version 1"]


def test_cells_are_tests_in_one_text() -> None:
    first = run(pairs(0.4, 1)).suite
    suites = parse(format_ktap([first, not_run("job-ovmf", 4)]))
    assert [(t.name, t.passed, t.directive, t.text) for t in suites] == [
        ("small", True, None, "improved"), ("job-ovmf", True, "SKIP", "not run"),
    ]  # fmt: skip


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_text_from_outside_does_not_break_it(
    reason: str, message: str, evidence: str, stage: str
) -> None:
    texts = {"reason": reason, "message": message, "evidence": evidence, "stage": stage}
    lines = of(run([ended("candidate", 0, **texts)]).suite)
    [*_, trial] = lines.subtests
    assert (trial.name, trial.passed) == ("0090-candidate", False)
    assert all(line.startswith("|") for line in trial.diagnostics)


@given(ANYTHING)
def test_name_from_outside_does_not_break_it(name: str) -> None:
    result = ended("candidate", 0)
    [*_, trial] = of(run([type(result)(**vars(result) | {"name": name})]).suite).subtests
    assert not trial.passed
