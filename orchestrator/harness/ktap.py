"""The tests of a pytest run as KTAP: a test for each file, in it a subtest for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.base.plainfile import replace_file
from orchestrator.report.exports.cases import clean_line
from orchestrator.report.exports.ktap import result_line

if TYPE_CHECKING:
    import pytest

_INDENT = "  "
_WORST_FIRST = ("error", "failed", "xfailed", "skipped", "passed")


class KtapFile:
    """A plugin that writes the file at the end of a run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: dict[str, list[pytest.TestReport | pytest.CollectReport]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._tests.setdefault(report.nodeid, []).append(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:  # its tests are not known, and none of them has passed
            self._tests.setdefault(report.nodeid, []).append(report)

    def pytest_sessionfinish(self) -> None:
        replace_file(self._path, self.text())

    def text(self) -> str:
        files: dict[str, list[str]] = {}
        for nodeid in self._tests:
            files.setdefault(nodeid.partition("::")[0], []).append(nodeid)
        lines = ["KTAP version 1", f"1..{len(files)}"]
        for number, (name, nodeids) in enumerate(files.items(), 1):
            lines += [_INDENT + line for line in self._subtests(nodeids)]
            worst = min(map(self._outcome, nodeids), key=_WORST_FIRST.index)
            lines.append(result_line(number, name, worst, worst))
        return "\n".join(lines) + "\n"

    def _subtests(self, nodeids: list[str]) -> Iterator[str]:
        yield "KTAP version 1"
        yield f"1..{len(nodeids)}"
        for number, nodeid in enumerate(nodeids, 1):
            last = self._tests[nodeid][-1]
            for name, value in dict(getattr(last, "user_properties", ())).items():
                yield f"# {clean_line(name)}: {clean_line(value)}"
            name = nodeid.partition("::")[2] or nodeid
            outcome = self._outcome(nodeid)
            yield result_line(number, clean_line(name), outcome, self._message(nodeid, outcome))

    def _outcome(self, nodeid: str) -> str:
        """Return the worst outcome of a test's phases. What fails outside the test itself is an
        error."""
        outcomes = []
        for report in self._tests[nodeid]:
            outcome: str = report.outcome
            if report.failed and report.when != "call":
                outcome = "error"
            elif report.skipped and hasattr(report, "wasxfail"):
                outcome = "xfailed"
            outcomes.append(outcome)
        return min(outcomes, key=_WORST_FIRST.index)

    def _message(self, nodeid: str, outcome: str) -> str:
        """Return one line: why the test has this outcome."""
        for report in self._tests[nodeid]:
            if report.passed:
                continue
            if why := getattr(report, "wasxfail", ""):
                return clean_line(why)
            crash = getattr(report.longrepr, "reprcrash", None)
            texts = [crash.message if crash else str(report.longrepr or "")]
            if isinstance(report.longrepr, tuple):  # of a skipped test: file, line, reason
                texts = [str(report.longrepr[-1])]
            lines = [line for line in texts[0].splitlines() if line.strip()]
            return clean_line(lines[0]) if lines else outcome
        return outcome
