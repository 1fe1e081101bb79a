"""A Comparison as comparison.json has it (schema 2)."""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.analysis.boot.cost import cost_json
from orchestrator.analysis.conditions.conditions import conditions_json
from orchestrator.analysis.conditions.variable import variable_json
from orchestrator.analysis.maps.breakdown import ProfileDifference
from orchestrator.analysis.maps.probe_overhead import compute_probe_costs
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.trial import Findings
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    attempts_of,
    boots_of,
    count_failures,
    find_laws,
    merge_findings,
    subtract_profiles,
)
from orchestrator.analysis.verdict.effect import Effect
from orchestrator.analysis.verdict.outcome import outcome_json
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import bench_counts, counts
from orchestrator.scenario.vocabulary import ARMS, ArmName

COMPARISON_SCHEMA = 2
"""Version of comparison.json. Up to 1, costs were called seconds (scenario/vocabulary.py,
`current_name`). Nothing here reads it: a run of any version is judged from its evidence."""
UNDECIDED = Reason.UNDECIDED_FAILURE
"""Reason of a run that is inconclusive because a failure can be charged to nobody."""


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """Return comparison.json."""
    arms: dict[str, object] = {}
    for arm in ARMS:
        arms[arm] = {
            "kernel": comparison.kernels[arm],
            "trials": {k: comparison.count(arm, k) for k in ("measured", "failed", "invalid")},
            "metrics": {
                m.name: {"unit": m.unit, "samples": list(getattr(m, arm)),
                         "median": summarize(m.unit, getattr(m, arm)).middle}
                for m in comparison.metrics
            },
            **_shown(comparison, arm),
        }  # fmt: skip
    return tidy_floats({
        "schema": COMPARISON_SCHEMA,
        "scenario": comparison.scenario, "verdict": comparison.verdict,
        "outcome": outcome_json(comparison.outcome),
        "arms": arms,
        "metrics": {
            m.name: _effect_json(m.effect) | {
                "verdict": m.verdict, "deciding": m.name in comparison.deciding,
                "slow": _slow_json(m), "bench_resolution": m.bench_resolution,
                "control": m.control and _effect_json(m.control) | {"samples": list(m.controls)},
                "shapes": {arm: [asdict(shape) for shape in shapes]
                           for arm, shapes in m.shapes.items()},
            }
            for m in comparison.metrics
        },
        "levels": {"p": comparison.levels.difference, "error": comparison.levels.error},
        "by_reference": comparison.has_reference,
        "variable": comparison.variable and variable_json(comparison.variable),
        "conditions": comparison.conditions and conditions_json(comparison.conditions),
        "boots": cost_json(boots_of(comparison)),
        "profiles": [_profile_json(profile) for profile in subtract_profiles(comparison)],
        **_attempts_json(comparison),
        "problems": [
            {"trial": r.name, "arm": r.arm, "kind": r.kind, "stage": r.stage, "reason": r.reason,
             "charge": r.attempts[-1].charge, "message": r.message}
            for r in comparison.results if r.kind != "measured"
        ],
    })  # fmt: skip


def tidy_floats(document: dict[str, object]) -> dict[str, object]:
    """Return a document whose numbers have fourteen digits: sums and ratios of floats have dust
    beyond them, 0.00043450000000000004."""
    tidied = _tidy(document)
    assert isinstance(tidied, dict)
    return tidied


def _tidy(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.14g}")
    if isinstance(value, dict):
        return {key: _tidy(inner) for key, inner in value.items()}
    return [_tidy(inner) for inner in value] if isinstance(value, list | tuple) else value


def _profile_json(profile: ProfileDifference) -> dict[str, object]:
    """Return the difference of two profiles. `per_page`: instructions for each page of 4 KiB."""
    return {
        "operation": profile.operation, "state": profile.state,
        "baseline": profile.baseline, "candidate": profile.candidate,
        "outside_series": profile.outside_series,
        "functions": [
            {"function": change.function, "baseline": change.baseline,
             "candidate": change.candidate, "per_page": change.per_page,
             "in_series": change.in_series}
            for change in profile.functions
        ],
    }  # fmt: skip


def _slow_json(metric: MetricComparison) -> dict[str, object] | None:
    """Return the slow trials of both arms. `excluded_share`: the run excludes that more of the
    candidate's boots are slow. None if there are too few trials."""
    tail = metric.effect.estimate.tail
    if tail is None:
        return None
    return {
        "limit": tail.limit, "p": tail.p, "p_adjusted": metric.effect.tail_p_adjusted,
        "excluded_share": tail.excluded_share,
        "baseline": {"slow": tail.baseline_slow, "of": tail.baseline_trials},
        "candidate": {"slow": tail.candidate_slow, "of": tail.candidate_trials},
        "trials": [
            {"trial": slow.trial, "value": slow.value,
             "leaf": slow.level and slow.level.leaf,
             "reasons": [reason.name for reason in slow.level.reasons] if slow.level else []}
            for slow in metric.slow
        ],
    }  # fmt: skip


def _attempts_json(comparison: Comparison) -> dict[str, object]:
    """Return the attempts of a run, if one of them failed. `charged`: how many of the `failed`
    ones are charged to the arm; `of`: attempts that the bench did not fail; `bench`: attempts that
    the bench failed in a way that a kernel may have caused."""
    attempts = attempts_of(comparison.results)
    of_arms = {
        arm: {"failed": counts(attempts, arm)[0],
              "charged": count_failures(comparison.results, arm)[0],
              "of": counts(attempts, arm)[1],
              "bench": bench_counts(attempts, arm).failed}
        for arm in ARMS
    }  # fmt: skip
    if not any(numbers["failed"] or numbers["bench"] for numbers in of_arms.values()):
        return {}
    return {"reason": UNDECIDED if comparison.has_undecided else "", "attempts": of_arms}


def _effect_json(effect: Effect) -> dict[str, object]:
    estimate = effect.estimate
    return {
        "ratio": estimate.ratio, "ci95": estimate.interval and list(estimate.interval),
        "p": estimate.p, "p_adjusted": effect.p_adjusted,
        "basis": estimate.basis, "pairs": estimate.pairs, "unconfirmed": estimate.unconfirmed,
        "verdict": effect.verdict,
    }  # fmt: skip


def _shown(comparison: Comparison, arm: ArmName) -> dict[str, object]:
    """Return what an arm shows besides metrics, as in comparison.json."""
    shown, boots = merge_findings(comparison, arm), boots_of(comparison)[arm]
    if shown == Findings() and not boots:
        return {}
    return {
        "notes": [
            {"trial": boot.trial, "name": note.name, "text": note.text}
            for boot in boots for note in boot.notes
        ],
        "levels": [
            {"place": level.place, "leaf": level.leaf, "stride": level.stride,
             "iommu_leaf": level.iommu,
             "reasons": [{"name": r.name, "text": r.text} for r in level.reasons]}
            for level in shown.levels
        ],
        "scaling": {
            name: {"kind": law.kind, "unit": law.unit, "fixed": law.fixed,
                   "per_unit": law.per_unit, "residual": law.residual,
                   "sizes": [law.smallest, law.largest], "exponent": law.exponent,
                   "exponent_ci95": list(law.exponent_interval)}
            for name, law in find_laws(comparison, arm).items()
        },
        "looking": [asdict(cost) for cost in compute_probe_costs(shown.passes)],
        "instructions": [
            {"operation": b.operation, "state": b.state, "logged": b.logged, "total": b.total,
             "functions": dict(b.by_function())}
            for b in shown.breakdowns
        ],
    }  # fmt: skip
