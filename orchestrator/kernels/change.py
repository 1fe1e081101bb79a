"""A change of a kernel's source, and which of its modules it reaches: those, and nothing else, are
rebuilt. What reaches the kernel itself, or cannot be told exactly, is refused with the reason.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from orchestrator.cache import Cache
from orchestrator.command import tail
from orchestrator.errors import ScenarioError
from orchestrator.kernels.buildroot import KERNEL_FILES, WORK, BuildRoot
from orchestrator.kernels.debsource import DebSource
from orchestrator.kernels.kbuild import (
    Includes,
    Owners,
    Said,
    compiled,
    folders_of,
    parsed,
    room_of,
)
from orchestrator.scenario import ModuleKernel

Files = Mapping[str, bytes | None]
"""Path in the kernel's tree -> content; None: it is not there."""
_SOURCES = (".c", ".h", ".S")
_MAKEFILE = re.compile(r"(.*/)?(Makefile|Kbuild|Kconfig)[^/]*")
_HEADERS = re.compile(r"include/.*|arch/[^/]+/include/.*")
_SILENT = re.compile(r"(Documentation|LICENSES|tools)/.*|[^/]+|.*\.(rst|md|txt)")
"""Nothing of a module is made from these."""
_EVALUATE = """
printf %s "$1" > /tmp/objects.mk; variables=$2; cd "$3/tree"; shift 3
for folder; do
    echo "folder $folder"
    make -rRs --no-print-directory -f /tmp/objects.mk dir="$folder" "$variables" || exit
done
"""


@dataclass(frozen=True)
class Change:
    source: DebSource
    rooms: tuple[str, ...]
    """The folders of the tree that are needed to build the modules."""
    before: Files
    """The package's, of the files that are changed."""
    after: Files
    reached: Mapping[str, tuple[str, ...]]
    """Module, as a path in the tree without suffix -> the changed files that reach it."""
    passed_over: tuple[str, ...]
    """Changed files that nothing is made from."""

    @property
    def tree(self) -> Path:
        """The package's own source, read-only."""
        return self.source.tree(self.rooms)

    @cached_property
    def modules(self) -> list[str]:
        return sorted(self.reached)


def of_folder(folder: Path) -> dict[str, bytes]:
    """The source files in a module's folder, by their paths in it; what a build or an editor left
    there does not count. Raises ScenarioError when it has none, or is a whole kernel's tree."""
    if not folder.is_dir():
        raise ScenarioError(f"module: {folder} is not a folder", reason="no-such-folder")
    if (folder / "MAINTAINERS").exists() and (folder / "kernel").is_dir():
        raise whole_kernel(folder)
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or not path.is_file() or inside.name.endswith(".mod.c"):
            continue
        if inside.suffix in _SOURCES or (len(inside.parts) > 1 and _is_makefile(str(inside))):
            found[inside.as_posix()] = path.read_bytes()
    if not any(name.endswith(_SOURCES) for name in found):
        raise ScenarioError(
            f"module: {folder} holds no source file (.c, .h, .S)",
            hint="put the changed files there at their places in a kernel's tree:"
            f" {folder.name}/drivers/vfio/vfio_iommu_type1.c",
            reason="no-sources",
        )
    return found


def whole_kernel(folder: Path) -> ScenarioError:
    return ScenarioError(
        f"module: {folder} is a whole kernel's tree, which cannot take the place of the package's",
        hint='name only what you changed: series = ["BASE..BRANCH"] of that repository, or patches'
        " of it",
        reason="whole-kernel",
    )


def _is_makefile(name: str) -> bool:
    return _MAKEFILE.fullmatch(name) is not None


def check_paths(paths: Iterable[str], kernel: ModuleKernel, source: DebSource) -> None:
    """What paths alone tell. Raises ScenarioError for what no module can bring."""
    for path in paths:
        if path.endswith(_SOURCES) and not _is_silent_folder(path):
            _check_place(path, source)
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
    """No module is made from such a file, whatever is in it."""
    return _SILENT.fullmatch(path) is not None


def _is_silent_folder(path: str) -> bool:
    return "/" in path and is_silent(path)


def _check_place(path: str, source: DebSource) -> None:
    """A source file is in a folder of the kernel's tree, even a new one."""
    room = room_of(path)
    if path in source.names or (room and any(n.startswith(f"{room}/") for n in source.names)):
        return
    name = PurePosixPath(path).name
    there = sorted(n for n in source.names if n.endswith(f"/{name}"))
    there = there or difflib.get_close_matches(path, source.names, 3, 0.8)
    raise ScenarioError(
        f"{path} has no place in a kernel's tree: {source.source.name} {source.version} has no"
        f" {f'folder {room}' if room else 'sources at the top'}",
        hint=f"there is {', '.join(there[:3])}" if there else "",
        reason="no-such-place",
    )


def change_of(
    kernel: ModuleKernel, source: DebSource, before: Files, after: Files, root: BuildRoot,
    cache: Cache,
) -> Change:  # fmt: skip
    """What the change from `before` to `after` reaches.

    Raises ScenarioError when that is more than modules, or nothing; BenchError when the build root
    cannot be used."""
    changed = sorted(name for name in after if after[name] != before.get(name))
    check_paths(changed, kernel, source)
    passed_over = tuple(n for n in changed if is_silent(n))
    changed = [n for n in changed if n not in passed_over]
    if not changed:
        raise ScenarioError(
            f"{kernel}: nothing is changed: the sources are those of {source.source.name}"
            f" {source.version}",
            evidence="\n".join([*passed_over[:5]] or sorted(after)[:5]),
            reason="nothing-changed",
        )
    rooms = sorted({room_of(name) for name in changed})
    look = _Look(kernel, source, root, cache, rooms)
    includes = Includes(source.tree(rooms), rooms, {n: after[n] for n in changed})
    reached: dict[str, list[str]] = {}
    for name in changed:
        found = False
        for user in compiled(includes.users(name)):
            owners = look.owners(user)
            if owners.built_in:
                raise look.built_in(name, user)
            for module in owners.modules:
                reached.setdefault(module, []).append(name)
            found = found or bool(owners)
        if not found:
            raise look.not_compiled(name, compiled(includes.users(name)))
    return Change(
        source=source,
        rooms=tuple(sorted({*rooms, *map(room_of, reached)})),
        before={name: before.get(name) for name in changed},
        after={name: after[name] for name in changed},
        reached={module: tuple(names) for module, names in sorted(reached.items())},
        passed_over=passed_over,
    )


def _beyond(path: str, why: str, kernel: ModuleKernel, source: DebSource) -> ScenarioError:
    """What to write for a change that modules cannot bring."""
    where = [f'{key} = "{value}"' for key, value in (("suite", kernel.suite),
             ("version", kernel.version)) if value]  # fmt: skip
    series = ", ".join(f'"{one}"' for one in kernel.series) or '"CHANGE.patch"'
    words = ", ".join([f'source = "{source.source.name}"', *where, f"series = [{series}]"])
    return ScenarioError(
        f"{path} {why}: a change of it reaches further than modules",
        hint=f"build the whole kernel: kernel = {{ {words} }}",
        reason="beyond-modules",
    )


class _Look:
    """Looks up what source files are compiled into, in the kernel's own configuration."""

    def __init__(
        self, kernel: ModuleKernel, source: DebSource, root: BuildRoot, cache: Cache,
        rooms: Sequence[str],
    ) -> None:  # fmt: skip
        self._kernel, self._source, self._root, self._cache = kernel, source, root, cache
        self._rooms = rooms
        self._said = Said()

    def owners(self, name: str) -> Owners:
        found = self._evaluated([name]).owners(name)
        # compiled from elsewhere: arch/x86/kvm/Makefile has objects of virt/kvm
        return found or self._evaluated([name, *self._naming(name)]).owners(name)

    def _evaluated(self, names: Sequence[str]) -> Said:
        folders = folders_of(names, self._source.names)
        if new := [f for f in folders if f not in self._said.folders]:
            conf = f"conf={self._source.kbuild}/include/config/auto.conf"
            self._said.folders.update(self._ask(conf, new).folders)
        return self._said

    def _naming(self, name: str) -> list[str]:
        """The Makefiles elsewhere that name the folder of a file."""
        folder = str(PurePosixPath(name).parent)
        tree = self._source.tree(self._rooms)
        return [
            path
            for path in sorted(self._source.names)
            if path.endswith(("/Makefile", "/Kbuild")) and not path.startswith(f"{folder}/")
            and folder in (tree / path).read_text("utf-8", "replace")
        ]  # fmt: skip

    def _ask(self, variables: str, folders: Sequence[str]) -> Said:
        text = (KERNEL_FILES / "objects.mk").read_text()
        doing = "evaluating the kernel's Makefiles"
        with tempfile.TemporaryDirectory(dir=self._cache.folder("tmp")) as scratch:
            log = Path(scratch) / "log"
            code = self._root.run(
                ["sh", "-c", _EVALUATE, "sh", text, variables, WORK, *folders],
                work=self._source.tree(self._rooms).parent,
                layers=[self._source.headers_layer], doing=doing, log=log,
            )  # fmt: skip
            said = log.read_text(errors="replace")
        if code:
            raise ScenarioError(
                f"{self._kernel}: the Makefiles of {', '.join(folders)} cannot be evaluated",
                evidence=tail(said),
                reason="makefile-unreadable",
            )
        return parsed(said)

    def _symbols(self, name: str) -> list[str]:
        """The CONFIG_ symbols that decide about a file, as `CONFIG_X=y`."""
        folders = folders_of([name], self._source.names)
        tree = self._source.tree(self._rooms)
        texts = [(tree / f / m) for f in folders for m in ("Makefile", "Kbuild")]
        named = sorted({s for p in texts if p.exists()
                        for s in re.findall(r"\bCONFIG_\w+", p.read_text("utf-8", "replace"))})  # fmt: skip
        symbols = self._ask(f"names={' '.join(named)}", folders[-1:]).symbols(name)
        conf = self._source.headers_layer / self._source.kbuild[1:] / "include/config/auto.conf"
        values = dict(line.partition("=")[::2] for line in conf.read_text().splitlines())
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
        if not users:
            return ScenarioError(
                f"{name} is included by nothing in {', '.join(self._rooms)}, so its change reaches"
                f" no module of {release}",
                reason="not-compiled",
            )
        symbols = [s for user in users for s in self._symbols(user)]
        off = ", ".join(dict.fromkeys(symbols))
        own = f"{name} is" if users == [name] else f"{name}, part of {', '.join(users[:3])}, is"
        return ScenarioError(
            f"{own} not compiled in the configuration of {release}"
            + (f" ({off})" if off else ": no Makefile of its folder, or above it, names it"),
            hint="a new file needs a Makefile that names it, which a module cannot bring"
            if name not in self._source.names
            else f'build the whole kernel with it: source = "{self._source.source.name}"'
            " and config = [...]",
            reason="not-compiled",
        )
