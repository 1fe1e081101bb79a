"""Cache everything expensive (images, kernels) by content. Safe for two runs at once.

    ROOT/KIND/DIGEST/           what was built
    ROOT/KIND/DIGEST/entry.json the key, and size and sha256 of every file

An entry is built under another name and renamed when it is complete, so interrupted work never
looks complete. Its hashes are checked again whenever a file's size, times or inode changed since
the last check.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from orchestrator.base.errors import BenchError
from orchestrator.base.hashing import digest_of, sha256_file
from orchestrator.base.plainfile import read_plain_text
from orchestrator.base.process import run
from orchestrator.base.progress import waiting_for
from orchestrator.base.reasons import Reason

_log = logging.getLogger("barometer.cache")
_ROOM = 8 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
ENTRY = "entry.json"
VERIFIED = "verified.json"


def default_root() -> Path:
    """Return BAROMETER_CACHE, or the user's cache folder."""
    folder = os.environ.get("BAROMETER_CACHE")
    return Path(folder).absolute() if folder else user_cache_path("barometer")


class Cache:
    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def folder(self, kind: str) -> Path:
        """Create and return a folder of this cache for files that are not cached by content
        (package lists, downloads)."""
        path = self.root / kind
        path.mkdir(parents=True, exist_ok=True)
        return path

    def lock(self, name: str) -> FileLock:
        """Return a lock that one process at a time can hold, across runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / f"{name}.lock")

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold `lock(name)` while the block runs. A wait for another process is reported."""
        lock = self.lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("waiting for another run, which is at work on %s", self.root / name)
            with waiting_for(f"another run, which is at work on {self.root / name}"):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def entry(self, kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the folder of the entry for `key`. If it is missing, `build(folder)` fills it.

        A damaged entry is rebuilt. Raises BenchError if the disk is full, and whatever `build`
        raises.
        """
        digest = digest_of(key)
        place = self.folder(kind) / digest
        with self.held(f"{kind}/{digest}"):
            if os.path.lexists(place):
                if (wrong := self._damage(place)) is None:
                    return place
                _log.warning("cache: %s is damaged (%s); building it again", place, wrong)
                _remove_entry(place)
            self._sweep(kind, digest)
            beside = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=place.parent))
            try:
                build(beside)
                self._seal(beside, key)
                beside.rename(place)
            except OSError as exc:
                # shutil.Error, which collects the errors of a whole tree, has no errno
                if exc.errno in NO_SPACE or is_full(str(exc)):
                    raise disk_full(self.root) from exc
                raise
            finally:
                remove_tree(beside)
        return place

    def _sweep(self, kind: str, digest: str) -> None:
        """Remove what a killed build of this entry left. The caller holds the lock, so nobody
        builds the entry now."""
        for left in (self.root / kind).glob(f".{digest}.*"):
            remove_tree(left)

    def sweep(self) -> Iterator[Path]:
        """Remove what killed builds left of entries that nobody builds now. Yield each removed
        path."""
        for left in sorted(self.root.glob("*/.*.*")):
            lock = self.lock(f"{left.parent.name}/{left.name.split('.')[1]}")
            with contextlib.suppress(Timeout), lock.acquire(timeout=0):
                remove_tree(left)
                yield left

    def _seal(self, folder: Path, key: Mapping[str, Any]) -> None:
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                # read-only: a run that writes into the cache is a mistake of ours
                path.chmod(path.stat().st_mode & ~0o222)
                name = path.relative_to(folder).as_posix()
                files[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
        (folder / ENTRY).write_text(json.dumps({"key": key, "files": files}, indent=1))
        (folder / VERIFIED).write_text(json.dumps(_stamps(folder, files)))

    def _damage(self, place: Path) -> str | None:
        """Return what is wrong with an entry, or None."""
        files = _object_in(place / ENTRY).get("files")
        if not isinstance(files, dict) or not all(isinstance(f, dict) for f in files.values()):
            return f"{ENTRY} cannot be read"
        known = _object_in(place / VERIFIED)
        try:
            now = _stamps(place, files)
            changed = [name for name in files if known.get(name) != now[name]]
            for name in changed:
                if sha256_file(place / name) != files[name].get("sha256"):
                    return f"{name} does not have its recorded sha256"
        except FileNotFoundError as exc:
            return f"{exc.filename} is missing"
        except OSError as exc:
            return f"{exc.filename} cannot be read: {exc.strerror}"
        if changed:
            (place / VERIFIED).write_text(json.dumps(now))
        return None


def _object_in(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if the file cannot be read."""
    try:
        value = json.loads(read_plain_text(path))
    except (OSError, ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _remove_entry(place: Path) -> None:
    """Remove whatever is in the place of an entry."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


def remove_tree(path: Path) -> None:
    """Remove a folder, and what a build in a user namespace (subuid(5)) left in it."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists() and os.geteuid() != 0:
        run(["unshare", "--map-auto", "--map-root-user", "rm", "-rf", path], doing="cleaning up")


def is_full(output: str) -> bool:
    """True if a program's output reports ENOSPC or EDQUOT."""
    return os.strerror(errno.ENOSPC) in output or os.strerror(errno.EDQUOT) in output


def blame_full_disk(output: str, place: Path) -> None:
    """Raise BenchError if a program failed because of a full disk: if its output reports that, or
    if the disk of `place` has almost no free space (a compiler may not report it)."""
    if is_full(output) or has_no_room(place):
        raise disk_full(place)


def has_no_room(place: Path) -> bool:
    """True if the disk of a folder has almost no free space."""
    return shutil.disk_usage(place).free < _ROOM


def disk_full(place: Path) -> BenchError:
    return BenchError(
        f"no space left on the disk of {place}",
        hint="make room there, or set BAROMETER_CACHE (caches) or --out (runs) to a larger disk",
        reason=Reason.DISK_FULL,
    )


def _stamps(folder: Path, files: Mapping[str, Any]) -> dict[str, list[int]]:
    stamps = {}
    for name in files:
        stat = (folder / name).lstat()
        stamps[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return stamps
