"""Hosts that were restored from one boot are one sample of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.copies import count_copies_once
from orchestrator.analysis.trial import TrialResult
from orchestrator.evidence.layout import RunDir
from orchestrator.evidence.manifest import RestoredRecord
from orchestrator.report.words.restored_words import describe_restored
from orchestrator.run.judging.judge import judge
from orchestrator.scenario.vocabulary import ARMS, Role
from tests.unit.fabricated import map_trial
from tests.unit.manifests import PLAN, manifest_of
from tests.unit.recorded import sealed
from tests.unit.scenarios import MAPS

SAVED = RestoredRecord.model_validate(
    {"digest": "5eed", "booted": "2026-11-30T10:00:00+00:00", "seconds": 1.5}
)


def trial(number: int, arm: Role, boot: str, *, restored: bool = True, **more: Any) -> TrialResult:
    return TrialResult(
        f"{number:04d}-{arm}", arm, more.pop("kind", "measured"), boot_id=boot,
        restored=SAVED if restored else None, samples={"bar_map_cost": (1.0,)}, **more,
    )  # fmt: skip


TRIALS = st.builds(
    trial, st.integers(1, 9999), st.sampled_from(["baseline", "candidate", "control"]),
    st.sampled_from(["", "a", "b"]), restored=st.booleans(),
    kind=st.sampled_from(["measured", "failed", "invalid"]),
)  # fmt: skip


@given(st.lists(TRIALS, max_size=12))
def test_no_kernel_has_two_samples_of_a_boot_with_a_restored_host(
    results: list[TrialResult],
) -> None:
    judged = count_copies_once(results)
    assert [result.name for result in judged] == [result.name for result in results]
    left = [result for result in judged if result.kind == "measured" and result.boot_id]
    for arm in ("baseline", "candidate"):
        for boot in ("a", "b"):
            same = [r for r in left if r.boot_id == boot and (r.arm == "candidate") ==
                    (arm == "candidate")]  # fmt: skip
            assert len(same) <= 1 or not any(r.restored for r in same)
    for before, after in zip(results, judged, strict=True):
        if before != after:
            assert (after.kind, after.reason, after.samples) == ("invalid", "same-boot", {})
            assert before.kind == "measured"


def test_trials_that_share_a_boot_without_a_restored_host_are_left_alone() -> None:
    results = [trial(n, "baseline", "a", restored=False) for n in (1, 2)]
    assert count_copies_once(results) == results


def test_both_arms_may_be_restored_from_one_boot() -> None:
    results = [trial(1, "baseline", "a"), trial(2, "candidate", "a")]
    assert count_copies_once(results) == results


def test_control_in_the_baselines_boot_would_be_blind() -> None:
    judged = count_copies_once([trial(1, "baseline", "a"), trial(2, "control", "a")])
    assert [result.kind for result in judged] == ["measured", "invalid"]
    assert "0001-baseline" in judged[1].message


def test_report_says_what_a_host_was_restored_from() -> None:
    other = replace(trial(3, "candidate", "b"), restored=SAVED.model_copy(update={"digest": "d"}))
    results = [trial(1, "baseline", "a"), trial(2, "candidate", "a"), other]
    first, second = describe_restored([*results, trial(4, "baseline", "c", restored=False)])
    for word in ("0001-baseline", "0002-candidate", "5eed", SAVED.booted):
        assert word in first
    assert "0003-candidate" in second
    assert describe_restored([trial(1, "baseline", "a", restored=False)]) == []


@pytest.mark.parametrize("key", ["digest", "booted", "seconds"])
def test_record_of_a_restored_host_is_whole_or_refused(key: str) -> None:
    record = {"digest": "5eed", "booted": SAVED.booted, "seconds": 1.5}
    assert manifest_of(host_restored=record).host_restored == SAVED
    del record[key]
    with pytest.raises(ValueError, match=key):
        manifest_of(host_restored=record)


def test_run_whose_trials_are_copies_of_one_boot_has_one_sample_of_each_arm(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    (folder / "trials").mkdir(parents=True)
    order = ("baseline", "candidate", "candidate", "baseline")
    names = [f"{number:04d}-{arm}" for number, arm in enumerate(order, 1)]
    (folder / "scenario.toml").write_text(
        MAPS + '[device]\nbar = "4GiB"\n[map]\nsizes = ["1GiB", "2GiB", "full"]\n'
        'alignment = ["1GiB", "2MiB", "4KiB"]\n[trials]\npairs = 2\nwarm_up = false\n'
    )
    plan = PLAN | {
        "accel": "exact", "guest_kernel": None,
        "trials": [
            {"name": name, "pair": (number + 1) // 2, "arm": arm, "passes": ["plain"]}
            for number, (name, arm) in enumerate(zip(names, order, strict=True), 1)
        ],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    record = {"digest": "5eed", "booted": SAVED.booted, "seconds": 1.5}
    for number, arm in enumerate(order, 1):
        sealed(
            map_trial(
                folder / "trials", arm, series=arm == "candidate", number=number,
                pair=(number + 1) // 2, passes=("plain",), boot_id="a", host_restored=record,
            )
        )  # fmt: skip
    judged = judge(RunDir(folder))
    comparison = judged.comparison
    for arm in ARMS:
        assert (comparison.count(arm, "measured"), comparison.count(arm, "invalid")) == (1, 1)
    assert {r.reason for r in comparison.results if r.kind == "invalid"} == {"same-boot"}
    assert "5eed" in judged.report
