"""Judge whatever a folder holds, a run or a matrix, and save the result in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.process import run as execute
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import RunDir
from orchestrator.report.text.mail_text import is_tester
from orchestrator.run.diskspace import no_space_explained
from orchestrator.run.judging.judge import Judged, Run, judge
from orchestrator.run.judging.matrix import MatrixDir, judge_cells

_GIT_SECONDS = 10.0
"""Deadline of git for the tester's name. A report can do without the name."""


def judge_folder(
    folder: Path, tester: str | None = None, *, redact: bool = True,
    judged_run: Callable[[Run], None] | None = None,
) -> Judged:  # fmt: skip
    """Judge and save a run or a matrix. `tester`: `Name <mail>`; git's user if it is None.
    `redact` is that of `Run.save`. `judged_run` is called with each run that was judged. Raises
    ScenarioError if `tester` has another form: a tag of several lines would add tags of others."""
    if tester is not None and not is_tester(tester):
        raise ScenarioError(
            f"--tester {tester!r} is not NAME <MAIL> in one line",
            hint="--tester 'A Tester <tester@example.org>'",
            reason=Reason.COMMAND_LINE,
        )
    tester = tester or read_git_user()
    with no_space_explained(folder):
        whole = (
            judge_cells(MatrixDir(folder), tester)
            if MatrixDir.is_at(folder)
            else judge(RunDir.open(folder), tester)
        )
        judged = whole.save(redact=redact)
    if judged_run is not None:
        for run in [whole] if isinstance(whole, Run) else whole.cells.values():
            if run is not None:
                judged_run(run)
    judged.document["run"] = str(folder)
    return replace_exit_code(judged, judged.exit_code)


def replace_exit_code(judged: Judged, code: int) -> Judged:
    return judged._replace(exit_code=code, document=judged.document | {"exit_code": code})


def read_git_user() -> str | None:
    """Return `Name <mail>` as git would sign here, or None if git knows no name or no mail."""
    values = []
    for key in ("user.name", "user.email"):
        try:
            answer = execute(
                ["git", "config", key], doing="the tester's name", accept=(0, 1),
                timeout=_GIT_SECONDS,
            )  # fmt: skip
        except BenchError:  # no git, or its configuration is broken: that is no reason to fail
            return None
        values.append(answer.stdout.strip())
    name, mail = values
    return f"{name} <{mail}>" if name and mail else None
