"""The index of a kernel's modules, which modprobe reads: depmod makes it from every module, which
takes longer than it takes to build one. Rebuilt modules rarely change it."""

from __future__ import annotations

import lzma
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from orchestrator.base.process import run
from orchestrator.kernels.image.ko import read_module

_MADE = ("alias", "dep", "devname", "softdep", "symbols", "weakdep", "builtin.alias")
"""Names of what depmod makes: modules.NAME, some of them also as modules.NAME.bin."""


def index_modules(folder: Path, release: str) -> None:
    """Run depmod over FOLDER/modules, which depmod expects as lib/modules/RELEASE."""
    base = folder / "base"
    (base / "lib/modules").mkdir(parents=True)
    (base / "lib/modules" / release).symlink_to(folder / "modules")
    run(["/sbin/depmod", "--basedir", base, release], doing="indexing the kernel's modules")
    shutil.rmtree(base)


def copy_index(source: Path, target: Path) -> None:
    """Copy what depmod has made in one folder of modules to another."""
    for name in _MADE:
        for path in (source / f"modules.{name}", source / f"modules.{name}.bin"):
            if path.exists():
                shutil.copyfile(path, target / path.name)


def is_index_same(before: Path, after: Path, names: Iterable[str]) -> bool:
    """True if modules that were changed (paths below both folders) leave the index as it is: each
    needs the same modules as before, and depmod makes the same of all of them."""
    names = [*names]
    needs = [
        [read_module(folder / name).info.get("depends") for name in names]
        for folder in (before, after)
    ]
    return needs[0] == needs[1] and _index(before, names) == _index(after, names)


def _index(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return what depmod makes of a few modules."""
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch)
        for name in names:
            (alone / "modules" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, alone / "modules" / name)
        index_modules(alone, "0.0.0")  # depmod wants the form of a release
        found = {name: alone / f"modules/modules.{name}" for name in _MADE}
        return {name: path.read_bytes() for name, path in found.items() if path.exists()}


def can_pack(name: str) -> bool:
    """True if `pack_module` can make a file with the suffix of this name."""
    return name.endswith((".ko", ".ko.xz"))


def pack_module(content: bytes, name: str) -> bytes:
    """Return a module's ELF file as the suffix of its name says it is packed."""
    # with a check that the kernel itself can make (Documentation/staging/xz.rst)
    return content if name.endswith(".ko") else lzma.compress(content, check=lzma.CHECK_CRC32)
