from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.cost import cost_json
from orchestrator.analysis.boot.timeline import Note, Timeline
from orchestrator.analysis.maps.level import find_level
from orchestrator.analysis.trial import Findings, TrialResult, read_result
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    boots_of,
    compare_trials,
    find_laws,
    find_walk_step,
)
from orchestrator.analysis.verdict.comparison_file import comparison_json, tidy_floats
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.evidence.faults import Charge
from orchestrator.evidence.layout import TrialDir
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import CONTROL_FROM
from orchestrator.scenario.vocabulary import ArmName, Metric, Role
from tests.unit.answers import by_1gib, by_2mib, by_4kib, place_of
from tests.unit.fabricated import SERIES_SIZES, scenario_of_it, sealed_map_trial
from tests.unit.recorded import copied, unpatched
from tests.unit.scenarios import map_scenario, scenario
from tests.unit.timelines import booted

KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12", "source": "dir:old"},
    "candidate": {"release": "7.3", "source": "dir:new"},
}
MAPS: Metric = "bar_map_cost"
LOOKUPS: Metric = "pfn_lookups_per_map"


def measured(arm: ArmName, **samples: float) -> TrialResult:
    return TrialResult("t", arm, "measured", samples={k: (v,) for k, v in samples.items()})


def ended(
    arm: ArmName, kind: Literal["failed", "invalid"] = "failed", *, by_bench: bool = False
) -> TrialResult:
    charge: Charge = "arm" if kind == "failed" else "bench"
    return TrialResult("t", arm, kind, "why", "stage", "message", by_bench=by_bench, charge=charge)


def compared(results: Sequence[TrialResult], *overrides: str) -> tuple[Comparison, int]:
    chosen = scenario(*overrides)
    comparison = compare_trials(chosen, KERNELS, results, len(results), "tcg")
    return comparison, choose_exit_code(comparison)


def both(baseline: float, candidate: float, metric: Metric = MAPS) -> list[TrialResult]:
    return [
        measured("baseline", **{metric: baseline}),
        measured("candidate", **{metric: candidate}),
    ]


def test_recorded_arms_are_an_improvement(tmp_path: Path) -> None:
    results = [read_result(unpatched(tmp_path)), read_result(TrialDir.open(copied(tmp_path)))]
    comparison, code = compared(
        results, "expect.bar_map_cost=improved", "expect.pfn_lookups_per_map=improved"
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
        TrialResult("a", "baseline", "measured", samples={MAPS: (1, 2, 30)}, pair=1),
        TrialResult("b", "baseline", "measured", samples={MAPS: (4, 4, 4)}, pair=2),
        TrialResult("c", "candidate", "measured", samples={MAPS: (1,)}, pair=2),
    ]
    [metric] = compare_trials(scenario(), KERNELS, results, len(results), "tcg").metrics
    assert (metric.baseline, metric.candidate) == ((2, 4), (1,))
    assert metric.ratio == pytest.approx(1 / 4)  # only the complete pair counts
    assert metric.effect.estimate.pairs == 1


def test_ratio_to_nothing_is_none() -> None:
    comparison, _ = compared(both(0, 3, LOOKUPS))
    assert comparison.metrics[0].ratio is None


def test_metric_that_one_arm_lacks_is_not_compared() -> None:
    results = [measured("baseline", bar_map_cost=1, host_boot_seconds=5),
               measured("candidate", host_boot_seconds=5)]  # fmt: skip
    assert [
        m.name for m in compare_trials(scenario(), KERNELS, results, len(results), "tcg").metrics
    ] == ["host_boot_seconds"]


def test_samples_of_trials_that_do_not_count_are_left_out() -> None:
    bad = TrialResult("x", "baseline", "invalid", "lost-events", samples={MAPS: (100.0,)})
    comparison, _ = compared([bad, *both(4, 1)])
    assert comparison.metrics[0].baseline == (4,)


@pytest.mark.parametrize(
    ("expect", "baseline", "candidate", "code"),
    [
        ("improved", 40, 1, 0),
        ("improved", 1, 40, 1),
        ("improved", 4, 1, 4),
        ("improved", 1, 1, 4),
        ("regressed", 1, 40, 0),
        ("regressed", 40, 1, 1),
        ("not-regressed", 40, 1, 0),
        ("not-regressed", 1, 40, 1),
        ("not-regressed", 1, 4, 4),
        ("not-regressed", 1, 1, 4),
    ],
)
def test_exit_code_of_an_expectation(
    expect: str, baseline: float, candidate: float, code: int
) -> None:
    assert compared(both(baseline, candidate), f"expect.{MAPS}={expect}")[1] == code


def night(
    ratio: float = 1.0, n: int = 12, cv: float = 0.005, control: float | None = None,
    **others: float,
) -> list[TrialResult]:  # fmt: skip
    """Make `n` pairs of noisy times. `control` is the cost of the baseline's kernel when it runs
    as the control; `others` are further metrics with their ratios."""
    draw = random.Random(1)
    ratios = {MAPS: ratio} | others
    roles: dict[Role, dict[str, float]] = {
        "baseline": dict.fromkeys(ratios, 1.0), "candidate": ratios,
    }  # fmt: skip
    if control is not None:
        roles["control"] = dict.fromkeys(ratios, control)
    return [
        TrialResult(
            f"{pair}-{role}", role, "measured", pair=pair,
            samples={name: (cost * math.exp(draw.gauss(0, cv)),) for name, cost in of.items()},
        )
        for pair in range(1, n + 1) for role, of in roles.items()
    ]  # fmt: skip


def of_night(
    results: list[TrialResult], *overrides: str
) -> tuple[MetricComparison, Comparison, int]:
    comparison, code = compared(results, *overrides)
    metric = comparison.metric(MAPS)
    assert metric is not None
    return metric, comparison, code


def test_times_of_a_night_have_an_interval_and_a_p() -> None:
    metric, comparison, code = of_night(night(0.95))
    assert (metric.verdict, comparison.verdict, code) == ("improved", "improved", 0)
    low, high = metric.effect.interval or (0, 0)
    assert 0.94 < low < 0.95 < high < 0.96
    judged = json.loads(json.dumps(comparison_json(comparison)))["metrics"][MAPS]
    assert (judged["ci95"], judged["basis"], judged["pairs"]) == (
        pytest.approx([low, high]), "trials", 12,
    )  # fmt: skip
    assert judged["p"] <= 0.002


@pytest.mark.parametrize(
    ("expect", "ratio", "code"),
    [
        ("equivalent", 1.0, 0),
        ("equivalent", 1.05, 1),
        ("not-regressed", 1.0, 0),
        ("not-regressed", 1.05, 1),
        ("<= 1.02", 1.0, 0),
        ("<= 1.02", 1.05, 1),
        ("<= 1.02", 1.02, 4),
        ("< 0.9", 0.85, 0),
        (">= 1.04", 1.06, 0),
        ("> 1.04", 1.0, 1),
    ],
)
def test_exit_code_of_a_night(expect: str, ratio: float, code: int) -> None:
    assert of_night(night(ratio), f'expect.{MAPS}="{expect}"')[2] == code


def test_what_is_not_clear_may_be_clearly_not_regressed() -> None:
    draws = night(0.97, cv=0.03)
    metric, _, code = of_night(draws, f"expect.{MAPS}=not-regressed")
    assert (metric.verdict, code) == ("inconclusive", 0)
    assert metric.effect.interval is not None
    assert metric.effect.interval[1] < 1.03
    assert of_night(night(1.02, cv=0.03), f"expect.{MAPS}=not-regressed")[2] == 4


@pytest.mark.parametrize(
    ("expect", "candidate", "code"),
    [("<= 1.02", 0.04, 0), ("<= 1.02", 0.9, 4), ("<= 1.02", 50.0, 1), ("<= 0.001", 0.00009, 0),
     ("<= 0.001", 0.0006, 4), ("<= 1.02", 1.0, 4), ("<= 1.02", 0.4, 4), ("<= 1.02", 5.0, 4)],
)  # fmt: skip
def test_bound_of_a_single_pair_has_the_floor_of_few_trials(
    expect: str, candidate: float, code: int
) -> None:
    assert compared(both(1.0, candidate), f'expect.{MAPS}="{expect}"')[1] == code


@pytest.mark.parametrize(
    ("expect", "ratio", "code"),
    [("<= 1.02", 1.0, 0), ("<= 1.02", 1.1, 1), ("<= 1.02", 1.02, 4), ("<= 0.9", 0.6, 0)],
)
def test_bound_of_few_pairs_that_have_an_interval_is_kept_by_the_interval(
    expect: str, ratio: float, code: int
) -> None:
    metric, _, judged = of_night(night(ratio, n=8), f'expect.{MAPS}="{expect}"')
    assert metric.effect.estimate.basis == "few"
    assert judged == code


def test_bound_of_instructions_that_overlap_is_not_known() -> None:
    results = [
        replace(result, pair=pair)
        for pair, costs in enumerate(((10.0, 10.3), (10.4, 10.5)), 1) for result in both(*costs)
    ]  # fmt: skip
    for bound in ("<= 1.02", "<= 1.1"):
        chosen = map_scenario(f'expect.{MAPS}="{bound}"')
        comparison = compare_trials(chosen, KERNELS, results, len(results), "exact")
        assert (comparison.verdict, choose_exit_code(comparison)) == ("inconclusive", 4)


def test_bound_of_counts_is_exact() -> None:
    for bound, code in (("<= 1.02", 0), ("< 1x", 1), (">= 1x", 0)):
        assert compared(both(7, 7, LOOKUPS), f'expect.{LOOKUPS}="{bound}"')[1] == code


def test_bench_that_differs_from_itself_gives_no_verdict() -> None:
    metric, comparison, code = of_night(night(0.9, control=1.05))
    assert metric.effect.verdict == "improved"
    assert metric.control is not None
    assert metric.control.verdict == "regressed"
    assert (metric.verdict, comparison.verdict, code) == ("invalid", "invalid", 4)
    expected = of_night(night(0.9, control=1.05), f"expect.{MAPS}=improved")
    assert expected[2] == 4


def test_control_of_the_fewest_pairs_that_have_one_finds_a_difference() -> None:
    """Every other pair has a control: five trials against ten."""
    results = [
        r for r in night(0.9, CONTROL_FROM, control=1.05) if r.arm != "control" or r.pair % 2 == 0
    ]
    metric, comparison, code = of_night(results)
    assert len(metric.controls) == CONTROL_FROM // 2
    assert metric.control is not None
    assert (metric.control.verdict, metric.control.estimate.basis) == ("regressed", "trials")
    assert (comparison.verdict, code) == ("invalid", 4)


def test_bench_that_agrees_with_itself_is_said() -> None:
    metric, comparison, _ = of_night(night(0.9, control=1.0))
    assert metric.control is not None
    assert metric.control.verdict == "equivalent"
    assert comparison.verdict == "improved"
    document: Any = comparison_json(comparison)
    judged = document["metrics"][MAPS]["control"]
    assert (judged["verdict"], len(judged["samples"])) == ("equivalent", 12)
    resolution = document["metrics"][MAPS]["bench_resolution"]
    low, high = judged["ci95"]
    assert resolution == pytest.approx(max(high, 1 / low) - 1)
    assert 0.001 < resolution < 0.02


def test_p_is_for_all_metrics_that_decide_together() -> None:
    results = night(0.97, n=10, guest_boot_cost=0.97)
    alone = of_night(results, f"expect.{MAPS}=improved")[0].effect
    both_decide = of_night(results, f"expect.{MAPS}=improved", "expect.guest_boot_cost=improved")[
        0
    ].effect
    assert alone.estimate.p == both_decide.estimate.p == alone.p_adjusted
    assert both_decide.p_adjusted == pytest.approx(2 * (alone.p_adjusted or 0))
    # ten pairs cannot reach half of ALPHA
    assert (alone.verdict, both_decide.verdict) == ("improved", "inconclusive")


def test_two_modes_are_named() -> None:
    results = night(n=20)
    slow = [
        replace(r, samples={MAPS: (r.samples[MAPS][0] * 1.2,)})
        if r.arm == "candidate" and r.pair % 2 else r
        for r in results
    ]  # fmt: skip
    metric, _, _ = of_night(slow)
    [shape] = metric.shapes["candidate"]
    assert shape.kind == "bimodal"
    assert "baseline" not in metric.shapes


def test_warm_up_is_not_judged() -> None:
    results = [TrialResult("w", "warm-up", "measured", samples={MAPS: (99.0,)}), *both(4, 1)]
    comparison, _ = compared(results)
    assert comparison.metrics[0].baseline == (4,)


@pytest.mark.parametrize(("expect", "code"), [("improved", 1), ("not-regressed", 0)])
def test_exit_code_of_equal_counts(expect: str, code: int) -> None:
    comparison, judged = compared(both(7, 7, LOOKUPS), f"expect.{LOOKUPS}={expect}")
    assert (comparison.verdict, judged) == ("equivalent", code)


@pytest.mark.parametrize(("baseline", "candidate", "code"), [(40, 1, 0), (1, 40, 1), (1, 1, 4)])
def test_exit_code_without_an_expectation_is_the_verdicts(
    baseline: float, candidate: float, code: int
) -> None:
    assert compared(both(baseline, candidate))[1] == code


def test_verdict_without_an_expectation_is_the_first_headlines() -> None:
    results = [measured("baseline", guest_boot_cost=1, bar_map_cost=40),
               measured("candidate", guest_boot_cost=40, bar_map_cost=1)]  # fmt: skip
    assert compared(results)[0].verdict == "improved"


def test_worst_expectation_is_the_verdict() -> None:
    results = [measured("baseline", guest_boot_cost=1, bar_map_cost=40),
               measured("candidate", guest_boot_cost=40, bar_map_cost=1)]  # fmt: skip
    comparison, code = compared(
        results, "expect.bar_map_cost=improved", "expect.guest_boot_cost=not-regressed"
    )
    assert (comparison.verdict, code) == ("regressed", 1)


def test_expectation_of_what_was_not_measured_is_invalid() -> None:
    comparison, code = compared(both(4, 1), f"expect.{LOOKUPS}=improved")
    assert (comparison.verdict, code) == ("invalid", 4)


def test_regression_outweighs_what_was_not_measured() -> None:
    _, code = compared(both(1, 40), f"expect.{LOOKUPS}=improved", f"expect.{MAPS}=not-regressed")
    assert code == 1


def test_candidate_that_fails_where_the_baseline_does_not_is_a_regression() -> None:
    comparison, code = compared([measured("baseline", bar_map_cost=1), ended("candidate")])
    assert (comparison.verdict, code) == ("regressed", 1)


def test_candidate_that_fails_more_often_is_a_regression_however_fast_it_is() -> None:
    results = [*both(40, 1), *both(40, 1), ended("candidate")]
    comparison, code = compared(results, f"expect.{MAPS}=improved")
    assert (comparison.verdict, code) == ("regressed", 1)


def test_arms_that_fail_alike_are_compared_by_the_rest() -> None:
    results = [*both(40, 1), ended("candidate"), ended("baseline")]
    assert compared(results)[1] == 0


def test_both_arms_failing_says_nothing() -> None:
    comparison, code = compared([ended("baseline"), ended("candidate")])
    assert (comparison.verdict, code) == ("invalid", 4)


def test_failed_bench_is_exit_code_3() -> None:
    results = [ended(arm, "invalid", by_bench=True) for arm in KERNELS]
    comparison, code = compared(results)
    assert (comparison.verdict, code) == ("invalid", 3)


def test_failed_bench_of_one_arm_is_exit_code_3() -> None:
    results = [measured("baseline", bar_map_cost=1),
               ended("candidate", "invalid", by_bench=True)]  # fmt: skip
    assert compared(results)[1] == 3


def test_invalid_evidence_is_exit_code_4() -> None:
    results = [measured("baseline", bar_map_cost=1), ended("candidate", "invalid")]
    assert compared(results)[1] == 4


def test_no_trials_at_all_is_invalid() -> None:
    comparison, code = compared([])
    assert (comparison.verdict, code) == ("invalid", 4)


def test_json_has_every_arm_metric_and_problem() -> None:
    results = [*both(40, 1), ended("baseline", "invalid")]
    comparison, _ = compared(results)
    document = json.loads(json.dumps(comparison_json(comparison)))
    head = [document[key] for key in ("schema", "scenario", "verdict")]
    assert head == [2, "small", "improved"]
    assert document["arms"]["baseline"] == {
        "kernel": KERNELS["baseline"],
        "trials": {"measured": 1, "failed": 0, "invalid": 1},
        "metrics": {MAPS: {"unit": "s", "samples": [40], "median": 40}},
    }
    assert document["metrics"][MAPS] == {
        "ratio": 0.025, "ci95": None, "p": None, "p_adjusted": None, "basis": "few", "pairs": 1,
        "unconfirmed": False, "verdict": "improved", "deciding": True, "slow": None,
        "bench_resolution": None, "control": None, "shapes": {},
    }  # fmt: skip
    assert document["problems"][0]["reason"] == "why"
    assert document["boots"] == []


# traced guest boots ----------------------------------------------------------------------------


def traced(
    arm: ArmName, *boots: Timeline, kind: Literal["measured", "failed", "invalid"] = "measured"
) -> TrialResult:
    return TrialResult("t", arm, kind, findings=Findings(timelines=boots))


def test_boots_are_those_of_each_arms_measured_trials_in_order() -> None:
    first, second, third = booted(), booted(guest="guest-2"), booted(guest="guest-3")
    other = booted("candidate")
    comparison, _ = compared([
        traced("baseline", first, second), traced("candidate", other), traced("baseline", third),
        traced("candidate", other, kind="invalid"), traced("baseline", first, kind="failed"),
    ])  # fmt: skip
    assert boots_of(comparison) == {"baseline": [first, second, third], "candidate": [other]}


def test_run_without_a_traced_boot_has_none() -> None:
    assert boots_of(compared(both(4, 1))[0]) == {"baseline": [], "candidate": []}


def test_json_has_the_cost_of_the_boots_and_the_notes_of_each_arm() -> None:
    noted = booted("candidate", notes=(Note("clock-step", "by 3 s"), Note("no-mmap", "never")))
    comparison, _ = compared([traced("baseline", booted(notes=())), traced("candidate", noted)])
    document = json.loads(json.dumps(comparison_json(comparison), allow_nan=False))
    cost = cost_json({"baseline": [booted()], "candidate": [noted]})
    assert document["boots"] == tidy_floats({"boots": cost})["boots"]
    assert document["boots"][0]["cause"] == "sizing BARs"
    assert document["arms"]["baseline"]["notes"] == []
    assert document["arms"]["candidate"]["notes"] == [
        {"trial": "0002-candidate", "name": "clock-step", "text": "by 3 s"},
        {"trial": "0002-candidate", "name": "no-mmap", "text": "never"},
    ]


def test_json_of_a_boot_in_one_arm_alone_has_nothing_of_the_other() -> None:
    trials = [traced("baseline", booted()), ended("candidate")]
    document: Any = comparison_json(compared(trials)[0])
    assert "notes" in document["arms"]["baseline"]
    assert "notes" not in document["arms"]["candidate"]
    assert all("candidate" not in row for row in document["boots"])


def test_recorded_boots_have_every_operation_of_both_arms(tmp_path: Path) -> None:
    results = [read_result(unpatched(tmp_path)), read_result(TrialDir.open(copied(tmp_path)))]
    comparison, _ = compared(results)
    boots = boots_of(comparison)
    assert [len(boots[arm]) for arm in boots] == [1, 1]
    rows: Any = comparison_json(comparison)["boots"]
    for arm, [boot] in boots.items():
        assert sum(row[arm]["calls"] for row in rows) == len(boot.steps)
        for kind in ("map", "unmap"):
            large = [r for r in rows if (r["kind"], r["bar"]) == (kind, "1GiB BAR")]
            assert sum(row[arm]["calls"] for row in large) == 12


ANY: st.SearchStrategy[TrialResult] = st.builds(
    TrialResult,
    st.just("t"),
    st.sampled_from(["baseline", "candidate"]),
    st.sampled_from(["measured", "failed", "invalid"]),
    by_bench=st.booleans(),
    samples=st.fixed_dictionaries(
        {},
        optional={
            MAPS: st.tuples(st.just(0.0) | st.floats(1e-9, 10)),
            LOOKUPS: st.tuples(st.integers(0, 9)),
        },
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
    json.dumps(comparison_json(comparison), allow_nan=False)


def test_scenario_is_not_needed_to_name_the_comparison() -> None:
    chosen: Scenario = scenario("name=other")
    assert compare_trials(chosen, KERNELS, [], 0, "tcg").scenario == "other"


def test_run_that_is_not_complete_is_inconclusive_whatever_it_has() -> None:
    chosen = scenario()
    comparison = compare_trials(chosen, KERNELS, both(1000, 1, LOOKUPS), planned=4, accel="tcg")
    assert comparison.verdict == "inconclusive"
    assert choose_exit_code(comparison) == 4


@pytest.mark.parametrize(
    ("expect", "code"), [("regressed", 4), ("<= 1.5", 4), ("<= 1.1", 1), ("not-regressed", 1)]
)
def test_run_that_is_not_complete_does_not_fail_for_a_regression_that_was_expected(
    expect: str, code: int
) -> None:
    chosen = scenario(f'expect.{MAPS}="{expect}"')
    comparison = compare_trials(chosen, KERNELS, night(1.2), planned=60, accel="tcg")
    assert (comparison.verdict, choose_exit_code(comparison)) == ("regressed", code)


def test_guests_that_ran_differently_are_not_compared() -> None:
    results = [
        TrialResult("a", "baseline", "measured", samples={LOOKUPS: (9,)}, guest_accel="kvm"),
        TrialResult("b", "candidate", "measured", samples={LOOKUPS: (1,)}, guest_accel="tcg"),
    ]
    chosen = scenario()
    comparison = compare_trials(chosen, KERNELS, results, planned=2, accel="tcg")
    assert comparison.verdict == "invalid"
    assert choose_exit_code(comparison) == 4


@pytest.mark.parametrize(
    ("accel", "unit", "verdict", "code"),
    [("exact", "Ginsn", "improved", 0), ("tcg", "s", "inconclusive", 4)],
)
def test_seconds_of_an_exact_host_are_instructions(
    accel: str, unit: str, verdict: str, code: int
) -> None:
    chosen = map_scenario(f"expect.{MAPS}=improved")
    comparison = compare_trials(chosen, KERNELS, both(1.0, 0.99), 2, accel)
    [metric] = comparison.metrics
    assert (metric.unit, metric.verdict) == (unit, verdict)
    assert choose_exit_code(comparison) == code
    document: Any = comparison_json(comparison)
    assert document["arms"]["baseline"]["metrics"][MAPS]["unit"] == unit


@pytest.mark.parametrize(
    ("metric", "candidate", "verdict"),
    [
        # the resolution is wider than the margin: nothing is the same
        ("guest_boot_cost", 60.0, "inconclusive"),
        ("guest_boot_cost", 68.9, "inconclusive"),
        ("guest_boot_cost", 69.1, "regressed"),
        (MAPS, 60.0, "inconclusive"),
        (MAPS, 75.5, "inconclusive"),
        (MAPS, 75.7, "regressed"),
        # 2 % of resolution: the change and the resolution together are within 3 %
        ("bar_unmap_cost", 60.5, "equivalent"),
        ("bar_unmap_cost", 60.7, "inconclusive"),
        ("bar_unmap_cost", 61.3, "regressed"),
    ],
)
def test_instructions_of_a_guest_boot_differ_beyond_the_bench_s_resolution(
    metric: Metric, candidate: float, verdict: str
) -> None:
    results = both(60.0, candidate, metric)
    [judged] = compare_trials(scenario("host.accel=exact"), KERNELS, results, 2, "exact").metrics
    assert judged.verdict == verdict


def test_counts_of_an_exact_host_are_counts() -> None:
    [metric] = compare_trials(scenario(), KERNELS, both(7, 7, LOOKUPS), 2, "exact").metrics
    assert (metric.unit, metric.verdict) == ("count", "equivalent")


@pytest.mark.parametrize("change", [1.14, 1.0, 1 / 1.14])
def test_instructions_of_many_guest_boots_are_judged_as_noisy_data(change: float) -> None:
    results = [
        replace(result, pair=pair)
        for pair in range(1, 21)
        for result in both(60 + pair / 100, change * (60 + pair % 7 / 50), "guest_boot_cost")
    ]  # fmt: skip
    [found] = compare_trials(
        scenario("host.accel=exact"), KERNELS, results, len(results), "exact"
    ).metrics
    verdicts = {1.14: "regressed", 1.0: "equivalent", 1 / 1.14: "improved"}
    assert (found.verdict, found.effect.estimate.basis) == (verdicts[change], "trials")
    assert found.effect.interval is not None


@pytest.mark.parametrize(("candidate", "code"), [(1.0004, 0), (1.009, 0), (1.011, 1)])
def test_not_regressed_has_the_floor_of_the_scenario_for_instructions_too(
    candidate: float, code: int
) -> None:
    chosen = map_scenario(f"expect.{MAPS}=not-regressed")
    assert (
        choose_exit_code(compare_trials(chosen, KERNELS, both(1, candidate), 2, "exact")) == code
    )


@pytest.fixture(scope="module")
def map_results(tmp_path_factory: pytest.TempPathFactory) -> list[TrialResult]:
    folder = tmp_path_factory.mktemp("maps")
    return [
        read_result(sealed_map_trial(folder, "baseline", series=False, number=1)),
        read_result(sealed_map_trial(folder)),
    ]


@pytest.fixture(scope="module")
def series_results(tmp_path_factory: pytest.TempPathFactory) -> list[TrialResult]:
    """Four sizes over a factor of eight."""
    folder = tmp_path_factory.mktemp("series")
    return [
        read_result(
            sealed_map_trial(folder, "baseline", series=False, number=1, sizes=SERIES_SIZES)
        ),
        read_result(sealed_map_trial(folder, sizes=SERIES_SIZES)),
    ]


def of_maps(results: list[TrialResult], *overrides: str) -> tuple[Comparison, int]:
    chosen = scenario_of_it(*overrides)
    comparison = compare_trials(chosen, KERNELS, results, len(results), "exact")
    return comparison, choose_exit_code(comparison)


def test_points_are_compared_each_for_itself(map_results: list[TrialResult]) -> None:
    comparison, code = of_maps(
        map_results,
        "expect.bar_map_cost=improved",
        'expect."pfn_lookups_per_map@full/2MiB/warm"=improved',
        'expect."pfn_lookups_per_map@full/4KiB/warm"=equivalent',
        'expect."bar_unmap_cost@full/1GiB/cold"=regressed',
    )
    assert code == 0
    unmap = comparison.metric("bar_unmap_cost@full/1GiB/cold")
    assert unmap is not None
    assert (unmap.unit, unmap.verdict) == ("Ginsn", "regressed")
    names = [m.name for m in comparison.metrics]
    assert len(names) == len(set(names)) == 90
    # the plain names come first, in the same order as in every run
    assert names[:3] == ["bar_map_cost", "bar_unmap_cost", "pfn_lookups_per_map"]


def test_point_that_was_not_as_expected_is_exit_code_1(map_results: list[TrialResult]) -> None:
    expectation = 'expect."pfn_lookups_per_map@full/4KiB/warm"=improved'
    assert of_maps(map_results, expectation)[1] == 1


def test_laws_are_of_each_alignment_and_state(series_results: list[TrialResult]) -> None:
    comparison, _ = of_maps(series_results)
    old, new = find_laws(comparison, "baseline"), find_laws(comparison, "candidate")
    assert set(old) == {
        f"{operation}/{alignment}/{state}"
        for operation in ("map", "unmap") for alignment in ("1GiB", "2MiB", "4KiB")
        for state in ("cold", "warm")
    }  # fmt: skip
    # the smallest size has no leaf of 1 GiB: the series of such leaves spans too little
    assert set(old) - set(new) == {"map/1GiB/cold", "map/1GiB/warm"}
    assert new["map/2MiB/warm"].per_unit == pytest.approx(1200e-9)
    assert (new["map/2MiB/warm"].smallest, new["map/2MiB/warm"].largest) == (1 << 29, 1 << 32)
    assert (new["map/2MiB/cold"].unit, new["map/4KiB/warm"].unit) == ("2MiB", "4KiB")
    assert {old[f"map/{a}/warm"].unit for a in ("1GiB", "2MiB", "4KiB")} == {"4KiB"}
    assert new["unmap/1GiB/cold"].per_unit == pytest.approx(200e-9)
    assert old["unmap/1GiB/cold"].per_unit == pytest.approx(150e-9)


def test_laws_need_four_sizes_and_the_full_bar_is_one(series_results: list[TrialResult]) -> None:
    few = [
        TrialResult(
            r.name, r.arm, r.kind, findings=r.findings,
            samples={n: v for n, v in r.samples.items() if "2GiB" not in n},
        )
        for r in series_results
    ]  # fmt: skip
    assert find_laws(of_maps(few)[0], "baseline") == {}
    without = [
        TrialResult(
            r.name, r.arm, r.kind, findings=r.findings,
            samples={n: v for n, v in r.samples.items() if "@" in n},
        )
        for r in series_results
    ]  # fmt: skip
    assert "map/1GiB/warm" not in find_laws(of_maps(without)[0], "baseline")
    assert "map/1GiB/cold" in find_laws(of_maps(without)[0], "baseline")


def test_maps_that_were_not_counted_have_no_laws(series_results: list[TrialResult]) -> None:
    blind = [
        replace(r, findings=replace(r.findings, passes={"plain": r.findings.passes["plain"]}))
        for r in series_results
    ]
    assert find_laws(of_maps(blind)[0], "baseline") == {}


@pytest.mark.parametrize(
    ("whole_bar", "unit"),
    [
        (by_1gib(), "1GiB"),
        (by_2mib(), "2MiB"),
        (by_4kib(), "4KiB"),
        (by_1gib(series=False), "4KiB"),
        (by_2mib(series=False), "4KiB"),
    ],
)
def test_map_goes_by_the_stride_of_its_lookups(whole_bar: dict[str, Any], unit: str) -> None:
    place, counted = place_of(whole_bar)
    assert find_walk_step("map", place, find_level(place, counted, {})) == unit
    assert find_walk_step("unmap", place, find_level(place, counted, {})) == "4KiB"


def test_sizes_that_are_walked_by_other_steps_are_no_series(
    series_results: list[TrialResult],
) -> None:
    def one_by_pages(result: TrialResult) -> TrialResult:
        levels = tuple(
            replace(level, stride="4KiB") if level.place == "1GiB/2MiB" else level
            for level in result.findings.levels
        )
        return replace(result, findings=replace(result.findings, levels=levels))

    laws = find_laws(of_maps([one_by_pages(r) for r in series_results])[0], "candidate")
    assert "map/2MiB/warm" not in laws
    assert {"map/4KiB/warm", "unmap/1GiB/warm"} <= set(laws)


def test_unmap_that_is_not_walked_by_pages_goes_by_the_largest_leaves() -> None:
    whole_bar = by_2mib()
    for taken in whole_bar["samples"]:
        taken["counts"]["iova_walk"] = {(326,): 1}
    place, counted = place_of(whole_bar)
    assert find_walk_step("unmap", place, find_level(place, counted, {})) == "1GiB"


def test_what_was_not_counted_goes_by_nothing_that_is_known() -> None:
    place, _ = place_of(by_1gib(), counted=False)
    assert find_walk_step("map", place, None) is find_walk_step("unmap", place, None) is None
    place, _ = place_of(by_1gib())
    assert find_walk_step("map", place, None) is None
    place, _ = place_of(by_1gib() | {"dma_buf": True}, backend="iommufd")
    assert find_walk_step("map", place, None) == find_walk_step("unmap", place, None) == "1GiB"


def test_guest_boots_have_no_laws() -> None:
    assert find_laws(compared(both(4, 1))[0], "baseline") == {}


def test_json_shows_what_maps_show(map_results: list[TrialResult]) -> None:
    arms = json.loads(json.dumps(comparison_json(of_maps(map_results)[0]), allow_nan=False))[
        "arms"
    ]
    old, new = arms["baseline"], arms["candidate"]
    places = [level["place"] for level in old["levels"]]
    assert places[:4] == ["1GiB/1GiB", "2GiB/1GiB", "full/1GiB", "1GiB/2MiB"]
    full = places.index("full/1GiB")
    assert new["levels"][full] == {
        "place": "full/1GiB", "leaf": "1GiB", "stride": "1GiB", "iommu_leaf": None, "reasons": [],
    }  # fmt: skip
    [reason] = old["levels"][full]["reasons"]
    assert reason["name"] == "no-series"
    assert old["scaling"] == new["scaling"] == {}  # of three sizes
    assert [cost["point"] for cost in new["looking"]] == ["full/1GiB/cold", "full/1GiB/warm"]
    assert set(new["looking"][0]["passes"]) == {"timing", "counts"}
    assert [(b["operation"], b["state"]) for b in new["instructions"]] == [
        ("map", "cold"), ("map", "warm"), ("unmap", "warm"),
    ]  # fmt: skip
    assert new["instructions"][0]["functions"]["vaddr_get_pfns"] == 4800
    assert new["instructions"][0]["total"] == 17800


def test_json_has_the_laws(series_results: list[TrialResult]) -> None:
    arms: Any = comparison_json(of_maps(series_results)[0])["arms"]
    law = arms["candidate"]["scaling"]["map/2MiB/warm"]
    assert arms["baseline"]["scaling"]["map/1GiB/warm"]["kind"] == "linear"
    assert law == {
        "kind": "linear", "unit": "2MiB", "fixed": pytest.approx(6000e-9),
        "per_unit": pytest.approx(1200e-9), "residual": pytest.approx(0, abs=1e-9),
        "sizes": [1 << 29, 1 << 32], "exponent": pytest.approx(0.99, abs=0.01),
        "exponent_ci95": pytest.approx([0.98, 1.0], abs=0.02),
    }  # fmt: skip


def test_json_of_an_arm_without_maps_has_nothing_of_them(map_results: list[TrialResult]) -> None:
    arms: Any = comparison_json(of_maps([map_results[0], ended("candidate")])[0])["arms"]
    assert "levels" in arms["baseline"]
    assert not {"levels", "scaling", "looking", "instructions"} & set(arms["candidate"])
