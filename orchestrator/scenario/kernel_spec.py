"""Parser of a kernel as the command line spells it:

    deb:NAME@SUITE  deb:NAME=VERSION@SUITE    a package
    dir:PATH                                  a folder with a kernel that is built
    tree:PATH  tree:PATH@COMMIT               a tree that is built
    source:PACKAGE@SUITE                      a source package that is built
    module:PATH  module:PATH@COMMIT           changed modules, on top of a deb: kernel
    v7.3                                      that commit of the kernel tree in the current folder

An error names the option, what was expected, and the nearest kind.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.scenario.kernel_forms import (
    DebKernel,
    DirKernel,
    Kernel,
    ModuleKernel,
    SourceKernel,
    TreeKernel,
)

EXAMPLES = {
    "deb": "deb:linux-image-cloud-amd64@trixie",
    "dir": "dir:/srv/kernels/7.3",
    "tree": "tree:~/linux@v7.3",
    "source": "source:linux-source@trixie-backports",
    "module": "module:~/vfio-changes",
}
"""Example of each kind."""
_KERNEL: TypeAdapter[Kernel] = TypeAdapter(Kernel)
_TOP_OF_A_KERNEL = ("Kbuild", "Kconfig", "MAINTAINERS")
"""Files that a kernel's source tree has at its top."""


def parse_kernel(
    text: str, option: str, *, base: Kernel | None = None, folder: Path = Path()
) -> Kernel:
    """Return the kernel that `text`, the value of `option`, spells. Relative paths start at
    `folder`; the kernel's paths are absolute, and exist.

    `base`: the kernel that a module: kernel goes on top of. Raises ScenarioError, and nothing
    else.
    """
    if not text.isprintable():
        raise _spelling_error(option, text, "has unprintable characters")
    kind, colon, rest = text.partition(":")
    if not colon:
        return _parse_commit(text, option, folder)
    if kind not in EXAMPLES:
        near = difflib.get_close_matches(kind, EXAMPLES, 1, 0.5)
        nearest = f'; did you mean "{near[0]}:"?' if near else ""
        raise _spelling_error(option, text, f'"{kind}:" is not a kind of kernel{nearest}')
    if not rest:
        raise _spelling_error(option, text, f"expected more, as {EXAMPLES[kind]}")
    if kind in ("deb", "source"):
        return _validate(option, text, _parse_package(kind, rest))
    if kind == "dir":
        return _validate(option, text, {"dir": _resolve_existing(option, text, rest, folder)})
    path, ref = _split_ref(option, text, rest, folder)
    package = _choose_package(base, option, text) if kind == "module" else {}
    return _validate(option, text, package | {kind: path} | ({"ref": ref} if ref else {}))


def add_series(kernel: Kernel, series: tuple[str, ...], option: str) -> Kernel:
    """Return the kernel with these patches on top. Raises ScenarioError for a kernel that cannot
    be patched."""
    if isinstance(kernel, DirKernel):
        raise ScenarioError(
            f"{option}: {kernel} is built already and cannot be patched",
            hint=f"give the tree it was built from, as {EXAMPLES['tree']}",
            reason=Reason.KERNEL_SPELLING,
        )
    if isinstance(kernel, TreeKernel | SourceKernel | ModuleKernel):
        return kernel.model_copy(update={"series": (*kernel.series, *series)})
    package = kernel.model_dump(exclude_none=True)
    return _validate(option, " ".join(series), package | {"series": series})


def _parse_package(kind: str, text: str) -> dict[str, str]:
    """Parse NAME=VERSION@SUITE; version and suite are optional."""
    name, at, suite = text.rpartition("@") if "@" in text else (text, "", "")
    name, equals, version = name.partition("=")
    package = {kind: name} | ({"version": version} if equals else {})
    return package | ({"suite": suite} if at else {})


def _choose_package(base: Kernel | None, option: str, text: str) -> dict[str, Any]:
    if isinstance(base, ModuleKernel):
        base = base.package
    if not isinstance(base, DebKernel):
        other = f"it is {base}" if base is not None else "there is none"
        raise _spelling_error(
            option, text,
            f"module: needs the other kernel to be a package, as {EXAMPLES['deb']}; {other}",
        )  # fmt: skip
    return base.model_dump(exclude_none=True)


def _parse_commit(text: str, option: str, folder: Path) -> Kernel:
    """Return a bare commit as a kernel of the tree that `folder` is."""
    if not text.strip():
        raise _spelling_error(option, text, "is empty")
    if _exists(folder / ".git") and all(_exists(folder / name) for name in _TOP_OF_A_KERNEL):
        return _validate(option, text, {"tree": folder.resolve(), "ref": text})
    if _exists(folder / text):
        raise _spelling_error(
            option, text, f"names no kind; did you mean tree:{text}, or dir:{text}?"
        )
    raise _spelling_error(
        option, text,
        f"names no kind; it can be a commit only in a kernel's git repository, and"
        f" {folder.absolute()} is none",
    )  # fmt: skip


def _split_ref(option: str, text: str, rest: str, folder: Path) -> tuple[Path, str | None]:
    """Split PATH@COMMIT at the last @ that has an existing path before it: both may contain an
    @."""
    at = len(rest)
    while (at := rest.rfind("@", 0, at)) > 0:
        if _exists(folder / os.path.expanduser(rest[:at])):  # noqa: PTH111  # like KernelPath
            if at + 1 == len(rest):
                raise _spelling_error(option, text, "expected a commit after @")
            return _resolve_existing(option, text, rest[:at], folder), rest[at + 1 :]
    return _resolve_existing(option, text, rest, folder), None


def _resolve_existing(option: str, text: str, path: str, folder: Path) -> Path:
    place = folder / os.path.expanduser(path)  # noqa: PTH111  # like KernelPath
    if not _exists(place):
        raise _spelling_error(option, text, f"{place.absolute()} does not exist")
    return place.resolve()


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # Path.exists() raises for a name that is too long


def _validate(option: str, text: str, value: dict[str, Any]) -> Kernel:
    try:
        return _KERNEL.validate_python(value)
    except ValidationError as exc:
        wrong = "; ".join(
            ": ".join([*map(str, item["loc"][1:]), item["msg"].removeprefix("Value error, ")])
            for item in exc.errors()
        )
        raise _spelling_error(option, text, wrong) from exc


def _spelling_error(option: str, text: str, why: str) -> ScenarioError:
    return ScenarioError(
        f"{option} {text!r}: {why}",
        hint="a kernel is " + ", ".join(EXAMPLES.values()) + "; in a kernel's repository also a"
        " bare commit: v7.3",
        reason=Reason.KERNEL_SPELLING,
    )
