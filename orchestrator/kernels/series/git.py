"""Run git without the user's settings and without writing to the user's repositories.

A repository is named by its folder (a checkout, linked worktree, submodule or bare repository) or
by what `find_repository` returns for it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.process import Finished, run
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.foreign import check_owner, disarm_programs

_SETTINGS = {
    "safe.directory": "*",  # foreign.check_owner asks, because git does not ask with GIT_DIR
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
    "GIT_ALLOW_PROTOCOL": "",  # older versions of git fetch what a partial clone lacks
    "GIT_EXTERNAL_DIFF": "",
    "GIT_ASKPASS": "",
    "GIT_PAGER": "cat",
    "GIT_NO_REPLACE_OBJECTS": "1",  # an id names the same content in the user's and our repository
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C.UTF-8",
    # a commit in a repository of ours has the same id each time
    **{f"GIT_{who}_NAME": "barometer" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "barometer@localhost" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": "2000-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")},
}
_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHOWN_CHANGES = 10


def _as_environment(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the environment in which settings take the place of all others."""
    env = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return env


@dataclass(frozen=True)
class Git:
    """A repository, with the work tree and the index that git uses there. If `index` is None, that
    is the repository's own index."""

    git_dir: Path
    work_tree: Path | None = None
    index: Path | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    """Settings that take the place of the repository's own."""

    def run(
        self,
        *args: str | os.PathLike[str],
        stdin: str | bytes = "",
        accept: Sequence[int] = (0,),
        doing: str = "asking git",
        timeout: float = 600,
    ) -> Finished:
        """Run `git ARGS`, in which paths are absolute. In a repository that is not ours, run only
        commands that write nothing. Raises the errors of orchestrator.base.process.run."""
        git_dir = self.git_dir.absolute()
        # barometer may itself be run by git: `git bisect run`, `git rebase --exec`, a hook
        env: dict[str, str | None] = {k: None for k in os.environ if k.startswith("GIT_")}
        env |= {"LANGUAGE": None, **_ENVIRONMENT, "GIT_DIR": str(git_dir)}
        env |= _as_environment([*_SETTINGS.items(), *self.overrides])
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
        """Return what a command prints, without the newline at its end."""
        return self.run(*args, doing=doing).stdout.rstrip("\n")


@dataclass(frozen=True)
class Commit:
    sha: str
    tree: str
    """Id of the commit's tree: its content, without history."""
    describe: str
    """Output of `git describe`: v6.12-34-g0fd06844de5d, or the short id if there is no tag."""


def find_repository(path: Path) -> Path | None:
    """Return GIT_DIR for the repository whose top level is `path`: PATH/.git (a file in a linked
    worktree or a submodule, which git follows, so that HEAD is the worktree's own), or `path` if
    that is a git dir. Return None for anything else, also for a folder inside a repository.

    Raises ScenarioError if there is a .git that git does not take for a repository.
    """
    path = path.absolute()
    inner = path / ".git"
    if inner.exists() or inner.is_symlink():
        git_dir = inner
    else:
        git_dir = path
        is_git_dir = (path / "HEAD").exists() and (path / "objects").is_dir()
        if not is_git_dir and not (path.name == ".git" and path.exists()):
            return None
    done = Git(git_dir).run("rev-parse", "--git-dir", accept=(0, 128))
    if done.returncode and git_dir == path and path.name != ".git":
        return None  # an ordinary folder with files of these names
    if done.returncode:
        raise ScenarioError(
            f"{git_dir}: git does not recognize this as a repository",
            evidence=done.stderr.strip(),
            hint="`git worktree repair` mends a worktree whose repository was moved; without .git"
            " the folder is taken as it is",
            reason=Reason.BROKEN_REPOSITORY,
        )
    return git_dir


def locate(repository: Path) -> Git:
    """Return the repository, with its work tree if it has one. The programs that its configuration
    names are out of use. Raises ScenarioError if it is not a repository, or somebody else's."""
    git_dir = find_repository(repository)
    if git_dir is None:
        raise ScenarioError(
            f"{repository} is not a git repository", reason=Reason.NO_SUCH_REPOSITORY
        )
    check_owner(git_dir, *([git_dir.parent] if git_dir.name == ".git" else []))
    keys = Git(git_dir).run("config", "--null", "--name-only", "--list").stdout.split("\0")
    git = Git(git_dir, overrides=tuple(disarm_programs(keys[:-1])))
    if git_dir.name == ".git" and git.line("rev-parse", "--is-bare-repository") == "false":
        return replace(git, work_tree=git_dir.parent)
    return git


def own_repository(folder: Path, borrowed: Path | None = None) -> Git:
    """Return the bare repository of ours in `folder`, made if it does not exist. It uses the
    objects of the repository `borrowed`, and writes nothing there."""
    git = Git(folder)
    lender = locate(borrowed) if borrowed else None
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


def find_commit(repository: Path, ref: str | None) -> Commit:
    """Return the commit that `ref` names; without a ref, the one that is checked out.

    Raises ScenarioError if the repository has no such commit. Without a ref, it is also raised if
    tracked files have uncommitted changes, or if that cannot be found out: such changes would not
    be built.
    """
    git = locate(repository)
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
            reason=Reason.NO_WORK_TREE,
        )
    changed = git.run(
        "status", "--porcelain", "--untracked-files=no", "--no-renames",
        # a submodule matters if it has another commit checked out, not for uncommitted changes
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
            reason=Reason.UNCOMMITTED_CHANGES,
        )


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def commit_id(git: Git, ref: str, repository: Path) -> str:
    """Return the full id of the commit that `ref` names. Raises ScenarioError with similar names
    if there is none."""

    def verify(name: str) -> Finished:
        return git.run("rev-parse", "--verify", "--end-of-options", name, accept=(0, 128))

    if "\0" not in ref:
        done = verify(f"{ref}^{{commit}}")
        if done.returncode == 0 and _ID.fullmatch(done.stdout.strip()):
            return done.stdout.strip()
        if "is ambiguous" in done.stderr:
            raise ScenarioError(
                f'{repository}: "{ref}" is the beginning of more than one id',
                evidence=done.stderr.strip(), hint="write more of it", reason=Reason.NO_SUCH_REF,
            )  # fmt: skip
    shown = ref.replace("\0", "\\0")
    if ref == "HEAD":
        raise ScenarioError(
            f"{repository} has no commit checked out: its HEAD names none",
            hint="commit something, or name the commit with ref",
            reason=Reason.NO_SUCH_REF,
        )
    if _ID.fullmatch(ref) is None and "\0" not in ref and verify(f"{ref}^{{object}}").stdout:
        raise ScenarioError(
            f'{repository}: "{ref}" does not name a commit', reason=Reason.NO_SUCH_REF
        )  # fmt: skip
    near = _near_refs(git, ref)
    hint = f"near: {', '.join(near)}" if near else "`git -C TREE log --all` shows what there is"
    if git.line("rev-parse", "--is-shallow-repository") == "true":
        hint += "; the repository is a shallow clone: `git fetch --unshallow` gets all commits"
    raise ScenarioError(
        f'{repository} has no commit "{shown}"', hint=hint, reason=Reason.NO_SUCH_REF
    )


def _near_refs(git: Git, ref: str) -> list[str]:
    names = git.run(
        "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes"
    ).stdout.split()
    return difflib.get_close_matches(ref, ["HEAD", *names], 3, 0.5)
