"""Facts about the runner: the machine that emulates the host, or whose KVM runs it."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

from orchestrator.base.process import run
from orchestrator.machine.runner.images import GUESTS

# facts that tell where and by whom this is run, such as the command line, stay out of the evidence
_MACHINE = ("cpu", "cpus", "governor", "vulnerabilities")
_SETTINGS = (
    "transparent_hugepage", "thp_defrag", "thp_shmem", "clocksource", "smt", "no_turbo", "boost",
)  # fmt: skip


def runner_facts() -> dict[str, Any]:
    """Return `runner` of a trial's manifest: its kernel, and the facts of guests/agents/facts.py
    that describe a machine. Raises BenchError if they cannot be read."""
    agent = GUESTS / "agents/facts.py"
    facts = json.loads(run([sys.executable, "-I", agent], doing="reading this machine").stdout)
    return {
        "system": platform.platform(),
        **{name: facts[name] for name in _MACHINE},
        "settings": {name: facts["settings"][name] for name in _SETTINGS},
    }
