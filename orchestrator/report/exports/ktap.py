"""A run as KTAP version 1 (Documentation/dev-tools/ktap.rst in Linux), for the kernel's own tools:
a test for each run, in it a subtest for its verdict, each metric that decides, each that regressed
besides, and each trial.

An unknown outcome is SKIP, as kselftest's exit code 4 is. A reader of KTAP takes `not ok` for a
finding, and concludes nothing from a test that is skipped. Numbers are diagnostic lines.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.exports.cases import Case, Suite

_INDENT = "  "
_DIRECTIVES = {"unknown": "SKIP ", "skipped": "SKIP ", "error": "ERROR ", "xfailed": "XFAIL "}
"""Outcome of a case, or of a test -> directive before its message."""


def format_ktap(suites: Sequence[Suite]) -> str:
    """Return the whole text."""
    lines = ["KTAP version 1", f"1..{len(suites)}"]
    for number, suite in enumerate(suites, 1):
        lines += [_INDENT + line for line in _subtests(suite)]
        lines.append(result_line(number, suite.name, *_whole(suite)))
    return "\n".join(lines) + "\n"


def _subtests(suite: Suite) -> list[str]:
    lines = ["KTAP version 1", f"1..{len(suite.cases)}"]
    lines += [f"# {name}: {value}" for name, value in suite.facts.items()]
    for number, case in enumerate(suite.cases, 1):
        lines += [f"# {name}: {value}" for name, value in case.numbers.items()]
        # the bar keeps a console's own "Subtest: ..." from being read as one
        lines += [f"# | {line}".rstrip() for line in case.tail.splitlines()]
        lines.append(result_line(number, case.name, case.outcome, case.message))
    return lines


def _whole(suite: Suite) -> tuple[str, str]:
    """Return the outcome and the message of a run. It fails if any of its cases does, and is
    skipped if its verdict is unknown."""
    verdict: Case = suite.cases[0]
    if any(case.outcome == "failed" for case in suite.cases):
        return "failed", verdict.message
    return verdict.outcome, verdict.message


def result_line(number: int, name: str, outcome: str, message: str) -> str:
    """Return the line of a test's result, or of a subtest's."""
    word = "not ok" if outcome in ("failed", "error") else "ok"
    directive = _DIRECTIVES.get(outcome, "")
    # the first # ends the name; a directive must follow it directly
    return f"{word} {number} {name.replace('#', '')} # {directive}{message.replace('#', '')}"
