"""Find the modules that a source file of the kernel ends up in, from the Makefiles as make
evaluates them (guests/kernel/objects.mk) and from #include lines. Pure, apart from reading a
tree."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

Variables = Mapping[str, list[str]]
"""Variables of one Makefile: `obj-m` -> words."""
_INCLUDE = re.compile(r'(?m)^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)')
_COMPILED = (".c", ".S")
_SOURCES = (".c", ".h", ".S")
_HEAD = "folder "


@dataclass(frozen=True)
class Owners:
    """The modules that a source file is compiled into, and whether it is also in the kernel."""

    modules: frozenset[str] = frozenset()
    """Modules, as paths in the tree without suffix: drivers/vfio/pci/vfio-pci-core."""
    built_in: bool = False

    def __bool__(self) -> bool:
        return bool(self.modules) or self.built_in


@dataclass
class Said:
    """Variables of the Makefiles of several folders, in one configuration."""

    folders: dict[str, Variables] = field(default_factory=dict)

    def owners(self, source: str) -> Owners:
        """Return what a source file is compiled into; nothing if no Makefile here compiles it."""
        wanted = posixpath.splitext(source)[0] + ".o"
        modules, built_in = set(), False
        for folder in self._top():
            for objects, module in self._linked(folder, True, set()):
                if wanted in objects:
                    if module is None:
                        built_in = True
                    else:
                        modules.add(module)
        return Owners(frozenset(modules), built_in)

    def parts(self, module: str) -> set[str]:
        """Return the objects that a module is linked from."""
        return {
            part
            for folder in self._top()
            for objects, name in self._linked(folder, True, set())
            if name == module
            for part in objects
        }

    def makefiles(self) -> set[str]:
        """Return the files of the tree that were read to evaluate these Makefiles."""
        read = (word for said in self.folders.values() for word in said.get("makefiles-read", ()))
        return {posixpath.normpath(path) for path in read if not path.startswith("/")}

    def _top(self) -> list[str]:
        """Return the topmost folders, which kbuild always enters. It enters the others only if a
        Makefile above lists them."""
        return [
            folder
            for folder in sorted(self.folders)
            if not any(str(p) in self.folders for p in PurePosixPath(folder).parents)
        ]

    def _linked(
        self, folder: str, into_kernel: bool, seen: set[str]
    ) -> Iterator[tuple[set[str], str | None]]:
        """Yield objects and the module that they make up (None for the kernel itself)."""
        if folder not in self.folders or folder in seen:
            return
        seen.add(folder)
        said = self.folders[folder]
        built_in = [*said.get("obj-y", ()), *said.get("lib-y", ())]
        modules = [word for word in said.get("obj-m", ()) if word not in built_in]
        for words, is_module in ((built_in, False), (modules, True)):
            for word in words:
                path = posixpath.normpath(f"{folder}/{word}")
                if word.endswith("/"):
                    # below a folder of obj-m nothing is linked into the kernel
                    yield from self._linked(path, into_kernel and not is_module, seen)
                elif word.endswith(".o") and is_module:
                    yield self._parts(folder, word, "objs", "y", "m"), path.removesuffix(".o")
                elif word.endswith(".o") and into_kernel:
                    yield self._parts(folder, word, "objs", "y"), None

    def _parts(self, folder: str, word: str, *kinds: str) -> set[str]:
        """Return the objects that an object is linked from: its parts, or itself."""
        stem, said = word.removesuffix(".o"), self.folders[folder]
        parts = [part for kind in kinds for part in said.get(f"{stem}-{kind}", ())]
        return {posixpath.normpath(f"{folder}/{part}") for part in parts or [word]}

    def symbols(self, source: str) -> list[str]:
        """Return the CONFIG_ symbols that have the file compiled if they are set. The Makefiles
        must have been evaluated with `names` (objects.mk)."""
        wanted = posixpath.splitext(source)[0] + ".o"
        found: dict[str, None] = {}
        for folder, said in self.folders.items():
            listed = {
                name: {posixpath.normpath(f"{folder}/{word}") for word in words}
                for name, words in said.items()
            }
            objects = {wanted}
            for name, paths in listed.items():  # a part of NAME.o is compiled if NAME.o is
                stem, _, kind = name.rpartition("-")
                if wanted in paths and stem not in ("obj", "lib") and kind != "flags":
                    objects.add(posixpath.normpath(f"{folder}/{stem}.o"))
            for name, paths in listed.items():
                symbol = name.partition("-CONFIG_")[2]
                if symbol and paths & objects:
                    found[f"CONFIG_{symbol}"] = None
        return list(found)


def parsed(text: str) -> Said:
    """Parse the output of objects.mk for several folders, each after a line `folder PATH`."""
    said, folder = Said(), ""
    for line in text.splitlines():
        if line.startswith(_HEAD):
            folder = line.removeprefix(_HEAD)
            said.folders[folder] = {}
        else:
            name, equals, words = line.partition(" = ")
            if folder and equals and "-" in name:
                said.folders[folder] = {**said.folders[folder], name: words.split()}
    return said


def is_foreign(file: str) -> bool:
    """True if the file belongs to an architecture other than x86."""
    return file.startswith("arch/") and not file.startswith("arch/x86/")


def folders_of(files: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the folders of the files, and all above them, for which `names` has a Makefile."""
    above = {
        str(p)
        for file in files
        for p in PurePosixPath(file).parents
        if str(p) != "." and not is_foreign(file)
    }
    return sorted(f for f in above if f"{f}/Makefile" in names or f"{f}/Kbuild" in names)


def room_of(file: str) -> str:
    """Return the part of the kernel's tree that a file belongs to: drivers/vfio, arch/x86/kvm."""
    parts = PurePosixPath(file).parts[:-1]
    return "/".join(parts[: 3 if parts[:1] == ("arch",) else 2])


class Includes:
    """Table of the files that include each source file of a tree. It is made from the text of the
    #include lines, so it also has lines that the configuration leaves out."""

    def __init__(
        self, tree: Path, rooms: Iterable[str], changed: Mapping[str, bytes | None]
    ) -> None:
        """Read the parts `rooms` (see `room_of`) of a tree. `changed` has the new content of files
        that a change touches, or None if it removes them."""
        self._by: dict[str, set[str]] = defaultdict(set)
        texts = {
            path.relative_to(tree).as_posix(): path.read_text("utf-8", "replace")
            for room in rooms
            for path in (tree / room).rglob("*")
            if path.suffix in _SOURCES and path.is_file()
        }
        for name, content in changed.items():
            # a file that is removed stays in: the files that include it still matter
            texts[name] = (content or b"").decode("utf-8", "replace")
        ends = defaultdict(list)
        for name in texts:
            ends[name.rsplit("/", 1)[-1]].append(name)
        for name, text in texts.items():
            for quoted, angled in _INCLUDE.findall(text):
                beside = posixpath.normpath(f"{posixpath.dirname(name)}/{quoted}")
                if quoted and beside in texts:
                    self._by[beside].add(name)
                    continue
                # found through some -I: take every file whose path ends like this
                tail = "/" + re.sub(r"^(\.{1,2}/)+", "", quoted or angled)
                for other in ends[tail.rsplit("/", 1)[-1]]:
                    if other.endswith(tail):
                        self._by[other].add(name)

    def users(self, file: str) -> set[str]:
        """Return the file and all files that include it, directly or through others."""
        found, new = {file}, [file]
        while new:
            new = sorted({by for name in new for by in self._by[name]} - found)
            found |= set(new)
        return found


def compiled(files: Iterable[str]) -> list[str]:
    """Return the files that are passed to a compiler, rather than included."""
    return sorted(f for f in files if f.endswith(_COMPILED))
