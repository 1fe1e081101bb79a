"""Find what a build left. It ran a stranger's Makefiles, so that anything may be there: no link of
it is followed out of the build. The build has ended by then, so that nothing changes meanwhile."""

from __future__ import annotations

import stat
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason


def find_result(folder: Path, name: str) -> Path:
    """Return FOLDER/NAME, which need not exist. Raises ScenarioError if a part of the name is a
    symbolic link, or leads out of the folder, or if there is something that is no plain file or
    folder."""
    path = folder
    for part in Path(name).parts:
        if part in ("..", "/"):
            raise _refused(f"the build names a file outside of its folder: {name}")
        path /= part
        _check_kind(path)
    return path


def check_results(folder: Path) -> Path:
    """Return the folder. Raises ScenarioError if it, or anything in it, is no plain file or
    folder."""
    _check_kind(folder)
    for path in folder.rglob("*"):
        _check_kind(path)
    return folder


def write_input(folder: Path, name: str, text: str) -> Path:
    """Write a file for a build, in place of whatever an earlier build left there, and return its
    path. Raises as `find_result`."""
    path = find_result(folder, str(Path(name).parent)) / Path(name).name
    path.unlink(missing_ok=True)
    path.write_text(text)
    return path


def _check_kind(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
        raise _refused(f"the build left {kind} at {path}")


def _refused(message: str) -> ScenarioError:
    return ScenarioError(
        message, hint="read what the series does to Makefiles", reason=Reason.BUILD_FAILED
    )
