"""The commits of a bisection: their names, their order, and git's own search among them.

Git searches in a repository of our own that borrows the objects of the user's, whose checkout,
refs and bisections stay as they are.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.bisection import Commit, Outcome
from orchestrator.command import run as execute
from orchestrator.errors import ScenarioError

_FIELDS = "%H%x00%an <%ae>%x00%aI%x00%s"
_FOUND = re.compile(r"(?m)^# (?:possible )?first bad commit: \[([0-9a-f]+)\]")


def _git(folder: Path, *arguments: str, accept: Sequence[int] = (0,)) -> tuple[int, str]:
    done = execute(
        ["git", "-C", folder, *arguments], doing=f"git {arguments[0]}", accept=accept,
        env={"LC_ALL": "C"},
    )  # fmt: skip
    return done.returncode, done.stdout


@dataclass(frozen=True)
class Commits:
    """Those to search among."""

    repository: Path
    """The top of the work tree, or a bare repository."""
    good: tuple[Commit, ...]
    """Ancestors of `bad`."""
    bad: Commit
    paths: tuple[str, ...] = ()
    """Only commits that touch these; none: all."""

    @property
    def names(self) -> list[str]:
        """As git takes a range: reachable from bad, and not from good."""
        return [self.bad.sha, *(f"^{one.sha}" for one in self.good), "--", *self.paths]


def commits_of(tree: Path, good: Sequence[str], bad: str, paths: Sequence[str]) -> Commits:
    """By the names that git knows. Raises ScenarioError when there is no repository, no such
    commit, or nothing to search among."""
    repository = _repository_at(tree)
    first = tuple(_commit_at(repository, name, "--good") for name in dict.fromkeys(good))
    commits = Commits(repository, first, _commit_at(repository, bad, "--bad"), tuple(paths))
    _check_order(commits)
    _, out = _git(repository, "rev-list", "--count", *commits.names)
    if not int(out):
        raise ScenarioError(
            f"no commit between --good and --bad touches {' '.join(paths)}",
            hint="paths are from the top of the repository",
            reason="nothing-to-bisect",
        )
    return commits


def _repository_at(tree: Path) -> Path:
    """The top of the work tree that `tree` is in, or a bare repository. Raises ScenarioError."""
    code, top = 128, ""
    if tree.is_dir():
        code, top = _git(tree, "rev-parse", "--show-toplevel", accept=(0, 128))
        if code:
            code, top = _git(tree, "rev-parse", "--absolute-git-dir", accept=(0, 128))
    if code:
        raise ScenarioError(
            f"--tree {tree}: is in no git repository",
            hint="give the folder of the kernel's repository",
            reason="no-repository",
        )
    return Path(top.strip())


def _commit_at(repository: Path, name: str, option: str) -> Commit:
    """By any name that git knows. Raises ScenarioError."""
    code, out = _git(
        repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}",
        accept=(0, 1, 128),
    )  # fmt: skip
    if code:
        raise ScenarioError(
            f"{option} {name}: {repository} has no such commit", reason="no-such-commit"
        )
    return _described(repository, out.strip())


def _described(repository: Path, sha: str) -> Commit:
    _, out = _git(repository, "log", "-1", f"--format={_FIELDS}", sha, "--")
    return Commit(*out.rstrip("\n").split("\0"))


def _check_order(commits: Commits) -> None:
    """Each good commit comes before the bad one. Raises ScenarioError."""
    repository, bad = commits.repository, commits.bad
    for one in commits.good:
        if one.sha == bad.sha:
            raise ScenarioError(
                f"--good and --bad are the same commit, {one.short}", reason="nothing-to-bisect"
            )
        pair = one.sha, bad.sha
        code, _ = _git(repository, "merge-base", "--is-ancestor", *pair, accept=(0, 1))
        if code:
            swapped, _ = _git(
                repository, "merge-base", "--is-ancestor", *reversed(pair), accept=(0, 1)
            )
            hint = "give a good commit that the bad one is built on"
            if not swapped:
                hint = "what is called bad may be the cheaper one, but it is the later one"
            raise ScenarioError(
                f"--good {one.short} is no ancestor of --bad {bad.short}",
                hint=hint,
                reason="no-ancestor",
            )


class Search:
    """Git's bisection, in a repository beside the user's."""

    def __init__(self, folder: Path, commits: Commits) -> None:
        """Begins one; what `folder` held of another is gone."""
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        execute(["git", "init", "--quiet", "--bare", folder], doing="git init")
        (folder / "objects/info/alternates").write_text(f"{_place(commits, 'objects')}\n")
        if (shallow := _place(commits, "shallow")).exists():
            shutil.copy(shallow, folder / "shallow")
        _git(folder, "update-ref", "--no-deref", "HEAD", commits.bad.sha)
        ends = [commits.bad.sha, *(one.sha for one in commits.good)]
        self._tell("start", "--no-checkout", *ends, "--", *commits.paths)
        _, out = _git(folder, "rev-list", "--count", *commits.names)
        self.about = math.ceil(math.log2(int(out)))
        """Steps that it takes, where none is skipped."""

    def _tell(self, *arguments: str) -> None:
        # 2: only commits that were skipped are left
        _git(self._folder, "bisect", *arguments, accept=(0, 2))

    def tell(self, commit: Commit, outcome: Outcome) -> None:
        self._tell(outcome, commit.sha)

    def next(self) -> Commit | None:
        """What git wants to know next; None when it knows enough."""
        if self.found():
            return None
        code, out = _git(
            self._folder, "rev-parse", "--verify", "--quiet", "BISECT_HEAD", accept=(0, 1)
        )
        return None if code else _described(self._folder, out.strip())

    def found(self) -> tuple[Commit, ...]:
        """The first bad commit, or those that it is one of."""
        log = (self._folder / "BISECT_LOG").read_text("utf-8", errors="replace")
        return tuple(_described(self._folder, sha) for sha in dict.fromkeys(_FOUND.findall(log)))


def _place(commits: Commits, name: str) -> Path:
    """A file of the repository's, whatever kind of work tree it has."""
    _, out = _git(commits.repository, "rev-parse", "--git-path", name)
    return (commits.repository / out.strip()).resolve()
