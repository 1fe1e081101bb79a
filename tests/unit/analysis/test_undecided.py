"""A run with failures that neither side is charged with: they count by all attempts, or not at
all."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import count_failures, has_more_failures
from orchestrator.analysis.verdict.comparison_file import comparison_json
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import Attempt, Charge
from orchestrator.report.text.run_text import text_report
from orchestrator.report.words.sentence import verdict_sentence
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.manifests import plan_of
from tests.unit.report.made import Run, ended, pairs, run

WELL, HANGS = Attempt("baseline"), Attempt("candidate", "guest-hang")


def hanging(
    *before: Attempt, arm: ArmName = "candidate", charge: Charge = "undecided", pair: int = 1
) -> TrialResult:
    return ended(arm, pair, "failed", reason=Reason.GUEST_HANG, charge=charge, repeated=before)


def well(arm: ArmName, pair: int = 1) -> TrialResult:
    return next(result for result in pairs(1.0, 1) if result.arm == arm)


def report_of(made: Run) -> str:
    guest = {"release": "6.12", "source": "deb:guest", "digest": "0"}
    plan = plan_of(**made.plan.to_json() | {"guest_kernel": guest})
    return " ".join(text_report(made.scenario, made.comparison, plan).split())


@pytest.mark.parametrize("before", [(), (HANGS, WELL), (HANGS, HANGS, WELL)])
def test_failure_that_is_undecided_is_inconclusive(before: tuple[Attempt, ...]) -> None:
    made = run([well("baseline"), hanging(*before)])
    assert made.comparison.verdict == "inconclusive"
    assert choose_exit_code(made.comparison) == 4
    assert not has_more_failures(made.comparison)
    document: Any = comparison_json(made.comparison)
    assert document["reason"] == "undecided-failure"
    failed = 1 + sum(attempt.arm == "candidate" for attempt in before)
    assert document["attempts"]["candidate"] == {
        "failed": failed, "charged": 0, "of": failed, "bench": 0,
    }  # fmt: skip
    sentence = verdict_sentence(made.scenario.device.bar, made.comparison, made.plan)
    assert "guest-hang" in sentence
    assert report_of(made)


def test_failure_that_comes_back_in_one_arm_alone_is_that_arms() -> None:
    made = run([well("baseline"), hanging(HANGS, WELL, HANGS, WELL)])
    assert made.comparison.verdict == "regressed"
    assert choose_exit_code(made.comparison) == 1
    assert count_failures(made.comparison.results, "candidate") == (3, 3)
    assert count_failures(made.comparison.results, "baseline") == (0, 3)
    assert comparison_json(made.comparison)["reason"] == ""
    assert re.search(r"\b3\b.*\b3\b.*\bguest-hang\b", report_of(made))


def test_failure_that_comes_back_in_the_baseline_is_not_the_candidates() -> None:
    beside = Attempt("candidate")
    mine = Attempt("baseline", "guest-hang")
    made = run([well("candidate"), hanging(mine, beside, mine, beside, arm="baseline")])
    assert made.comparison.verdict == "invalid"
    assert count_failures(made.comparison.results, "baseline") == (3, 3)


def test_failure_that_did_not_come_back_is_shown_and_does_not_count() -> None:
    first, *others = pairs(0.5)
    again = [*others]
    index = next(k for k, result in enumerate(again) if result.arm == "candidate")
    again[index] = TrialResult(**{**vars(again[index]), "repeated": (HANGS,)})
    made = run([first, *again])
    assert made.comparison.verdict == run([first, *others]).comparison.verdict == "improved"
    assert re.search(r"\bguest-hang\b.*\bundecided\b", report_of(made))


def test_one_trial_of_many_that_is_undecided_leaves_a_regression_one() -> None:
    for factor, verdict in ((0.5, "inconclusive"), (1.4, "regressed")):
        results = [*pairs(factor), hanging(pair=99)]
        assert run(results).comparison.verdict == verdict


BENCH = Attempt("candidate", "host-hung-task", "bench")


def begun_again(made: list[TrialResult], arm: ArmName, each: int) -> list[TrialResult]:
    """Give each trial of an arm so many attempts that failed because of the bench."""
    lost = (replace(BENCH, arm=arm),) * each
    return [replace(r, repeated=lost) if r.arm == arm else r for r in made]


@pytest.mark.parametrize(("factor", "before"), [(0.5, "improved"), (1.0, "equivalent")])
@pytest.mark.parametrize("arm", ["baseline", "candidate"])
def test_bench_that_fails_one_arm_more_often_leaves_the_run_inconclusive(
    factor: float, before: str, arm: ArmName
) -> None:
    assert run(pairs(factor)).comparison.verdict == before
    made = run(begun_again(pairs(factor), arm, 2), f"guest_boot_cost={before}")
    assert made.comparison.verdict == "inconclusive"
    assert choose_exit_code(made.comparison) == 4
    document: Any = comparison_json(made.comparison)
    assert document["reason"] == "undecided-failure"
    assert document["attempts"][arm] == {"failed": 0, "charged": 0, "of": 12, "bench": 24}
    sentence = verdict_sentence(made.scenario.device.bar, made.comparison, made.plan)
    assert "host-hung-task" in sentence
    assert "24 of" in sentence
    assert "host-hung-task" in report_of(made)


def test_bench_that_fails_both_arms_alike_does_not_matter() -> None:
    made = begun_again(begun_again(pairs(0.5), "baseline", 1), "candidate", 1)
    assert run(made).comparison.verdict == "improved"
    assert comparison_json(run(made).comparison)["reason"] == ""


def test_bench_that_fails_one_arm_more_often_does_not_hide_a_regression() -> None:
    assert run(begun_again(pairs(1.4), "candidate", 2)).comparison.verdict == "regressed"


def test_arm_that_the_bench_never_lets_through_is_inconclusive() -> None:
    lost = [
        ended("candidate", pair, "invalid", reason=Reason.HOST_HUNG_TASK, charge="bench",
              by_bench=True, repeated=(BENCH, BENCH))
        for pair in range(3)
    ]  # fmt: skip
    made = run([*(r for r in pairs(1.0, 3) if r.arm == "baseline"), *lost])
    assert made.comparison.verdict == "inconclusive"
    assert choose_exit_code(made.comparison) == 4


def test_expectation_is_not_met_while_a_failure_is_undecided() -> None:
    made = run([*pairs(0.5), hanging(pair=99)], "guest_boot_cost=improved")
    assert choose_exit_code(made.comparison) == 4


def test_failure_by_its_call_trace_is_the_arms_at_once() -> None:
    made = run([well("baseline"), hanging(charge="arm")])
    assert made.comparison.verdict == "regressed"


def test_failure_of_an_older_version_is_the_arms() -> None:
    made = run([well("baseline"), ended("candidate", 1, "failed")])
    assert made.comparison.verdict == "regressed"
