"""Made-up runs for machine-readable output: one for each way in which a run can end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.conditions.conditions import Conditions, Difference
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.base.reasons import Reason
from orchestrator.evidence.plan import Plan
from orchestrator.report.exports.cases import Suite, build_suite
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ArmName, Role
from tests.unit.manifests import plan_of
from tests.unit.scenarios import scenario

KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12.107+deb13", "source": "deb:old"},
    "candidate": {"release": "7.3.4+deb13", "source": "deb:new"},
}
IDENTITIES = {arm: kernel | {"digest": arm[:4] * 4} for arm, kernel in KERNELS.items()}
BOOT, MAP, LOOKUPS = "guest_boot_cost", "bar_map_cost", "pfn_lookups_per_map"
ROLES: tuple[Role, Role] = ("baseline", "candidate")
NOISE = (1.0, 1.004, 0.997, 1.002, 0.995, 1.003, 0.999, 1.006, 0.998, 1.001, 0.996, 1.005)


@dataclass(frozen=True)
class Run:
    """The content of every report."""

    scenario: Scenario
    comparison: Comparison
    plan: Plan

    @property
    def suite(self) -> Suite:
        return build_suite(self.comparison, self.plan)


def measured(role: Role, pair: int, **samples: float) -> TrialResult:
    number = 2 * pair + (role == "candidate")
    return TrialResult(
        f"{number:04d}-{role}", role, "measured", pair=pair, guest_accel="kvm",
        samples={name: (value,) for name, value in samples.items()},
        started=f"2026-11-22T22:{pair:02d}:20+00:00", seconds=99.5, digest=f"{number:016x}",
    )  # fmt: skip


def ended(role: Role, pair: int, kind: str = "failed", **more: Any) -> TrialResult:
    facts: dict[str, Any] = {"reason": "guest-panic", "stage": "guest-0-plain",
                             "message": "the guest panicked",
                             "evidence": "[   1.0] Oops\n[   1.1] Kernel panic\n"}  # fmt: skip
    return TrialResult(f"{2 * pair + 90:04d}-{role}", role, kind, pair=pair,  # type: ignore[arg-type]
                       **facts | more)  # fmt: skip


def pairs(factor: float, count: int = len(NOISE)) -> list[TrialResult]:
    """Make pairs in which the candidate's boots, maps and lookups cost `factor` of the
    baseline's."""
    return [
        measured(role, pair, **{
            BOOT: 40 * scale * wobble, MAP: 0.5 * scale * wobble, LOOKUPS: 1000 * scale,
        })
        for pair in range(count)
        for role, scale, wobble in zip(
            ROLES, (1.0, factor), (NOISE[pair], NOISE[-1 - pair]), strict=True
        )
    ]  # fmt: skip


def run(
    results: Sequence[TrialResult], *expect: str, planned: int | None = None, accel: str = "kvm",
    conditions: Conditions | None = None,
) -> Run:  # fmt: skip
    chosen = scenario(*(f"expect.{item}" for item in expect))
    # a plan with what these outputs read, and no more: the recorded nights have its digest
    read: dict[str, Any] = {"accel": accel, "kernels": plan_of(kernels=IDENTITIES).kernels}
    plan = Plan.model_construct({*read}, **read)
    number = len(results) if planned is None else planned
    return Run(chosen, compare_trials(chosen, KERNELS, results, number, accel, conditions), plan)


def _controls() -> list[TrialResult]:
    """Make controls in which the baseline's kernel differs from itself."""
    return [measured("control", pair, **{BOOT: 400 * NOISE[pair]}) for pair in range(12)]


def _mixed() -> list[TrialResult]:
    first, *others = pairs(0.5)
    return [TrialResult(**vars(first) | {"guest_accel": "tcg"}), *others]


def _upgraded() -> Conditions:
    """Return the conditions of a run in which QEMU was upgraded between the arms."""
    values: dict[str, tuple[str, ...]] = {"baseline": ("10.0.2",), "candidate": ("10.1.0",)}
    return Conditions(
        {}, (Difference("runner.qemu", values, planned=False, allowed=False),), (), None
    )


_RUNS: dict[str, tuple[Callable[[], Run], int]] = {
    "improved": (lambda: run(pairs(0.5)), 0),
    "improved as expected": (lambda: run(pairs(0.5), f"{MAP}=improved", f"{BOOT}=improved"), 0),
    "equivalent": (lambda: run(pairs(1.0), f'{MAP}="<= 1.02"'), 0),
    "regressed": (lambda: run(pairs(1.4)), 1),
    "not as expected": (lambda: run(pairs(1.0), f"{MAP}=improved", f"{BOOT}=equivalent"), 1),
    "regressed as expected": (lambda: run(pairs(1.4), f"{MAP}=regressed"), 0),
    "inconclusive": (lambda: run(pairs(1.1, 2)), 4),
    "expected and inconclusive": (lambda: run(pairs(1.1, 2), f"{BOOT}=improved"), 4),
    "control": (lambda: run([*pairs(1.0), *_controls()], f"{BOOT}=equivalent"), 4),
    "not complete": (lambda: run(pairs(0.5), f"{BOOT}=improved", planned=30), 4),
    "accelerators": (lambda: run(_mixed(), f"{BOOT}=improved"), 4),
    "conditions": (lambda: run(pairs(0.5), f"{BOOT}=improved", conditions=_upgraded()), 4),
    "expected and not measured": (
        lambda: run([measured(role, 0, **{BOOT: 40.0}) for role in ROLES], f"{MAP}=improved"), 4,
    ),
    "candidate fails": (
        lambda: run([*pairs(0.5, 2), ended("candidate", 2)], f"{BOOT}=improved"), 1,
    ),
    "baseline fails": (
        lambda: run([*pairs(0.5, 2), ended("baseline", 2)], f"{BOOT}=improved"), 0,
    ),
    "a trial is invalid": (
        lambda: run(
            [*pairs(0.5, 2), ended("candidate", 2, "invalid", reason=Reason.LOST_EVENTS)]
        ), 0,
    ),
    "bench fails": (
        lambda: run([ended(role, 0, "invalid", by_bench=True, stage="host-boot",
                           reason=Reason.HOST_HANG) for role in ROLES], f"{BOOT}=improved"), 3,
    ),
    "nothing ran": (lambda: run([], planned=2), 4),
    "baseline is 0": (
        lambda: run([measured(role, 0, bar_maps_per_boot=value)
                     for role, value in zip(ROLES, (0.0, 12.0), strict=True)]), 1,
    ),
    "emulated": (lambda: run(pairs(0.4, 1), f"{BOOT}=improved", accel="tcg"), 0),
    "exact": (lambda: run(pairs(0.4, 1), f"{BOOT}=improved", accel="exact"), 0),
}  # fmt: skip
RUNS = {name: (functools.cache(make), code) for name, (make, code) in _RUNS.items()}
"""End of the run -> the run, compared once, and its exit code."""
