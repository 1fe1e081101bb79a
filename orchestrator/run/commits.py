"""The commits of a bisection: their names, their order, and git's own search among them.

Git searches in a separate repository, which borrows the objects of the user's repository. The
user's checkout, refs and bisections stay as they are.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.verdict.bisection import BisectCommit, StepOutcome
from orchestrator.base.errors import ScenarioError, key_named
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.git import Git, commit_id, find_repository, locate, own_repository

_FIELDS = "%H%x00%an <%ae>%x00%aI%x00%s"
_FOUND = re.compile(r"(?m)^# (?:possible )?first bad commit: \[([0-9a-f]+)\]")


@dataclass(frozen=True)
class Commits:
    """The commits to search among."""

    repository: Path
    """Top folder of the repository. For a bare repository, the repository itself."""
    good: tuple[BisectCommit, ...]
    """Ancestors of `bad`."""
    bad: BisectCommit
    paths: tuple[str, ...] = ()
    """Search only commits that touch these paths. Empty: search all commits."""

    @property
    def names(self) -> list[str]:
        """Git's arguments for the range: reachable from bad, and not from good."""
        return [self.bad.sha, *(f"^{commit.sha}" for commit in self.good), "--", *self.paths]


def find_commits(tree: Path, good: Sequence[str], bad: str, paths: Sequence[str]) -> Commits:
    """Look the commits up in git. Raises ScenarioError if there is no repository, if it has no
    such commit, or if there is nothing to search among."""
    repository = _find_repository(tree)
    git = locate(repository)
    with key_named("--good"):
        first = tuple(_read_commit(git, commit_id(git, name, repository)) for name in good)
    with key_named("--bad"):
        last = _read_commit(git, commit_id(git, bad, repository))
    commits = Commits(repository, tuple(dict.fromkeys(first)), last, tuple(paths))
    for commit in commits.good:
        _check_order(git, commit, last)
    if not int(git.line("rev-list", "--count", *commits.names)):
        raise ScenarioError(
            f"no commit between --good and --bad touches {' '.join(paths)}",
            hint="paths are from the top of the repository",
            reason=Reason.NOTHING_TO_BISECT,
        )
    return commits


def _find_repository(tree: Path) -> Path:
    """Return the top folder of the repository that `tree` is in. Raises ScenarioError."""
    here = tree.resolve()
    with key_named("--tree"):
        for folder in (here, *here.parents):
            if find_repository(folder) is not None:
                return folder
    raise ScenarioError(
        f"--tree {tree}: is in no git repository",
        hint="give the folder of the kernel's repository",
        reason=Reason.NO_SUCH_REPOSITORY,
    )


def _read_commit(git: Git, sha: str) -> BisectCommit:
    return BisectCommit(*git.line("log", "-1", f"--format={_FIELDS}", sha, "--").split("\0"))


def _check_order(git: Git, good: BisectCommit, bad: BisectCommit) -> None:
    """Raise ScenarioError unless the good commit comes before the bad one."""

    def comes_before(first: BisectCommit, last: BisectCommit) -> bool:
        words = ["merge-base", "--is-ancestor", first.sha, last.sha]
        return git.run(*words, accept=(0, 1)).returncode == 0

    if good == bad:
        raise ScenarioError(
            f"--good and --bad are the same commit, {good.short}", reason=Reason.NOTHING_TO_BISECT
        )
    if not comes_before(good, bad):
        hint = "give a good commit that the bad one is built on"
        if comes_before(bad, good):
            hint = "--bad may be the cheaper commit, but it must be the later one"
        raise ScenarioError(
            f"--good {good.short} is no ancestor of --bad {bad.short}",
            hint=hint,
            reason=Reason.NO_ANCESTOR,
        )


class Search:
    """Git's bisection, in a repository beside the user's."""

    def __init__(self, folder: Path, commits: Commits) -> None:
        """Begin a bisection; an older one in `folder` is removed."""
        shutil.rmtree(folder, ignore_errors=True)
        self._git = own_repository(folder, commits.repository)
        lender = locate(commits.repository)
        shallow = lender.line("rev-parse", "--path-format=absolute", "--git-path", "shallow")
        if Path(shallow).exists():
            shutil.copy(shallow, folder / "shallow")
        self._git.run("update-ref", "--no-deref", "HEAD", commits.bad.sha)
        ends = [commits.bad.sha, *(commit.sha for commit in commits.good)]
        self._bisect("start", "--no-checkout", *ends, "--", *commits.paths)
        number = int(self._git.line("rev-list", "--count", *commits.names))
        self.about = math.ceil(math.log2(number))
        """Expected number of steps if no commit is skipped."""

    def _bisect(self, *arguments: str) -> None:
        # git exits with 2 if only skipped commits are left
        self._git.run("bisect", *arguments, accept=(0, 2), doing="bisecting")

    def mark(self, commit: BisectCommit, outcome: StepOutcome) -> None:
        """Tell git the outcome of a commit."""
        self._bisect(outcome, commit.sha)

    def choose_next(self) -> BisectCommit | None:
        """Return the commit that git needs to know next; None if it knows enough."""
        return None if self.find_first_bad() else _read_commit(self._git, "BISECT_HEAD")

    def find_first_bad(self) -> tuple[BisectCommit, ...]:
        """Return the first bad commit, or several candidates if skipped commits hide which one it
        is. Empty if it is not known yet."""
        log = (self._git.git_dir / "BISECT_LOG").read_text("utf-8", errors="replace")
        return tuple(_read_commit(self._git, sha) for sha in dict.fromkeys(_FOUND.findall(log)))
