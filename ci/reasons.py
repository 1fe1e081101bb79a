"""Writes the table of reasons into README.md, from orchestrator/base/reasons.py and faults.py.

    .venv/bin/python -m ci.reasons

tests/unit/test_reasons.py fails if README.md has another table.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.base.ends import Ends
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import FAULTS

README = Path(__file__).parents[1] / "README.md"
EXIT_CODES = {
    Ends.INPUT: 2,
    Ends.BENCH: 3,
    Ends.EVIDENCE: 4,
    Ends.LEFT: 4,
    Ends.BUG: 70,
    Ends.INTERRUPT: 130,
}
_BEGIN = "<!-- reasons: written by ci/reasons.py -->\n"
_END = "<!-- end of reasons -->\n"


def write_table(readme: str) -> str:
    """Return a README whose table is that of `Reason`. Raises ValueError if it has no markers."""
    return replace_between(readme, _BEGIN, _END, _format_table())


def replace_between(text: str, begin: str, end: str, table: str) -> str:
    """Return the text with `table` between its lines `begin` and `end`. Raises ValueError if it
    lacks one of them."""
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"README.md lacks a marker of the table: {begin}{end}")
    return before + begin + table + end + after


def _format_table() -> str:
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


if __name__ == "__main__":
    README.write_text(write_table(README.read_text("utf-8")), "utf-8")
