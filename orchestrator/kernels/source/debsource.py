"""Get the headers of a kernel, to build modules against, and its source from Debian's archive.
Both are cached by the hashes of the packages; only the requested parts of the source are unpacked.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason
from orchestrator.kernels.debian import package
from orchestrator.kernels.debian.apt import AptArchive, Package
from orchestrator.kernels.source.sources import package_source
from orchestrator.scenario.kernel_forms import DebKernel

_RELEASE = re.compile(r"linux-image-([0-9].*?)(-unsigned)?")
_MAKEFILES = ("*/Makefile*", "*/Kbuild*")


@dataclass(frozen=True)
class DebSource:
    """The packages from which modules of one kernel package are built."""

    release: str
    """Kernel release, as `uname -r` prints it."""
    version: str
    """Version of the source, which all these packages have."""
    archive: AptArchive
    source: Package
    """The package linux-source-X.Y."""
    headers: tuple[Package, ...]
    """The packages linux-headers-RELEASE, the common headers and linux-kbuild."""
    cache: Cache
    _trees: dict[frozenset[str], Path] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def kbuild(self) -> str:
        """Folder of the headers in the build root."""
        return f"/usr/src/linux-headers-{self.release}"

    @cached_property
    def headers_layer(self) -> Path:
        """Folder with the headers, to lay over the build root (BuildRoot.run)."""
        key = {"kind": "headers", "schema": 1, "packages": sorted(p.sha256 for p in self.headers)}

        def build(folder: Path) -> None:
            tree = folder / "tree"
            tree.mkdir()
            for deb in self.archive.download(list(self.headers), folder):
                run(["dpkg-deb", "--extract", deb, tree], doing=f"unpacking {deb.name}")
                deb.unlink()
            # only usr/src and usr/lib: a folder `lib` in the layer would hide the link /lib of the
            # build root
            (folder / "layer/usr/lib").mkdir(parents=True)
            (tree / "usr/src").rename(folder / "layer/usr/src")
            for kbuild in tree.glob("usr/lib/linux-kbuild-*"):
                kbuild.rename(folder / "layer/usr/lib" / kbuild.name)
            shutil.rmtree(tree)

        return self.cache.entry("headers", key, build) / "layer"

    @property
    def srctree(self) -> str:
        """Folder in which the Makefiles of the headers look for the kernel's source."""
        (common,) = (p.name for p in self.headers if p.name.endswith("-common"))
        return f"/usr/src/{common}"

    @property
    def scripts(self) -> str:
        """Folder of the programs that a build runs. They are in linux-kbuild, to which the headers
        have a link."""
        link = (self.kbuild_files / "scripts").readlink()
        return posixpath.normpath(f"{self.kbuild}/{link}")

    @property
    def kbuild_files(self) -> Path:
        """Folder of the headers (`kbuild`) on this machine."""
        return self.headers_layer / self.kbuild[1:]

    @cached_property
    def configuration(self) -> dict[str, str]:
        """CONFIG_ symbols that are set, with their values."""
        lines = (self.kbuild_files / "include/config/auto.conf").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines if line.startswith("CONFIG_"))

    @cached_property
    def names(self) -> frozenset[str]:
        """Path of every file of the source."""
        key = {"kind": "names", "schema": 1, "package": self.source.sha256}

        def build(folder: Path) -> None:
            listing = run(["tar", "--list", "--file", self._tarball], doing="listing the source")
            names = (line.partition("/")[2] for line in listing.stdout.splitlines())
            text = "\n".join(sorted(n for n in names if n and not n.endswith("/")))
            (folder / "names.txt").write_text(text + "\n")

        place = self.cache.entry("trees", key, build)
        return frozenset((place / "names.txt").read_text().splitlines())

    @property
    def _tarball(self) -> Path:
        tarball = package_source(self.archive, self.source, self.cache).tarball
        assert tarball is not None, "a source package has one"
        return tarball

    def tree(self, parts: Collection[str]) -> Path:
        """Unpack these folders and files of the source, and every Makefile, and return the folder
        that has them at their places, read-only. It may hold more, if more is unpacked already."""
        for unpacked, place in self._trees.items():
            if unpacked.issuperset(parts):
                return place
        # tar reports a folder as missing if the list also has one above it: kernel, kernel/sched
        tops = sorted(p for p in parts if not any(p.startswith(f"{other}/") for other in parts))
        key = {"kind": "tree", "schema": 1, "package": self.source.sha256, "parts": tops}

        def build(folder: Path) -> None:
            (folder / "tree").mkdir()
            run(["tar", "--extract", "--no-same-owner", "--strip-components=1", "--wildcards",
                 "--file", self._tarball, "--directory", folder / "tree",
                 *_MAKEFILES, *[f"{self.source.name}/{part}" for part in tops]],
                doing="unpacking the source")  # fmt: skip

        place = self.cache.entry("trees", key, build) / "tree"
        self._trees[frozenset(parts)] = place
        return place

    def facts(self) -> dict[str, Any]:
        """Return the packages, for a bundle's provenance."""
        return {"package": asdict(self.source), "headers": [asdict(p) for p in self.headers]}


def find_package_source(kernel: DebKernel, cache: Cache) -> DebSource:
    """Look up the kernel's headers and source in the archive. Downloads nothing.

    Raises ScenarioError if the archive has no such kernel, or no headers or source of the same
    version; BenchError if it cannot be reached."""
    archive, packages = package.find_packages(kernel, cache)
    images = [(p, m[1]) for p in packages if (m := _RELEASE.fullmatch(p.name))]
    if len(images) != 1:
        raise ScenarioError(
            f"{kernel}: expected one kernel image, found {len(images) or 'none'} in "
            + ", ".join(p.name for p in packages),
            reason=Reason.NOT_A_KERNEL,
        )
    image, release = images[0]
    version = re.sub(r"\+b[0-9]+$", "", image.version)

    def look_up() -> dict[str, Any]:
        headers = [
            asdict(p)
            for p in _of_version(archive, f"linux-headers-{release}", version)
            if p.name.startswith(("linux-headers-", "linux-kbuild-"))
        ]
        series = ".".join(release.split(".")[:2])
        name = "linux-source-" + re.sub(r"[^0-9.].*", "", series)
        (source,) = (p for p in _of_version(archive, name, version) if p.name == name)
        return {"headers": headers, "source": asdict(source)}

    answer = archive.remembered(f"source of {image.name}={image.version}", look_up)
    return DebSource(
        release=release, version=version, archive=archive, source=Package(**answer["source"]),
        headers=tuple(Package(**p) for p in answer["headers"]), cache=cache,
    )  # fmt: skip


def _of_version(archive: AptArchive, name: str, version: str) -> list[Package]:
    """Return the package of exactly that version and all it depends on. Raises ScenarioError if
    the archive does not have it."""
    available = archive.versions(name)
    if version not in [v for v, _ in available]:
        listed = ", ".join(f"{v} ({suite})" for v, suite in available) or "none"
        raise ScenarioError(
            f"{' '.join(archive.suites)}: no package {name} {version}, without which modules of"
            f" that kernel cannot be built; there is {listed}",
            hint="an archive keeps the sources of its newest kernels: name a suite, not a version",
            reason=Reason.NO_SUCH_SOURCE,
        )
    return archive.dependencies(name, version)
