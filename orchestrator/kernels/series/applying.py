"""Apply patches to a git tree in an index of our own, without a work tree.

The index holds only what the patches touch, so a patch costs the same on a kernel of 96 000
files as on a small tree; the whole tree is put together once, at the end.
"""

from __future__ import annotations

import difflib
import re
import signal
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from orchestrator.base.errors import ScenarioError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.kernels.series.git import Git
from orchestrator.kernels.series.patch import Hunk, Patch, check_strip

# error: patch failed: drivers/vfio/vfio.c:120
_FAILED = re.compile(r"error: patch failed: (?P<path>.+):(?P<line>\d+)")
_MISSING = re.compile(r"error: (?P<path>.+): does not exist in index")
_THERE = re.compile(r"error: (?P<path>.+): already exists in index")
_ANSWERS = (0, 1, 128, -signal.SIGABRT)
"""Exit codes of `git apply` for a patch that does not apply. Some contradictory patches make an
assertion fail, which aborts it."""
_SHOWN_LINES = 16
_SHOWN_AROUND = 2
_PATHS_AT_ONCE = 500
_OTHER_VERSION = "the series is for another version of the tree: rebase it, or name another ref"


@dataclass(frozen=True)
class _Entry:
    """A file, or a submodule."""

    mode: str
    sha: str
    path: str


def apply_patches(git: Git, tree: str, patches: Sequence[Patch]) -> str:
    """Apply all patches to `tree`, in their order and without fuzz; return the new tree's id.

    `git` is a repository of ours that has the tree's objects. Only new objects and temporary
    indexes are written to it: no file and no ref. A tree of only the files that the patches touch
    is enough. Raises ScenarioError (series-does-not-apply) with the place, the lines that the
    patch expects there and the lines that the file has.
    """
    if not patches:
        return tree
    diffs = [diff for patch in patches for diff in patch.diffs]
    whole_names = {f"{d.stripped}/{d.new or d.old}" for d in diffs if d.stripped}
    paths = _with_folders({name for patch in patches for name in patch.files} | whole_names)
    with tempfile.TemporaryDirectory(dir=git.git_dir, prefix="applying-") as scratch:
        folder = Path(scratch)
        partial = replace(git, work_tree=None, index=folder / "partial")
        before, folders = _entries(partial, tree, paths)
        _fill(partial, before)
        step = partial.line("write-tree", "--missing-ok")
        for patch in patches:
            which = f'patch {patch.number} of {len(patches)} ("{patch.subject}", {patch.origin})'
            check_strip(patch, which, before, folders)
            _check_folders(patch, folders, which)
            done = partial.run("apply", "--cached", "--verbose", stdin=patch.text,
                               accept=_ANSWERS, doing=f"applying {which}")  # fmt: skip
            if done.returncode:
                hint = _already(partial, patch) or _all_there(
                    replace(partial, index=folder / "again"), before, patches
                )
                raise _Failure(partial, tree, patch, which, done.stderr, hint).error()
            step = _changed(partial, step, patch, which, done.stderr)
        after, _ = _entries(partial, step, paths)
        whole = replace(partial, index=folder / "whole")
        whole.run("read-tree", tree, doing="reading a tree")
        _fill(whole, after, removed=[e for path, e in before.items() if path not in after])
        return whole.line("write-tree", doing="writing a tree")


def _check_folders(patch: Patch, folders: Iterable[str], which: str) -> None:
    """Raise ScenarioError if a patch writes a file where the tree has a folder.

    git cannot see this in the index, which has no folders.
    """
    if wrong := {diff.new for diff in patch.diffs}.intersection(folders):
        raise ScenarioError(
            f"{which} does not apply: {', '.join(map(str, wrong))} is a folder in the tree",
            hint=_OTHER_VERSION, reason=Reason.SERIES_DOES_NOT_APPLY,
        )  # fmt: skip


def _changed(git: Git, step: str, patch: Patch, which: str, output: str) -> str:
    """Return the id of the partial tree after a patch that git reports as applied.

    `step` is the id before it. Raises ScenarioError if git skipped part of the patch, or if the
    patch changes nothing.
    """
    # git also reports success if it skips something: a path that it takes to be outside of its
    # work tree, text that it does not take for a diff
    seen = len(re.findall(r"(?m)^Checking patch ", output))
    if seen != len(patch.diffs) or "Skipped patch" in output:
        raise ScenarioError(
            f"{which}: git sees {seen} of its {len(patch.diffs)} changes of files",
            evidence=tail(output), reason=Reason.DAMAGED_PATCH,
        )  # fmt: skip
    following = git.line("write-tree", "--missing-ok")
    if following == step:
        raise ScenarioError(f"{which} changes nothing", reason=Reason.PATCH_CHANGES_NOTHING)
    return following


def _already(git: Git, patch: Patch) -> str:
    reverse = ("apply", "--cached", "--check", "--reverse")
    done = git.run(*reverse, stdin=patch.text, accept=_ANSWERS)
    if done.returncode:
        return ""
    return "it applies in reverse: is it in the tree already? Then leave it out"


def _all_there(git: Git, before: Mapping[str, _Entry], patches: Sequence[Patch]) -> str:
    """Return a hint if the whole series applies in reverse, else "".

    A patch that later ones build on does not apply in reverse by itself (`_already`).
    """
    _fill(git, before)
    for patch in reversed(patches):
        if git.run("apply", "--cached", "--reverse", stdin=patch.text, accept=_ANSWERS).returncode:
            return ""
    return "the whole series applies in reverse: is it in the tree already?"


def _with_folders(paths: Iterable[str]) -> list[str]:
    """Return the paths and all folders above them: the tree may have a file there."""
    every = {path for file in paths for path in (file, *map(str, PurePosixPath(file).parents))}
    return sorted(every - {"."})


def _entries(git: Git, tree: str, paths: Sequence[str]) -> tuple[dict[str, _Entry], list[str]]:
    """Return the tree's entries at the paths, and those of the paths that are folders."""
    entries, folders = {}, []
    for at in range(0, len(paths), _PATHS_AT_ONCE):
        some = paths[at : at + _PATHS_AT_ONCE]
        for line in git.run("ls-tree", "-t", "-z", tree, "--", *some).stdout.split("\0")[:-1]:
            head, _, path = line.partition("\t")  # MODE KIND ID<tab>PATH
            mode, kind, sha = head.split()
            if kind == "tree":
                folders.append(path)
            else:
                entries[path] = _Entry(mode, sha, path)
    return entries, folders


def _fill(git: Git, entries: Mapping[str, _Entry], removed: Iterable[_Entry] = ()) -> None:
    """Put `entries` into the index and take `removed` out of it."""
    lines = [f"0 {'0' * len(e.sha)}\t{e.path}\0" for e in removed]
    lines += [f"{e.mode} {e.sha}\t{e.path}\0" for e in entries.values()]
    git.run("update-index", "-z", "--index-info", stdin="".join(lines))


@dataclass(frozen=True)
class _Failure:
    """A patch that git did not apply, and what explains why."""

    git: Git
    tree: str
    patch: Patch
    which: str
    output: str
    hint: str
    """Advice that is known already; empty if there is none."""

    def error(self) -> ScenarioError:
        for line in self.output.splitlines():
            if match := _FAILED.fullmatch(line):
                return self._at(match["path"], int(match["line"]))
            if match := _MISSING.fullmatch(line):
                return self._missing(match["path"])
            if match := _THERE.fullmatch(line):
                path = match["path"]
                return self._error(f"it makes {path}, which is there already", self.output,
                                   self.hint or _OTHER_VERSION)  # fmt: skip
        return self._error("git rejects it", tail(self.output), self.hint)

    def _error(self, why: str, evidence: str, hint: str) -> ScenarioError:
        return ScenarioError(
            f"{self.which} does not apply: {why}",
            evidence=evidence, hint=hint, reason=Reason.SERIES_DOES_NOT_APPLY,
        )  # fmt: skip

    def _missing(self, path: str) -> ScenarioError:
        names = self.git.run("ls-tree", "-r", "-z", "--name-only", self.tree).stdout.split("\0")
        place = PurePosixPath(path)
        moved = [n for n in names if n and PurePosixPath(n).name == place.name]
        beside = [n for n in names if n and PurePosixPath(n).parent == place.parent]
        if moved:
            near = f", but {difflib.get_close_matches(path, moved, 1, 0)[0]}"
        else:
            near = nearest_name(path, beside)
        return self._error(f"the tree has no file {path}{near}", "",
                           self.hint or _OTHER_VERSION)  # fmt: skip

    def _at(self, path: str, line: int) -> ScenarioError:
        hunks = [
            hunk
            for diff in self.patch.diffs
            if path in (diff.old, diff.new)
            for hunk in diff.hunks
            if hunk.old_start == line
        ]
        done = self.git.run("cat-file", "blob", f":{path}", accept=(0, 128))
        if not hunks or done.returncode:
            return self._error(f"{path}, line {line}", tail(self.output), self.hint)
        content = done.stdout.removesuffix("\n").split("\n")  # a form feed ends no line
        expected = [text.decode("utf-8", "replace").rstrip("\r") for text in hunks[0].before]
        hint = self.hint
        if not hint and _is_in(_bare(expected), _bare(content)):
            hint = (
                "only white space differs: a mail program or an editor changed the patch; take"
                " the file that `git format-patch` makes"
            )
        evidence = [
            f"the patch, for line {line}:",
            *_shown(hunks[0]),
            f"{path} has there:",
            *_numbered(content, _nearest(expected, content, line), len(expected)),
        ]
        return self._error(
            f"{path}, line {line}", "\n".join(evidence), hint or _OTHER_VERSION
        )  # fmt: skip


def _shown(hunk: Hunk) -> list[str]:
    lines = [f"  {text.decode('utf-8', 'replace').rstrip()}" for text in hunk.lines]
    return [*lines[:_SHOWN_LINES], *(["  ..."] if len(lines) > _SHOWN_LINES else [])]


def _numbered(content: Sequence[str], start: int, length: int) -> list[str]:
    """Return `length` lines from index `start` on, and a few around them, with their numbers."""
    first = max(0, start - _SHOWN_AROUND)
    last = min(len(content), start + min(length, _SHOWN_LINES) + _SHOWN_AROUND)
    if first >= last:
        return ["  (the file ends before it)"] if content else ["  (the file is empty)"]
    return [f"  {number + 1}: {content[number]}" for number in range(first, last)]


def _nearest(expected: Sequence[str], content: Sequence[str], line: int) -> int:
    """Return the index at which most of the expected lines match; among several, the one nearest
    to `line`."""
    where: dict[str, list[int]] = {}
    for number, text in enumerate(content):
        where.setdefault(text, []).append(number)
    votes: dict[int, int] = {}
    for offset, text in enumerate(expected):
        if text.strip():  # blank lines are everywhere
            for number in where.get(text, ()):
                votes[number - offset] = votes.get(number - offset, 0) + 1
    nominal = max(0, line - 1)
    votes.setdefault(nominal, 0)
    return max(0, max(votes, key=lambda at: (votes[at], -abs(at - nominal))))


def _bare(lines: Iterable[str]) -> list[str]:
    return ["".join(line.split()) for line in lines]


def _is_in(some: Sequence[str], every: Sequence[str]) -> bool:
    """True if there are lines in `some` and they follow one another in `every`."""
    return any(
        every[at : at + len(some)] == some for at in range(len(every) - len(some) + 1)
    ) and bool(some)
