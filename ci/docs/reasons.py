"""The table of reasons, from orchestrator/base/reasons.py and evidence/faults.py."""

from __future__ import annotations

from orchestrator.base.reasons import Reason
from orchestrator.cli.explain import describe_charge, list_exit_codes


def format_reasons() -> str:
    rows = [("reason", "exit code", "trial", "what it means: what to do"), ("---",) * 4]
    rows += [
        (f"`{reason}`", ", ".join(map(str, list_exit_codes(reason))), describe_charge(reason),
         f"{reason.meaning}: {reason.remedy}")
        for reason in sorted(Reason)
    ]  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)
