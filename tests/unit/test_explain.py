"""What helps a reader of the command line: `explain`, examples in each help, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.base.reasons import Reason
from orchestrator.cli.entry import run_verb
from orchestrator.cli.explain import list_keys
from orchestrator.scenario.factors import build_file_schema
from orchestrator.scenario.metrics import METRIC_WORDS


def explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["barometer", "explain", *arguments])
    assert run_verb() == 0
    return capsys.readouterr().out


def test_every_reason_has_its_meaning_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason in Reason:
        text = explained(monkeypatch, capsys, reason)
        assert reason.meaning in text
        assert reason.remedy in text


def test_every_key_of_the_schema_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {key.name for key in list_keys()}
    schema: dict[str, Any] = build_file_schema()
    described = [
        text
        for model in (schema, *schema["$defs"].values())
        for value in model["properties"].values()
        if (text := " ".join(str(value.get("description", "")).split()))
    ]
    assert {key.meaning for key in list_keys()} >= {*described}
    assert names >= {"device.bar", "host.lease", "arms.candidate.kernel.ref", "trials.pairs"}
    for name in ("device.bar", "host.accel", "guest.firmware", "arms.candidate.parameters"):
        [*entries] = json.loads(explained(monkeypatch, capsys, name, "--json"))["keys"]
        assert {entry["name"] for entry in entries} == {name}


def test_a_key_of_two_forms_has_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = {key.form for key in list_keys() if key.name == "host.fresh_boots"}
    assert forms == {"nested", "metal"}
    text = explained(monkeypatch, capsys, "host.fresh_boots")
    assert all(form in text for form in forms)


def test_without_a_name_all_metrics_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(explained(monkeypatch, capsys, "--json"))
    assert len(found["metrics"]) == len(METRIC_WORDS)
    assert found["keys"] == found["reasons"] == []


@pytest.mark.parametrize("verb", ["ab", "profile", "nightly", "explain"])
def test_help_has_an_example(verb: str) -> None:
    text = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", verb, "--help"], capture_output=True,
        text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert f"Example: barometer {verb} " in " ".join(text.split())


@pytest.mark.parametrize(
    ("shell", "words", "offered"),
    [
        ("bash", ["rec"], "recover"),
        ("zsh", ["rec"], "recover"),
        ("fish", ["rec"], "recover"),
        ("bash", ["ab", "--set", "device.b"], "device.bar="),
        ("fish", ["bisect", "--metric", "pfn_l"], "pfn_lookups_per_map"),
        ("zsh", ["explain", "no-mar"], "no-mark"),
        ("bash", ["explain", "guest.firmw"], "guest.firmware"),
        ("bash", ["report", "runs/n"], "runs/nightly"),
        ("zsh", ["report", ""], "runs/nightly"),
        ("bash", ["ab", "--seri"], "--series"),
    ],
)
def test_shells_are_offered_what_may_come_next(
    shell: str, words: list[str], offered: str, tmp_path: Path
) -> None:
    (tmp_path / "runs/nightly").mkdir(parents=True)
    (tmp_path / "runs/nightly/plan.json").touch()
    (tmp_path / "runs/notes").mkdir()
    line = " ".join(["barometer", *words])
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli"], capture_output=True, text=True, check=False,
        timeout=60, cwd=tmp_path,
        env={
            **os.environ, "PYTHONPATH": ":".join(sys.path),
            "_BAROMETER_COMPLETE": f"complete_{shell}", "COMP_WORDS": line,
            "COMP_CWORD": str(len(words)), "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1],
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert offered in done.stdout
    assert "runs/notes" not in done.stdout
