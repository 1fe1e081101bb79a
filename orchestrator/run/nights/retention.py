"""Remove the evidence of old nights, never of what the history has not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.errors import BarometerError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.hashing import digest_of
from orchestrator.evidence.layout import RunDir
from orchestrator.evidence.night import NIGHT
from orchestrator.history.rows import NightRow, RunRow
from orchestrator.history.store import Store
from orchestrator.run.judging.matrix import MatrixDir

_REMOVED = ".removed"
"""End of the name of a folder that is on its way out. It is renamed first, so that a reader finds
all of a run or nothing."""


@dataclass(frozen=True)
class Kept:
    """A night that is not removed although its number of nights has passed."""

    folder: Path
    why: str


@dataclass(frozen=True)
class _Night:
    folder: Path
    started: str
    """Start of the night, or of its last run."""
    runs: tuple[RunRow, ...]
    why: str
    """Why the folder must stay; empty if the history has all of it."""

    @property
    def is_red(self) -> bool:
        return any(run.exit_code == 1 or run.verdict == "regressed" for run in self.runs)

    @property
    def is_measured(self) -> bool:
        return any(run.measured and run.verdict != "invalid" for run in self.runs)


def prune_nights(store: Store, folder: Path, keep: int, keep_red: int) -> Iterator[Path | Kept]:
    """Remove the oldest nights in `folder` beyond the last `keep`; a red one is kept until it is
    beyond the last `keep_red`. The last night with numbers is always kept: the next one is
    compared with it. Yield each removed folder, and each that has to stay."""
    for left in sorted(folder.glob(f".*{_REMOVED}")):
        shutil.rmtree(left)  # an earlier removal was killed
    by_folder = {run.row.folder: run.row for run in store.runs()}
    known = {night.folder: night for night in store.nights()}
    nights = [
        _look_at(path, by_folder, known)
        for path in folder.iterdir()
        if not path.name.startswith(".") and not path.is_symlink() and _is_night(path)
    ]
    nights.sort(key=lambda night: (night.started, night.folder.name), reverse=True)
    last = next((night for night in nights if night.is_measured), None)
    for number, night in enumerate(nights):
        if number < (keep_red if night.is_red else keep) or night is last:
            continue
        if night.why:
            yield Kept(night.folder, night.why)
            continue
        gone = folder / f".{night.folder.name}{_REMOVED}"
        try:
            with only_writer(night.folder):
                night.folder.rename(gone)
        except BarometerError as exc:
            yield Kept(night.folder, exc.message)
            continue
        shutil.rmtree(gone)
        yield night.folder


def _is_night(path: Path) -> bool:
    return MatrixDir.is_at(path) or any((path / name).is_file() for name in ("plan.json", NIGHT))


def _look_at(
    path: Path, by_folder: Mapping[str, RunRow], nights: Mapping[str, NightRow]
) -> _Night:
    rows: list[RunRow] = []
    night = nights.get(str(path.resolve()))
    started, why = night.started if night is not None else "", ""
    try:
        for run in _list_runs(path):
            row = by_folder.get(str(run.path.resolve()))
            if row is None:
                why = f"{run.path} is not in the history"
            elif digest_evidence(run) != row.digest:
                why = f"{run.path} has changed since it was added"
            if row is not None:
                rows.append(row)
                started = max(started, row.started)
        if (path / NIGHT).is_file() and night is None:
            why = f"{path} is not in the history"
    except BarometerError as exc:
        why = exc.message
    return _Night(path, started, tuple(rows), why)


def _list_runs(path: Path) -> list[RunDir]:
    if MatrixDir.is_at(path):
        return [run for run in MatrixDir(path).runs().values() if run is not None]
    return [RunDir.open(path)] if (path / "plan.json").is_file() else []


def digest_evidence(run: RunDir) -> str:
    """Return the digest of a run's evidence, as the history has it. Nothing is judged."""
    trials = [trial.digest for trial in run.trials()]
    return digest_of({"plan": run.plan().to_json(), "trials": trials})
