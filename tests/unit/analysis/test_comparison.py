from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.comparison import (
    LARGE_FLOOR,
    MANY_TRIALS,
    SMALL_FLOOR,
    Comparison,
    compare,
    exit_code,
    metric_verdict,
    to_json,
)
from orchestrator.analysis.trial import TrialResult, read_result
from orchestrator.evidence import TrialDir
from orchestrator.scenario import ArmName, Metric, Scenario
from tests.unit.recorded import copied, unpatched
from tests.unit.scenarios import scenario

KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12", "source": "dir:old"},
    "candidate": {"release": "7.3", "source": "dir:new"},
}
SECONDS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=8)
COUNTS = st.lists(st.integers(0, 2**24).map(float), min_size=1, max_size=4)
MAPS: Metric = "bar_map_seconds"
LOOKUPS: Metric = "pfn_lookups_per_map"


def measured(arm: ArmName, **samples: float) -> TrialResult:
    return TrialResult("t", arm, "measured", samples={k: (v,) for k, v in samples.items()})


def ended(
    arm: ArmName, kind: Literal["failed", "invalid"] = "failed", *, by_bench: bool = False
) -> TrialResult:
    return TrialResult("t", arm, kind, "why", "stage", "message", by_bench=by_bench)


def compared(results: Sequence[TrialResult], *overrides: str) -> tuple[Comparison, int]:
    chosen = scenario(*overrides)
    comparison = compare(chosen, KERNELS, results, len(results), "tcg")
    return comparison, exit_code(chosen, comparison)


def both(baseline: float, candidate: float, metric: Metric = MAPS) -> list[TrialResult]:
    return [
        measured("baseline", **{metric: baseline}),
        measured("candidate", **{metric: candidate}),
    ]


@pytest.mark.parametrize(
    ("unit", "baseline", "candidate", "verdict"),
    [
        ("count", [8388608], [32], "improved"),
        ("count", [32], [33], "regressed"),
        ("count", [12, 12], [12, 12], "equivalent"),
        ("count", [12, 13], [12, 13], "inconclusive"),
        ("count", [12, 12], [11, 12], "inconclusive"),
        ("count", [5, 5], [0, 0], "improved"),
        ("s", [2.0], [1.0], "improved"),
        ("s", [2.0], [1.01], "inconclusive"),
        ("s", [1.0], [2.0], "regressed"),
        ("s", [1.0], [1.0], "inconclusive"),
        ("s", [1.0] * 4, [0.9] * 4, "improved"),
        ("s", [1.0] * 4, [0.9] * 3, "inconclusive"),
        ("s", [1.0] * 4, [0.97] * 4, "inconclusive"),
        ("s", [1.0] * 4, [1.1] * 4, "regressed"),
        ("s", [9, 10, 11, 12], [1, 2, 3, 9.5], "inconclusive"),
    ],
)
def test_verdict_of_a_metric(
    unit: str, baseline: list[float], candidate: list[float], verdict: str
) -> None:
    assert metric_verdict(unit, baseline, candidate) == verdict


@given(SECONDS | COUNTS, SECONDS | COUNTS, st.sampled_from(["s", "count"]))
def test_verdict_turns_round_with_the_arms(
    baseline: list[float], candidate: list[float], unit: str
) -> None:
    turned = {"improved": "regressed", "regressed": "improved"}
    verdict = metric_verdict(unit, baseline, candidate)
    assert metric_verdict(unit, candidate, baseline) == turned.get(verdict, verdict)


@given(SECONDS)
def test_times_against_themselves_are_never_a_difference(values: list[float]) -> None:
    assert metric_verdict("s", values, values) == "inconclusive"


@given(SECONDS, SECONDS)
def test_difference_of_times_is_never_smaller_than_its_floor(
    baseline: list[float], candidate: list[float]
) -> None:
    if metric_verdict("s", baseline, candidate) == "improved":
        floor = SMALL_FLOOR if min(len(baseline), len(candidate)) >= MANY_TRIALS else LARGE_FLOOR
        assert sum(candidate) / len(candidate) < sum(baseline) / len(baseline)
        assert min(candidate) * floor <= max(baseline)
        assert max(candidate) < min(baseline)


def test_recorded_arms_are_an_improvement(tmp_path: Path) -> None:
    results = [read_result(unpatched(tmp_path)), read_result(TrialDir.open(copied(tmp_path)))]
    comparison, code = compared(
        results, "expect.bar_map_seconds=improved", "expect.pfn_lookups_per_map=improved"
    )
    assert (comparison.verdict, code) == ("improved", 0)
    lookups = comparison.metric(LOOKUPS)
    assert lookups is not None
    assert lookups.ratio == 1 / 262144
    maps = comparison.metric("bar_maps_per_boot")
    assert maps is not None
    assert maps.verdict == "equivalent"


def test_value_of_a_trial_is_its_median_and_one_sample() -> None:
    results = [
        TrialResult("a", "baseline", "measured", samples={MAPS: (1, 2, 30)}),
        TrialResult("b", "baseline", "measured", samples={MAPS: (4, 4, 4)}),
        TrialResult("c", "candidate", "measured", samples={MAPS: (1,)}),
    ]
    [metric] = compare(scenario(), KERNELS, results, len(results), "tcg").metrics
    assert (metric.baseline, metric.candidate) == ((2, 4), (1,))
    assert metric.ratio == pytest.approx(1 / 3)


def test_ratio_to_nothing_is_none() -> None:
    comparison, _ = compared(both(0, 3, LOOKUPS))
    assert comparison.metrics[0].ratio is None


def test_metric_that_one_arm_lacks_is_not_compared() -> None:
    results = [measured("baseline", bar_map_seconds=1, host_boot_seconds=5),
               measured("candidate", host_boot_seconds=5)]  # fmt: skip
    assert [
        m.name for m in compare(scenario(), KERNELS, results, len(results), "tcg").metrics
    ] == ["host_boot_seconds"]


def test_samples_of_trials_that_do_not_count_are_left_out() -> None:
    bad = TrialResult("x", "baseline", "invalid", "lost-events", samples={MAPS: (100.0,)})
    comparison, _ = compared([bad, *both(4, 1)])
    assert comparison.metrics[0].baseline == (4,)


@pytest.mark.parametrize(
    ("expect", "baseline", "candidate", "code"),
    [
        ("improved", 4, 1, 0),
        ("improved", 1, 4, 1),
        ("improved", 1, 1, 4),
        ("regressed", 1, 4, 0),
        ("regressed", 4, 1, 1),
        ("not-regressed", 4, 1, 0),
        ("not-regressed", 1, 4, 1),
        ("not-regressed", 1, 1, 4),
    ],
)
def test_exit_code_of_an_expectation(
    expect: str, baseline: float, candidate: float, code: int
) -> None:
    assert compared(both(baseline, candidate), f"expect.{MAPS}={expect}")[1] == code


@pytest.mark.parametrize(("expect", "code"), [("improved", 1), ("not-regressed", 0)])
def test_exit_code_of_equal_counts(expect: str, code: int) -> None:
    comparison, found = compared(both(7, 7, LOOKUPS), f"expect.{LOOKUPS}={expect}")
    assert (comparison.verdict, found) == ("equivalent", code)


@pytest.mark.parametrize(("baseline", "candidate", "code"), [(4, 1, 0), (1, 4, 1), (1, 1, 4)])
def test_exit_code_without_an_expectation_is_the_verdicts(
    baseline: float, candidate: float, code: int
) -> None:
    assert compared(both(baseline, candidate))[1] == code


def test_verdict_without_an_expectation_is_the_first_headlines() -> None:
    results = [measured("baseline", guest_boot_seconds=1, bar_map_seconds=4),
               measured("candidate", guest_boot_seconds=4, bar_map_seconds=1)]  # fmt: skip
    assert compared(results)[0].verdict == "improved"


def test_worst_expectation_is_the_verdict() -> None:
    results = [measured("baseline", guest_boot_seconds=1, bar_map_seconds=4),
               measured("candidate", guest_boot_seconds=4, bar_map_seconds=1)]  # fmt: skip
    comparison, code = compared(
        results, "expect.bar_map_seconds=improved", "expect.guest_boot_seconds=not-regressed"
    )
    assert (comparison.verdict, code) == ("regressed", 1)


def test_expectation_of_what_was_not_measured_is_invalid() -> None:
    comparison, code = compared(both(4, 1), f"expect.{LOOKUPS}=improved")
    assert (comparison.verdict, code) == ("invalid", 4)


def test_regression_outweighs_what_was_not_measured() -> None:
    _, code = compared(both(1, 4), f"expect.{LOOKUPS}=improved", f"expect.{MAPS}=not-regressed")
    assert code == 1


def test_candidate_that_fails_where_the_baseline_does_not_is_a_regression() -> None:
    comparison, code = compared([measured("baseline", bar_map_seconds=1), ended("candidate")])
    assert (comparison.verdict, code) == ("regressed", 1)


def test_candidate_that_fails_more_often_is_a_regression_however_fast_it_is() -> None:
    results = [*both(4, 1), *both(4, 1), ended("candidate")]
    comparison, code = compared(results, f"expect.{MAPS}=improved")
    assert (comparison.verdict, code) == ("regressed", 1)


def test_arms_that_fail_alike_are_compared_by_the_rest() -> None:
    results = [*both(4, 1), ended("candidate"), ended("baseline")]
    assert compared(results)[1] == 0


def test_both_arms_failing_says_nothing() -> None:
    comparison, code = compared([ended("baseline"), ended("candidate")])
    assert (comparison.verdict, code) == ("invalid", 4)


def test_failed_bench_is_exit_code_3() -> None:
    results = [ended(arm, "invalid", by_bench=True) for arm in KERNELS]
    comparison, code = compared(results)
    assert (comparison.verdict, code) == ("invalid", 3)


def test_failed_bench_of_one_arm_is_exit_code_3() -> None:
    results = [measured("baseline", bar_map_seconds=1),
               ended("candidate", "invalid", by_bench=True)]  # fmt: skip
    assert compared(results)[1] == 3


def test_invalid_evidence_is_exit_code_4() -> None:
    results = [measured("baseline", bar_map_seconds=1), ended("candidate", "invalid")]
    assert compared(results)[1] == 4


def test_no_trials_at_all_is_invalid() -> None:
    comparison, code = compared([])
    assert (comparison.verdict, code) == ("invalid", 4)


def test_json_has_every_arm_metric_and_problem() -> None:
    results = [*both(4, 1), ended("baseline", "invalid")]
    comparison, _ = compared(results)
    found = json.loads(json.dumps(to_json(comparison)))
    assert (found["schema"], found["scenario"], found["verdict"]) == (1, "small", "improved")
    assert found["arms"]["baseline"] == {
        "kernel": KERNELS["baseline"],
        "trials": {"measured": 1, "failed": 0, "invalid": 1},
        "metrics": {MAPS: {"unit": "s", "samples": [4], "median": 4}},
    }
    assert found["metrics"][MAPS] == {
        "ratio": 0.25, "ci95": None, "p": None, "verdict": "improved",
    }  # fmt: skip
    assert found["problems"][0]["reason"] == "why"


ANY: st.SearchStrategy[TrialResult] = st.builds(
    TrialResult,
    st.just("t"),
    st.sampled_from(["baseline", "candidate"]),
    st.sampled_from(["measured", "failed", "invalid"]),
    by_bench=st.booleans(),
    samples=st.fixed_dictionaries(
        {}, optional={MAPS: st.tuples(st.floats(0, 10)), LOOKUPS: st.tuples(st.integers(0, 9))}
    ),
)


@given(st.lists(ANY, max_size=6), st.sampled_from(["improved", "not-regressed", "regressed", ""]))
def test_any_results_have_a_verdict_and_a_documented_exit_code(
    results: list[TrialResult], expect: str
) -> None:
    overrides = [f"expect.{MAPS}={expect}"] if expect else []
    comparison, code = compared(results, *overrides)
    assert code in (0, 1, 3, 4)
    if code == 0:
        assert comparison.count("baseline", "measured")
        assert comparison.count("candidate", "measured")
        assert comparison.verdict not in ("invalid", "inconclusive")
    json.dumps(to_json(comparison), allow_nan=False)


def test_scenario_is_not_needed_to_name_the_comparison() -> None:
    chosen: Scenario = scenario("name=other")
    assert compare(chosen, KERNELS, [], 0, "tcg").scenario == "other"


def test_run_that_is_not_complete_is_inconclusive_whatever_it_has() -> None:
    chosen = scenario()
    comparison = compare(chosen, KERNELS, both(1000, 1, LOOKUPS), planned=4, accel="tcg")
    assert comparison.verdict == "inconclusive"
    assert exit_code(chosen, comparison) == 4


def test_guests_that_ran_differently_are_not_compared() -> None:
    results = [
        TrialResult("a", "baseline", "measured", samples={LOOKUPS: (9,)}, guest_accel="kvm"),
        TrialResult("b", "candidate", "measured", samples={LOOKUPS: (1,)}, guest_accel="tcg"),
    ]
    chosen = scenario()
    comparison = compare(chosen, KERNELS, results, planned=2, accel="tcg")
    assert comparison.verdict == "invalid"
    assert exit_code(chosen, comparison) == 4
