"""Lock a folder of evidence, so that only one process at a time writes in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.reasons import Reason

LOCK = ".lock"
"""The file in the folder that is locked. It is no evidence, and is removed with the lock. A file
that a killed process left locks nothing."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Reserve `folder` for writes of this process while the block runs. The lock file is in the
    folder itself. So it works for every path, mount or container through which a run reaches the
    folder, and for other machines if the folder is on an NFS server with locks. A missing folder
    is created, and removed again if it stays empty.

    Raises ScenarioError if another process is at work there or nothing can be written there, and
    BenchError if the file system has no locks.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except (PermissionError, FileExistsError, NotADirectoryError, FileNotFoundError) as exc:
        # in /proc there is not even a place for a file that is new
        raise _unwritable(folder, exc) from exc
    except OSError as exc:
        if exc.errno in _NO_LOCKS:
            raise BenchError(
                f"{folder}: its file system has no locks ({exc.strerror})",
                hint="give an --out on another file system", reason=Reason.NO_LOCKS,
            ) from exc  # fmt: skip
        if exc.errno == errno.EROFS:
            raise _unwritable(folder, exc) from exc
        raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_at(lock, folder / LOCK):
                (folder / LOCK).unlink()  # still locked: whoever has it open sees that it is gone
        os.close(lock)
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _unwritable(folder: Path, exc: OSError) -> ScenarioError:
    return ScenarioError(
        f"nothing can be written in {folder}: {exc.strerror}",
        hint="give another --out", reason=Reason.OUT_UNWRITABLE,
    )  # fmt: skip


def _lock(folder: Path) -> int:
    """Open and lock the file; return its descriptor. Programs that are started do not inherit
    it."""
    path = folder / LOCK
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, path):
                return lock
        except BlockingIOError as exc:
            os.close(lock)
            raise ScenarioError(
                f"another process is at work in {folder}", reason=Reason.RUN_EXISTS
            ) from exc
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _is_at(lock: int, path: Path) -> bool:
    """True if the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False
