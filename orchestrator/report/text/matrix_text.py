"""The cells of a matrix in one table: plain text for mail, a row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison, boots_of
from orchestrator.analysis.verdict.effect import Verdict
from orchestrator.analysis.verdict.outcome import join_titles
from orchestrator.report.words.columns import fit_lines, format_table, wrap_text
from orchestrator.report.words.outcome_words import describe_regressions
from orchestrator.report.words.quantities import count_cells, format_quantity
from orchestrator.report.words.variable_words import describe_variable
from orchestrator.scenario.vocabulary import ARMS, Metric

# Titles of the columns: the metrics of guest boots or, if there are none, of maps without a guest.
_BOOTS: dict[Metric, str] = {
    "guest_boot_cost": "boot",
    "bar_maps_per_boot": "maps",
    "bar_map_cost_per_boot": "all maps",
    "bar_unmap_cost_per_boot": "all unmaps",
}
_MAPS: dict[Metric, str] = {
    "bar_map_cost": "one map",
    "bar_unmap_cost": "one unmap",
    "pfn_lookups_per_map": "lookups",
}


def matrix_report(
    scenario: str,
    verdict: Verdict,
    cells: Mapping[str, Comparison | None],
    *,
    of: int,
    emulated: bool,
) -> str:
    """Return the table of all cells, each with its comparison; None for a cell that has not been
    run. `of`: number of the scenario's cells."""
    columns = _columns(cells, _BOOTS) or _columns(cells, _MAPS)
    notes = "Each value is the median of an arm's trials, baseline -> candidate.\n"
    if emulated:
        notes += "EMULATED: compare seconds with one another, not with hardware's.\n"
    outcomes = [None if cell is None else cell.outcome for cell in cells.values()]
    parts = [
        f"{scenario}: {join_titles(outcomes, verdict)}, {count_cells(len(cells), of)}\n",
        _kernels(cells),
        _variable(cells),
        _table(cells, columns),
        notes * bool(columns),
        "report of each cell: RUN/cells/NAME/report.txt\n",
    ]
    return fit_lines("\n".join(part for part in parts if part))


def _kernels(cells: Mapping[str, Comparison | None]) -> str:
    """Name the kernels, which are the same in every cell."""
    run = next((c for c in cells.values() if c is not None), None)
    if run is None:
        return ""
    return "".join(
        f"{arm:<11}{run.kernels[arm]['release']}  ({run.kernels[arm]['source']})\n" for arm in ARMS
    )


def _variable(cells: Mapping[str, Comparison | None]) -> str:
    """Report what the arms differ in, grouped by the cells for which it is the same."""
    cells_by_text: dict[str, list[str]] = {}
    for name, comparison in cells.items():
        if comparison is not None and (
            text := describe_variable(comparison.variable, counted=False)
        ):
            cells_by_text.setdefault(text, []).append(name)
    lines = []
    for text, names in cells_by_text.items():
        lines += wrap_text(
            text if len(cells_by_text) == 1 else f"{', '.join(names)}: {text}", then="  "
        )
    return "".join(f"{line}\n" for line in lines)


def _table(cells: Mapping[str, Comparison | None], columns: Mapping[Metric, str]) -> str:
    traced = {name: _traced(c) for name, c in cells.items() if c is not None}
    boots = ["traced boot"] * any(traced.values())
    rows: list[Sequence[str] | str] = []
    for name, comparison in cells.items():
        if comparison is None:
            rows.append([f"{name}: not run", *[""] * (len(boots) + len(columns))])
        else:
            shown = [_effect(comparison.metric(metric)) for metric in columns]
            rows.append([f"{name}: {cell_verdict(comparison)}",
                         *[traced[name] or "-"] * len(boots), *shown])  # fmt: skip
            if worse := describe_regressions(comparison.outcome.regressed):
                rows.append(f"  regressed: {worse}")
    return "\n".join(format_table(["cell: verdict", *boots, *columns.values()], rows)) + "\n"


def _columns(
    cells: Mapping[str, Comparison | None], titles: Mapping[Metric, str]
) -> dict[Metric, str]:
    """Return the metrics that any cell has, with the titles of their columns."""
    run = [c for c in cells.values() if c is not None]
    return {name: title for name, title in titles.items() if any(c.metric(name) for c in run)}


def cell_verdict(comparison: Comparison) -> str:
    """Return the verdict, with the reasons that ended the trials that do not count."""
    reasons = sorted({r.reason for r in comparison.results if r.kind != "measured"})
    return comparison.outcome.title + f" ({', '.join(reasons)})" * bool(reasons)


def _traced(comparison: Comparison) -> str:
    """Return both arms' median from QEMU's exec to the boot mark, in the timing pass."""
    boots = boots_of(comparison)
    if not any(boots.values()):
        return ""
    return " -> ".join(
        format_quantity(median(b.boot_seconds for b in boots[arm]), boots[arm][0].unit)
        if boots[arm] else "-"
        for arm in ARMS
    )  # fmt: skip


def _effect(metric: MetricComparison | None) -> str:
    if metric is None:
        return "-"
    arms = (summarize(metric.unit, getattr(metric, arm)).middle for arm in ARMS)
    return " -> ".join(format_quantity(middle, metric.unit) for middle in arms)
