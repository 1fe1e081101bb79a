from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from orchestrator.analysis.conditions.conditions import compare_conditions
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.report.words.sentence import verdict_sentence
from orchestrator.scenario.vocabulary import ARMS, CONTROL, METRICS, ArmName, Metric
from tests.unit.manifests import plan_of
from tests.unit.scenarios import map_scenario, scenario
from tests.unit.stable import has_in_order

KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12.107", "source": "deb:old"},
    "candidate": {"release": "7.3.4", "source": "deb:new"},
}
SCENARIO = scenario("device.bar=32GiB")


def measured(values: Mapping[Metric, tuple[float, ...]], pair: int = 1, **more: Any
             ) -> list[TrialResult]:  # fmt: skip
    """Make a pair. `values` maps a metric to its values in the baseline's, the candidate's and a
    control's trial."""
    count = max(map(len, values.values()))
    return [
        TrialResult(f"{pair}-{role}", role, "measured", pair=pair,
                    samples={m: (v[i],) for m, v in values.items()}, **more)
        for i, role in enumerate((*ARMS, CONTROL)[:count])
    ]  # fmt: skip


def sentence_of(
    *results: TrialResult, accel: str = "tcg", planned: int | None = None,
    kernels: dict[ArmName, dict[str, str]] = KERNELS, expect: Sequence[str] = (),
) -> str:  # fmt: skip
    chosen = scenario("device.bar=32GiB", *(f"expect.{expectation}" for expectation in expect))
    planned = len(results) if planned is None else planned
    comparison = compare_trials(chosen, kernels, results, planned, accel)
    return verdict_sentence(chosen.device.bar, comparison, plan_of(accel=accel))


def reason(text: str) -> str:
    """Return what follows the verdict."""
    return text.partition(": ")[2]


@pytest.mark.parametrize(
    ("metric", "values", "accel", "sentence"),
    [
        ("bar_map_cost", (8.635, 0.0004285), "tcg",
         "7.3.4 is improved: one DMA map of a 32GiB BAR takes 428.5 us instead of 8.635 s"
         " (emulated), 1/20152."),
        ("bar_map_cost", (8.635, 0.0004285), "kvm",
         "7.3.4 is improved: one DMA map of a 32GiB BAR takes 428.5 us instead of 8.635 s,"
         " 1/20152."),
        ("bar_unmap_cost", (1.411, 1.995), "exact",
         "7.3.4 is regressed: one DMA unmap of a 32GiB BAR takes 1.995 Ginsn instead of"
         " 1.411 Ginsn (instructions), +41.4%."),
        ("pfn_lookups_per_map", (8388608, 32), "tcg",
         "7.3.4 is improved: one DMA map of a 32GiB BAR takes 32 page lookups instead of"
         " 8388608, 1/262144."),
        ("bar_maps_per_boot", (12, 12), "tcg",
         "7.3.4 is equivalent to 6.12.107: one guest boot takes 12 DMA maps of a 32GiB BAR in"
         " both."),
        ("guest_boot_cost", (28.46, 28.67), "tcg",
         "7.3.4 against 6.12.107 is inconclusive: the boot of a guest with a 32GiB BAR to"
         " userspace takes 28.67 s against 28.46 s (emulated), +0.7%."),
    ],
)  # fmt: skip
def test_verdict_is_said_with_the_number_that_decides(
    metric: Metric, values: tuple[float, ...], accel: str, sentence: str
) -> None:
    assert sentence_of(*measured({metric: values}), accel=accel) == sentence


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_quoted(metric: Metric) -> None:
    assert " takes " in sentence_of(*measured({metric: (9, 3)}))


def test_point_of_a_map_is_named() -> None:
    chosen = map_scenario('expect."pfn_lookups_per_map@full/1GiB/cold"=improved')
    both = measured({"pfn_lookups_per_map@full/1GiB/cold": (8388608, 32)})
    comparison = compare_trials(chosen, KERNELS, both, 2, "exact")
    assert has_in_order(
        verdict_sentence(chosen.device.bar, comparison, plan_of(accel="exact")),
        "one DMA map", "32GiB", "(full/1GiB/cold", "32",
    )  # fmt: skip


def test_guest_that_is_emulated_on_a_real_host_makes_its_boot_an_emulated_one() -> None:
    both = measured({"guest_boot_cost": (9, 3)}, guest_accel="tcg")
    assert has_in_order(sentence_of(*both, accel="kvm"), "3 s", "9 s", "emulated")
    both = measured({"bar_map_cost": (9, 3)}, guest_accel="tcg")
    assert has_in_order(sentence_of(*both, accel="kvm"), "3 s", "9 s")
    assert "emulated" not in sentence_of(*both, accel="kvm")


def test_first_of_the_metrics_that_have_the_verdict_is_quoted() -> None:
    both = measured({"bar_map_cost": (8, 1), "guest_boot_cost": (1, 8)})
    assert has_in_order(sentence_of(*both), "improved", "one DMA map")
    text = sentence_of(*both, expect=("bar_map_cost=improved", "guest_boot_cost=improved"))
    assert has_in_order(text, "regressed", "boot of a guest")


def test_interval_is_quoted_as_that_of_the_pairs() -> None:
    values = [(20 + n % 3, (20 + n % 3) * (0.95 + 0.0001 * (n % 5))) for n in range(12)]
    trials = [t for n, v in enumerate(values, 1) for t in measured({"guest_boot_cost": v}, n)]
    assert has_in_order(sentence_of(*trials), "emulated", "by pairs", "-4.98% [-5.00, -4.98")


def test_run_that_is_not_complete_is_said_to_be() -> None:
    text = sentence_of(*measured({"bar_map_cost": (8, 1)}), planned=24)
    assert has_in_order(text, "7.3.4", "6.12.107", "inconclusive", "2", "24", "one DMA map")


def test_kernel_against_itself_is_told_apart_by_its_arm() -> None:
    same = dict.fromkeys(ARMS, KERNELS["baseline"])
    text = sentence_of(*measured({"bar_maps_per_boot": (12, 12)}), kernels=same)
    assert has_in_order(text, "6.12.107", "candidate", "equivalent", "6.12.107", "baseline")


def test_candidate_that_fails_is_regressed_whatever_its_times() -> None:
    failed = TrialResult("x", "candidate", "failed", "guest-panic")
    text = sentence_of(*measured({"bar_map_cost": (8, 1)}), failed)
    assert has_in_order(text, "7.3.4", "regressed")
    assert "guest-panic" in reason(text)
    assert re.findall(r"\d+", reason(text)) == ["1", "2", "0", "1"]


def test_invalid_run_is_said_why() -> None:
    bad = TrialResult("x", "baseline", "invalid", "host-hang")
    by_kvm, other = measured({"bar_map_cost": (8, 1)}, guest_accel="kvm")
    mixed = [by_kvm, TrialResult("t", "candidate", "measured", samples=other.samples,
                              guest_accel="tcg")]  # fmt: skip
    bare = [TrialResult(arm, arm, "measured") for arm in ARMS]
    for text, key in (
        (sentence_of(), "baseline"), (sentence_of(bad, other), "host-hang"),
        (sentence_of(*mixed), "KVM"), (sentence_of(*bare), "metric"),
    ):  # fmt: skip
        assert key in reason(text)
        assert not re.search("improved|equivalent|regressed", text)


def test_run_whose_bench_differs_from_itself_is_said_to() -> None:
    values = [((20.0 + n % 3), (20.0 + n % 3), (20.0 + n % 3) * 1.4) for n in range(12)]
    trials = [t for n, v in enumerate(values, 1) for t in measured({"guest_boot_cost": v}, n)]
    assert "(guest_boot_cost: +4" in reason(sentence_of(*trials))


def test_condition_that_was_not_meant_to_differ_is_named() -> None:
    sides = {"baseline": [{"runner.qemu": "10.0.2", "runner.cpus": "2"}],
             "candidate": [{"runner.qemu": "10.1.0", "runner.cpus": "4"}]}  # fmt: skip
    both = measured({"bar_map_cost": (8, 1)})
    for allow, verdict in (
        (["runner.cpus"], "runner.qemu (10.0.2 | 10.1.0) differs"),
        ([], "runner.cpus (2 | 4) and 1 other differ"),
    ):
        comparison = compare_trials(
            SCENARIO, KERNELS, both, 2, "kvm", compare_conditions(sides, allow=allow)
        )
        text = verdict_sentence(SCENARIO.device.bar, comparison, plan_of(accel="kvm"))
        assert reason(text).startswith(verdict)


def test_runs_that_are_no_pairs_are_not_quoted_by_pairs() -> None:
    trials = [t for n in range(12) for t in measured({"guest_boot_cost": (20 + n, 9 + n)}, n)]
    for paired in (True, False):
        comparison = compare_trials(SCENARIO, KERNELS, trials, 24, "kvm", paired=paired)
        sentence = verdict_sentence(SCENARIO.device.bar, comparison, plan_of(accel="kvm"))
        assert ("by pairs" in sentence) == paired


def test_metric_that_decides_and_was_not_measured_is_named() -> None:
    both = measured({"bar_map_cost": (8, 1)})
    text = sentence_of(*both, expect=["guest_boot_cost=improved"])
    assert reason(text).startswith("guest_boot_cost ")
    assert "bar_map_cost" not in text


def test_comparison_is_enough() -> None:
    comparison: Comparison = compare_trials(SCENARIO, KERNELS, [], 0, "kvm")
    assert verdict_sentence(SCENARIO.device.bar, comparison, plan_of(accel="kvm")).endswith(".")
