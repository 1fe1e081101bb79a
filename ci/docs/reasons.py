"""The table of reasons, from orchestrator/base/reasons.py and evidence/faults.py."""

from __future__ import annotations

from orchestrator.base.ends import Ends
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import FAULTS

EXIT_CODES = {
    Ends.INPUT: 2,
    Ends.BENCH: 3,
    Ends.EVIDENCE: 4,
    Ends.LEFT: 4,
    Ends.BUG: 70,
    Ends.INTERRUPT: 130,
}


def format_reasons() -> str:
    rows = [("reason", "exit code", "trial", "what it means: what to do"), ("---",) * 4]
    rows += [
        (f"`{reason}`", _format_codes(reason), _describe_trial(reason),
         f"{reason.meaning}: {reason.remedy}")
        for reason in sorted(Reason)
    ]  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def _format_codes(reason: Reason) -> str:
    """Return the exit codes of commands that end for this reason."""
    codes = {code: None for end, code in EXIT_CODES.items() if end in reason.ends}
    return ", ".join(map(str, codes))


def _describe_trial(reason: Reason) -> str:
    """Return what becomes of a trial: whom the failure is charged to, or that it is invalid."""
    if reason in FAULTS:
        fault = FAULTS[reason]
        return fault.charge + (f"; emulated: {fault.emulated}" if fault.emulated else "")
    return "invalid" if Ends.EVIDENCE in reason.ends else ""
