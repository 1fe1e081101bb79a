from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.agents.loading import AGENTS, agent


def test_processor_is_described() -> None:
    cpu = agent("facts").cpu()
    assert set(cpu) == {"vendor_id", "model name", "microcode", "address sizes", "pdpe1gb"}
    assert cpu["vendor_id"]
    assert cpu["pdpe1gb"] in ("True", "False")


def test_file_that_is_not_there_is_none() -> None:
    facts = agent("facts")
    assert facts.text("/no/such/file") is None
    assert facts.text(facts.SETTINGS["boot_id"])


def test_device_that_is_not_there_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-I", AGENTS / "facts.py", "ffff:ff:1f.7"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == ""


def test_clock_source_is_a_fact() -> None:
    facts = agent("facts")
    assert Path(facts.SETTINGS["clocksource"]).name == "current_clocksource"


def test_every_device_is_described_and_the_first_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = agent("facts")
    monkeypatch.setattr(facts, "device", lambda bdf: {"address": bdf})
    monkeypatch.setattr(sys, "argv", ["facts.py", "0000:01:00.0", "0000:02:00.0"])
    facts.main()
    said = json.loads(capsys.readouterr().out)
    assert said["device"] == {"address": "0000:01:00.0"}
    assert said["devices"] == [{"address": "0000:01:00.0"}, {"address": "0000:02:00.0"}]
