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


def test_bench_that_changed_between_the_runs_shows_in_the_arm_beside() -> None:
    # a slower machine: both arms cost 10 % more
    _, comparison = compare_runs(run("a"), run("b", 0.55, 1.1, seed=1), "candidate")
    [metric] = comparison.metrics
    assert metric.control is not None
    assert metric.control.verdict == "regressed"
    assert (comparison.verdict, choose_exit_code(comparison)) == ("invalid", 4)


def test_arm_that_fails_is_regressed_on_a_slower_machine_too() -> None:
    other = run("b", 0.55, 1.1, seed=1)
    failed = tuple(
        replace(r, kind="failed", reason="guest-panic", samples={})
        if r.arm == "candidate" and r.pair <= 8 else r
        for r in other.results
    )  # fmt: skip
    _, comparison = compare_runs(run("a"), replace(other, results=failed), "candidate")
    assert (comparison.verdict, choose_exit_code(comparison)) == ("regressed", 1)


def test_arm_beside_with_another_kernel_is_no_control() -> None:
    other = run("b", 0.5, 2.0, seed=1)
    kernels = other.plan.kernels
    another = kernels.baseline.to_json() | {"digest": "another"}
    other = with_plan(other, kernels=kernels.to_json() | {"baseline": another})
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert comparison.metrics[0].control is None
    assert comparison.verdict == "equivalent"


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
    assert comparison.metrics[0].control is not None


def test_arm_beside_that_is_set_otherwise_is_no_control() -> None:
    other = with_settings(run("b", seed=1), "baseline", "nosmt")
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert comparison.metrics[0].control is None
    assert comparison.variable is not None
    assert comparison.variable.differs == ()


def test_run_from_before_there_were_settings_has_none() -> None:
    empty: dict[str, Any] = {"cmdline": "", "parameters": {}, "sysfs": {}}
    other = with_plan(run("b", seed=1), arm_settings=dict.fromkeys(ARMS, empty))
    _, comparison = compare_runs(run("a"), other, "candidate")
    assert comparison.metrics[0].control is not None
