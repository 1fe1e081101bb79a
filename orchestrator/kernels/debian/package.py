"""A kernel from Debian's packages, including the split packages of newer kernels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.evidence.kernel import Provenance
from orchestrator.kernels.debian.apt import KNOWN_SUITES, AptArchive, Package
from orchestrator.kernels.debian.index import index_modules
from orchestrator.kernels.image.bundle import KernelBundle, release_in
from orchestrator.scenario.kernel_forms import DebKernel

# A kernel package depends on many packages. Those that are built from these sources are the kernel
# itself: 6.12 is one package, 7.x is split into image (empty), binary, modules and base.
_KERNEL_SOURCES = ("linux", "linux-signed-amd64")
# Suites to search if the scenario names no suite.
_EVERYWHERE = ("trixie", "trixie-security", "trixie-backports")


def resolve_version(kernel: DebKernel, cache: Cache) -> tuple[str, AptArchive]:
    """Return the exact version to which `kernel` resolves now, and the archive that has it.

    Raises ScenarioError if there is no such suite, package or version.
    """
    archive = AptArchive(suites_of(kernel.suite), cache)
    archive.update()
    version = archive.remembered(
        f"version {kernel}",
        lambda: choose_version(archive, kernel.deb, kernel.version, kernel.suite, "linux-image-"),
    )
    return str(version), archive


def choose_version(
    archive: AptArchive, name: str, version: str | None, suite: str | None, start: str
) -> str:
    """Return the newest version of the package `name` that matches `version` and `suite`; None
    matches any. Raises ScenarioError if there is none. Its suggestions are names that begin with
    `start`."""
    available = archive.versions(name)
    if not available:
        near = [n for n in archive.names_like(start) if not n.endswith("-dbg")]
        raise ScenarioError(
            f'there is no package "{name}" in {" ".join(archive.suites)}'
            + nearest_name(name, near, [n for n in near if not any(map(str.isdigit, n))] or near),
            reason=Reason.NO_SUCH_PACKAGE,
        )
    for candidate, of_suite in available:
        if version in (None, candidate) and suite in (None, of_suite):
            return candidate
    listed = ", ".join(f"{candidate} ({of_suite})" for candidate, of_suite in available)
    request = name + (f"={version}" if version else "") + (f"@{suite}" if suite else "")
    raise ScenarioError(
        f"there is no {request}; there are {listed}", reason=Reason.NO_SUCH_VERSION
    )


def suites_of(suite: str | None) -> tuple[str, ...]:
    """Return the suites to search for packages of a suite and their dependencies."""
    if suite is None:
        return _EVERYWHERE
    base, _, addition = suite.partition("-")
    # the dependencies of a backport may still be in the release below it
    return (base, suite) if addition and base in KNOWN_SUITES else (suite,)


def find_packages(kernel: DebKernel, cache: Cache) -> tuple[AptArchive, list[Package]]:
    """Return the archive, and the packages in it that are this kernel. Raises as
    `resolve_version`."""
    version, archive = resolve_version(kernel, cache)

    def needed() -> list[dict[str, str]]:
        return [
            asdict(p)
            for p in archive.dependencies(kernel.deb, version)
            if p.source in _KERNEL_SOURCES
        ]

    answer = archive.remembered(f"packages {kernel.deb}={version}", needed)
    return archive, [Package(**facts) for facts in answer]


def unpack_kernel(kernel: DebKernel, cache: Cache) -> KernelBundle:
    """Download and unpack the kernel's packages; cached by their hashes."""
    version, _ = resolve_version(kernel, cache)
    archive, packages = find_packages(kernel, cache)
    key = {"kind": "deb", "schema": 2, "packages": sorted(p.sha256 for p in packages)}
    place = cache.entry("kernels", key, lambda folder: _unpack(archive, packages, folder))
    answer = [asdict(p) for p in packages]
    return bundle_at(place, {"from": str(kernel), "version": version, "packages": answer})


def _unpack(archive: AptArchive, packages: list[Package], folder: Path) -> None:
    debs, tree = folder / "debs", folder / "tree"
    debs.mkdir()
    tree.mkdir()
    for deb in archive.download(packages, debs):
        run(["dpkg-deb", "--extract", deb, tree], doing=f"unpacking {deb.name}")
    shutil.rmtree(debs)
    # 6.12 has /boot/vmlinuz-RELEASE, 7.x has /usr/lib/modules/RELEASE/vmlinuz
    images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    if len(images) != 1:
        raise BenchError(
            f"expected one vmlinuz in {', '.join(p.name for p in packages)}, found {len(images)}",
            evidence="\n".join(str(p.relative_to(tree)) for p in images),
            reason=Reason.PACKAGE_LAYOUT,
        )
    release = release_in(images[0])
    modules = tree / "usr/lib/modules" / release
    if not modules.is_dir():
        modules = tree / "lib/modules" / release
    configs = [*tree.glob("boot/config-*"), *modules.glob("config")]
    images[0].rename(folder / "vmlinuz")
    if configs:
        configs[0].rename(folder / "config")
    modules.rename(folder / "modules")
    for link in ("build", "source"):
        (folder / "modules" / link).unlink(missing_ok=True)
    shutil.rmtree(tree)
    # a package has no modules.dep; it is made when the package is installed
    index_modules(folder, release)


def bundle_at(place: Path, made_of: Mapping[str, object]) -> KernelBundle:
    """Return the bundle in a cache entry: vmlinuz, modules/, config. `made_of`: its provenance, as
    plan.json has it."""
    config = place / "config"
    return KernelBundle(
        release=release_in(place / "vmlinuz"),
        vmlinuz=place / "vmlinuz",
        modules=place / "modules",
        config=config if config.exists() else None,
        digest=place.name,
        provenance=Provenance.model_validate_json(json.dumps(made_of)),
    )
