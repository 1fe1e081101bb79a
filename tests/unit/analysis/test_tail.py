"""Slow trials: counted beyond a guard, compared by Fisher's test, and excluded up to a share."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.maps.level import Level, LevelReason
from orchestrator.analysis.statistics.tail import LEAST_FOR_TAIL, excluded_share, find_tail
from orchestrator.analysis.trial import Findings, TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.analysis.verdict.comparison_file import comparison_json
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.scenario.fields import Bound
from orchestrator.scenario.vocabulary import ARMS, ArmName
from tests.unit.scenarios import scenario

KERNELS: dict[ArmName, dict[str, str]] = {arm: {"release": arm, "source": ""} for arm in ARMS}
BOOT = "guest_boot_cost"


def quiet(n: int, seed: int, cv: float = 0.005) -> list[float]:
    draw = random.Random(seed)
    return [math.exp(draw.gauss(0, cv)) for _ in range(n)]


def slowed(values: list[float], number: int, factor: float = 5.0) -> list[float]:
    return [v * factor if i < number else v for i, v in enumerate(values)]


def judge(baseline: list[float], candidate: list[float]) -> Comparison:
    level = Level("guest-0", "4KiB", "4KiB", None, (LevelReason("misaligned", "off by 4 KiB"),))
    results = [
        TrialResult(
            f"{2 * pair + number:04d}-{arm}", arm, "measured", pair=pair,
            samples={BOOT: (value,)}, findings=Findings(levels=(level,)),
        )
        for pair, values in enumerate(zip(baseline, candidate, strict=True), 1)
        for number, (arm, value) in enumerate(zip(ARMS, values, strict=True))
    ]  # fmt: skip
    chosen = scenario(f"trials.pairs={len(baseline)}")
    return compare_trials(chosen, KERNELS, results, len(results), "kvm")


@given(st.integers(0, 30), st.integers(0, 30), st.integers(6, 30), st.integers(6, 30))
def test_p_is_that_of_fishers_test(slow: int, other_slow: int, of: int, of_other: int) -> None:
    slow, other_slow = min(slow, of // 3), min(other_slow, of_other // 3)
    tail = find_tail(
        slowed(quiet(of_other, 1), other_slow), slowed(quiet(of, 2), slow), margin=0.03
    )
    assert tail is not None
    assert (tail.baseline_slow, tail.candidate_slow) == (other_slow, slow)
    table = [[slow, of - slow], [other_slow, of_other - other_slow]]
    p = min(stats.fisher_exact(table, alternative=way).pvalue for way in ("greater", "less"))
    assert tail.p == pytest.approx(p)


@given(st.integers(0, 60), st.integers(1, 60))
def test_excluded_share_is_clopper_and_pearsons(slow: int, trials: int) -> None:
    slow = min(slow, trials)
    interval = stats.binomtest(slow, trials, alternative="less").proportion_ci(0.95, "exact")
    assert excluded_share(slow, trials) == pytest.approx(interval.high, abs=1e-6)


def test_thirty_boots_exclude_a_slow_share_above_a_tenth() -> None:
    assert excluded_share(0, 30) == pytest.approx(0.095, abs=5e-4)


def test_few_trials_have_no_tail() -> None:
    n = LEAST_FOR_TAIL - 1
    assert find_tail(quiet(n, 1), quiet(n, 2), 0.03) is None
    assert find_tail([0.0] * 9, quiet(9, 2), 0.03) is None


@pytest.mark.parametrize("factor", [0.2, 0.999, 1.3, 5.0])
def test_arm_that_is_slower_in_every_trial_has_no_slow_ones(factor: float) -> None:
    tail = find_tail(quiet(20, 1), [factor * v for v in quiet(20, 2)], 0.03)
    assert tail is not None
    assert (tail.baseline_slow, tail.candidate_slow) == (0, 0)


def test_slow_trials_of_a_faster_arm_count_if_they_are_slower_than_the_other_arm() -> None:
    faster = [v / 10 for v in quiet(20, 2)]
    for factor, number in ((5.0, 0), (50.0, 3)):
        tail = find_tail(quiet(20, 1), slowed(faster, 3, factor), 0.03)
        assert tail is not None
        assert tail.candidate_slow == number


@pytest.mark.parametrize(
    ("slow", "verdict"),
    [(0, "equivalent"), (1, "equivalent"), (2, "inconclusive"), (6, "inconclusive"),
     (12, "regressed")],
)  # fmt: skip
def test_candidate_that_is_slow_now_and_then_is_not_equivalent(slow: int, verdict: str) -> None:
    found = judge(quiet(30, 1), slowed(quiet(30, 2), slow))
    [metric] = found.metrics
    assert metric.verdict == verdict
    turned = judge(slowed(quiet(30, 2), slow), quiet(30, 1)).metrics[0].verdict
    assert turned == {"regressed": "improved"}.get(verdict, verdict)


def test_faster_candidate_that_is_slow_at_times_is_neither() -> None:
    faster = [v / 10 for v in quiet(30, 2)]
    assert judge(quiet(30, 1), faster).verdict == "improved"
    assert judge(quiet(30, 1), slowed(faster, 9, 30.0)).verdict == "inconclusive"


def test_slow_trials_are_named_with_their_level() -> None:
    found = judge(quiet(30, 1), slowed(quiet(30, 2), 2))
    [metric] = found.metrics
    assert [slow.trial for slow in metric.slow] == ["0003-candidate", "0005-candidate"]
    assert metric.slow[0].level is not None
    document = comparison_json(found)["metrics"]
    assert isinstance(document, dict)
    slow = document[BOOT]["slow"]
    assert slow["trials"][0]["reasons"] == ["misaligned"]
    assert (slow["candidate"], slow["baseline"]) == ({"slow": 2, "of": 30}, {"slow": 0, "of": 30})
    assert slow["excluded_share"] == pytest.approx(0.195, abs=0.001)


def test_candidate_that_is_slow_at_times_is_not_known_not_to_regress() -> None:
    bound = Bound("<=", 1.02)
    for slow, code in ((0, 0), (1, 0), (3, 4), (12, 1)):
        found = judge(quiet(30, 1), slowed(quiet(30, 2), slow))
        expecting = replace(found, expect={BOOT: "not-regressed"}, deciding=(BOOT,))
        assert choose_exit_code(expecting) == code
        # the interval is that of the usual trials
        bounded = replace(found, expect={BOOT: bound}, deciding=(BOOT,))
        assert (choose_exit_code(bounded) == 0) == (slow < 2)
