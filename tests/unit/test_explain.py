"""`barometer explain`: metrics, keys of a scenario, reasons; and the help of each verb."""

from __future__ import annotations

import json
import subprocess
import sys
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
