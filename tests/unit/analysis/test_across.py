"""Two runs compared with each other."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.across import SavedRun, compare_runs
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.scenario.vocabulary import ARMS, ArmName
from tests.unit.manifests import plan_of
from tests.unit.scenarios import map_scenario

MAPS = "bar_map_cost"


def run(
    name: str, candidate: float = 0.5, baseline: float = 1.0, seed: int = 0, **changes: Any
) -> SavedRun:
    draw = random.Random(seed)
    costs: dict[ArmName, float] = {"baseline": baseline, "candidate": candidate}
    results = tuple(
        TrialResult(
            f"{2 * pair + number:04d}-{arm}", arm, "measured", pair=pair,
            samples={MAPS: (costs[arm] * math.exp(draw.gauss(0, 0.005)),)},
            conditions={"runner.qemu": "10.0", "host.kernel.release": arm},
        )
        for pair in range(1, 13) for number, arm in enumerate(ARMS)
    )  # fmt: skip
    kernels = {arm: {"release": arm, "source": f"dir:{arm}", "digest": arm} for arm in ARMS}
    trials = [{"name": r.name, "pair": r.pair, "arm": r.arm, "passes": []} for r in results]
    plan = plan_of(accel="tcg", kernels=kernels, trials=trials)
    scenario = map_scenario("host.accel=tcg", f"expect.{MAPS}=improved")
    return replace(SavedRun(name, scenario, plan, results, {}), **changes)


def with_plan(run: SavedRun, **changes: Any) -> SavedRun:
    return replace(run, plan=plan_of(**run.plan.to_json() | changes))


def with_conditions(run: SavedRun, **conditions: str) -> SavedRun:
    changed = {name.replace("__", "."): value for name, value in conditions.items()}
    results = tuple(replace(r, conditions=r.conditions | changed) for r in run.results)
    return replace(run, results=results)


@pytest.mark.parametrize(
    ("candidate", "verdict", "code"),
    [(0.5, "equivalent", 0), (0.52, "regressed", 1), (0.48, "improved", 0)],
)
def test_candidate_of_one_night_against_that_of_another(
    candidate: float, verdict: str, code: int
) -> None:
    _, comparison = compare_runs(run("a"), run("b", candidate, seed=1), "candidate")
    assert (comparison.verdict, choose_exit_code(comparison)) == (verdict, code)
    [metric] = comparison.metrics
    assert metric.ratio == pytest.approx(candidate / 0.5, rel=0.01)
    assert metric.effect.interval is not None
    assert [r.name for r in comparison.results][:1] == ["a/0003-candidate"]


def test_slower_night_cancels_in_the_ratio_to_the_arm_beside() -> None:
    # a slower machine: both arms cost 10 % more
    _, comparison = compare_runs(run("a"), run("b", 0.55, 1.1, seed=1), "candidate")
    [metric] = comparison.metrics
    assert comparison.has_reference
    assert metric.ratio == pytest.approx(1.0, rel=0.005)
    assert (comparison.verdict, choose_exit_code(comparison)) == ("equivalent", 0)
    _, comparison = compare_runs(run("a"), run("b", 0.6, 1.1, seed=1), "candidate")
    assert comparison.metrics[0].ratio == pytest.approx(0.6 / 0.55, rel=0.005)
    assert (comparison.verdict, choose_exit_code(comparison)) == ("regressed", 1)


def test_arm_that_fails_is_regressed_on_a_slower_machine_too() -> None:
    other = run("b", 0.55, 1.1, seed=1)
    failed = tuple(
        replace(r, kind="failed", reason="guest-panic", samples={})
        if r.arm == "candidate" and r.pair <= 8 else r
        for r in other.results
    )  # fmt: skip
    _, comparison = compare_runs(run("a"), replace(other, results=failed), "candidate")
    assert (comparison.verdict, choose_exit_code(comparison)) == ("regressed", 1)


def test_nights_with_an_effect_of_their_own_are_not_called_different() -> None:
    """Each night is slower or faster than others by as much as its trials differ."""
    draw, calls = random.Random(5), 0
    for seed in range(100):
        first, second = (
            run(name, 0.5 * slow, slow, seed=2 * seed + number)
            for number, name in enumerate("ab")
            for slow in [math.exp(draw.gauss(0, 0.005))]
        )
        _, found = compare_runs(first, second, "candidate")
        calls += found.verdict in ("improved", "regressed")
    assert calls <= 1


def test_nights_whose_trials_share_boots_are_compared_by_boots() -> None:
    """12 pairs in the order A B, with a boot for each trial, are 8 independent pairs."""
    chosen = map_scenario("host.accel=tcg", "host.fresh_boots=false", f"expect.{MAPS}=improved")
    first, second = (
        replace(run(name, cost, slow, seed=seed), scenario=chosen)
        for name, cost, slow, seed in (("a", 0.5, 1.0, 0), ("b", 0.6, 1.1, 1))
    )
    _, found = compare_runs(first, second, "candidate")
    [metric] = found.metrics
    assert metric.effect.estimate.pairs == 8
    assert metric.ratio == pytest.approx(0.6 / 0.55, rel=0.01)
    assert found.verdict == "regressed"


@pytest.mark.parametrize(
    ("candidate", "verdict"), [(0.5, "inconclusive"), (1.2, "inconclusive"), (5.5, "regressed")]
)
def test_one_night_against_one_has_no_p_if_nothing_else_is_the_same(
    candidate: float, verdict: str
) -> None:
    other = run("b", candidate, 2.0, seed=1)
    kernels = other.plan.kernels
    another = kernels.baseline.to_json() | {"digest": "another"}
    other = with_plan(other, kernels=kernels.to_json() | {"baseline": another})
    _, found = compare_runs(run("a"), other, "candidate")
    [metric] = found.metrics
    estimate = metric.effect.estimate
    assert (estimate.p, estimate.interval, estimate.pairs) == (None, None, 1)
    assert (found.verdict, found.has_reference) == (verdict, False)


def test_arm_beside_with_another_kernel_is_no_reference() -> None:
    other = run("b", 0.5, 2.0, seed=1)
    kernels = other.plan.kernels
    another = kernels.baseline.to_json() | {"digest": "another"}
    other = with_plan(other, kernels=kernels.to_json() | {"baseline": another})
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert not comparison.has_reference
    assert comparison.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("usual", "verdict"), [(None, "regressed"), (0.01, "regressed"), (0.2, "inconclusive")]
)
def test_change_that_nights_usually_have_is_no_difference(
    usual: float | None, verdict: str
) -> None:
    _, comparison = compare_runs(
        run("a"), run("b", 0.55, seed=1), "candidate", usual_change=lambda *_: usual
    )
    assert comparison.verdict == verdict


def test_difference_of_conditions_is_invalid_unless_allowed_by_name() -> None:
    other = with_conditions(run("b", seed=1), runner__qemu="11.0")
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert comparison.verdict == "invalid"
    assert choose_exit_code(comparison) == 4
    assert comparison.conditions is not None
    assert [d.name for d in comparison.conditions.unplanned] == ["runner.qemu"]
    for allow in ("runner.qemu", "runner.*"):
        assert compare_runs(run("a"), other, "candidate", [allow])[1].verdict == "equivalent"


def test_conditions_of_a_trial_that_does_not_count_do_not_count() -> None:
    other = run("b", seed=1)
    [bad, *rest] = with_conditions(other, runner__qemu="11.0").results[-1:] + other.results[:-1]
    results = (*rest, replace(bad, kind="invalid", reason="lost-events"))
    _, comparison = compare_runs(run("a"), replace(other, results=results), "candidate")
    assert comparison.verdict == "equivalent"


def test_other_kernel_is_what_is_planned() -> None:
    other = with_conditions(run("b", seed=1), host__kernel__release="newer")
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert comparison.conditions is not None
    assert [d.planned for d in comparison.conditions.differences] == [True]
    assert comparison.verdict == "equivalent"


def test_numbers_of_another_kind_are_not_compared() -> None:
    exact = with_plan(run("b"), accel="exact")
    with pytest.raises(EvidenceError, match=r"\btcg\b.*\bexact\b") as caught:
        compare_runs(run("a"), exact, "candidate")
    assert caught.value.reason == Reason.NOT_COMPARABLE


def test_run_that_is_not_complete_is_said_to_be() -> None:
    half = run("b", seed=1)
    half = with_plan(half, trials=[half.plan.trials[0].to_json()] * 30)
    _, comparison = compare_runs(run("a"), half, "candidate")
    assert (comparison.planned, len(comparison.results)) == (30, 24)
    assert choose_exit_code(comparison) == 4


def with_settings(run: SavedRun, arm: ArmName, cmdline: str) -> SavedRun:
    nothing: dict[str, dict[str, str]] = {name: {} for name in ARMS}
    changed = with_plan(run, arm_settings=nothing | {arm: {"cmdline": cmdline}})
    results = tuple(
        replace(r, conditions=r.conditions | {"host.arm.cmdline": cmdline}) if r.arm == arm else r
        for r in with_conditions(run, host__cmdline="quiet").results
    )
    return replace(changed, results=results)


def test_arm_that_is_set_otherwise_in_the_other_run_is_the_variable() -> None:
    first, second = (
        with_settings(run(name, seed=seed), "candidate", cmdline)
        for name, seed, cmdline in (("a", 0, "iommu.strict=0"), ("b", 1, "iommu.strict=1"))
    )
    _, comparison = compare_runs(first, second, "candidate")
    assert comparison.conditions is not None
    assert [(d.name, d.planned) for d in comparison.conditions.differences] == [
        ("host.arm.cmdline", True)
    ]
    assert comparison.variable is not None
    assert [(d.what, d.baseline, d.candidate) for d in comparison.variable.differs] == [
        ("command line", "iommu.strict=0", "iommu.strict=1")
    ]
    assert comparison.verdict == "equivalent"
    assert comparison.has_reference


def test_arm_beside_that_is_set_otherwise_is_no_reference() -> None:
    other = with_settings(run("b", seed=1), "baseline", "nosmt")
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert not comparison.has_reference
    assert comparison.variable is not None
    assert comparison.variable.differs == ()


def test_run_from_before_there_were_settings_has_none() -> None:
    empty: dict[str, Any] = {"cmdline": "", "parameters": {}, "sysfs": {}}
    other = with_plan(run("b", seed=1), arm_settings=dict.fromkeys(ARMS, empty))
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert comparison.has_reference
