"""git, without the user's settings and without touching the user's repositories.

A repository is named by its folder (a checkout, linked worktree, submodule or bare repository) or
by what `repository_of` says of it.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.command import run
from orchestrator.errors import ScenarioError

_SETTINGS = {
    "safe.directory": "*",  # a tree may belong to somebody else
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.autocrlf": "false",
    "core.quotePath": "false",
    "core.abbrev": "12",
    "core.splitIndex": "false",
    "apply.whitespace": "nowarn",
    "apply.ignoreWhitespace": "no",
    "diff.noprefix": "false",
    "diff.mnemonicPrefix": "false",
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "init.defaultBranch": "main",
}
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",  # `status` would write the index
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",  # a commit's id is its content, here and in our repository
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C.UTF-8",
    # what we commit in our own repositories is the same each time
    **{f"GIT_{who}_NAME": "barometer" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "barometer@localhost" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": "2000-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_COUNT": str(len(_SETTINGS)),
    **{f"GIT_CONFIG_KEY_{i}": key for i, key in enumerate(_SETTINGS)},
    **{f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(_SETTINGS.values())},
}
_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHOWN_CHANGES = 10


@dataclass(frozen=True)
class Git:
    """A repository, and which work tree and index git is to see there; without an index it sees
    the repository's own."""

    git_dir: Path
    work_tree: Path | None = None
    index: Path | None = None

    def run(
        self,
        *args: str | os.PathLike[str],
        stdin: str = "",
        accept: Sequence[int] = (0,),
        doing: str = "asking git",
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run `git ARGS`; paths in them are absolute. Only commands that write nothing may be run
        in a repository that is not ours. Raises as orchestrator.command.run."""
        git_dir = self.git_dir.absolute()
        # barometer may itself be run by git: `git bisect run`, `git rebase --exec`, a hook
        env: dict[str, str | None] = {k: None for k in os.environ if k.startswith("GIT_")}
        env |= {"LANGUAGE": None, **_ENVIRONMENT, "GIT_DIR": str(git_dir)}
        if self.work_tree:
            env["GIT_WORK_TREE"] = str(self.work_tree.absolute())
        if self.index:
            env["GIT_INDEX_FILE"] = str(self.index.absolute())
        cwd = self.work_tree or (git_dir if git_dir.is_dir() else git_dir.parent)
        return run(
            ["git", *args], doing=doing, env=env, cwd=cwd, stdin=stdin, accept=accept,
            timeout=timeout,
        )  # fmt: skip

    def line(self, *args: str | os.PathLike[str], doing: str = "asking git") -> str:
        """What a command prints, without the end of its line."""
        return self.run(*args, doing=doing).stdout.rstrip("\n")


@dataclass(frozen=True)
class Commit:
    sha: str
    tree: str
    """The id of its tree: its content, without history."""
    describe: str
    """As `git describe` says: v6.12-34-g0fd06844de5d; the short id where there is no tag."""


def repository_of(path: Path) -> Path | None:
    """What GIT_DIR has to be for the repository whose top level is `path`: PATH/.git (a file in a
    linked worktree or a submodule, which git follows, so that HEAD is the worktree's own), or
    `path` where that is a git dir. None for all else, also for a folder inside a repository.

    Raises ScenarioError when there is a .git that git does not take for a repository.
    """
    path = path.absolute()
    inner = path / ".git"
    if inner.exists() or inner.is_symlink():
        found = inner
    else:
        found = path
        is_git_dir = (path / "HEAD").exists() and (path / "objects").is_dir()
        if not is_git_dir and not (path.name == ".git" and path.exists()):
            return None
    done = Git(found).run("rev-parse", "--git-dir", accept=(0, 128))
    if done.returncode and found == path and path.name != ".git":
        return None  # a folder with files of these names
    if done.returncode:
        raise ScenarioError(
            f"{found}: git does not take this for a repository",
            evidence=done.stderr.strip(),
            hint="`git worktree repair` mends a worktree whose repository was moved; without .git"
            " the folder is taken as it is",
            reason="broken-repository",
        )
    return found


def located(repository: Path) -> Git:
    """Raises ScenarioError when it is not a repository."""
    found = repository_of(repository)
    if found is None:
        raise ScenarioError(f"{repository} is not a git repository", reason="no-such-repository")
    git = Git(found)
    if found.name == ".git" and git.line("rev-parse", "--is-bare-repository") == "false":
        return Git(found, work_tree=found.parent)
    return git


def own_repository(folder: Path, borrowed: Path | None = None) -> Git:
    """A bare repository of ours in `folder`, made when it is not there; it reads the objects of
    the repository `borrowed`, and writes none there."""
    git = Git(folder)
    lender = located(borrowed) if borrowed else None
    if not (folder / "HEAD").exists():
        folder.mkdir(parents=True, exist_ok=True)
        kind = lender.line("rev-parse", "--show-object-format") if lender else "sha1"
        git.run("init", "--quiet", "--bare", "--template=", f"--object-format={kind}",
                doing="making a repository")  # fmt: skip
    if lender:
        place = lender.line("rev-parse", "--path-format=absolute", "--git-path", "objects")
        (folder / "objects/info").mkdir(parents=True, exist_ok=True)
        (folder / "objects/info/alternates").write_text(f"{place}\n")
    return git


def commit_of(repository: Path, ref: str | None) -> Commit:
    """The commit that `ref` names; without one what is checked out, which must be all there is.

    Raises ScenarioError when the repository has no such commit, or, without a ref, when files
    that git tracks have changes that are not committed: what was meant would not be built.
    """
    git = located(repository)
    if ref is None:
        _check_committed(git, repository)
    sha = commit_id(git, "HEAD" if ref is None else ref, repository)
    return Commit(
        sha=sha,
        tree=git.line("rev-parse", "--verify", f"{sha}^{{tree}}"),
        describe=git.line("describe", "--always", "--tags", sha),
    )


def _check_committed(git: Git, repository: Path) -> None:
    if git.work_tree is None:
        if git.line("rev-parse", "--is-bare-repository") == "true":
            return
        raise ScenarioError(
            f"{repository} is a repository without its work tree, so nobody knows whether there"
            " are changes that are not committed",
            hint='name the folder with the work tree, or write ref = "HEAD"',
            reason="no-work-tree",
        )
    changed = git.run(
        "status", "--porcelain", "--untracked-files=no", "--no-renames",
        # what a submodule has checked out matters; what else is changed in there is its own
        "--ignore-submodules=dirty", doing="looking for uncommitted changes",
    ).stdout.splitlines()  # fmt: skip
    if changed:
        more = len(changed) - _SHOWN_CHANGES
        raise ScenarioError(
            f"{repository} has changes that are not committed, in {_files(len(changed))}",
            evidence="\n".join(
                [*changed[:_SHOWN_CHANGES], *([f"and {more} more"] if more > 0 else [])]
            ),
            hint='commit them, or write ref = "HEAD" to leave them out',
            reason="uncommitted-changes",
        )


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def commit_id(git: Git, ref: str, repository: Path) -> str:
    """The full id of the commit that `ref` names. Raises ScenarioError when there is none, with
    the names that are near."""

    def asked(what: str) -> subprocess.CompletedProcess[str]:
        return git.run("rev-parse", "--verify", "--end-of-options", what, accept=(0, 128))

    if "\0" not in ref:
        done = asked(f"{ref}^{{commit}}")
        if done.returncode == 0 and _ID.fullmatch(done.stdout.strip()):
            return done.stdout.strip()
        if "is ambiguous" in done.stderr:
            raise ScenarioError(
                f'{repository}: "{ref}" is the beginning of more than one id',
                evidence=done.stderr.strip(), hint="write more of it", reason="no-such-ref",
            )  # fmt: skip
    shown = ref.replace("\0", "\\0")
    if ref == "HEAD":
        raise ScenarioError(
            f"{repository} has no commit checked out: its HEAD names none",
            hint="commit something, or name the commit with ref",
            reason="no-such-ref",
        )
    if _ID.fullmatch(ref) is None and "\0" not in ref and asked(f"{ref}^{{object}}").stdout:
        raise ScenarioError(
            f'{repository}: "{ref}" does not name a commit', reason="no-such-ref"
        )  # fmt: skip
    near = _near_refs(git, ref)
    hint = f"near: {', '.join(near)}" if near else "`git -C TREE log --all` shows what there is"
    if git.line("rev-parse", "--is-shallow-repository") == "true":
        hint += "; the repository is a shallow clone: `git fetch --unshallow` gets all commits"
    raise ScenarioError(f'{repository} has no commit "{shown}"', hint=hint, reason="no-such-ref")


def _near_refs(git: Git, ref: str) -> list[str]:
    names = git.run(
        "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes"
    ).stdout.split()
    return difflib.get_close_matches(ref, ["HEAD", *names], 3, 0.5)
