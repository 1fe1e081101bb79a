"""The outcome of each metric that decides (met, not met, unknown), and the exit code that
follows."""

from __future__ import annotations

import pytest

from orchestrator.analysis.verdict.comparison import has_more_failures
from orchestrator.analysis.verdict.expectations import choose_exit_code, judge_expectations
from tests.unit.report.made import BOOT, MAP, RUNS, ended, pairs, run


@pytest.mark.parametrize("name", RUNS)
def test_exit_code_is_that_of_the_worst_outcome(name: str) -> None:
    make, code = RUNS[name]
    made = make()
    assert choose_exit_code(made.comparison) == code
    outcomes = {*judge_expectations(made.comparison).values()}
    if "not met" in outcomes:
        assert code == 1
    elif not has_more_failures(made.comparison):
        assert (code == 0) == (outcomes == {"met"})


@pytest.mark.parametrize(
    ("factor", "expectation", "outcome"),
    [
        (0.5, "improved", "met"),
        (0.5, "not-regressed", "met"),
        (0.5, "equivalent", "not met"),
        (0.5, "< 0.6", "met"),
        (0.5, "> 0.6", "not met"),
        (1.0, "equivalent", "met"),
        (1.0, ">= 1", "not known"),
        (1.4, "regressed", "met"),
        (1.4, "not-regressed", "not met"),
    ],
)
def test_outcome_is_of_the_expectation(factor: float, expectation: str, outcome: str) -> None:
    made = run(pairs(factor), f'{MAP}="{expectation}"')
    assert judge_expectations(made.comparison) == {MAP: outcome}


def test_without_an_expectation_the_headline_must_not_regress() -> None:
    for factor, outcome in ((0.5, "met"), (1.0, "met"), (1.4, "not met")):
        made = run(pairs(factor))
        assert judge_expectations(made.comparison) == {MAP: outcome}


def test_before_the_run_is_complete_only_a_regression_is_known() -> None:
    for factor, outcome in ((0.5, "not known"), (1.4, "not met")):
        made = run(pairs(factor), f"{BOOT}=not-regressed", planned=99)
        assert judge_expectations(made.comparison) == {BOOT: outcome}


@pytest.mark.parametrize(
    ("expectation", "outcome"),
    [("regressed", "not known"), ("<= 1.6", "not known"), ("<= 1.2", "not met")],
)
def test_before_the_run_is_complete_a_regression_that_is_expected_is_none(
    expectation: str, outcome: str
) -> None:
    made = run(pairs(1.4), f'{MAP}="{expectation}"', planned=99)
    assert judge_expectations(made.comparison) == {MAP: outcome}
    assert choose_exit_code(made.comparison) == (1 if outcome == "not met" else 4)


def test_candidate_that_fails_more_often_does_not_pass() -> None:
    made = run([*pairs(0.5, 2), ended("candidate", 2)], f"{BOOT}=improved")
    assert judge_expectations(made.comparison) == {BOOT: "met"}
    assert has_more_failures(made.comparison)
    assert not has_more_failures(run([*pairs(0.5, 2), ended("baseline", 2)]).comparison)
