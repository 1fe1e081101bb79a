"""A kernel that is built already, in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.hashing import digest_of, sha256_file
from orchestrator.base.reasons import Reason
from orchestrator.kernels.debian.package import bundle_at, index_modules
from orchestrator.kernels.image.bundle import KernelBundle, release_in
from orchestrator.scenario.kernel_forms import DirKernel


def _vmlinuz(kernel: DirKernel) -> Path:
    folder = kernel.dir
    if not folder.is_dir():
        raise ScenarioError(f"{folder} is not a folder", reason=Reason.NO_SUCH_KERNEL)
    images = [
        *folder.glob("vmlinuz"), *folder.glob("vmlinuz-*"), *folder.glob("bzImage"),
        *folder.glob("boot/vmlinuz-*"),
    ]  # fmt: skip
    if len(images) != 1:
        raise ScenarioError(
            f"{folder}: expected one kernel image, found {len(images) or 'none'}",
            evidence="\n".join(map(str, images)),
            hint="put it there as vmlinuz, bzImage or boot/vmlinuz-RELEASE",
            reason=Reason.NO_SUCH_KERNEL,
        )
    return images[0]


def release_of(kernel: DirKernel) -> str:
    """Return the kernel's release. Raises ScenarioError if the folder has no kernel, or no modules
    for it."""
    return _parts(kernel)[0]


def _parts(kernel: DirKernel) -> tuple[str, Path, Path]:
    """Return the release, the image and the folder of the modules. Raises the errors of
    `release_of`."""
    image = _vmlinuz(kernel)
    release = release_in(image)
    for place in ("lib/modules", "usr/lib/modules"):
        if (kernel.dir / place / release).is_dir():
            return release, image, kernel.dir / place / release
    if (kernel.dir / "modules").is_dir():
        return release, image, kernel.dir / "modules"
    releases = [p.name for p in kernel.dir.glob("*lib/modules/*")]
    raise ScenarioError(
        f"{image} says it is {release}, but {kernel.dir} has no lib/modules/{release}"
        + (f", only {', '.join(releases)}" if releases else ""),
        hint="`make modules_install INSTALL_MOD_PATH=FOLDER` puts them there",
        reason=Reason.KERNEL_MODULES_MISSING,
    )


def copy_kernel(kernel: DirKernel, cache: Cache) -> KernelBundle:
    """Return the kernel, copied into the cache: a later build in its folder does not change the
    copy."""
    release, image, modules = _parts(kernel)
    config = next((p for p in (kernel.dir / "config", kernel.dir / f"boot/config-{release}",
                               modules / "config") if p.exists()), None)  # fmt: skip
    files = sorted(p for p in modules.rglob("*") if p.is_file() and not p.is_symlink())
    content = {p.relative_to(modules).as_posix(): sha256_file(p) for p in files}
    content["vmlinuz"] = sha256_file(image)
    if config:
        content["config"] = sha256_file(config)

    def build(folder: Path) -> None:
        shutil.copy2(image, folder / "vmlinuz")
        ignore = shutil.ignore_patterns("build", "source")
        shutil.copytree(modules, folder / "modules", ignore=ignore, symlinks=True)
        if config:
            shutil.copy2(config, folder / "config")
        index_modules(folder, release)

    place = cache.entry(
        "kernels", {"kind": "dir", "schema": 2, "content": digest_of(content)}, build
    )
    return bundle_at(place, {"from": str(kernel)})
