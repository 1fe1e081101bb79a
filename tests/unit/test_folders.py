"""Folders that people name: of a run, a trial, a new run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.base.errors import ScenarioError
from orchestrator.cli.entry import run_verb
from orchestrator.cli.folders import check_new_folder, check_run

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "fixtures/recorded"

RUN = RECORDED / "debian-6.12-vs-7"


def verb(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["barometer", *map(str, words)])
    return run_verb()


@pytest.mark.parametrize("place", [RUN, RUN / "trials", RUN / "no", Path("/")])
def test_only_the_folder_of_a_run_is_one(place: Path) -> None:
    if place == RUN:
        check_run(place)
    else:
        with pytest.raises(ScenarioError) as caught:
            check_run(place)
        assert (caught.value.reason, caught.value.exit_code) == ("not-a-run", 2)


def test_the_run_of_a_trial_is_named() -> None:
    with pytest.raises(ScenarioError) as caught:
        check_run(RUN / "trials/0001-baseline")
    assert f"barometer report {RUN}" in caught.value.hint


def test_timeline_of_a_run_is_of_a_boot_of_each_arm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(monkeypatch, "timeline", RUN) == 0
    text = capsys.readouterr().out
    assert text.index("0001-baseline") < text.index("0002-candidate")


def test_timeline_of_a_run_without_a_traced_boot_names_its_trials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RECORDED / "map-exact"
    assert verb(monkeypatch, "timeline", run) == 2
    err = capsys.readouterr().err
    assert f"{run}/trials/0001-baseline" in err
    assert "reason: not-a-trial" in err


def test_a_folder_of_scenarios_lists_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").touch()
    assert verb(monkeypatch, "plan", tmp_path) == 2
    assert "mine.toml" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/proc/x/y", "/dev/null/run"])
def test_a_folder_that_cannot_be_made_is_found_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    scenario = RECORDED.parent / "scenarios/small.toml"
    assert verb(monkeypatch, "run", scenario, "--out", out) == 2
    assert "reason: out-unwritable" in capsys.readouterr().err


def test_looking_at_a_new_folder_leaves_nothing(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    check_new_folder(tmp_path / "there/run")
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]
