"""However much is printed, barometer's memory and disk stay small: measured in a process of its
own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.machine.flooded import KINDS

TOP = Path(__file__).parents[3]
MOST_RSS, MOST_DISK = 250_000_000, 80 << 20
REASONS = {
    "endless-line": "timeout", "answer": "output-flood", "errors": "output-flood",
    "wide-answer": "none", "trace": "none", "quoted": "host-start",
}  # fmt: skip
"""The other kinds end with console-flood."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.machine.flooded", tmp_path_factory.mktemp("floods")],
        cwd=TOP, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stderr) < 100_000
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_flood_is_named_and_bounded(measured: dict[str, Any], kind: str) -> None:
    found = measured[kind]
    assert found["reason"] == REASONS.get(kind, "console-flood")
    assert found["rss"] < MOST_RSS
    assert found["disk"] < MOST_DISK
