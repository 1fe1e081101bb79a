"""Host and guest images from the recipes under guests/: built once, cached by content.

host root disk    ext4, read-only, the same for every host kernel
modules disk      ext4, read-only, one for each host kernel
host initramfs    one for each host kernel that has the disks' drivers as modules
guest initramfs   one for each guest kernel
payload disk      ext4, read-only: guest kernel and initramfs, agents
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.base.cache import Cache, remove_tree
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.hashing import digest_of, sha256_file
from orchestrator.base.installed import packaged
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason
from orchestrator.kernels.debian.apt import AptArchive, Package, source_lines
from orchestrator.kernels.debian.bootstrap import debian_tar, inside
from orchestrator.kernels.debian.index import copy_index, index_modules
from orchestrator.kernels.image import ko
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.runner.cpio import CpioArchive

GUESTS = packaged("guests")
FIRST = "/usr/lib/barometer/first"
"""First program of the host's root disk."""
PAYLOAD = "/opt/barometer"
"""Mount point of the payload disk in the host."""


@dataclass(frozen=True)
class HostImage:
    """Files that a nested host boots from, in addition to its kernel."""

    root: Path
    modules: Path
    initramfs: Path | None
    """None if the kernel needs no initramfs, because the disks' drivers are built in."""
    packages: dict[str, str]
    """Every package of the image and its version."""


@dataclass(frozen=True)
class PayloadImage:
    disk: Path
    """Disk with agents/ and, if a guest is to be booted, guest/vmlinuz and guest/initramfs."""
    packages: dict[str, str]
    """Every package of the guest and its version."""


@dataclass(frozen=True)
class PayloadFiles:
    """The guest's part of a payload disk as files, for a host that has no such disk."""

    files: dict[str, bytes]
    packages: dict[str, str]


def host_image(kernel: KernelBundle, suite: str, cache: Cache) -> HostImage:
    """Return the image of a nested host with the user space of a Debian `suite`; build what is not
    cached.

    Raises BenchError if a build fails, ScenarioError if the kernel lacks a module that a host
    needs."""
    recipe = read_recipe("host")
    suites = [name.replace(recipe["suites"][0], suite) for name in recipe["suites"]]
    root = root_disk("host", {**recipe, "suites": suites}, cache)
    return HostImage(
        root=root / "root.ext4",
        modules=_modules_disk(recipe, kernel, cache),
        initramfs=_host_initramfs(recipe, kernel, cache),
        packages=parse_packages(root / "packages.txt"),
    )


def _host_initramfs(recipe: dict[str, Any], kernel: KernelBundle, cache: Cache) -> Path | None:
    return initramfs("host", recipe, kernel, cache) if find_early_modules(recipe, kernel) else None


def payload_image(kernel: KernelBundle | None, cache: Cache) -> PayloadImage:
    """Return the disk that goes onto the host: agents, and a guest if there is a kernel. Builds
    and raises as `host_image`."""
    guest = guest_files(kernel, cache)
    return PayloadImage(_payload_disk(guest.files, cache), guest.packages)


def guest_files(kernel: KernelBundle | None, cache: Cache) -> PayloadFiles:
    """Return guest/vmlinuz and guest/initramfs; no files without a kernel."""
    if kernel is None:
        return PayloadFiles({}, {})
    recipe = read_recipe("guest")
    tree = unpack_packages(recipe["suites"], recipe["packages"], recipe["files"], cache)
    archive = _archive_files(tree, recipe["files"])
    _add_modules(archive, kernel, kernel.module_closure(recipe["modules"]))
    archive.file("init", (GUESTS / "guest/init").read_bytes(), 0o755)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/shells", b"/bin/sh\n")
    for folder in ("proc", "sys", "dev", "run", "tmp", "root", "sbin", "usr/sbin", "etc/dropbear"):
        archive.folder(folder)
    guest = {"guest/vmlinuz": kernel.vmlinuz.read_bytes(), "guest/initramfs": archive.pack()}
    return PayloadFiles(guest, parse_packages(tree / "packages.txt"))


def read_recipe(name: str) -> dict[str, Any]:
    return tomllib.loads((GUESTS / name / "recipe.toml").read_text())


def parse_packages(path: Path) -> dict[str, str]:
    """Parse lines `NAME VERSION` or `NAME=VERSION`."""
    pairs = (re.split(r"[\t =]", line, maxsplit=1) for line in path.read_text().splitlines())
    return {pair[0]: pair[1] for pair in pairs}


def tree_digest(folder: Path) -> str:
    """Digest the names and contents of a folder's files. Byte code is left out: another process
    may write it meanwhile."""
    paths = sorted(p for p in folder.rglob("*") if "__pycache__" not in p.parts)
    content = {p.relative_to(folder).as_posix(): sha256_file(p) for p in paths if p.is_file()}
    return digest_of(content)


# root disk ---------------------------------------------------------------------------------


def root_disk(name: str, recipe: dict[str, Any], cache: Cache) -> Path:
    """Return a cache entry with root.ext4 and packages.txt. The disk has the packages of `recipe`,
    and the files of guests/NAME/rootfs over them.

    Raises BenchError if it cannot be built."""
    rootfs = GUESTS / name / "rootfs"
    key = {
        "kind": f"{name}-root", "schema": 1, "suites": recipe["suites"],
        "packages": recipe["packages"], "exclude": recipe["exclude"],
        "rootfs": tree_digest(rootfs), "mirror": source_lines(tuple(recipe["suites"])),
    }  # fmt: skip

    def build(folder: Path) -> None:
        tar = folder / "root.tar"
        packages = debian_tar(tar, recipe, doing=f"building the {name} image")
        (folder / "packages.txt").write_text(packages)
        disk_from_tar(tar, rootfs, folder / "root.ext4")
        tar.unlink()

    return cache.entry("images", key, build)


def disk_from_tar(tar: Path, extra: Path, disk: Path) -> None:
    """Make an ext4 disk with the files of `tar`, which keep their owners, and the files of the
    folder `extra` over them.

    Without root this happens in a user namespace (subuid(5) ranges), as mmdebstrap made the tar.
    Device nodes are left out, because devtmpfs provides them.
    """
    script = (
        'set -e; mkdir "$1";'
        'tar --extract --numeric-owner --exclude "./dev/*" --file "$2" -C "$1";'
        'cp -r --no-preserve=ownership "$3/." "$1"; mkdir -p "$1/proc" "$1/sys" "$1/dev";'
        'size=$(du --summarize --apparent-size --block-size=1M "$1" | cut -f1);'
        'mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -m 0 -d "$1" "$4"'
        ' "$((size * 5 / 4 + 64))M"'
    )
    work = disk.parent / "tree"
    try:
        run([*inside(), "sh", "-c", script, "sh", work, tar, extra, disk],
            doing="making the root disk", timeout=900)  # fmt: skip
    finally:
        remove_tree(work)


# modules and initramfs ----------------------------------------------------------------------


def _modules_disk(recipe: dict[str, Any], kernel: KernelBundle, cache: Cache) -> Path:
    modules = recipe["modules"]
    optional = [m for m in modules["optional"] if kernel.has_module(m)]
    if not optional:
        raise ScenarioError(
            f"the kernel {kernel.release} has neither {' nor '.join(modules['optional'])}:"
            " no guest could run on it",
            reason=Reason.KERNEL_LACKS_MODULE,
        )
    ready = kernel.module_closure([*modules["needed"], *optional])
    key = {"kind": "modules", "schema": 2, "kernel": kernel.digest, "uncompressed": ready}
    shared = {"kind": "modules-index", "schema": 1, "kernel": kernel.index or kernel.digest,
              "uncompressed": ready}  # fmt: skip

    def build_index(folder: Path) -> None:
        _lay_out_modules(kernel, ready, folder / "modules", linked=True)
        index_modules(folder, kernel.release)
        copy_index(folder / "modules", folder)
        shutil.rmtree(folder / "modules")

    def build(folder: Path) -> None:
        tree = folder / "modules"
        _lay_out_modules(kernel, ready, tree)
        copy_index(cache.entry("images", shared, build_index), tree)
        make_disk(tree, folder / "modules.ext4")
        shutil.rmtree(tree)

    return cache.entry("images", key, build) / "modules.ext4"


def _lay_out_modules(
    kernel: KernelBundle, ready: Sequence[str], tree: Path, *, linked: bool = False
) -> None:
    """Lay out a kernel's modules, some of them uncompressed. `linked`: the others are symbolic
    links, for who only reads them."""

    def link(source: str, target: str) -> None:
        # what depmod replaces is copied
        place = os.symlink if ko.SUFFIX.search(source) else shutil.copy2
        place(source, target)

    shutil.copytree(
        kernel.modules, tree, symlinks=True, copy_function=link if linked else shutil.copy2
    )
    for name in ready:
        content = read_bundle_module(kernel, name)
        (tree / name).unlink()
        (tree / plain_name(name)).write_bytes(content)


def make_disk(tree: Path, disk: Path) -> None:
    """Make an ext4 disk just large enough for the folder `tree`; every file is root's."""
    size = sum(p.lstat().st_size + 4096 for p in tree.rglob("*")) // 2**20
    run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0",
         "-E", "root_owner=0:0", "-d", tree, disk, f"{size * 5 // 4 + 16}M"],
        doing=f"making {disk.name}",
    )  # fmt: skip


def plain_name(module: str) -> str:
    return ko.SUFFIX.sub(".ko", module)


def read_bundle_module(kernel: KernelBundle, name: str) -> bytes:
    """Return a module's ELF file, uncompressed: emulated machines are slow at unpacking."""
    return ko.unpack_module(kernel.modules / name, Reason.KERNEL_MODULES)


def initramfs(name: str, recipe: dict[str, Any], kernel: KernelBundle, cache: Cache) -> Path:
    """Return an initramfs with the script guests/NAME/initramfs-init and the modules of `kernel`
    that the script loads."""
    parts = recipe["initramfs"]
    tree = unpack_packages(recipe["suites"], parts["packages"], parts["files"], cache)
    modules = find_early_modules(recipe, kernel)
    init = (GUESTS / name / "initramfs-init").read_bytes()
    key = {
        "kind": f"{name}-initramfs", "schema": 1, "kernel": kernel.digest, "modules": modules,
        "init": init.decode(), "tree": tree.name,
    }  # fmt: skip

    def build(folder: Path) -> None:
        archive = _archive_files(tree, parts["files"])
        for place in ("proc", "sys", "dev", "root", "lower", "memory"):
            archive.folder(place)
        archive.file("init", init, 0o755)
        _add_modules(archive, kernel, modules)
        (folder / "initramfs").write_bytes(archive.pack())

    return cache.entry("images", key, build) / "initramfs"


def find_early_modules(recipe: dict[str, Any], kernel: KernelBundle) -> list[str]:
    """Return the modules that an initramfs loads before it mounts the root disk; none if all are
    built in."""
    parts = recipe["initramfs"]
    optional = [m for m in parts["optional_modules"] if kernel.has_module(m)]
    return kernel.module_closure([*optional, *parts["modules"]])


def _add_modules(archive: CpioArchive, kernel: KernelBundle, modules: list[str]) -> None:
    names = []
    for module in modules:
        names.append(Path(plain_name(module)).name)
        archive.file(f"modules/{names[-1]}", read_bundle_module(kernel, module))
    archive.file("modules/order", "".join(f"{n}\n" for n in names).encode())


# files out of packages ------------------------------------------------------------------------


def unpack_packages(
    suites: list[str], packages: list[str], patterns: list[str], cache: Cache
) -> Path:
    """Return a cache entry with the files of Debian packages and of their dependencies that match
    `patterns`, and with packages.txt."""
    archive = AptArchive(tuple(suites), cache)
    key = {"kind": "unpacked", "schema": 1, "suites": suites, "packages": packages,
           "patterns": patterns, "mirror": source_lines(tuple(suites))}  # fmt: skip

    def build(folder: Path) -> None:
        archive.update()
        needed: dict[str, Package] = {}
        for name in packages:
            versions = archive.versions(name)
            if not versions:
                raise BenchError(f"there is no package {name} in {' '.join(suites)}",
                                 reason=Reason.NO_SUCH_PACKAGE)  # fmt: skip
            for package in archive.dependencies(name, versions[0][0]):
                needed[package.name] = package
        debs, tree = folder / "debs", folder / "tree"
        debs.mkdir()
        tree.mkdir()
        for deb in archive.download(list(needed.values()), debs):
            run(["dpkg-deb", "--extract", deb, tree], doing=f"unpacking {deb.name}")
        for pattern in patterns:
            for path in _match_files(tree, pattern):
                target = folder / "files" / path.relative_to(tree)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target, follow_symlinks=False)
        shutil.rmtree(debs)
        shutil.rmtree(tree)
        lines = [f"{p.name} {p.version}" for p in needed.values()]
        (folder / "packages.txt").write_text("\n".join(sorted(lines)) + "\n")

    return cache.entry("images", key, build)


def _match_files(tree: Path, pattern: str) -> list[Path]:
    files = [p for p in sorted(tree.glob(pattern)) if p.is_symlink() or p.is_file()]
    if not files:
        raise BenchError(
            f"no file {pattern} in the packages of a recipe",
            hint="the package changed its layout: mend the recipe under guests/",
            reason=Reason.RECIPE,
        )
    return files


def _archive_files(entry: Path, patterns: list[str]) -> CpioArchive:
    """Return an archive with the files of an unpacked entry and Debian's merged-/usr links."""
    archive = CpioArchive()
    tree = entry / "files"
    for pattern in patterns:
        for path in _match_files(tree, pattern):
            archive.copy(path.relative_to(tree).as_posix(), path)
    for name in ("lib", "lib64"):
        archive.link(name, f"usr/{name}")
    archive.link("bin/busybox", "/usr/bin/busybox")
    archive.link("bin/sh", "/usr/bin/busybox")
    return archive


def _payload_disk(files: dict[str, bytes], cache: Cache) -> Path:
    agents = GUESTS / "agents"
    key = {"kind": "payload", "schema": 2, "agents": tree_digest(agents),
           "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
           }  # fmt: skip

    def build(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        for name, data in files.items():
            (tree / name).parent.mkdir(exist_ok=True)
            (tree / name).write_bytes(data)
        shutil.copytree(agents, tree / "agents", ignore=shutil.ignore_patterns("__pycache__"))
        make_disk(tree, folder / "payload.ext4")
        shutil.rmtree(tree)

    return cache.entry("images", key, build) / "payload.ext4"
