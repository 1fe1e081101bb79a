"""What the store keeps of a run: typed rows, from the run's comparison. Pure.

Numbers come from the same objects as comparison.json, so that store and report never differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison
from orchestrator.analysis.verdict.power import measure_noise
from orchestrator.base.hashing import digest_of
from orchestrator.evidence.noise import NightNoise
from orchestrator.evidence.plan import Plan
from orchestrator.scenario.vocabulary import ARMS, CONTROL, WARM_UP, ArmName, Metric

_ROLES: dict[ArmName, tuple[str, ...]] = {
    "baseline": ("baseline", CONTROL),
    "candidate": ("candidate",),
}
_KINDS = ("measured", "failed", "invalid")


class RunRow(NamedTuple):
    """The row of a run in `tables.RUN`, without its conditions."""

    key: str
    digest: str
    folder: str
    """Absolute path of the evidence on the machine that added it."""
    machine: str
    scenario: str
    accel: str
    workload: str
    started: str
    barometer: str
    """Version that made the run."""
    verdict: str
    title: str
    exit_code: int
    planned: int
    measured: int
    failed: int
    invalid: int
    baseline_kernel: str
    baseline_source: str
    candidate_kernel: str
    candidate_source: str
    candidate_commit: str | None
    """Commit that the candidate was built from; None if it was not built from a repository."""
    candidate_digest: str | None
    """Digest of the candidate's kernel. None in runs that an older barometer added."""


class TrialRow(NamedTuple):
    number: int
    name: str
    arm: str
    pair: int
    kind: str
    reason: str
    stage: str
    message: str
    started: str
    seconds: float | None
    digest: str


class FailureRow(NamedTuple):
    trial: int
    position: int
    arm: str
    reason: str
    charge: str
    stage: str


class EffectRow(NamedTuple):
    metric: str
    unit: str
    verdict: str
    deciding: bool
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    baseline: float
    candidate: float
    pairs: int | None
    spread: float | None


class SampleRow(NamedTuple):
    metric: str
    trial: int
    value: float


class NightRow(NamedTuple):
    """What became of a night and of its machine, also if there was no run."""

    machine: str
    scenario: str
    started: str
    folder: str
    exit_code: int
    reason: str
    """Reason of the command's end; empty if the run was made."""
    message: str
    put_back: bool | None
    seconds: float | None


@dataclass(frozen=True)
class StoredRun:
    run: RunRow
    trials: tuple[TrialRow, ...]
    failures: tuple[FailureRow, ...]
    effects: tuple[EffectRow, ...]
    samples: tuple[SampleRow, ...]
    conditions: Mapping[ArmName, Mapping[str, str]]


def make_rows(
    comparison: Comparison, plan: Plan, *, machine: str, workload: str, folder: str, digest: str,
    exit_code: int, shares_boots: bool = False,
) -> StoredRun:  # fmt: skip
    """Return what the store keeps of a judged run. `digest`: that of its evidence. `shares_boots`:
    that of `measure_noise`."""
    results = comparison.results
    started = min((r.started for r in results if r.started), default="")
    identity = {
        "machine": machine, "scenario": comparison.scenario, "accel": plan.accel,
        "kernels": {arm: plan.kernels[arm].digest for arm in ARMS},
        # a run without a trial has no time; its evidence is all that tells it from others
        "started": started or digest,
    }  # fmt: skip
    counts = {kind: sum(r.kind == kind for r in results if r.arm != WARM_UP) for kind in _KINDS}
    old, new = (comparison.kernels[arm] for arm in ARMS)
    source = plan.kernels.candidate.provenance.source
    run = RunRow(
        digest_of(identity), digest, folder, machine, comparison.scenario, plan.accel, workload,
        started, plan.barometer, comparison.verdict, comparison.outcome.title, exit_code,
        comparison.planned, counts["measured"], counts["failed"], counts["invalid"],
        old["release"], old["source"], new["release"], new["source"],
        source.commit if source is not None else None, plan.kernels.candidate.digest,
    )  # fmt: skip
    return StoredRun(
        run,
        tuple(_trial(number, result) for number, result in enumerate(results, 1)),
        tuple(
            FailureRow(
                number, position, attempt.arm, attempt.reason, attempt.charge, attempt.stage
            )
            for number, result in enumerate(results, 1)
            for position, attempt in enumerate(result.attempts)
            if attempt.reason
        ),
        tuple(_effects(comparison, dict(measure_noise(comparison, shares_boots=shares_boots)))),
        tuple(
            SampleRow(metric.name, number, value)
            for metric in comparison.metrics
            for number, result in enumerate(results, 1)
            if result.kind == "measured" and result.arm != WARM_UP
            and (value := result.value(metric.name)) is not None
        ),
        {arm: join_conditions(r.conditions for r in results
                              if r.arm in _ROLES[arm] and r.kind != "invalid")
         for arm in ARMS},
    )  # fmt: skip


def _trial(number: int, result: TrialResult) -> TrialRow:
    return TrialRow(
        number, result.name, result.arm, result.pair, result.kind, result.reason, result.stage,
        result.message, result.started, result.seconds, result.digest,
    )  # fmt: skip


def _effects(comparison: Comparison, noises: Mapping[Metric, NightNoise]) -> Iterable[EffectRow]:
    for metric in comparison.metrics:
        estimate = metric.effect.estimate
        low, high = estimate.interval or (None, None)
        old, new = (summarize(metric.unit, getattr(metric, arm)).middle for arm in ARMS)
        noise = noises.get(metric.name)
        pairs, spread = (noise.trials // 2, noise.spread) if noise is not None else (None, None)
        yield EffectRow(
            metric.name, metric.unit, metric.verdict, metric.name in comparison.deciding,
            metric.ratio, low, high, estimate.p, old, new, pairs, spread,
        )  # fmt: skip


def join_conditions(trials: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the conditions of all trials together: of one that differs between them, all its
    values."""
    values: dict[str, dict[str, None]] = {}
    for conditions in trials:
        for name, value in conditions.items():
            values.setdefault(name, {})[value] = None
    return {name: " and ".join(sorted(of_name)) for name, of_name in sorted(values.items())}
