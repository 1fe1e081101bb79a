"""What guards a verdict fails closed. Each guard is broken on purpose: it raises, or what it needs
is taken away. The run is then never improved or equivalent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.evidence.layout import MANIFEST, RunDir
from orchestrator.run.judging.judge import judge
from tests.unit.fabricated import map_trial
from tests.unit.manifests import NO_SETTINGS, PLAN
from tests.unit.recorded import MEASURED, TRACE, copied_run, sealed
from tests.unit.scenarios import MAPS

Change = Callable[[Path], object]


@pytest.fixture
def boots(tmp_path: Path) -> RunDir:
    """A run of guest boots whose candidate is better."""
    return RunDir(copied_run(tmp_path / "boots"))


@pytest.fixture
def maps(tmp_path: Path) -> RunDir:
    """A run of maps with settings in the candidate, which is better."""
    folder = tmp_path / "maps"
    (folder / "trials").mkdir(parents=True)
    names = {"baseline": "0001-baseline", "candidate": "0002-candidate"}
    sizes = '[map]\nsizes = ["1GiB", "2GiB", "full"]\nalignment = ["1GiB", "2MiB", "4KiB"]\n'
    passes = '[trace]\npasses = ["plain", "timing", "counts", "profile"]\n'
    text = MAPS + 'cmdline = "nosmt"\n[device]\nbar = "4GiB"\n' + sizes + passes
    (folder / "scenario.toml").write_text(text)
    kernels = {
        arm: {"release": release, "source": f"dir:{release}", "digest": release}
        for arm, release in (("baseline", "6.12.107"), ("candidate", "7.3.4"))
    }
    plan = PLAN | {
        "accel": "exact", "guest_kernel": None, "kernels": kernels,
        "arm_settings": {"baseline": {}, "candidate": {"cmdline": "nosmt"}},
        "trials": [
            {"name": name, "pair": 1, "arm": arm, "passes": ["plain"]}
            for arm, name in names.items()
        ],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    for number, arm in enumerate(names, 1):
        is_new = arm == "candidate"
        words = "nosmt" * is_new
        proven = NO_SETTINGS | {"cmdline": {"asked": words, "found": words}}
        sealed(map_trial(folder / "trials", arm, series=is_new, number=number,
                         arm_settings=proven))  # fmt: skip
    return RunDir(folder)


@pytest.mark.parametrize("name", ["boots", "maps"])
def test_run_whose_guards_hold_is_improved(name: str, request: pytest.FixtureRequest) -> None:
    judged = judge(request.getfixturevalue(name))
    comparison = judged.comparison
    assert [r.message for r in comparison.results if r.kind != "measured"] == []
    assert (comparison.verdict, choose_exit_code(comparison)) == ("improved", 0)


@pytest.mark.parametrize(
    ("run", "guard"),
    [
        ("boots", "orchestrator.evidence.layout.sha256_file"),
        ("boots", "orchestrator.analysis.trial.collect_conditions"),
        ("boots", "orchestrator.analysis.trial._check_recorded"),
        ("boots", "orchestrator.analysis.trial._check_bars_placed"),
        ("boots", "orchestrator.analysis.trial.check_tracer_complete"),
        ("boots", "orchestrator.analysis.boot.boot.check_tracer_complete"),
        ("boots", "orchestrator.analysis.boot.boot.build_account"),
        ("boots", "orchestrator.analysis.boot.boot.check_clock"),
        ("boots", "orchestrator.analysis.trial.check_counts"),
        ("boots", "orchestrator.analysis.trial.check_alike"),
        ("boots", "orchestrator.analysis.trial._histogram_whole"),
        ("boots", "orchestrator.analysis.trial.find_level"),
        ("boots", "orchestrator.analysis.trial.find_guest_level"),
        ("boots", "orchestrator.analysis.verdict.comparison.guest_accels"),
        ("boots", "orchestrator.analysis.verdict.comparison.failing_arm"),
        ("boots", "orchestrator.analysis.verdict.comparison.arm_the_bench_fails"),
        ("boots", "orchestrator.run.judging.judge.compare_conditions"),
        ("boots", "orchestrator.run.judging.judge.find_variable"),
        ("maps", "orchestrator.analysis.trial.check_sums"),
    ],
)
def test_guard_that_breaks_is_a_bug_and_no_verdict(
    run: str, guard: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line ends with 70 and the traceback. Nothing is saved as a verdict."""

    def broken(*_arguments: object, **_more: object) -> object:
        raise KeyError("a bug of ours")

    folder: RunDir = request.getfixturevalue(run)
    monkeypatch.setattr(guard, broken)
    with pytest.raises(KeyError, match="a bug of ours"):
        judge(folder)
    assert not (folder.path / "comparison.json").exists()
    assert not (folder.path / "report.txt").exists()


def _without(key: str) -> Change:
    """Remove a key of the manifest."""

    def change(trial: Path) -> None:
        manifest = json.loads((trial / MANIFEST).read_text())
        del manifest[key]
        (trial / MANIFEST).write_text(json.dumps(manifest))

    return change


def _unlisted(name: str) -> Change:
    """Remove the hash of a file."""

    def change(trial: Path) -> None:
        manifest: dict[str, Any] = json.loads((trial / MANIFEST).read_text())
        del manifest["files"][name]
        (trial / MANIFEST).write_text(json.dumps(manifest))

    return change


def _gone(name: str) -> Change:
    """Remove a file as if it had never been collected."""

    def change(trial: Path) -> None:
        (trial / name).unlink()
        sealed(trial)

    return change


TAKEN: list[tuple[str, Change, str]] = [
    ("boots", _gone("host/facts.json"), "conditions-not-recorded"),
    ("boots", _gone("guest-0/facts.json"), "conditions-not-recorded"),
    ("boots", _without("guest_accel"), "conditions-not-recorded"),
    ("boots", _without("release"), "wrong-kernel"),
    ("boots", _without("files"), "evidence-changed"),
    ("boots", _unlisted(TRACE), "evidence-changed"),
    ("boots", _unlisted("map.json"), "evidence-changed"),
    ("boots", _unlisted("host/facts.json"), "evidence-changed"),
    ("boots", _gone("host/stats-guest-1.txt"), "missing-evidence"),
    ("boots", _gone("host/clock-counts.txt"), "missing-evidence"),
    ("boots", _gone("guest-1/qemu.log"), "missing-evidence"),
    ("boots", _gone("guest-1/pci.txt"), "missing-evidence"),
    ("boots", _gone("map.json"), "missing-evidence"),
    ("maps", _gone("host/profile.json"), "missing-evidence"),
    ("maps", _without("arm_settings"), "settings-not-proven"),
]


@pytest.mark.parametrize(("run", "change", "reason"), TAKEN)
def test_guard_that_lacks_what_it_needs_makes_the_run_invalid(
    run: str, change: Change, reason: str, request: pytest.FixtureRequest
) -> None:
    folder: RunDir = request.getfixturevalue(run)
    change(folder.trials_path / MEASURED)
    judged = judge(folder)
    comparison, report = judged.comparison, judged.report
    assert (comparison.verdict, choose_exit_code(comparison)) == ("invalid", 4)
    [bad] = [result for result in comparison.results if result.kind != "measured"]
    assert (bad.name, bad.kind, bad.reason) == (MEASURED, "invalid", reason)
    assert bad.message
    assert reason in report
