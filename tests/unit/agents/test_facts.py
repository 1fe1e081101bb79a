from __future__ import annotations

import subprocess
import sys

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
