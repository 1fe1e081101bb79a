"""Find the source of a kernel: a git repository, a folder, a tarball, a Debian source package.

The source is only read here; the build works on a copy (worktree.py). No folder or repository of a
user is written to.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.hashing import digest_of, sha256_file
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason
from orchestrator.kernels.debian.apt import AptArchive, Package
from orchestrator.kernels.debian.package import choose_version, suites_of
from orchestrator.kernels.series.git import (
    Git,
    find_commit,
    find_repository,
    locate,
    own_repository,
)
from orchestrator.scenario.kernel_forms import SourceKernel, TreeKernel

_TOP = ("Kbuild", "Kconfig", "Makefile")
"""Files at the top of every kernel's source; no other folder has all of them."""
_TARBALL = re.compile(r"\.tar(\.(xz|gz|bz2|zst))?$|\.t[gx]z$")


@dataclass(frozen=True)
class Source:
    """A kernel's source before any series."""

    kind: Literal["git", "folder", "tarball", "package"]
    origin: str
    """Path that the source comes from, or the digest of a tarball or package. All commits of a
    repository have one origin, so that they share a work tree."""
    identity: str
    """Identifies the content: the id of a git tree, the sha256 of a tarball or package."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts for the kernel's provenance."""
    repository: Path | None = None
    """Repository with the objects of the tree `identity`, if the kind is git or folder."""
    users: Path | None = None
    """The user's own repository, if the kind is git: a range A..B of a series names commits in
    it."""
    tarball: Path | None = None
    """The tarball, if the kind is tarball or package."""

    @property
    def name(self) -> str:
        """Name for people: `v7.3 (0123456789ab)`, a file's name, a package with its version."""
        if self.kind == "git":
            return f"{self.facts['describe']} ({self.facts['commit'][:12]})"
        if self.kind == "package":
            return f"{self.facts['name']} {self.facts['version']}"
        return Path(self.facts["path"]).name


def find_source(kernel: TreeKernel | SourceKernel, cache: Cache) -> Source:
    """Find a kernel's source. Raises ScenarioError if there is no such source, BenchError if the
    mirror cannot be reached."""
    if isinstance(kernel, SourceKernel):
        return _of_package(kernel, cache)
    path = kernel.tree
    if (repository := find_repository(path)) is not None:
        commit = find_commit(repository, kernel.ref)
        listed = locate(repository).line("ls-tree", "--name-only", commit.tree)
        _is_kernel(path, set(listed.splitlines()))
        facts = {"kind": "git", "path": str(path), "commit": commit.sha, "tree": commit.tree,
                 "describe": commit.describe}  # fmt: skip
        return Source("git", str(repository), commit.tree, facts, repository=repository,
                      users=repository)  # fmt: skip
    if kernel.ref is not None:
        raise ScenarioError(
            f"{path} is no git repository, so it has no {kernel.ref}",
            hint="leave ref out, or name the top folder of a repository",
            reason=Reason.NO_SUCH_SOURCE,
        )  # fmt: skip
    if path.is_dir():
        return _of_folder(path, cache)
    if path.is_file() and _TARBALL.search(path.name) and tarfile.is_tarfile(path):
        sha256 = sha256_file(path)
        facts = {"kind": "tarball", "path": str(path), "sha256": sha256}
        return Source("tarball", sha256, sha256, facts, tarball=path)
    raise ScenarioError(
        f"{path} is no kernel's source" if path.exists() else f"there is no {path}",
        hint="a git repository, a folder with a kernel's source, or a tarball of one",
        reason=Reason.NO_SUCH_SOURCE,
    )


def _is_kernel(path: Path, names: set[str]) -> None:
    """Raise ScenarioError if a folder with these files is not the top of a kernel's source."""
    if missing := [name for name in _TOP if name not in names]:
        raise ScenarioError(
            f"{path} is no kernel's source: it has no {' and no '.join(missing)}",
            hint="the top folder of a kernel's source, or its repository",
            reason=Reason.NO_SUCH_SOURCE,
        )  # fmt: skip


def _of_folder(path: Path, cache: Cache) -> Source:
    """Return a folder as a source. Its content becomes a git tree in a repository of ours, whose
    index remembers which files git has read, so the second time takes only a second."""
    _is_kernel(path, {name for name in _TOP if (path / name).is_file()})
    store = cache.folder("folders") / digest_of({"folder": str(path)})
    with cache.lock(f"folders/{store.name}"):
        own_repository(store)
        git = Git(store, work_tree=path)
        (store / "index.lock").unlink(missing_ok=True)  # from a run that was killed
        git.run("add", "--all", doing=f"reading {path}")
        tree = git.run("write-tree", doing=f"reading {path}").stdout.strip()
    facts = {"kind": "folder", "path": str(path), "tree": tree}
    return Source("folder", str(path), tree, facts, repository=store)


def _of_package(kernel: SourceKernel, cache: Cache) -> Source:
    archive = AptArchive(suites_of(kernel.suite), cache)
    archive.update()
    version = str(
        archive.remembered(
            f"version {kernel.source} {kernel.version} {kernel.suite}",
            lambda: choose_version(
                archive, kernel.source, kernel.version, kernel.suite, "linux-source"
            ),
        )
    )

    def with_tarball() -> list[dict[str, str]]:
        # linux-source depends on linux-source-X.Y, which has it
        needed = archive.dependencies(kernel.source, version)
        return [asdict(p) for p in needed if re.fullmatch(r"linux-source-[\d.]+", p.name)]

    packages = archive.remembered(f"source {kernel.source}={version}", with_tarball)
    if len(packages) != 1:
        raise ScenarioError(
            f"the package {kernel.source} has no kernel source",
            hint="name a package like linux-source-7.3, or linux-source",
            reason=Reason.NO_SUCH_PACKAGE,
        )  # fmt: skip
    return package_source(archive, Package(**packages[0]), cache)


def package_source(archive: AptArchive, package: Package, cache: Cache) -> Source:
    """Return the source in the package linux-source-X.Y, downloaded if it is not in the cache."""

    def build(folder: Path) -> None:
        [deb] = archive.download([package], folder)
        run(["dpkg-deb", "--extract", deb, folder / "tree"], doing=f"unpacking {deb.name}")
        tarballs = [p for p in folder.rglob("*.tar.*") if p.is_file()]
        if len(tarballs) != 1:
            raise ScenarioError(
                f"{deb.name} has no tarball of a kernel", reason=Reason.NO_SUCH_SOURCE
            )
        tarballs[0].rename(folder / tarballs[0].name)
        deb.unlink()
        shutil.rmtree(folder / "tree")

    place = cache.entry("sources", {"kind": "linux-source", "deb": package.sha256}, build)
    [tarball] = place.glob("*.tar.*")
    facts = {"kind": "package", "name": package.name, "version": package.version,
             "sha256": package.sha256}  # fmt: skip
    return Source("package", package.sha256, package.sha256, facts, tarball=tarball)
