"""Runs and the history: a run that has been judged is added, and so are the folders of older ones.

A scenario's [history], or BAROMETER_HISTORY, names the store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from orchestrator.base.errors import BarometerError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.model import read_evidence
from orchestrator.evidence.night import NIGHT, NightRecord
from orchestrator.history.place import find_place, require_place
from orchestrator.history.rows import NightRow, StoredRun, make_rows
from orchestrator.history.store import Store
from orchestrator.run.judging.judge import Run, judge, open_run
from orchestrator.run.judging.matrix import MatrixDir, judge_cells
from orchestrator.scenario.model import Scenario

_log = logging.getLogger("barometer.history")


class Added(NamedTuple):
    """What became of a run that was to be added."""

    folder: Path
    what: Literal["added", "there"]


def open_history(option: str | None, *, create: bool = True) -> Store:
    """Open the history that an option or the environment names. Raises the errors of
    `Store.open`."""
    return Store.open(require_place(option), create=create)


def check_history(scenarios: Iterable[Scenario]) -> None:
    """Open each history that these scenarios name, so that one that cannot be used is found before
    anything boots. Raises the errors of `Store.open`."""
    for place in {find_place(scenario.history.store) for scenario in scenarios} - {""}:
        Store.open(place).close()


def record_run(run: Run) -> None:
    """Add a judged run to its scenario's history, if there is one. It never fails: the run's
    folder has everything, and can be added later."""
    if not (place := find_place(run.scenario.history.store)):
        return
    try:
        with Store.open(place) as store:
            store.add(make_stored(run))
    except (OSError, BarometerError) as exc:
        _log.warning(
            "barometer: %s is not in the history: %s\nlater: barometer history add %s",
            run.path, exc, run.path,
        )  # fmt: skip


def make_stored(run: Run, machine: str | None = None) -> StoredRun:
    """Return what the store keeps of a run. `machine`: name of the machine of an older run, which
    does not tell it."""
    return make_rows(
        run.comparison, run.plan, machine=machine_of(run, machine),
        workload=run.scenario.workload, folder=str(run.path.resolve()), digest=run.suite.digest,
        exit_code=run.exit_code, shares_boots=not run.scenario.host.fresh_boots,
    )  # fmt: skip


def machine_of(run: Run, machine: str | None = None) -> str:
    """Return the name of the machine whose numbers a run has: a metal host, or for nested hosts
    the runner."""
    host = run.scenario.host
    return host.name if host.kind == "metal" else run.plan.runner.name or machine or "unknown"


def add_folders(store: Store, folders: Iterable[Path], machine: str | None) -> Iterator[Added]:
    """Judge the runs and matrices in these folders, and add them. `machine` is that of
    `make_stored`. Raises the errors of `judge` for a folder that holds no run."""
    for folder in folders:
        if (folder / NIGHT).is_file():
            store.add_night(_make_night(folder.absolute()))
            if not _has_run(folder):
                yield Added(folder, "added")
                continue
        for run in judge_runs(folder.absolute()):
            is_new = store.add(make_stored(run, machine))
            yield Added(run.path, "added" if is_new else "there")


def _has_run(folder: Path) -> bool:
    return MatrixDir.is_at(folder) or (folder / "plan.json").is_file()


def _make_night(folder: Path) -> NightRow:
    record = read_evidence(NightRecord, folder / NIGHT)
    return NightRow(
        record.machine, record.scenario, record.started, str(folder.resolve()), record.exit_code,
        "" if _has_run(folder) else record.reason or Reason.NIGHT_KILLED, record.message,
        record.put_back, record.seconds,
    )  # fmt: skip


def judge_runs(folder: Path) -> list[Run]:
    """Judge the run in a folder, or all cells of a matrix that were begun."""
    if not MatrixDir.is_at(folder):
        return [judge(open_run(folder))]
    return [run for run in judge_cells(MatrixDir(folder)).cells.values() if run is not None]
