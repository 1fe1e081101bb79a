from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.analysis.trial import TrialResult
from orchestrator.report.sentence import verdict_sentence
from orchestrator.scenario import ArmName, Role, metric_at
from tests.unit.report.pages import KERNELS, RUNS, bad, compared, recorded, trials
from tests.unit.scenarios import scenario

Arms = dict[Role, list[float]]
NOISE = [1.0, 1.01, 0.99, 1.02, 0.98, 1.005, 0.995, 1.003, 0.997, 1.001, 1.004, 0.996]
LEVEL = [1.0, 1.001, 0.999, 1.002, 0.998, 1.0005, 0.9995, 1.0003, 0.9997, 1.0001, 1.0004, 0.9996]


def sentence(*results: TrialResult, planned: int = 0, accel: str = "kvm") -> str:
    comparison = compared(results, planned=planned, accel=accel)
    return verdict_sentence(scenario(), comparison, accel)


def of(arms: Arms, metric: str = "bar_map_seconds", accel: str = "kvm") -> str:
    return sentence(*trials(arms, metric), accel=accel)


def test_sentences_of_the_recorded_runs() -> None:
    said = {}
    for run in RUNS:
        chosen, comparison, plan = recorded(run)
        said[run.name] = verdict_sentence(chosen, comparison, plan["accel"])
    assert said == {
        "boot-exact": "7.3.4 is improved over 6.12.107: one DMA map of a 32GiB BAR takes 119.6"
        " kinsn instead of 10.48 Ginsn (ratio 1.14e-05, instructions of an emulated host, not"
        " time).",
        "debian-6.12-vs-7": "7.3.4 is improved over 6.12.107: one DMA map of a 32GiB BAR takes"
        " 428.5 us instead of 8.635 s (ratio 4.96e-05, emulated seconds, 1 pair, too few for a p"
        " value).",
        "levels": "7.3.4 is improved over 6.12.107: one DMA map of a 4GiB BAR takes 13.63 kinsn"
        " instead of 1.153 Ginsn (ratio 1.18e-05, instructions of an emulated host, not time).",
        "map-exact": "7.3.4 is improved over 6.12.107: one DMA map of a 32GiB BAR takes 48.06"
        " kinsn instead of 9.225 Ginsn (ratio 5.21e-06, instructions of an emulated host, not"
        " time).",
    }  # fmt: skip


def test_regression_is_said_with_its_interval_and_p() -> None:
    assert of({"baseline": NOISE, "candidate": [v * 3 for v in NOISE]}) == (
        "7.3.4+deb13 is regressed from 6.12.107+deb13: "
    ).replace("+deb13", "") + (
        "one DMA map of a 32GiB BAR takes 3.002 s instead of 1 s (ratio of the pairs 3, 95 %"
        " interval 3 to 3, p = 0.00049, 12 pairs)."
    )


def test_equivalence_is_said_with_its_interval() -> None:
    said = of({"baseline": LEVEL, "candidate": LEVEL[::-1]})
    assert said.startswith("7.3.4 is equivalent to 6.12.107: one DMA map of a 32GiB BAR takes ")
    assert "95 % interval" in said


def test_count_is_said_with_all_of_its_digits() -> None:
    arms: Arms = {"baseline": [8388608.0], "candidate": [32.0]}
    assert of(arms, "pfn_lookups_per_map") == (
        "7.3.4 is improved over 6.12.107: one DMA map of a 32GiB BAR takes 32 page lookups instead"
        " of 8388608 (ratio 3.81e-06, the same in every trial)."
    )


def test_number_that_is_the_same_is_said_once() -> None:
    arms: Arms = {"baseline": [12.0], "candidate": [12.0]}
    assert "takes 12 DMA maps of a 32GiB BAR in both (ratio 1," in of(arms, "bar_maps_per_boot")


def test_baseline_of_zero_has_no_ratio() -> None:
    arms: Arms = {"baseline": [0.0], "candidate": [3.0]}
    assert "3 page faults instead of 0 (no ratio to 0," in of(arms, "pfn_faults_per_map")


def test_few_noisy_trials_are_not_said_to_be_more() -> None:
    assert of({"baseline": [1.0, 1.1], "candidate": [1.2, 1.3]}) == (
        "7.3.4 against 6.12.107 is inconclusive: one DMA map of a 32GiB BAR takes 1.25 s against"
        " 1.05 s (ratio of the pairs 1.19, 2 pairs, too few for a p value)."
    )


def test_emulated_seconds_are_said_to_be() -> None:
    arms: Arms = {"baseline": [8.0], "candidate": [1.0]}
    assert "emulated seconds" in of(arms, accel="tcg")
    assert "emulated" not in of(arms, accel="kvm")


def test_run_that_is_not_complete_says_so_first() -> None:
    few = trials({"baseline": [8.0], "candidate": [1.0]})
    assert sentence(*few, planned=24).startswith(
        "7.3.4 against 6.12.107 is inconclusive so far, with 2 of 24 trials: one DMA map"
    )


def test_more_failures_than_the_baselines_are_the_verdict() -> None:
    arms = trials({"baseline": [8.0, 8.1], "candidate": [1.0]})
    assert sentence(*arms, bad()) == (
        "7.3.4 is regressed from 6.12.107: 1 of its 2 trials failed (guest-panic), of the"
        " baseline's 0 of 2."
    )


def test_control_that_differs_makes_the_run_invalid() -> None:
    arms: Arms = {"baseline": NOISE, "candidate": NOISE, "control": [v * 2 for v in NOISE]}
    assert of(arms) == (
        "7.3.4 and 6.12.107 are not comparable by this run: the bench finds a difference between"
        " the baseline's kernel and itself (bar_map_seconds: ratio 2 of control to baseline)."
    )


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([], "the baseline has no trial"),
        (trials({"baseline": [1.0]}), "the candidate has no trial"),
        ([*trials({"baseline": [1.0]}), bad(kind="invalid", reason="host-crash")],
         "of the candidate's 1 trial none was measured (host-crash)"),
        ([TrialResult("a", "baseline", "measured"), TrialResult("b", "candidate", "measured")],
         "no metric was measured in both arms"),
        ([replace(one, guest_accel=accel) for one, accel in
          zip(trials({"baseline": [8.0], "candidate": [1.0]}), ("kvm", "tcg"), strict=True)],
         "guests ran under KVM in some trials and were emulated in others"),
    ],
)  # fmt: skip
def test_invalid_run_says_why(results: list[TrialResult], said: str) -> None:
    assert sentence(*results, planned=2) == (
        f"7.3.4 and 6.12.107 are not comparable by this run: {said}."
    )


def test_deciding_metric_that_is_missing_is_named() -> None:
    results = trials({"baseline": [8.0], "candidate": [1.0]})
    comparison = compared(results, 'expect.pfn_lookups_per_map="improved"')
    assert "pfn_lookups_per_map, which decides, was not measured in both arms" in verdict_sentence(
        scenario(), comparison, "kvm"
    )


def test_kernels_are_named_as_shortly_as_tells_them_apart() -> None:
    results = trials({"baseline": [8.0], "candidate": [1.0]})

    def names(old: str, new: str) -> str:
        kernels: dict[ArmName, dict[str, str]] = {
            "baseline": KERNELS["baseline"] | {"release": old},
            "candidate": KERNELS["candidate"] | {"release": new},
        }
        said = verdict_sentence(scenario(), compared(results, kernels=kernels), "kvm")
        return said.partition(":")[0]

    assert names("6.18.0-rc3-a", "7.0.0-b") == "7.0.0 is improved over 6.18.0-rc3"
    assert names("6.18.0-a", "6.18.0-b") == "6.18.0-b is improved over 6.18.0-a"
    assert names("6.18.0-a", "6.18.0-a") == "The candidate is improved over the baseline"
    assert names("mine", "yours") == "yours is improved over mine"


def test_point_of_a_map_is_named() -> None:
    name = metric_at("bar_map_seconds", "4GiB/2MiB/cold", whole=False)
    assert "one DMA map of a 32GiB BAR (4GiB/2MiB/cold) takes" in of(
        {"baseline": [8.0], "candidate": [1.0]}, name
    )
