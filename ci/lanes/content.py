"""List the files in the work tree, and digest those that a group depends on."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

LOCKS = ("ci/requirements.lock", "ci/requirements-tests.lock")


def files_in(top: Path) -> dict[str, str]:
    """Return path -> digest of mode and content for every file that git tracks or would add. Reads
    the files from the disk, committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=top, check=True, capture_output=True, text=True,
    )  # fmt: skip
    digests = {}
    for name in sorted({*listed.stdout.split("\0")} - {""}):
        path = top / name
        if path.is_symlink():
            digests[name] = _digest(b"link", bytes(path.readlink()))
        elif path.is_file():  # a tracked file may have been removed
            mode = b"x" if path.stat().st_mode & 0o100 else b"-"
            digests[name] = _digest(mode, path.read_bytes())
    return digests


def digest_of(files: Mapping[str, str]) -> str:
    """Return one digest of names and contents."""
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(files.items()))
    return _digest(lines.encode())[:16]


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
