from __future__ import annotations

import json

from orchestrator.analysis.conditions.conditions import collect_conditions
from orchestrator.machine.runner.runner import runner_facts
from tests.unit.manifests import manifest_of


def test_runner_is_described_without_what_tells_who_runs_it() -> None:
    facts = runner_facts().to_json()
    assert facts["cpus"]
    assert str(facts["system"]).startswith("Linux-")
    assert runner_facts().cpu.model
    text = json.dumps(facts)
    assert "cmdline" not in text
    assert "boot_id" not in text


def test_conditions_have_what_is_recorded() -> None:
    facts = runner_facts()
    found = collect_conditions(manifest_of(runner=facts.to_json()), None, None)
    assert {n.removeprefix("runner.") for n in found if n.startswith("runner.")} == {
        "address_sizes", "clocksource", "cpu", "cpu_vendor", "cpus", "governor", "microcode",
        "mitigations", "pdpe1gb", "smt", "system", "thp", "thp_defrag", "thp_shmem", "turbo",
    }  # fmt: skip
