"""Find what a source file of the kernel ends up in: from the commands that kbuild would run, and
from #include lines. Pure, apart from reading a tree."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_INCLUDE = re.compile(r'(?m)^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)')
_COMPILED = (".c", ".S")
_SOURCES = (".c", ".h", ".S")
# Makefile.build's cmd_mod, which writes the names of a module's objects into MODULE.mod
_LINK = re.compile(r"printf '%s\\n'([^'|>]*)\| awk [^>|]*> (\S+)\.mod\b")
_COMPILE = re.compile(r" -c -o (\S+\.o) \S+\.[cS]\b")
_NO_RULE = re.compile(r"No rule to make target '([^']+)'|:\d+: (\S+): No such file or directory")
_FAILED = re.compile(r"\*\*\* (?!\[.*\] Error \d)(.*)")
_ASSIGNED = re.compile(r"\s*(\S+)\s*[:+?]*=(.*)")
_SYMBOL = re.compile(r"\bCONFIG_\w+")


@dataclass(frozen=True)
class Objects:
    """What kbuild makes from some parts of a kernel's source, in one configuration."""

    rooms: frozenset[str]
    """The parts (see `room_of`), and those that their Makefiles take files from, or such files."""
    modules: Mapping[str, frozenset[str]]
    """Module, as a path in the tree without suffix -> the objects that it is linked from."""
    built_in: frozenset[str]
    """Objects that are linked into the kernel itself."""
    failures: tuple[str, ...] = ()
    """What was in kbuild's way, in make's words. What depends on it is not listed here, so that it
    is not known of any other source file whether it is compiled."""

    def modules_of(self, source: str) -> list[str]:
        """Return the modules that a source file is compiled into."""
        return sorted(m for m, objects in self.modules.items() if object_of(source) in objects)

    def is_compiled(self, source: str) -> bool:
        return object_of(source) in self.built_in or bool(self.modules_of(source))


@dataclass(frozen=True)
class DryRun:
    """What `make -nk` over some folders printed: the commands that kbuild would run, and what is
    in the way."""

    objects: Objects
    missing: frozenset[str]
    """Files that kbuild looks for and does not find."""


def parse_dry_run(log: str, rooms: Iterable[str], tops: Iterable[str]) -> DryRun:
    """Parse the output of `make -nk` over the parts `rooms`. Paths below one of the folders `tops`
    become paths in the kernel's tree."""
    prefix = re.compile(rf"(?:{'|'.join(re.escape(top) for top in tops)})/")

    def inside(path: str) -> str:
        return posixpath.normpath(prefix.sub("", path, count=1))

    modules = {}
    for objects, module in _LINK.findall(log):
        folder = posixpath.dirname(module)
        modules[inside(module)] = frozenset(inside(f"{folder}/{o}") for o in objects.split())
    built_in = frozenset(
        inside(match[1])
        for line in log.splitlines()
        # a program that only the build uses is compiled without __KERNEL__
        if " -D__KERNEL__ " in line and " -DMODULE " not in line
        if (match := _COMPILE.search(line))
    )
    # kbuild has no rule for a folder that the configuration leaves out: that is no failure
    failures = tuple(
        failure
        for failure in _FAILED.findall(log)
        if not re.match(r"No rule to make target '[^']+/'", failure)
    )
    return DryRun(
        objects=Objects(frozenset(rooms), modules, built_in, failures),
        missing=frozenset(inside(a or b) for a, b in _NO_RULE.findall(log)),
    )


def object_of(source: str) -> str:
    return posixpath.splitext(source)[0] + ".o"


def symbols_of(makefile: str, source: str) -> list[str]:
    """Return the CONFIG_ symbols in those lines of a Makefile that list the object of a source
    file, or an object that this object becomes part of."""
    assigned = [
        (match[1], match[2].split())
        for line in makefile.replace("\\\n", " ").splitlines()
        if (match := _ASSIGNED.match(line))
    ]
    objects = {PurePosixPath(object_of(source)).name}
    for name, words in assigned:
        stem = re.sub(r"-(y|m|objs|\$\(.*\))$", "", name)
        if objects.intersection(words) and stem not in ("obj", "lib"):
            objects.add(f"{stem}.o")
    named = (_SYMBOL.findall(name) for name, words in assigned if objects.intersection(words))
    return sorted({symbol for symbols in named for symbol in symbols})


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


def is_part(file: str) -> bool:
    """True if a kernel may be made of this file, which is in its tree, but not in the headers."""
    return not file.startswith(("/", ".", "include/", "scripts/", "tools/"))


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
        users, new = {file}, [file]
        while new:
            new = sorted({by for name in new for by in self._by[name]} - users)
            users |= set(new)
        return users


def select_compiled(files: Iterable[str]) -> list[str]:
    """Return the files that are passed to a compiler, rather than included."""
    return sorted(f for f in files if f.endswith(_COMPILED))
