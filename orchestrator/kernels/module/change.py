"""Find the modules that a change of a kernel's source reaches: these, and nothing else, are
rebuilt. A change that reaches the kernel itself is refused with the reason, and so is one whose
reach cannot be determined exactly.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.kernels.module.kbuild import (
    Includes,
    Objects,
    folders_of,
    is_foreign,
    is_part,
    object_of,
    room_of,
    select_compiled,
    symbols_of,
)
from orchestrator.scenario.kernel_forms import ModuleKernel

Files = Mapping[str, bytes | None]
"""Path in the kernel's tree -> content; None for a file that does not exist."""
_SOURCES = (".c", ".h", ".S")
_MAKEFILE = re.compile(r"(.*/)?(Makefile|Kbuild|Kconfig)[^/]*")
_HEADERS = re.compile(r"include/.*|arch/[^/]+/include/.*")
# all of tools/, except what a build uses: objtool, the sources of objtool, and resolve_btfids
_TOOLS = r"tools/(?!objtool|bpf|lib|include|build|arch|scripts)"
_SILENT = re.compile(rf"((Documentation|LICENSES)/|{_TOOLS}).*|[^/]+|.*\.(rst|md|txt)")
"""Files from which no part of a module is made."""


class Kbuild(Protocol):
    """The build of a kernel package's source."""

    def objects(self, rooms: Collection[str]) -> Objects:
        """Return what is made from these parts of the source."""

    def differing(
        self, rooms: Collection[str], objects: Collection[str], files: Files
    ) -> Mapping[str, str]:
        """Return the objects that `files` make another, with what differs."""


class PackageSource(Protocol):
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
class SourceChange:
    rooms: tuple[str, ...]
    """The folders of the tree that are needed to build the modules."""
    after: Files
    """The changed files, with their new content."""
    reached: Mapping[str, tuple[str, ...]]
    """Module, as a path in the tree without suffix -> the changed files that reach it."""
    passed_over: tuple[str, ...]
    """Changed files from which no module is made."""

    @property
    def modules(self) -> list[str]:
        return sorted(self.reached)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the source files in a folder, by their paths in it. Files that a build or an editor
    left there do not count, nor do Makefiles at its top."""
    files = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or not path.is_file() or inside.name.endswith(".mod.c"):
            continue
        if inside.suffix in _SOURCES or (len(inside.parts) > 1 and _is_makefile(str(inside))):
            files[inside.as_posix()] = path.read_bytes()
    return files


def _is_makefile(name: str) -> bool:
    return _MAKEFILE.fullmatch(name) is not None


def check_paths(paths: Iterable[str], kernel: ModuleKernel, source: PackageSource) -> None:
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


def check_place(path: str, source: PackageSource) -> None:
    """Raise ScenarioError if a source file, new or not, is in a folder that the kernel's tree does
    not have."""
    if not path.endswith(_SOURCES) or _is_silent_folder(path):
        return
    room = room_of(path)
    if path in source.names or (room and any(n.startswith(f"{room}/") for n in source.names)):
        return
    name = PurePosixPath(path).name
    namesakes = sorted(n for n in source.names if n.endswith(f"/{name}"))
    namesakes = namesakes or difflib.get_close_matches(path, source.names, 3, 0.8)
    raise ScenarioError(
        f"{path} has no place in a kernel's tree: {source.name} {source.version} has no"
        f" {f'folder {room}' if room else 'sources at the top'}",
        hint=f"there is {', '.join(namesakes[:3])}" if namesakes else "",
        reason=Reason.NO_SUCH_PLACE,
    )


def find_change(
    kernel: ModuleKernel, source: PackageSource, before: Files, after: Files, kbuild: Kbuild
) -> SourceChange:
    """Return what the change from `before` to `after` reaches.

    Raises ScenarioError if that is more than modules, or nothing."""
    changed = sorted(name for name in after if after[name] != before.get(name))
    check_paths(changed, kernel, source)
    passed_over = [n for n in changed if is_silent(n)]
    changed = [n for n in changed if n not in passed_over]
    if not changed:
        raise _nothing_changed(kernel, source, [*passed_over, *sorted(after)])
    rooms = sorted({room_of(name) for name in changed})
    includes = Includes(source.tree(rooms), rooms, {n: after[n] for n in changed})
    users = {name: select_compiled(includes.users(name)) for name in changed}
    look = _Look(kernel, source, rooms)
    objects = look.objects(users, kbuild)
    for name in changed:
        listed = [user for user in users[name] if objects.is_compiled(user) or is_foreign(user)]
        if objects.failures and listed != users[name]:
            hidden = next(user for user in users[name] if user not in listed)
            raise look.not_told(name, hidden, objects.failures)
        if not any(map(objects.is_compiled, users[name])):
            raise look.not_compiled(name, users[name])
    built_in = {
        object_of(user): (name, user)
        for name in changed
        for user in users[name]
        if object_of(user) in objects.built_in
    }
    files = {name: after[name] for name in changed}
    differing = kbuild.differing(objects.rooms, sorted(built_in), files) if built_in else {}
    if differing:
        first = next(made for made in built_in if made in differing)
        raise look.built_in(*built_in[first], f"{first} differs: {differing[first]}")
    reached: dict[str, dict[str, None]] = {}
    for name in changed:
        modules = {module for user in users[name] for module in objects.modules_of(user)}
        for module in modules:
            reached.setdefault(module, {})[name] = None
        if not modules:  # the objects of the kernel itself stay as they are
            passed_over.append(name)
            del files[name]
    if not files:
        raise _nothing_changed(kernel, source, passed_over)
    return SourceChange(
        rooms=tuple(sorted(objects.rooms)),
        after=files,
        reached={module: tuple(names) for module, names in sorted(reached.items())},
        passed_over=tuple(passed_over),
    )


def _nothing_changed(
    kernel: ModuleKernel, source: PackageSource, files: Sequence[str]
) -> ScenarioError:
    return ScenarioError(
        f"{kernel}: nothing is changed: the sources are those of {source.name} {source.version}",
        evidence="\n".join(files[:5]),
        reason=Reason.NOTHING_CHANGED,
    )


def _beyond(
    path: str, why: str, kernel: ModuleKernel, source: PackageSource, evidence: str = ""
) -> ScenarioError:
    """Return the error for a change that rebuilt modules cannot have. Its hint is what to write
    instead."""
    where = [f'{key} = "{value}"' for key, value in (("suite", kernel.suite),
             ("version", kernel.version)) if value]  # fmt: skip
    series = ", ".join(f'"{item}"' for item in kernel.series) or '"CHANGE.patch"'
    words = ", ".join([f'source = "{source.name}"', *where, f"series = [{series}]"])
    return ScenarioError(
        f"{path} {why}: a change of it reaches further than modules",
        evidence=evidence,
        hint=f"build the whole kernel: kernel = {{ {words} }}",
        reason=Reason.BEYOND_MODULES,
    )


class _Look:
    """Lookup of what source files are compiled into, in the kernel's own configuration."""

    def __init__(self, kernel: ModuleKernel, source: PackageSource, rooms: Sequence[str]) -> None:
        self._kernel, self._source, self._rooms = kernel, source, rooms

    def objects(self, users: Mapping[str, Iterable[str]], kbuild: Kbuild) -> Objects:
        """Return what kbuild makes from the parts of the tree with these files."""
        rooms = {room for room in self._rooms if not is_foreign(f"{room}/")}
        objects = kbuild.objects(rooms)
        # The Makefile may be in another part: arch/x86/kvm/Makefile has objects of virt/kvm.
        others = {
            room_of(makefile)
            for name, files in users.items()
            if not is_foreign(name) and not any(map(objects.is_compiled, files))
            for makefile in self._naming(name)
        }
        return kbuild.objects(rooms | others) if others - rooms else objects

    def _naming(self, name: str) -> list[str]:
        """Return the Makefiles elsewhere that name the folder of a file."""
        folder = str(PurePosixPath(name).parent)
        return [
            path
            for path in sorted(self._source.names)
            if path.endswith(("/Makefile", "/Kbuild")) and not path.startswith(f"{folder}/")
            and is_part(path) and not is_foreign(path) and folder in self._text(path)
        ]  # fmt: skip

    def _text(self, path: str) -> str:
        return (self._source.tree(self._rooms) / path).read_text("utf-8", "replace")

    def _symbols(self, name: str) -> list[str]:
        """Return the CONFIG_ symbols that decide whether a file is compiled, as `CONFIG_X=y`."""
        folders = folders_of([name], self._source.names)[-1:]
        makefiles = [f"{folder}/{file}" for folder in folders for file in ("Kbuild", "Makefile")]
        texts = [self._text(path) for path in makefiles if path in self._source.names]
        values = self._source.configuration
        return [f"{s}={values.get(s, 'n')}" for text in texts for s in symbols_of(text, name)]

    def built_in(self, name: str, user: str, evidence: str) -> ScenarioError:
        symbols = ", ".join(self._symbols(user)) or "always"
        if name == user:
            why = f"is built into this kernel ({symbols})"
        else:
            why = f"is part of {user}, which is built into this kernel ({symbols})"
        return _beyond(name, why, self._kernel, self._source, evidence)

    def not_told(self, name: str, user: str, failures: Sequence[str]) -> ScenarioError:
        own = name if name == user else f"{user}, which {name} is part of,"
        return ScenarioError(
            f"kbuild does not tell whether {own} is compiled into {self._source.release}:"
            " not all that its Makefiles name is there",
            evidence="\n".join(failures[:5]),
            hint=f'build the whole kernel: source = "{self._source.name}"',
            reason=Reason.MAKEFILE_UNREADABLE,
        )

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
