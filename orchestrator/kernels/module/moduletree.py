"""Run kbuild in parts of a kernel's source, against the headers of the kernel's package (`make
M=`): to list what it makes from them, to compile objects, and to build modules."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.kernels.module.change import Files
from orchestrator.kernels.module.kbuild import (
    Objects,
    folders_of,
    is_part,
    parse_dry_run,
    room_of,
)
from orchestrator.kernels.module.objects import difference
from orchestrator.kernels.source.buildroot import WORK, BuildRoot
from orchestrator.kernels.source.debsource import DebSource
from orchestrator.kernels.source.results import find_result

_TREE = f"{WORK}/tree"
_MAKE = 'cd "$1/tree"; headers=$2; shift 2; make -j"$(nproc)" -C "$headers" M="$PWD" "$@"'
# the first word is a variable, the others are the modules
STRIPPED = f'{_MAKE} && shift && strip --strip-debug "$@"'
_LOG = "dry-run.log"


@dataclass(frozen=True)
class ModuleTree:
    source: DebSource
    root: BuildRoot
    cache: Cache

    def lay(self, folder: Path, rooms: Collection[str], files: Files) -> None:
        """Lay out parts of the source, folders or single files, in FOLDER/tree, with `files` in
        place of the package's files."""
        folder.mkdir()
        tree = self.source.tree(rooms)
        single = self.source.names & {*rooms}
        for room in sorted({*rooms} - single):
            shutil.copytree(tree / room, folder / "tree" / room,
                            copy_function=shutil.copyfile, dirs_exist_ok=True)  # fmt: skip
        write_files({name: (tree / name).read_bytes() for name in single}, folder / "tree")
        above = folders_of([f"{room}/any" for room in self._entered(rooms)], self.source.names)
        makefiles = {f"{path}/{name}" for path in above for name in ("Makefile", "Kbuild")}
        write_files(
            {m: (tree / m).read_bytes() for m in makefiles & self.source.names}, folder / "tree"
        )
        write_files(files, folder / "tree")
        # Makefiles name other parts of the kernel's tree by paths from its top. In this build the
        # top is the folder of the headers, so the files are laid over that folder, too.
        shutil.copytree(folder / "tree", folder / "layer" / self.source.srctree[1:])
        # the folders keep their names, because these decide which headers are part of a srcversion
        tops = [path for path in above if not any(path.startswith(f"{top}/") for top in above)]
        (folder / "tree/Kbuild").write_text("".join(f"obj-y += {top}/\n" for top in tops))

    def _entered(self, rooms: Iterable[str]) -> list[str]:
        """Return the parts that have a Makefile of their own. virt/kvm has none."""
        folders = folders_of([f"{room}/any" for room in rooms], self.source.names)
        return sorted(room for room in rooms if room in folders)

    def make(
        self, folder: Path, words: Iterable[str], log: Path, *, doing: str, script: str = _MAKE,
        on_line: Callable[[str], None] = lambda _line: None,
    ) -> int:  # fmt: skip
        """Run make with these words over what is laid out in a folder. Return its exit code."""
        return self.root.run(
            ["sh", "-c", script, "sh", WORK, self.source.kbuild, *words], work=folder, log=log,
            layers=[folder / "layer", self.source.headers_layer], doing=doing, on_line=on_line,
        )  # fmt: skip

    def objects(self, rooms: Collection[str]) -> Objects:
        """Return what kbuild makes from these parts of the source, as far as it tells. Compiles
        nothing."""
        targets = [f"{room}/" for room in self._entered(rooms)]
        if not targets:  # without a target, make would build everything
            return Objects(frozenset(rooms), {}, frozenset())
        key = {
            "kind": "objects", "schema": 2, "source": self.source.source.sha256,
            "headers": sorted(p.sha256 for p in self.source.headers), "root": self.root.digest,
            "rooms": sorted(rooms),
        }  # fmt: skip

        def build(folder: Path) -> None:
            self.lay(folder / "work", rooms, {})
            # The headers lack this program. Makefile.build has *.asn1.c and *.asn1.h depend on it,
            # so that without it make has no rule for them. A dry run does not start it.
            compiler = folder / "work/layer" / self.source.scripts[1:] / "asn1_compiler"
            compiler.parent.mkdir(parents=True)
            compiler.touch()
            self.make(folder / "work", ["-nk", "-j1", "KBUILD_BUILTIN=y", *targets],
                      folder / _LOG, doing="asking kbuild what it makes")  # fmt: skip
            shutil.rmtree(folder / "work")

        log = (self.cache.entry("objects", key, build) / _LOG).read_text(errors="replace")
        dry_run = parse_dry_run(log, rooms, (_TREE, self.source.srctree))
        others = self._others(dry_run.missing) - {*rooms}
        return self.objects({*rooms, *others}) if others else dry_run.objects

    def _others(self, missing: Iterable[str]) -> set[str]:
        """Return the other parts of the source that Makefiles take these missing files from:
        arch/x86/kvm has those of virt/kvm. Of the headers it is the file alone: drivers/scsi
        generates a list from include/scsi/scsi_devinfo.h."""
        folders = {room_of(path) for path in missing if is_part(path)}
        headers = {path for path in missing if path.startswith("include/")}
        return headers & self.source.names | {
            folder for folder in folders
            if any(name.startswith(f"{folder}/") for name in self.source.names)
        }  # fmt: skip

    def differing(
        self, rooms: Collection[str], objects: Collection[str], files: Files
    ) -> dict[str, str]:
        """Compile objects from the package's files, and with `files` in place of them. Return
        those that differ, with what differs. An object that does not compile counts as one."""
        with tempfile.TemporaryDirectory() as scratch:
            places = [Path(scratch) / name for name in ("stock", "changed")]
            for place, content in zip(places, ({}, files), strict=True):
                self.lay(place, rooms, content)
                self.make(place, ["-k", *objects], place.with_suffix(".log"),
                          doing="compiling objects of the kernel itself")  # fmt: skip
            stock, changed = (place / "tree" for place in places)
            differences = {
                o: difference(find_result(stock, o), find_result(changed, o)) for o in objects
            }
        return {o: part for o, part in differences.items() if part}


def write_files(files: Files, folder: Path) -> None:
    """Write files into a folder over those that are there; remove those that are None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
