"""The end of a run on a terminal: at most twelve lines, whatever was compared. The report has the
rest."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.analysis.verdict.bisection import Bisection
from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison, worst_verdict
from orchestrator.analysis.verdict.effect import Verdict
from orchestrator.analysis.verdict.expectations import judge_expectations
from orchestrator.evidence.plan import Plan
from orchestrator.report.text.bisect_text import describe_answer, describe_numbers
from orchestrator.report.text.matrix_text import cell_verdict
from orchestrator.report.text.run_text import describe_expected
from orchestrator.report.words.columns import shorten, wrap_text
from orchestrator.report.words.quantities import change_text, plural
from orchestrator.report.words.sentence import verdict_sentence
from orchestrator.report.words.trailer import find_worse
from orchestrator.report.words.wording import metric_title
from orchestrator.scenario.vocabulary import ARMS, ArmName

LINES = 12
_SENTENCE = 3
_DECIDING = 3
_CELLS = 8
_URGENT = ("not met", "not known", "met")


def run_brief(bar: int, comparison: Comparison, plan: Plan, folder: Path) -> str:
    """Return the verdict, the metrics that decide it, other metrics that regressed, the trials,
    and the paths of all else. `bar`: size of the device's BAR."""
    met = judge_expectations(comparison)
    deciding = [
        f"  * {name}: {metric.verdict}{_change(metric)}{describe_expected(comparison, metric)}"
        for name in sorted(met, key=lambda name: _URGENT.index(met[name]))
        if (metric := comparison.metric(name)) is not None
    ]
    beside = [f"{metric_title(metric.name)}{_change(metric)}" for metric in find_worse(comparison)]
    lines = [
        *_first(wrap_text(verdict_sentence(bar, comparison, plan)), _SENTENCE),
        *_first([*map(shorten, deciding)], _DECIDING, "that decide"),
        *[shorten(f"  also regressed: {', '.join(beside)}")] * bool(beside),
        *_first(wrap_text(_trials(comparison), then="           "), 2),
    ]
    where = _where(folder, folder / "report.html")
    room = LINES - len(lines) - len(where)
    return "\n".join([*lines, *_first(_lost(comparison), room), *where])


def _lost(comparison: Comparison) -> list[str]:
    """Explain what ended the trials that do not count."""
    lines: list[str] = []
    for result in comparison.results:
        if result.kind != "measured":
            where = f" at {result.stage}" if result.stage else ""
            text = f"{result.name}: {result.kind}{where}: {result.reason}: {result.message}"
            lines += wrap_text(text, "  ", "    ")
    return lines


def matrix_brief(
    scenario: str, verdict: Verdict, cells: Mapping[str, Comparison | None], folder: Path
) -> str:
    """Return the verdict, and the cells beginning with the worst."""
    verdicts: dict[str, Verdict] = {
        name: "invalid" if cell is None else cell.verdict for name, cell in cells.items()
    }
    names: list[str] = []
    while left := [name for name in verdicts if name not in names]:
        first = worst_verdict(verdicts[name] for name in left)
        names += [name for name in left if verdicts[name] == first]
    listed = [shorten(f"  {name}: {_cell(cells[name])}") for name in names]
    lines = [
        shorten(f"{scenario}: {verdict}, {plural(len(cells), 'cell')}"),
        *_first(listed, _CELLS, "cells"),
        *_where(folder, folder / "report.txt"),
    ]
    return "\n".join(lines)


def bisect_brief(bisection: Bisection, folder: Path) -> str:
    """Return the commit, and the numbers of both ends."""
    steps = sum(step.role == "step" for step in bisection.steps)
    lines = [
        *_first(
            [shorten(line) for line in describe_answer(bisection).splitlines() if line],
            6,
            "of them",
        ),
        *_first(wrap_text(describe_numbers(bisection)) if bisection.ends else [], 3),
        f"{plural(steps, 'step')}: {folder / 'bisect.txt'}",
        f"bisection: {folder}",
    ]
    return "\n".join(lines)


def _first(lines: Sequence[str], most: int, noun: str = "") -> list[str]:
    """Return at most `most` lines. If there are more, the last line says how many `noun` are left
    out, or that the text goes on."""
    if len(lines) <= most or most < 1:
        return [*lines[: max(0, most)]]
    if not noun:
        return [*lines[: most - 1], shorten(f"{lines[most - 1]} ...")]
    return [*lines[: most - 1], f"    and {len(lines) - most + 1} more {noun}"]


def _change(metric: MetricComparison) -> str:
    return f" {change_text(metric.effect)}"


def _trials(comparison: Comparison) -> str:
    made, planned = len(comparison.results), comparison.planned
    whole = f"{made} of {planned}, NOT COMPLETE" if made < planned else str(made)
    return f"trials     {whole}: " + "; ".join(_arm(comparison, arm) for arm in ARMS)


def _arm(comparison: Comparison, arm: ArmName) -> str:
    counts = []
    for kind in ("measured", "failed", "invalid"):
        if number := comparison.count(arm, kind):
            trials = comparison.of_arm(arm)
            reasons = sorted({r.reason for r in trials if r.kind == kind and r.reason})
            counts.append(f"{number} {kind}" + f" ({', '.join(reasons)})" * bool(reasons))
    begun = (attempt.arm for result in comparison.of_arm(arm) for attempt in result.repeated)
    if again := sum(of == arm for of in begun):
        counts.append(f"repeated {plural(again, 'time')}")
    return f"{arm} {', '.join(counts) or 'none'}"


def _cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return "not run"
    deciding = [m for name in comparison.deciding if (m := comparison.metric(name)) is not None]
    shown = [m for m in deciding if m.verdict == comparison.verdict] or deciding
    return cell_verdict(comparison) + "".join(
        f", {metric_title(m.name)}{_change(m)}" for m in shown[:1]
    )


def _where(folder: Path, report: Path) -> list[str]:
    # another user's run may have no report.html: judging needs no right to write there
    return [
        *[f"report     {report}"] * report.exists(),
        f"table      barometer report {shlex.quote(str(folder))} --table",
        f"run: {folder}",
    ]
