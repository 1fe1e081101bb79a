"""Rebuild some modules of a Debian kernel package from changed sources.

First the unchanged source is built here. The result must have the same code (and the same
srcversion, if there is one) as the module in the package. This proves that the change is the only
difference between the two kernels.
"""

from __future__ import annotations

import glob
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.base.cache import Cache, blame_full_disk
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.kernels.debian import package
from orchestrator.kernels.debian.index import can_pack, index_modules, is_index_same, pack_module
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.kernels.image.ko import SUFFIX, Module, read_module
from orchestrator.kernels.module.change import (
    Files,
    PackageSource,
    SourceChange,
    check_paths,
    check_place,
    find_change,
    is_silent,
    read_folder,
)
from orchestrator.kernels.module.kbuild import room_of
from orchestrator.kernels.module.moduletree import STRIPPED, ModuleTree, write_files
from orchestrator.kernels.series.applying import apply_patches
from orchestrator.kernels.series.functions import find_definitions
from orchestrator.kernels.series.git import Git, find_commit, find_repository, own_repository
from orchestrator.kernels.series.patch import Patch, check_strip, series_digest, series_facts
from orchestrator.kernels.series.series import read_series
from orchestrator.kernels.source.buildlog import first_errors
from orchestrator.kernels.source.buildroot import WORK, BuildRoot, build_root
from orchestrator.kernels.source.debsource import DebSource, find_package_source
from orchestrator.kernels.source.results import check_results, find_result
from orchestrator.scenario.kernel_forms import ModuleKernel, is_range

FACTS = "module.json"
# Debian gives a srcversion only to modules with a MODULE_VERSION. All rebuilt modules get one, by
# which the host proves that they run. It does not change the code.
_SRCVERSION = "CONFIG_MODULE_SRCVERSION_ALL=y"


def check_modules(kernel: ModuleKernel, cache: Cache) -> None:
    """Check that the sources exist, and that the series applies and affects nothing but modules.
    Builds no module.

    Raises ScenarioError if a check fails; BenchError if the archive cannot be reached."""
    _change(kernel, find_package_source(kernel.package, cache), _Changed(kernel, cache), cache)


def rebuild_modules(kernel: ModuleKernel, cache: Cache, progress: Progress) -> KernelBundle:
    """Return the package's kernel with the rebuilt modules in place of its own, cached by content.

    Raises as `check_modules`; ScenarioError also if a module does not build, BenchError also if
    the package's own source, built here, does not give the package's module."""
    stock = package.unpack_kernel(kernel.package, cache)
    source = find_package_source(kernel.package, cache)
    changed = _Changed(kernel, cache)
    root = build_root(cache)
    key = {
        "kind": "module", "schema": 6, "package": stock.digest, "change": changed.digest,
        "source": source.source.sha256, "headers": sorted(p.sha256 for p in source.headers),
        "root": root.digest,
    }  # fmt: skip

    def build(folder: Path) -> None:
        with progress.stage(f"building modules for {source.release}"):
            change = _change(kernel, source, changed, cache)
            _build(_Workshop(stock, source, root, cache, change, progress.detail), folder)

    place = cache.entry("kernels", key, build)
    facts = json.loads((place / FACTS).read_text())
    swapped, index = facts.pop("swapped"), facts.pop("index")
    origin = {"from": str(kernel), "package": stock.provenance.to_json(),
              "series": series_facts(changed.patches)}  # fmt: skip
    return replace(package.bundle_at(place, {**facts, **origin}), swapped=swapped, index=index)


class _Changed:
    """The changed files and patches of a ModuleKernel. Reading them does not need the package's
    source."""

    def __init__(self, kernel: ModuleKernel, cache: Cache) -> None:
        self._kernel = kernel
        self.own = _own_files(kernel)
        repository = kernel.module and find_repository(kernel.module) and kernel.module
        self.patches = read_series(kernel.series, repository, cache)

    @property
    def digest(self) -> str:
        return digest_of({"own": _hashes(self.own), "series": series_digest(self.patches)})

    def files(self, source: DebSource) -> tuple[Files, Files]:
        """Return the package's files before and after the change. Raises ScenarioError if the
        series does not apply, or if a path alone shows that it affects more than modules."""
        patched = {name for patch in self.patches for name in patch.files}
        folders = {name.split("/")[0] for name in source.names if "/" in name}
        for patch in self.patches:
            check_strip(patch, f"{patch.origin} ({patch.subject})", source.names, folders)
        check_paths(sorted(patched), self._kernel, source)
        # these may equal the package's files; what they affect is checked later
        for name in self.own:
            check_place(name, source)
        paths = {*self.own, *patched}
        tree = source.tree(_parts(paths, source))
        before = {n: (tree / n).read_bytes() if n in source.names else None for n in paths}
        after = {**before, **self.own}
        return before, _patched(after, self.patches) if self.patches else after


def _parts(paths: Iterable[str], source: PackageSource) -> set[str]:
    """Return the parts of the tree that are needed to see what a change of these files does."""
    rooms = {room_of(name) for name in paths if not is_silent(name)}
    rooms = {room for room in rooms if any(name.startswith(f"{room}/") for name in source.names)}
    return rooms | {name for name in paths if is_silent(name) and name in source.names}


def _own_files(kernel: ModuleKernel) -> dict[str, bytes]:
    """Return the source files in the folder `module`. Raises ScenarioError if it has none, or if
    it is the tree of a whole kernel."""
    folder = kernel.module
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ScenarioError(f"module: {folder} is not a folder", reason=Reason.NO_SUCH_FOLDER)
    if kernel.ref is not None:
        return _committed(folder, kernel.ref)
    if (folder / "MAINTAINERS").exists() and (folder / "kernel").is_dir():
        if any(map(is_range, kernel.series)):
            return {}  # `module` only names the repository of the range
        raise _whole_kernel(folder)
    return _some(read_folder(folder), str(folder))


def _committed(folder: Path, ref: str) -> dict[str, bytes]:
    """Return the source files of a commit."""
    commit = find_commit(folder, ref)
    with tempfile.TemporaryDirectory() as scratch:
        git = own_repository(Path(scratch) / "git", folder)
        top = git.line("ls-tree", "--name-only", commit.tree).splitlines()
        if {"MAINTAINERS", "kernel"} <= set(top):
            raise _whole_kernel(folder)
        return _some(read_folder(_checked_out(git, commit.tree, Path(scratch))), f"{folder}@{ref}")


def _some(files: dict[str, bytes], where: str) -> dict[str, bytes]:
    if not files:
        raise ScenarioError(
            f"module: {where} holds no source file (.c, .h, .S)",
            hint="put the changed files there at their places in a kernel's tree:"
            " drivers/vfio/vfio_iommu_type1.c",
            reason=Reason.NO_SOURCES,
        )
    return files


def _whole_kernel(folder: Path) -> ScenarioError:
    return ScenarioError(
        f"module: {folder} is a whole kernel's tree, which cannot take the place of the package's",
        hint='say only what is changed: series = ["BASE..BRANCH"] beside it, or patches',
        reason=Reason.WHOLE_KERNEL,
    )


def _patched(files: Files, patches: Sequence[Patch]) -> Files:
    """Return the files with all patches applied; None for those that the patches remove."""
    with tempfile.TemporaryDirectory() as scratch:
        unpatched = Path(scratch) / "unpatched"
        write_files(files, unpatched)
        git = own_repository(Path(scratch) / "git")
        seeing = replace(git, work_tree=unpatched, index=Path(scratch) / "index")
        seeing.run("add", "--all", "--force", ".", doing="keeping the package's files")
        tree = apply_patches(git, seeing.line("write-tree"), patches)
        made = _checked_out(git, tree, Path(scratch))
        check_results(made)
        names = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
        return {n: (made / n).read_bytes() if n in names else None for n in {*files, *names}}


def _checked_out(git: Git, tree: str, scratch: Path) -> Path:
    """Write the files of a git tree into a new folder and return it."""
    place = scratch / "made"
    place.mkdir()
    seeing = replace(git, work_tree=place, index=scratch / "made.index")
    seeing.run("read-tree", tree, doing="reading a tree")
    seeing.run("checkout-index", "--all", "--force", doing="writing a tree's files")
    return place


def _change(
    kernel: ModuleKernel, source: DebSource, changed: _Changed, cache: Cache
) -> SourceChange:
    root = build_root(cache)
    _check_compiler(source, root)
    before, after = changed.files(source)
    return find_change(kernel, source, before, after, ModuleTree(source, root, cache))


def _check_compiler(source: DebSource, root: BuildRoot) -> None:
    """Raise ScenarioError if the kernel was built by another release of the compiler, which may
    emit different code."""
    theirs = source.configuration.get("CONFIG_CC_VERSION_TEXT", "").strip('"')
    if theirs.split()[-1:] != root.compiler.split()[-1:]:
        raise ScenarioError(
            f"{source.release} was built by {theirs or 'an unknown compiler'}, so its modules"
            f" cannot be rebuilt here by {root.compiler}",
            hint="build the whole kernel, for both arms with one compiler: source ="
            f' "{source.name}"',
            reason=Reason.OTHER_COMPILER,
        )


@dataclass(frozen=True)
class _Workshop:
    stock: KernelBundle
    source: DebSource
    root: BuildRoot
    cache: Cache
    change: SourceChange
    on_line: Callable[[str], None]

    def make(self, folder: Path, files: Files, log: Path) -> dict[str, Module]:
        """Build the modules that the change affects, with `files` in place of the package's files.
        The modules and Module.symvers are then in FOLDER/tree. Raises _FailedError."""
        tree = ModuleTree(self.source, self.root, self.cache)
        tree.lay(folder, self.change.rooms, files)
        targets = [f"{module}.ko" for module in self.change.modules]
        code = tree.make(folder, [_SRCVERSION, *targets], log, doing="building modules",
                         script=STRIPPED, on_line=self.on_line)  # fmt: skip
        if code:
            output = log.read_text(errors="replace")
            blame_full_disk(output, self.cache.folder("kernels"))
            raise _FailedError(first_errors(output))
        return {m: read_module(find_result(folder, f"tree/{m}.ko")) for m in self.change.modules}

    def packaged(self, module: str) -> Path:
        """Return the package's file of a module. Raises BenchError if it has none."""
        files = sorted((self.stock.modules / "kernel").glob(f"{glob.escape(module)}.ko*"))
        if not files:
            raise BenchError(
                f"the package of {self.stock.release} has no module kernel/{module}.ko, though its"
                " configuration says so",
                reason=Reason.PACKAGE_LAYOUT,
            )
        return files[0]

    def log(self, build: str) -> Path:
        key = {"release": self.source.release, "files": _hashes(self.change.after), "what": build}
        return self.cache.folder("build-logs") / f"modules-{build}-{digest_of(key)}.log"


class _FailedError(Exception):
    """A build failed; the message is what the compiler printed."""


def _build(shop: _Workshop, folder: Path) -> None:
    """Fill a cache entry with the kernel: vmlinuz, config, modules/, FACTS."""
    started = time.monotonic()
    pristine = _proven(shop)
    proven = time.monotonic()
    log = shop.log("changed")
    try:
        made = shop.make(folder / "work", shop.change.after, log)
    except _FailedError as exc:
        raise ScenarioError(
            f"{', '.join(shop.change.after)}: does not build into {', '.join(shop.change.modules)}"
            f" of {shop.source.release}",
            evidence=str(exc), hint=f"the whole log: {log}", reason=Reason.BUILD_FAILED,
        ) from exc  # fmt: skip
    seconds = time.monotonic() - proven
    _check_exports(shop, find_result(folder, "work/tree/Module.symvers"))
    for module, new in made.items():
        was = pristine[module]
        # If both are as before (for example, only a comment changed), it is the package's module
        # again.
        if new.srcversion == was["srcversion"] and new.code_digest != was["code"]:
            raise ScenarioError(
                f"module {_name(module)}: its code changed and its srcversion did not, so that"
                " nothing would prove on the host that it runs",
                evidence="\n".join(sorted(shop.change.after)),
                hint="comments and white space do not count in a srcversion, nor do files outside"
                " of the module's folder",
                reason=Reason.NOT_PROVABLE,
            )
    swapped = {_name(module): str(new.srcversion) for module, new in made.items()}
    shutil.copyfile(shop.stock.vmlinuz, folder / "vmlinuz")
    if shop.stock.config:
        shutil.copyfile(shop.stock.config, folder / "config")
    shutil.copytree(shop.stock.modules, folder / "modules", copy_function=shutil.copyfile,
                    symlinks=True)  # fmt: skip
    has_same_index = _swap(shop, made, folder)
    shutil.rmtree(folder / "work")
    if not has_same_index:
        index_modules(folder, shop.stock.release)
    facts = {
        "swapped": swapped,
        "index": shop.stock.digest if has_same_index else "",
        "source": shop.source.facts(),
        "files": _hashes(shop.change.after),
        "functions": find_definitions(shop.change.after.values()),
        "passed_over": list(shop.change.passed_over),
        "modules": {
            module: {
                "because": list(shop.change.reached[module]),
                "stock": {
                    **pristine[module],
                    "srcversion": read_module(shop.packaged(module)).srcversion,
                },
                "new": _module_facts(new),
            }
            for module, new in made.items()
        },
        "compiler": shop.root.compiler,
        "build_root": shop.root.digest,
        "seconds": {"proof": round(proven - started, 1), "build": round(seconds, 1)},
        "log": log.name,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def _swap(shop: _Workshop, modules: Iterable[str], folder: Path) -> bool:
    """Put rebuilt modules in place of the package's, in a copy of its modules. Return True if the
    package's index, which was copied with them, is theirs, too."""
    names = []
    for module in modules:
        name = str(shop.packaged(module).relative_to(shop.stock.modules))
        content = find_result(folder, f"work/tree/{module}.ko").read_bytes()
        (folder / "modules" / name).unlink()
        if can_pack(name):
            names.append(name)
            (folder / "modules" / name).write_bytes(pack_module(content, name))
        else:
            (folder / "modules" / SUFFIX.sub(".ko", name)).write_bytes(content)
            names.append("")
    return all(names) and is_index_same(shop.stock.modules, folder / "modules", names)


def _proven(shop: _Workshop) -> dict[str, dict[str, Any]]:
    """Prove that the unchanged source, built here, gives the package's modules. Return their
    srcversion, code digest and text size. The build is cached for each set of modules.

    Raises BenchError if it gives other modules: then the change would not be the only difference
    that is measured."""
    key = {
        "kind": "pristine", "schema": 3, "package": shop.stock.digest,
        "source": shop.source.source.sha256, "modules": shop.change.modules,
        "headers": sorted(p.sha256 for p in shop.source.headers), "root": shop.root.digest,
    }  # fmt: skip

    def build(folder: Path) -> None:
        log = shop.log("pristine")
        try:
            made = shop.make(folder / "work", {}, log)
        except _FailedError as exc:
            raise BenchError(
                f"{', '.join(shop.change.modules)}: the unchanged source of {shop.source.version}"
                " does not build outside of its tree",
                evidence=str(exc),
                hint=f"the whole log: {log}; build the whole kernel instead: source ="
                f' "{shop.source.source.name}"',
                reason=Reason.PRISTINE_FAILS,
            ) from exc
        for module, new in made.items():
            _check_same(module, new, read_module(shop.packaged(module)), shop)
        shutil.rmtree(folder / "work")
        (folder / FACTS).write_text(json.dumps({m: _module_facts(new) for m, new in made.items()}))

    text = (shop.cache.entry("proofs", key, build) / FACTS).read_text()
    return dict(json.loads(text))


def _check_same(module: str, new: Module, stock: Module, shop: _Workshop) -> None:
    wrong = [
        f"{field}: {ours} here, {theirs} in the package"
        for field, ours, theirs in (
            ("srcversion", new.srcversion, stock.srcversion or new.srcversion),
            ("code", new.code_digest, stock.code_digest),
            ("vermagic", new.info.get("vermagic"), stock.info.get("vermagic")),
        )
        if ours != theirs
    ]
    if wrong:
        raise BenchError(
            f"{module}.ko of {shop.source.version}, built of its unchanged source, is not the"
            f" package's: {'; '.join(wrong)}",
            evidence=f"compiler here: {shop.root.compiler}",
            hint="the package was built by another compiler, or of another source: build both"
            f' kernels whole instead: source = "{shop.source.source.name}"',
            reason=Reason.PRISTINE_DIFFERS,
        )


def _check_exports(shop: _Workshop, made: Path) -> None:
    """Check that the rebuilt modules still export what other modules were built against.

    Raises ScenarioError if a symbol that the package's modules export is gone or has another CRC
    (CONFIG_MODVERSIONS), and other modules of the package may use it."""
    ours = _exports(made, shop.change.modules)
    theirs = _exports(shop.source.kbuild_files / "Module.symvers", shop.change.modules)
    broken = sorted(symbol for symbol, export in theirs.items() if ours.get(symbol) != export)
    if not broken:
        return
    files = {
        shop.packaged(m).relative_to(shop.stock.modules).as_posix() for m in shop.change.modules
    }
    users = [
        path
        for path, _, needs in (
            line.partition(":")
            for line in (shop.stock.modules / "modules.dep").read_text().splitlines()
        )
        if path not in files and files & set(needs.split())
    ]
    if users:
        raise ScenarioError(
            f"{', '.join(shop.change.after)}: changes what the modules of {shop.source.release}"
            f" are built against: {', '.join(broken[:5])}",
            evidence="\n".join(["used by, among others:", *users[:5]]),
            hint=f'build the whole kernel: source = "{shop.source.source.name}"',
            reason=Reason.BEYOND_MODULES,
        )


def _exports(symvers: Path, modules: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return symbol -> CRC and kind for these modules (Documentation/kbuild/modules.rst)."""
    table = {}
    for line in symvers.read_text().splitlines():
        crc, symbol, module, kind = line.split("\t")[:4]
        if module.removeprefix(f"{WORK}/tree/") in modules:
            table[symbol] = (crc, kind)
    return table


def _module_facts(module: Module) -> dict[str, Any]:
    return {"srcversion": module.srcversion, "code": module.code_digest,
            "text_bytes": module.text_bytes}  # fmt: skip


def _name(module: str) -> str:
    """Return the module's name, as in /sys/module."""
    return PurePosixPath(module).name.replace("-", "_")


def _hashes(files: Files) -> dict[str, str | None]:
    return {n: None if c is None else sha256(c).hexdigest() for n, c in sorted(files.items())}
