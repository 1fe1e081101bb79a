"""Folders that people name on the command line: of a run, of its trials, for a new run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason

if TYPE_CHECKING:
    from orchestrator.analysis.boot.timeline import Timeline

_OF_A_RUN = ("plan.json", "scenario.toml", "trials", "cells", "matrix.json")
_PRINTED = "give the folder that `barometer run` printed as its last line"


def check_run(folder: Path) -> None:
    """Raise ScenarioError unless the folder is one of a run or of a matrix, be it damaged."""
    if any((folder / name).exists() for name in _OF_A_RUN):
        return
    run = folder.absolute().parent.parent
    if folder.absolute().parent.name == "trials" and (run / "plan.json").exists():
        raise ScenarioError(
            f"{folder} is a trial of the run {run}", reason=Reason.NOT_A_RUN,
            hint=f"barometer report {run}; of a trial: barometer timeline {folder}",
        )  # fmt: skip
    what = "holds no run" if folder.is_dir() else "is no folder"
    raise ScenarioError(f"{folder} {what}", hint=_PRINTED, reason=Reason.NOT_A_RUN)


def read_middle_boots(run: Path) -> list[Timeline]:
    """Return the traced boot of each arm whose length is in the middle. Raises EvidenceError."""
    from orchestrator.analysis.verdict.comparison import boots_of, middle_boots
    from orchestrator.run.library import load

    return [*middle_boots(boots_of(load(run).comparison)).values()]


def check_new_folder(folder: Path) -> None:
    """Raise ScenarioError if the folder of a run is not there and cannot be made. Leaves
    nothing."""
    if folder.exists():
        return  # a run looks at what is in it
    from orchestrator.base.folderlock import only_writer

    with only_writer(folder.absolute()):
        pass
