"""Facts about the runner: the machine that emulates the host, or whose KVM runs it."""

from __future__ import annotations

import json
import platform
import sys

from orchestrator.base.process import run
from orchestrator.evidence.facts import RunnerFacts
from orchestrator.machine.runner.images import GUESTS

# facts that tell where and by whom this is run, such as the command line, stay out of the evidence
_MACHINE = ("cpu", "cpus", "governor", "vulnerabilities")
_SETTINGS = (
    "transparent_hugepage", "thp_defrag", "thp_shmem", "clocksource", "smt", "no_turbo", "boost",
)  # fmt: skip


def runner_facts() -> RunnerFacts:
    """Return the runner's kernel, and the facts of guests/agents/facts.py that describe a machine.
    Raises BenchError if they cannot be read."""
    agent = GUESTS / "agents/facts.py"
    facts = json.loads(run([sys.executable, "-I", agent], doing="reading this machine").stdout)
    chosen = {
        "system": platform.platform(),
        **{name: facts[name] for name in _MACHINE},
        "settings": {name: facts["settings"][name] for name in _SETTINGS},
    }
    return RunnerFacts.model_validate_json(json.dumps(chosen))
