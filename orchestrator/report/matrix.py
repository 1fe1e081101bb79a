"""The cells of a matrix in one table: plain text, a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from orchestrator.analysis.comparison import Comparison, MetricComparison, boots_of
from orchestrator.analysis.effect import Verdict
from orchestrator.report.maps import plural
from orchestrator.scenario import ARMS, Metric

_WIDTH = 100
# What the headlines are called: those of a guest boot, else those of maps without a guest.
_BOOTS: dict[Metric, str] = {
    "guest_boot_seconds": "boot",
    "bar_maps_per_boot": "maps",
    "bar_map_seconds_per_boot": "all maps",
    "bar_unmap_seconds_per_boot": "all unmaps",
}
_MAPS: dict[Metric, str] = {
    "bar_map_seconds": "one map",
    "bar_unmap_seconds": "one unmap",
    "pfn_lookups_per_map": "lookups",
}


def matrix_report(
    scenario: str, verdict: Verdict, cells: Mapping[str, Comparison | None], *, emulated: bool
) -> str:
    """The table of all cells, each with its comparison; None where it has not been run."""
    columns = _columns(cells, _BOOTS) or _columns(cells, _MAPS)
    notes = "Each value is the median of an arm's trials, baseline -> candidate.\n"
    if emulated:
        notes += "EMULATED: compare seconds with one another, not with hardware's.\n"
    parts = [
        f"{scenario}: {verdict}, {plural(len(cells), 'cell')}\n",
        _kernels(cells),
        _table(cells, columns),
        notes * bool(columns),
        "report of each cell: RUN/cells/NAME/report.txt\n",
    ]
    return "\n".join(part for part in parts if part)


def _kernels(cells: Mapping[str, Comparison | None]) -> str:
    """The arms are the same in every cell."""
    run = next((c for c in cells.values() if c is not None), None)
    if run is None:
        return ""
    return "".join(
        f"{arm:<11}{run.kernels[arm]['release']}  ({run.kernels[arm]['source']})\n" for arm in ARMS
    )


def _table(cells: Mapping[str, Comparison | None], columns: Mapping[Metric, str]) -> str:
    """A row for each cell; in two lines where that is too wide for a terminal."""
    traced = {name: _traced(c) for name, c in cells.items() if c is not None}
    exact = any(
        boot.unit == "Ginsn" for c in cells.values() if c is not None
        for of_arm in boots_of(c).values() for boot in of_arm
    )  # fmt: skip
    title = [f"traced boot, {'Ginsn' if exact else 's'}"] * any(traced.values())
    rows = [["verdict", *title, *columns.values()]]
    for name, comparison in cells.items():
        if comparison is None:
            rows.append(["not run", *[""] * (len(title) + len(columns))])
        else:
            shown = [_effect(comparison.metric(metric)) for metric in columns]
            boots = [traced[name] or "-"] * len(title)
            rows.append([_verdict(comparison), *boots, *shown])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    values = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    names = ["cell", *cells]
    room = max(map(len, names))
    if room + 2 + max(map(len, values)) <= _WIDTH:
        lines = [f"{name:<{room}}  {rest}" for name, rest in zip(names, values, strict=True)]
    else:
        lines = [f"{name}\n    {rest}" for name, rest in zip(names, values, strict=True)]
    return "\n".join(lines) + "\n"


def _columns(
    cells: Mapping[str, Comparison | None], titles: Mapping[Metric, str]
) -> dict[Metric, str]:
    """The metrics that any cell has, and what stands above them."""
    columns = {}
    for name, title in titles.items():
        found = [m for c in cells.values() if c is not None and (m := c.metric(name)) is not None]
        units = sorted({m.unit for m in found} - {"count"})
        if found:
            columns[name] = title + f", {' or '.join(units)}" * bool(units)
    return columns


def _verdict(comparison: Comparison) -> str:
    """With what ended the trials that do not count."""
    reasons = sorted({r.reason for r in comparison.results if r.kind != "measured"})
    return comparison.verdict + f" ({', '.join(reasons)})" * bool(reasons)


def _traced(comparison: Comparison) -> str:
    """From QEMU's exec to the boot mark, in the timing pass."""
    boots = boots_of(comparison)
    if not any(boots.values()):
        return ""
    return " -> ".join(
        f"{median(b.boot_seconds for b in boots[arm]):.4g}" if boots[arm] else "-" for arm in ARMS
    )


def _effect(metric: MetricComparison | None) -> str:
    if metric is None:
        return "-"
    form = ".10g" if metric.unit == "count" else ".3g"
    return " -> ".join(f"{median(getattr(metric, arm)):{form}}" for arm in ARMS)
