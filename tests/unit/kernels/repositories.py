"""Real git repositories for tests, without this machine's settings."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A. Developer",
    "GIT_AUTHOR_EMAIL": "developer@example.org",
    "GIT_COMMITTER_NAME": "A. Developer",
    "GIT_COMMITTER_EMAIL": "developer@example.org",
    "GIT_AUTHOR_DATE": "2024-05-06T07:08:09Z",
    "GIT_COMMITTER_DATE": "2024-05-06T07:08:09Z",
}


def git(folder: Path, *args: str | Path, stdin: bytes = b"") -> bytes:
    """Return git's output without the last newline."""
    done = subprocess.run(
        ["git", *args], cwd=folder, input=stdin, env=_ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.removesuffix(b"\n")


def new_repository(folder: Path, files: Mapping[str, str | bytes | None] | None = None) -> Path:
    """Make a repository with one commit of `files`."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "first", files or {"README": "a tree\n"})
    return folder


def commit(folder: Path, message: str, files: Mapping[str, str | bytes | None]) -> str:
    """Write files (None removes one), commit them, and return the commit's id."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", message)
    return head(folder)


def head(folder: Path, name: str = "HEAD") -> str:
    return git(folder, "rev-parse", name).decode()


def tree_of(folder: Path, name: str = "HEAD") -> str:
    return head(folder, f"{name}^{{tree}}")


def state_of(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return everything in a folder, .git included: modes, modification times, contents.

    If git would write an object again, it touches the existing one, even in a repository that only
    lends it, so that it is not pruned. The times of objects therefore do not count.
    """
    state = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        is_file = path.is_file() and not path.is_symlink()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
        is_object = folder / ".git/objects" in path.parents
        state[str(path)] = (stat.st_mode, 0 if is_object else stat.st_mtime_ns, content)
    return state
