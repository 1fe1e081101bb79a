"""Keep one source tree and one object tree for all kernels of one origin and configuration. They
are built there one after the other: what a series or another commit does not touch is not compiled
again.

    CACHE/worktrees/KEY/work/source         the source; a git index of ours knows its state
    CACHE/worktrees/KEY/work/source/build   make's O=
    CACHE/worktrees/KEY/git                 that index, and objects that are not the user's
    CACHE/worktrees/KEY/built.json          a digest of each kernel that was built here

For a git repository, the index has all files, and the objects are the repository's own. For a
tarball, it has only the files that a series touches.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import Timeout

from orchestrator.base.cache import Cache
from orchestrator.base.hashing import digest_of
from orchestrator.base.plainfile import read_plain_text
from orchestrator.base.process import run
from orchestrator.evidence.layout import write_json
from orchestrator.kernels.series.applying import apply_patches
from orchestrator.kernels.series.git import Git, own_repository
from orchestrator.kernels.series.patch import Patch
from orchestrator.kernels.source.sources import Source

_KEPT_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class WorkTree:
    folder: Path
    source: Source

    @property
    def work(self) -> Path:
        """Folder that is mounted in the build root."""
        return self.folder / "work"

    @property
    def sources(self) -> Path:
        return self.work / "source"

    @property
    def objects(self) -> Path:
        # a direct child of the source: then every path in the objects is relative
        return self.sources / "build"

    @property
    def git(self) -> Git:
        return Git(self.folder / "git", work_tree=self.sources)

    def base(self, patches: Sequence[Patch]) -> str:
        """Return the git tree without any series. For a tarball it has only the files that some
        series touches, `patches` included, and no series may be applied in the folder during the
        call."""
        if self.source.repository is not None:
            return self.source.identity
        known = set(self.git.run("ls-files", "-z").stdout.split("\0"))
        new = [
            name
            for name in dict.fromkeys(n for p in patches for n in p.files)
            if name not in known and (self.sources / name).is_file()
        ]
        if new:
            # the index itself is replaced last: on the way back to the base, git removes a file
            # that is in the index and not in the base
            index, own = self.folder / "index.new", self.folder / "git/index"
            index.unlink(missing_ok=True)
            if own.exists():
                shutil.copyfile(own, index)
            git = replace(self.git, index=index)
            git.run("add", "--force", "--", *new, doing="reading what a series touches")
            beside = self._base.with_suffix(".new")
            beside.write_text(git.line("write-tree"))
            beside.rename(self._base)
            index.rename(own)
        return self._base.read_text() if self._base.exists() else self.git.line("write-tree")

    @property
    def _base(self) -> Path:
        """File that contains the id of a tarball's git tree without any series."""
        return self.folder / "base"

    def restore(self) -> None:
        """Bring back the source without a series, in whatever state the last use left the
        folder."""
        (self.folder / "git/index.lock").unlink(missing_ok=True)  # from a run that was killed
        if self.source.repository is not None or self._base.exists():
            self.move(self.base(()))

    def patched(self, patches: Sequence[Patch]) -> str:
        """Return the git tree with the series, and leave the folder as it is. Raises ScenarioError
        if a patch does not apply."""
        return apply_patches(self.git, self.base(patches), patches)

    def move(self, tree: str) -> None:
        """Bring the source folder to `tree`. Only files that differ are written."""
        self.git.run("read-tree", "--reset", "-u", tree, doing="preparing the source")

    # what was built ------------------------------------------------------------------------------

    def built(self) -> dict[str, str]:
        """Return the digest of each kernel that was built here, by the suffix of its release,
        which identifies its content."""
        try:
            return dict(json.loads(read_plain_text(self.folder / "built.json")))
        except (OSError, ValueError, TypeError, RecursionError):
            return {}

    def remember(self, suffix: str, digest: str) -> None:
        write_json(self.folder / "built.json", {**self.built(), suffix: digest})

    def forget(self) -> None:
        """Remove all objects, and the record of what was built."""
        shutil.rmtree(self.objects, ignore_errors=True)
        (self.folder / "built.json").unlink(missing_ok=True)


@contextmanager
def work_tree(source: Source, configuration: str, cache: Cache) -> Iterator[WorkTree]:
    """Lock the tree for one origin and `configuration` (a digest) while the block runs. It is made
    if it does not exist, and begins without a series."""
    key = digest_of({"origin": source.origin, "configuration": configuration, "schema": 1})
    folder = cache.folder("worktrees") / key
    with cache.held(f"worktrees/{key}"):
        tree = WorkTree(folder, source)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _remove_unused(cache)
            _make(tree)
        (folder / "ready").touch()
        tree.restore()
        yield tree


def _remove_unused(cache: Cache) -> None:
    """Remove the trees that nobody has used for 30 days: each takes gigabytes."""
    for ready in cache.folder("worktrees").glob("*/ready"):
        lock = cache.lock(f"worktrees/{ready.parent.name}")
        with contextlib.suppress(Timeout, FileNotFoundError), lock.acquire(timeout=0):
            if time.time() - ready.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(ready.parent, ignore_errors=True)


def _make(tree: WorkTree) -> None:
    tree.sources.mkdir(parents=True)
    own_repository(tree.git.git_dir, tree.source.repository)
    if tree.source.tarball is not None:
        run(["tar", "-x", "--no-same-owner", "--strip-components=1", "-f", tree.source.tarball,
             "-C", tree.sources], doing=f"unpacking {tree.source.name}", timeout=1800)  # fmt: skip
