"""Git repositories whose commits are identified by their subjects."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def git(folder: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["git", "-C", folder, *arguments], input=stdin, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def history(
    folder: Path, parents: Mapping[str, Sequence[str]], files: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Make a repository with a commit for each subject, listed after its parents; return subject
    -> id. master is at the last one; nothing is checked out. A commit changes the file `common`,
    or the one that `files` has for it. Every commit has a tag, too."""
    subprocess.run(["git", "init", "-q", "-b", "master", folder], check=True)
    marks = {subject: number for number, subject in enumerate(parents, 1)}
    stream = []
    for subject, before in parents.items():
        number, path = marks[subject], (files or {}).get(subject, "common")
        head = [f"commit refs/tags/{subject}", f"mark :{number}",
                f"committer A Developer <dev@example.org> {1700000000 + number} +0000",
                f"data {len(subject)}", subject]  # fmt: skip
        links = [f"{'merge' if i else 'from'} :{marks[one]}" for i, one in enumerate(before)]
        stream += [*head, *links, f"M 644 inline {path}", f"data {len(subject)}", subject, ""]
    stream += ["reset refs/heads/master", f"from :{len(marks)}", ""]
    git(folder, "fast-import", "--quiet", stdin="\n".join(stream))
    commits = git(folder, "rev-parse", *(f"refs/tags/{subject}" for subject in parents))
    return dict(zip(parents, commits.split(), strict=True))


def straight(folder: Path, number: int) -> dict[str, str]:
    """Make commits c0, c1, ... one after the other."""
    return history(folder, {f"c{i}": [f"c{i - 1}"] if i else [] for i in range(number)})
