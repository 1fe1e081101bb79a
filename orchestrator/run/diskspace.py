"""Name the disk that is full: an error of write(2) does not name its file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.base.cache import NO_SPACE, Cache, disk_full, has_no_room
from orchestrator.machine.runner.state import SHM
from orchestrator.machine.runner.state import default_state_folder as state_root


@contextlib.contextmanager
def no_space_explained(out: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that says so, with what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno in NO_SPACE:
            raise disk_full(next(iter(find_full_places(out)), out)) from exc
        raise


def find_full_places(*folders: Path) -> list[Path]:
    """Return those of the folders, and of the folders to which every run writes, whose disks are
    full."""
    own = (Cache().root, state_root(), Path(tempfile.gettempdir()), SHM)
    return [path for path in (*folders, *own) if path.exists() and has_no_room(path)]
