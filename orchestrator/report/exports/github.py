"""A run for GitHub Actions: a job summary in GitHub-flavoured Markdown, and annotations, which are
workflow commands.

Both contain text from outside, so everything in them is escaped: Markdown's own characters in the
summary; %, line ends, and : and , of a property in a command (escapeData and escapeProperty of
actions/toolkit, packages/core/src/command.ts).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.report.exports.cases import Case, CaseOutcome, Numbers, Suite

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|&~@:$^=.-])")
_COMMANDS: dict[CaseOutcome, str] = {"passed": "notice", "failed": "error", "unknown": "warning"}
_SIGNS: dict[CaseOutcome, str] = {"passed": "✅", "failed": "❌", "unknown": "⚠️"}
_COLUMNS = (
    "unit", "baseline.median", "candidate.median", "ratio", "p_adjusted", "verdict", "expected",
)  # fmt: skip
_TAIL_LINES = 40
_MOST_TAILS = 50
"""Most trials whose last lines are shown. With _TAIL_LINES lines each, they stay far below 1 MiB:
GitHub drops a summary that is larger."""


def job_summary(suites: Sequence[Suite]) -> str:
    """Return the text to append to the file that GITHUB_STEP_SUMMARY names."""
    return "\n".join("\n".join(_section(suite)) for suite in suites)


def workflow_commands(suites: Sequence[Suite]) -> str:
    """Return a line for each verdict and for whatever did not go well; the worst first, since
    GitHub shows only ten of a kind."""
    commands = [
        (suite, case)
        for suite in suites
        for case in suite.cases
        if case.kind == "run" or case.outcome != "passed"
    ]
    ranks = {"run": 0, "metric": 1, "trial": 2}
    commands.sort(key=lambda command: ranks[command[1].kind])
    return "".join(f"{_command(suite, case)}\n" for suite, case in commands)


def _command(suite: Suite, case: Case) -> str:
    title = f"barometer {suite.name}" + f", {case.name}" * (case.kind != "run")
    return f"::{_COMMANDS[case.outcome]} title={_property(title)}::{_data(case.message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _section(suite: Suite) -> Iterator[str]:
    verdict, *others = suite.cases
    yield f"## {_SIGNS[verdict.outcome]} {_text(suite.name)}: {_text(verdict.reason)}\n"
    yield f"{_text(verdict.message)}\n"
    for arm in ("baseline", "candidate"):
        if f"{arm}.kernel" in suite.facts:
            yield f"- {arm}: {_text(suite.facts[f'{arm}.kernel'])}"
    if "variable" in suite.facts:
        yield f"- {_text(suite.facts['variable'])}"
    signs = {case.name: _SIGNS[case.outcome] for case in others if case.kind == "metric"}
    deciding = {name: suite.metrics.get(name, {}) for name in signs}
    rest = {name: numbers for name, numbers in suite.metrics.items() if name not in signs}
    yield from _table(deciding, signs)
    if rest:
        yield from _details("what else was measured", [*_table(rest, {})])
    ended = [case for case in others if case.kind == "trial" and case.outcome != "passed"]
    for case in ended[:_MOST_TAILS]:
        tail = "\n".join(case.tail.splitlines()[-_TAIL_LINES:])
        title = f"{_SIGNS[case.outcome]} {html.escape(case.name)}: {html.escape(case.message)}"
        yield from _details(title, [f"<pre>{html.escape(tail)}</pre>"] if tail else [])
    if len(ended) > _MOST_TAILS:
        yield f"\n{len(ended) - _MOST_TAILS} more trials do not count.\n"


def _table(metrics: Mapping[str, Numbers], signs: Mapping[str, str]) -> Iterator[str]:
    if not metrics:
        return
    yield "\n| | metric | unit | baseline | candidate | ratio | 95 % | p | verdict | expected |"
    yield "| --- | --- | --- | ---: | ---: | ---: | --- | ---: | --- | --- |"
    for name, numbers in metrics.items():
        low, high = numbers.get("ci95.low"), numbers.get("ci95.high")
        interval = "" if low is None else f"{_value(low)} .. {_value(high)}"
        *left, p, verdict, expected = (_value(numbers.get(column)) for column in _COLUMNS)
        cells = [signs.get(name, ""), name, *left, interval, p, verdict, expected]
        yield f"| {' | '.join(map(_text, cells))} |"
    yield ""


def _details(title: str, inner: Sequence[str]) -> Iterator[str]:
    yield f"\n<details><summary>{title}</summary>\n"
    yield from inner
    yield "\n</details>\n"


def _value(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.0f}" if value == int(value) else f"{value:.6g}"  # counts are exact


def _text(text: str) -> str:
    """Escape text so that Markdown shows it as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
