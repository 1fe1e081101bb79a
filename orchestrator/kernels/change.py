"""Find the modules that a change of a kernel's source reaches: these, and nothing else, are
rebuilt. A change that reaches the kernel itself is refused with the reason, and so is one whose
reach cannot be determined exactly.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from orchestrator.errors import ScenarioError
from orchestrator.kernels.kbuild import (
    Includes,
    Owners,
    Said,
    compiled,
    folders_of,
    is_foreign,
    room_of,
)
from orchestrator.reasons import Reason
from orchestrator.scenario import ModuleKernel, nearest_name

Files = Mapping[str, bytes | None]
"""Path in the kernel's tree -> content; None for a file that does not exist."""
_SOURCES = (".c", ".h", ".S")
_MAKEFILE = re.compile(r"(.*/)?(Makefile|Kbuild|Kconfig)[^/]*")
_HEADERS = re.compile(r"include/.*|arch/[^/]+/include/.*")
_SYMBOL = re.compile(r"\bCONFIG_\w+")
# all of tools/, except what a build uses: objtool, the sources of objtool, and resolve_btfids
_TOOLS = r"tools/(?!objtool|bpf|lib|include|build|arch|scripts)"
_SILENT = re.compile(rf"((Documentation|LICENSES)/|{_TOOLS}).*|[^/]+|.*\.(rst|md|txt)")
"""Files from which no part of a module is made."""
Evaluate = Callable[[Sequence[str] | None, Sequence[str]], Said]
"""Evaluate the Makefiles of some folders. The first argument is None for the kernel's
configuration. If it is a list of CONFIG_ symbols, each has its own name as its value
(objects.mk)."""


class Source(Protocol):
    """The source of a kernel package."""

    @property
    def release(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def name(self) -> str:
        """Name of the package, such as linux-source-7.3."""

    @property
    def names(self) -> Collection[str]:
        """Path of every file."""

    @property
    def configuration(self) -> Mapping[str, str]:
        """CONFIG_ symbols that are set, with their values."""

    def tree(self, parts: Collection[str]) -> Path:
        """Return a folder with these folders and files of the source, and every Makefile."""


@dataclass(frozen=True)
class Change:
    rooms: tuple[str, ...]
    """The folders of the tree that are needed to build the modules."""
    makefiles: tuple[str, ...]
    """The Makefiles that say how the modules are built."""
    after: Files
    """The changed files, with their new content."""
    reached: Mapping[str, tuple[str, ...]]
    """Module, as a path in the tree without suffix -> the changed files that reach it."""
    passed_over: tuple[str, ...]
    """Changed files from which no module is made."""

    @property
    def modules(self) -> list[str]:
        return sorted(self.reached)


def of_folder(folder: Path) -> dict[str, bytes]:
    """Return the source files in a folder, by their paths in it. Files that a build or an editor
    left there do not count, nor do Makefiles at its top."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or not path.is_file() or inside.name.endswith(".mod.c"):
            continue
        if inside.suffix in _SOURCES or (len(inside.parts) > 1 and _is_makefile(str(inside))):
            found[inside.as_posix()] = path.read_bytes()
    return found


def _is_makefile(name: str) -> bool:
    return _MAKEFILE.fullmatch(name) is not None


def check_paths(paths: Iterable[str], kernel: ModuleKernel, source: Source) -> None:
    """Raise ScenarioError if a file's path alone shows that rebuilt modules cannot have its
    change."""
    for path in paths:
        check_place(path, source)
        if _HEADERS.fullmatch(path):
            raise _beyond(path, "may be part of anything in this kernel", kernel, source)
        if _is_makefile(path) and not _is_silent_folder(path):
            raise _beyond(path, "says what is built, and how", kernel, source)
        if path.startswith("scripts/"):
            raise _beyond(path, "is part of how a kernel is built", kernel, source)
        if not is_silent(path) and not path.endswith(_SOURCES):
            raise _beyond(
                path, "is no C or assembler source, so what it reaches cannot be told", kernel,
                source,
            )  # fmt: skip


def is_silent(path: str) -> bool:
    """True if no module is made from a file at this path, whatever its content."""
    return _SILENT.fullmatch(path) is not None


def _is_silent_folder(path: str) -> bool:
    return "/" in path and is_silent(path)


def check_place(path: str, source: Source) -> None:
    """Raise ScenarioError if a source file, new or not, is in a folder that the kernel's tree does
    not have."""
    if not path.endswith(_SOURCES) or _is_silent_folder(path):
        return
    room = room_of(path)
    if path in source.names or (room and any(n.startswith(f"{room}/") for n in source.names)):
        return
    name = PurePosixPath(path).name
    there = sorted(n for n in source.names if n.endswith(f"/{name}"))
    there = there or difflib.get_close_matches(path, source.names, 3, 0.8)
    raise ScenarioError(
        f"{path} has no place in a kernel's tree: {source.name} {source.version} has no"
        f" {f'folder {room}' if room else 'sources at the top'}",
        hint=f"there is {', '.join(there[:3])}" if there else "",
        reason=Reason.NO_SUCH_PLACE,
    )


def change_of(
    kernel: ModuleKernel, source: Source, before: Files, after: Files, evaluate: Evaluate
) -> Change:
    """Return what the change from `before` to `after` reaches.

    Raises ScenarioError if that is more than modules, or nothing."""
    changed = sorted(name for name in after if after[name] != before.get(name))
    check_paths(changed, kernel, source)
    passed_over = tuple(n for n in changed if is_silent(n))
    changed = [n for n in changed if n not in passed_over]
    if not changed:
        raise ScenarioError(
            f"{kernel}: nothing is changed: the sources are those of {source.name}"
            f" {source.version}",
            evidence="\n".join([*passed_over[:5]] or sorted(after)[:5]),
            reason=Reason.NOTHING_CHANGED,
        )
    rooms = sorted({room_of(name) for name in changed})
    look = _Look(kernel, source, rooms, evaluate)
    includes = Includes(source.tree(rooms), rooms, {n: after[n] for n in changed})
    reached: dict[str, dict[str, None]] = {}
    for name in changed:
        found = False
        for user in compiled(includes.users(name)):
            owners = look.owners(user)
            if owners.built_in:
                raise look.built_in(name, user)
            for module in owners.modules:
                reached.setdefault(module, {})[name] = None
            found = found or bool(owners)
        if not found:
            raise look.not_compiled(name, compiled(includes.users(name)))
    return Change(
        rooms=tuple(sorted({*rooms, *look.rooms(reached)})),
        makefiles=tuple(sorted(look.said.makefiles())),
        after={name: after[name] for name in changed},
        reached={module: tuple(names) for module, names in sorted(reached.items())},
        passed_over=passed_over,
    )


def _beyond(path: str, why: str, kernel: ModuleKernel, source: Source) -> ScenarioError:
    """Return the error for a change that rebuilt modules cannot have. Its hint is what to write
    instead."""
    where = [f'{key} = "{value}"' for key, value in (("suite", kernel.suite),
             ("version", kernel.version)) if value]  # fmt: skip
    series = ", ".join(f'"{one}"' for one in kernel.series) or '"CHANGE.patch"'
    words = ", ".join([f'source = "{source.name}"', *where, f"series = [{series}]"])
    return ScenarioError(
        f"{path} {why}: a change of it reaches further than modules",
        hint=f"build the whole kernel: kernel = {{ {words} }}",
        reason=Reason.BEYOND_MODULES,
    )


class _Look:
    """Lookup of what source files are compiled into, in the kernel's own configuration."""

    def __init__(
        self, kernel: ModuleKernel, source: Source, rooms: Sequence[str], evaluate: Evaluate
    ) -> None:
        self._kernel, self._source, self._rooms = kernel, source, rooms
        self._evaluate = evaluate
        self.said = Said()

    def owners(self, name: str) -> Owners:
        found = self._evaluated([name]).owners(name)
        # The Makefile may be in another folder: arch/x86/kvm/Makefile has objects of virt/kvm.
        return found or self._evaluated([name, *self._naming(name)]).owners(name)

    def rooms(self, modules: Iterable[str]) -> set[str]:
        """Return the rooms of the modules' parts and of the files that Makefiles include."""
        parts = {part for module in modules for part in self.said.parts(module)}
        included = {m for m in self.said.makefiles() if not m.endswith(("/Makefile", "/Kbuild"))}
        return {room_of(path) for path in parts | included} - {"scripts"}

    def _evaluated(self, names: Sequence[str]) -> Said:
        folders = folders_of(names, self._source.names)
        if new := [f for f in folders if f not in self.said.folders]:
            self.said.folders.update(self._evaluate(None, new).folders)
        return self.said

    def _naming(self, name: str) -> list[str]:
        """Return the Makefiles elsewhere that name the folder of a file."""
        folder = str(PurePosixPath(name).parent)
        tree = self._source.tree(self._rooms)
        return [
            path
            for path in sorted(self._source.names)
            if path.endswith(("/Makefile", "/Kbuild")) and not path.startswith(f"{folder}/")
            and not is_foreign(path)
            and folder in (tree / path).read_text("utf-8", "replace")
        ]  # fmt: skip

    def _symbols(self, name: str) -> list[str]:
        """Return the CONFIG_ symbols that decide whether a file is compiled, as `CONFIG_X=y`."""
        folders = folders_of([name], self._source.names)
        tree = self._source.tree(self._rooms)
        texts = [
            (tree / folder / file).read_text("utf-8", "replace")
            for folder in folders
            for file in ("Makefile", "Kbuild")
            if f"{folder}/{file}" in self._source.names
        ]
        named = sorted({symbol for text in texts for symbol in _SYMBOL.findall(text)})
        values = self._source.configuration
        symbols = self._evaluate(named, folders[-1:]).symbols(name)
        return [f"{symbol}={values.get(symbol, 'n')}" for symbol in symbols]

    def built_in(self, name: str, user: str) -> ScenarioError:
        symbols = ", ".join(self._symbols(user)) or "always"
        if name == user:
            why = f"is built into this kernel ({symbols})"
        else:
            why = f"is part of {user}, which is built into this kernel ({symbols})"
        return _beyond(name, why, self._kernel, self._source)

    def not_compiled(self, name: str, users: Sequence[str]) -> ScenarioError:
        release = self._source.release
        if is_foreign(name):
            return ScenarioError(
                f"{name} is for another architecture than {release} is", reason=Reason.NOT_COMPILED
            )
        if not users:
            return ScenarioError(
                f"{name} is included by nothing in {', '.join(self._rooms)}, so its change reaches"
                f" no module of {release}",
                reason=Reason.NOT_COMPILED,
            )
        symbols = [s for user in users for s in self._symbols(user)]
        off = ", ".join(dict.fromkeys(symbols))
        own = f"{name} is" if users == [name] else f"{name}, part of {', '.join(users[:3])}, is"
        return ScenarioError(
            f"{own} not compiled in the configuration of {release}"
            + (f" ({off})" if off else ": no Makefile of its folder, or above it, names it"),
            hint=(
                "a new file needs a Makefile that names it, which a module cannot bring"
                + nearest_name(
                    name, [n for n in self._source.names if room_of(n) == room_of(name)]
                )
            )
            if name not in self._source.names
            else f'build the whole kernel with it: source = "{self._source.name}"'
            " and config = [...]",
            reason=Reason.NOT_COMPILED,
        )
