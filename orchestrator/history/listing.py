"""A store for people and other programs: the list of runs, one run, tables as CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.history.store import KnownRun, Store
from orchestrator.scenario.vocabulary import ARMS

_HEADER = ("started", "machine", "scenario", "verdict", "trials", "candidate", "folder")


def format_runs(runs: Sequence[KnownRun]) -> str:
    """Return a line for each run."""
    rows = [_HEADER]
    rows += [
        (row.started[:16], row.machine, f"{row.scenario}/{row.accel}", row.title,
         f"{row.measured} of {row.planned}", row.candidate_kernel,
         row.folder if Path(row.folder).exists() else f"{row.folder} (removed)")
        for _, row in runs
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def find_run(store: Store, name: str) -> KnownRun:
    """Return the run in this folder, or the last one whose key or folder's name begins so. Raises
    ScenarioError if there is none."""
    folder = str(Path(name).resolve())
    runs = store.runs()[::-1]
    exact = [run for run in runs if run.row.folder == folder]
    near = [
        run for run in runs
        if run.row.key.startswith(name) or Path(run.row.folder).name.startswith(name)
    ]  # fmt: skip
    if not (found := exact or near):
        raise ScenarioError(
            f"{store.name} has no run {name}",
            hint="`barometer history list` names them; `barometer history add RUN` adds one",
            reason=Reason.PATH,
        )
    return found[0]


def run_document(store: Store, run: KnownRun) -> dict[str, object]:
    """Return a run with its effects and conditions, as JSON has it."""
    return {
        "schema": 1,
        **run.row._asdict(),
        "effects": [effect._asdict() for effect in store.effects(run.id)],
        "conditions": {arm: store.conditions(run.id, arm) for arm in ARMS},
    }


def format_run(store: Store, run: KnownRun) -> str:
    row = run.row
    lines = [
        f"{row.title}: {row.scenario}/{row.accel} on {row.machine}, {row.started}",
        f"baseline {row.baseline_kernel} ({row.baseline_source})",
        f"candidate {row.candidate_kernel} ({row.candidate_source})",
        f"{row.measured} of {row.planned} trials measured, {row.failed} failed,"
        f" {row.invalid} invalid",
        f"run: {row.folder}",
        "",
    ]
    for effect in store.effects(run.id):
        ratio = "" if effect.ratio is None else f"  {effect.ratio:.4g}x"
        interval = "" if effect.low is None else f"  {effect.low:.4g} .. {effect.high:.4g}"
        mark = "*" if effect.deciding else " "
        numbers = f"{effect.baseline:.6g} -> {effect.candidate:.6g} {effect.unit}"
        lines.append(f"{mark} {effect.metric}: {effect.verdict}  {numbers}{ratio}{interval}")
    return "\n".join(lines)


def export_csv(store: Store, table: str) -> str:
    columns, rows = store.table(table)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def export_parquet(store: Store, table: str, path: Path) -> None:
    """Write a table as Parquet, under another name first. A column has one type, as in the
    store."""
    # imported only here: it takes half a second
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    columns, rows = store.table(table)
    by_column = list(zip(*rows, strict=True)) or [()] * len(columns)
    beside = path.with_name(f".{path.name}.new")
    pq.write_table(pa.table({c: list(v) for c, v in zip(columns, by_column, strict=True)}), beside)
    beside.rename(path)
