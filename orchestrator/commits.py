"""The commits of a bisection: their names, their order, and git's own search among them.

Git searches in a repository of our own that borrows the objects of the user's, whose checkout,
refs and bisections stay as they are.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
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


def repository_at(tree: Path) -> Path:
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


def commit_at(repository: Path, name: str, option: str) -> Commit:
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


def check_order(repository: Path, good: Sequence[Commit], bad: Commit) -> None:
    """Each good commit comes before the bad one. Raises ScenarioError."""
    for one in good:
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

    def __init__(
        self, folder: Path, repository: Path, good: Sequence[Commit], bad: Commit,
        paths: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Begins one; what `folder` held of another is gone. Raises ScenarioError when there is no
        commit to test."""
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        execute(["git", "init", "--quiet", "--bare", folder], doing="git init")
        for name, at in (("objects", "objects/info/alternates"), ("shallow", "shallow")):
            _, out = _git(repository, "rev-parse", "--git-path", name)
            there = (repository / out.strip()).resolve()
            if name == "objects":
                (folder / at).write_text(f"{there}\n")
            elif there.exists():
                shutil.copy(there, folder / at)
        _git(folder, "update-ref", "--no-deref", "HEAD", bad.sha)
        self._tell("start", "--no-checkout", bad.sha, *(c.sha for c in good), "--", *paths)
        if not self.found() and self.next() is None:
            raise ScenarioError(
                "bisect: no commit between --good and --bad touches "
                + " ".join(paths or ("anything",)),
                reason="nothing-to-bisect",
            )
        _, out = _git(
            folder, "rev-list", "--count", bad.sha, *(f"^{c.sha}" for c in good), "--", *paths,
        )  # fmt: skip
        self.about = math.ceil(math.log2(max(1, int(out))))
        """Steps that it takes, when none is skipped."""

    def _tell(self, *arguments: str) -> None:
        # 2: only commits that were skipped are left; 4: none to begin with
        _git(self._folder, "bisect", *arguments, accept=(0, 2, 4))

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
        _, log = _git(self._folder, "bisect", "log")
        return tuple(_described(self._folder, sha) for sha in dict.fromkeys(_FOUND.findall(log)))
