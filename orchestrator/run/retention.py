"""Remove the evidence of old nights, never of what the history has not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.errors import BarometerError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.hashing import digest_of
from orchestrator.evidence.layout import RunDir
from orchestrator.history.rows import RunRow
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
    runs: tuple[RunRow, ...]
    why: str
    """Why the folder must stay; empty if the history has all of it."""

    @property
    def started(self) -> str:
        return max((run.started for run in self.runs), default="")

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
    nights = [
        _look_at(path, by_folder)
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
    return MatrixDir.is_at(path) or (path / "plan.json").is_file()


def _look_at(path: Path, by_folder: Mapping[str, RunRow]) -> _Night:
    try:
        runs: Sequence[RunDir | None] = (
            [*MatrixDir(path).runs().values()] if MatrixDir.is_at(path) else [RunDir.open(path)]
        )
        rows: list[RunRow] = []
        for run in runs:
            if run is None:
                continue
            row = by_folder.get(str(run.path.resolve()))
            if row is None:
                return _Night(path, tuple(rows), f"{run.path} is not in the history")
            if digest_evidence(run) != row.digest:
                return _Night(path, tuple(rows), f"{run.path} has changed since it was added")
            rows.append(row)
        return _Night(path, tuple(rows), "")
    except BarometerError as exc:
        return _Night(path, (), exc.message)


def digest_evidence(run: RunDir) -> str:
    """Return the digest of a run's evidence, as the history has it. Nothing is judged."""
    trials = [trial.digest for trial in run.trials()]
    return digest_of({"plan": run.plan().to_json(), "trials": trials})
