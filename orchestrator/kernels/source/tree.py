"""Build a kernel from source, with `make` alone.

The same content always gives the same image, byte for byte: the build root, and the path, time and
builder's name that the image contains, are fixed. So the base is built again after each series,
and image and modules must come out as before. That proves that no code of one arm is in the other.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.base.cache import Cache, blame_full_disk
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.hashing import digest_of, sha256_file
from orchestrator.base.plainfile import read_plain, read_plain_text
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import write_json
from orchestrator.kernels.debian.index import index_modules
from orchestrator.kernels.debian.package import bundle_at
from orchestrator.kernels.image.bundle import KernelBundle, release_in
from orchestrator.kernels.series.functions import find_definitions
from orchestrator.kernels.series.patch import Patch, series_digest, series_facts
from orchestrator.kernels.series.series import read_series
from orchestrator.kernels.source.buildlog import STEP, first_errors
from orchestrator.kernels.source.buildroot import WORK, BuildRoot, build_root
from orchestrator.kernels.source.config import Config, read_config
from orchestrator.kernels.source.results import check_results, find_result, write_input
from orchestrator.kernels.source.sources import Source, find_source
from orchestrator.kernels.source.worktree import WorkTree, work_tree
from orchestrator.scenario.kernel_forms import SourceKernel, TreeKernel

_FIXED = (
    "KBUILD_BUILD_USER=barometer",
    "KBUILD_BUILD_HOST=barometer",
    "KBUILD_BUILD_VERSION=1",
    "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
)
_IMAGE = "arch/x86/boot/bzImage"


@dataclass(frozen=True)
class _BuildSpec:
    """Everything that decides what is built."""

    source: Source
    patches: tuple[Patch, ...]
    config: Config
    root: BuildRoot
    tag: str

    def key(self, patches: Sequence[Patch]) -> dict[str, Any]:
        return {
            "kind": "tree", "schema": 2, "source": self.source.identity,
            "series": series_digest(patches) if patches else "", "config": self.config.digest,
            "root": self.root.digest, "make": _FIXED,
        }  # fmt: skip

    def suffix(self, tag: str, patches: Sequence[Patch]) -> str:
        """Return the LOCALVERSION suffix: arm and digest of the content, of fixed length."""
        return f"-{tag}-{digest_of(self.key(patches))[:8]}"


def check_source(kernel: TreeKernel | SourceKernel, cache: Cache) -> None:
    """Check source, series and configuration, unless they were checked before. Compiles nothing of
    the kernel.

    Raises ScenarioError if there is no such source, the series does not apply to it, or the
    configuration lacks an option."""
    spec = _read_spec(kernel, "base", cache)
    known = cache.folder("check_source") / digest_of(spec.key(spec.patches))
    if known.exists():
        return
    with _tree(spec, cache) as tree:
        patched = tree.patched(spec.patches)
        if any("Kconfig" in name for patch in spec.patches for name in patch.files):
            # only then: after each move, the files of the series are compiled again
            tree.move(patched)
        _Build(spec, tree, cache, Progress()).configure()
    known.touch()


def describe_source(kernel: TreeKernel | SourceKernel, cache: Cache) -> str:
    """Return a line for a plan. Raises ScenarioError if source, configuration or series cannot be
    read; does not try whether the series applies."""
    source = find_source(kernel, cache)
    read_config(kernel.config)
    read_series(kernel.series, source.users, cache)
    return f"{kernel} ({source.name})"


def build_kernel(
    kernel: TreeKernel | SourceKernel, cache: Cache, tag: str, progress: Progress
) -> KernelBundle:
    """Build the kernel, unless it was built before. `tag` is four letters for the arm.

    Raises ScenarioError for the reasons of `check_source`, or if the kernel does not build or
    lacks an option; BenchError if the base does not come out as it was before.
    """
    spec = _read_spec(kernel, tag, cache)

    def build(folder: Path) -> None:
        with _tree(spec, cache) as tree:
            _Build(spec, tree, cache, progress).into(folder)

    place = cache.entry("kernels", {**spec.key(spec.patches), "tag": tag}, build)
    made = json.loads((place / "build.json").read_text())
    # these facts do not come from the cached entry, which may have been built from the same
    # content in another place
    origin = {"from": str(kernel), "source": spec.source.facts,
              "series": series_facts(spec.patches)}  # fmt: skip
    return bundle_at(place, {**made, **origin})


def _read_spec(kernel: TreeKernel | SourceKernel, tag: str, cache: Cache) -> _BuildSpec:
    config = read_config(kernel.config)
    source = find_source(kernel, cache)
    patches = read_series(kernel.series, source.users, cache)
    return _BuildSpec(source, patches, config, build_root(cache), tag)


def _tree(spec: _BuildSpec, cache: Cache) -> AbstractContextManager[WorkTree]:
    return work_tree(
        spec.source, digest_of({"c": spec.config.digest, "r": spec.root.digest}), cache
    )


class _Build:
    def __init__(self, spec: _BuildSpec, tree: WorkTree, cache: Cache, progress: Progress) -> None:
        self._spec, self._tree, self._progress = spec, tree, progress
        self._logs = cache.folder("build-logs")
        self._seconds: dict[str, float] = {}

    def into(self, folder: Path) -> None:
        """Fill `folder` with vmlinuz, modules/, config, build.log and build.json."""
        spec, tree = self._spec, self._tree
        base, patched = tree.base(spec.patches), tree.patched(spec.patches)
        base_suffix = spec.suffix("base", ())
        if spec.patches and base_suffix not in tree.built():
            self._make(base, base_suffix, "base")
        suffix = spec.suffix(spec.tag, spec.patches)
        made = self._make(patched, suffix, "with the series" if spec.patches else "kernel")
        self._take(folder, suffix)
        proof = functions = None
        if spec.patches:
            touched = sorted({name for patch in spec.patches for name in patch.files})
            paths = [find_result(tree.work, f"source/{name}") for name in touched]
            functions = find_definitions(read_plain(path) for path in paths if path.is_file())
            proof = self._prove(base, base_suffix)
        write_json(folder / "build.json", {
            "config": {"sha256": sha256_file(folder / "config"),
                       "asked": sorted(f"CONFIG_{n}={v}" for n, v in spec.config.requested.items()
                                       if spec.config.origins[n] != "barometer's host.config")},
            "functions": functions,
            "compiler": spec.root.compiler, "build_root": spec.root.digest,
            "image_sha256": sha256_file(folder / "vmlinuz"), "built": made, "base_built": proof,
            "seconds": self._seconds,
        })  # fmt: skip

    def _make(self, tree: str, suffix: str, stage: str) -> str:
        """Build the git tree `tree` and return a digest of what was built."""
        started = time.monotonic()
        self._tree.move(tree)
        log = self._log(suffix)
        with self._progress.stage(f"build: {stage}"):
            self._configure(log)
            self._run(
                ["make", "-C", f"{WORK}/source", "O=build", f"-j{len(os.sched_getaffinity(0))}",
                 f"LOCALVERSION={suffix}", *_FIXED, "bzImage", "modules"],
                log, stage,
            )  # fmt: skip
        digest = self._digest()
        self._tree.remember(suffix, digest)
        self._seconds[stage] = round(time.monotonic() - started, 1)
        return digest

    def _digest(self) -> str:
        """Return a digest of all that was built: the image, and the modules if there are any."""
        objects = self._objects()
        order = find_result(objects, "modules.order")
        modules = read_plain_text(order).split() if order.exists() else []
        files = [_IMAGE, *(name.removesuffix(".o") + ".ko" * name.endswith(".o")
                           for name in modules)]  # fmt: skip
        return digest_of({name: sha256_file(find_result(objects, name)) for name in files})

    def _objects(self) -> Path:
        """Return the folder with what was built, which is a folder still."""
        return find_result(self._tree.work, str(self._tree.objects.relative_to(self._tree.work)))

    def configure(self) -> None:
        self._configure(self._log("-configuration"))

    def _log(self, suffix: str) -> Path:
        return self._logs / f"{self._tree.folder.name}{suffix}.log"

    def _configure(self, log: Path) -> None:
        """Make the .config that is requested, and check it. LOCALVERSION has no effect on it."""
        config, objects = self._spec.config, self._objects()
        objects.mkdir(exist_ok=True)
        write_input(objects, "barometer.config", config.text())
        target = [f"KCONFIG_ALLCONFIG={WORK}/source/build/barometer.config", config.target]
        if config.whole is not None:
            write_input(objects, ".config", config.text())
            target = [config.target]
        self._run(["make", "-C", f"{WORK}/source", "O=build", *target], log, "configuration")
        made = read_plain_text(find_result(objects, ".config"), errors="replace")
        config.check(made, self._spec.source.name)

    def _take(self, folder: Path, suffix: str) -> None:
        objects = self._objects()
        shutil.copyfile(find_result(objects, _IMAGE), folder / "vmlinuz")
        shutil.copyfile(find_result(objects, ".config"), folder / "config")
        release = release_in(folder / "vmlinuz")
        install = find_result(self._tree.work, "install")
        shutil.rmtree(install, ignore_errors=True)
        log = self._log(suffix)
        shutil.copyfile(log, folder / "build.log")
        self._run(
            ["make", "-C", f"{WORK}/source", "O=build", f"INSTALL_MOD_PATH={WORK}/install",
             "INSTALL_MOD_STRIP=1", "DEPMOD=true", f"LOCALVERSION={suffix}", *_FIXED,
             "modules_install"],
            log, "modules",
        )  # fmt: skip
        installed = find_result(install, f"lib/modules/{release}")
        for link in ("build", "source"):
            (installed / link).unlink(missing_ok=True)
        shutil.copytree(check_results(installed), folder / "modules", symlinks=True)
        shutil.rmtree(install)
        index_modules(folder, release)

    def _prove(self, base: str, suffix: str) -> str:
        """Build the base once more and return its digest. Raises BenchError if the digest has
        changed."""
        before = self._tree.built()[suffix]
        after = self._make(base, suffix, "base once more, as proof")
        if after != before:
            self._tree.forget()
            raise BenchError(
                "the base does not come out as it was before the series: its digest was"
                f" {before}, now {after}",
                hint="its objects were removed: run again, which builds all of it",
                reason=Reason.BASE_NOT_REPRODUCED,
            )
        return after

    def _run(self, argv: list[str], log: Path, stage: str) -> None:
        code = self._spec.root.run(
            argv, work=self._tree.work, doing="building a kernel", log=log,
            on_line=_shown(self._progress),
        )  # fmt: skip
        if code:
            output = log.read_text(errors="replace")
            blame_full_disk(output, self._tree.folder)
            raise ScenarioError(
                f"{self._spec.source.name} does not build ({stage})",
                evidence=first_errors(output),
                hint=f"the whole log: {log}", reason=Reason.BUILD_FAILED,
            )  # fmt: skip


def _shown(progress: Progress) -> Callable[[str], None]:
    """Return a function that shows each step of make, and how many there have been."""
    steps = 0

    def show(line: str) -> None:
        nonlocal steps
        if STEP.fullmatch(line):
            steps += 1
            progress.detail(f"{steps}: {line.strip()}")

    return show
