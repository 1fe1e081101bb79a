"""A run as one row of a table with a row for each run. Apache Otava reads such tables to find the
night since which a kernel is slower.

Otava takes one file for each test, a row for each night, and no gaps: one missing value silently
keeps it from seeing any change of that metric. So a run in which not everything was measured has
no row, only the header, which is the same for every run of a scenario. Otava does not mix rows
with different values of `branch`; here that is scenario and accelerator, because seconds of
emulated machines and of others make no common history. `unit` is the unit of the columns called
cost.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import Comparison
from orchestrator.evidence.plan import Plan
from orchestrator.report.exports.cases import build_suite, clean_line, cost_unit, kernel_of
from orchestrator.scenario.vocabulary import ARMS, METRICS, Metric

_ABOUT = ("time", "branch", "unit", "run", "verdict", *(f"{arm}.kernel" for arm in ARMS))


def results_csv(metrics: Sequence[Metric], comparison: Comparison, plan: Plan) -> str:
    """Return the header and, for a complete run, its row. `metrics`: all that such a run measures;
    `plan` is plan.json.

    NAME.baseline and NAME.candidate are medians. NAME.ratio, for everything but counts, is
    candidate / baseline: it does not move when the machine becomes slower.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    columns = [
        f"{name}.{column}"
        for name in metrics
        for column in (*ARMS, "ratio")
        if column != "ratio" or METRICS[name.partition("@")[0]] != "count"
    ]
    table.writerow([*_ABOUT, *columns])
    of_run = build_suite(comparison, plan)
    values = _values(comparison)
    complete = len(comparison.results) >= comparison.planned and comparison.verdict != "invalid"
    if complete and of_run.started and values.keys() >= {*columns}:
        about = [
            of_run.started, _cell(f"{comparison.scenario}/{plan.accel}"), cost_unit(plan),
            of_run.digest, comparison.verdict,
            *(_cell(clean_line(kernel_of(comparison, arm))) for arm in ARMS),
        ]  # fmt: skip
        table.writerow([*about, *(repr(values[column]) for column in columns)])
    return out.getvalue()


def _cell(text: str) -> str:
    """Return text that a spreadsheet does not take for a formula (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _values(comparison: Comparison) -> dict[str, float]:
    by_column: dict[str, float] = {}
    for metric in comparison.metrics:
        for arm in ARMS:
            by_column[f"{metric.name}.{arm}"] = summarize(metric.unit, getattr(metric, arm)).middle
        if metric.ratio is not None:
            by_column[f"{metric.name}.ratio"] = metric.ratio
    return by_column
