"""The forms of a kernel in a scenario file: package, folder, tree, source, changed module."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag, model_validator

from orchestrator.scenario.fields import (
    DebianSuite,
    KernelPath,
    PackageName,
    PatchSources,
    ScenarioModel,
)
from orchestrator.scenario.vocabulary import is_config_line

_MESSAGE_ID = re.compile(r"<?[^\s<>@/]+@[^\s<>@/]+>?")


_RANGE = re.compile(r"[^\s/.][^\s]*\.\.[^\s.][^\s]*")


class DebKernel(ScenarioModel):
    """A kernel from Debian's packages, resolved by apt with Debian's own keyring."""

    deb: PackageName
    """Package name, for example linux-image-cloud-amd64."""
    suite: DebianSuite | None = None
    """Debian suite, for example trixie or trixie-backports."""
    version: str | None = None
    """Exact package version; with or without a suite."""

    @model_validator(mode="after")
    def _check_version_is_named(self) -> DebKernel:
        _check_version("deb", self.deb, self.version, self.suite)
        return self

    def __str__(self) -> str:
        return "deb:" + _spell_package(self.deb, self.version, self.suite)


class ModuleKernel(DebKernel):
    """A kernel from Debian's packages with some of its modules rebuilt from changed sources;
    everything else is the package's. For changes that affect modules only."""

    module: KernelPath | None = None
    """Folder or git repository with the changed source files, at their paths in a kernel's tree
    (drivers/vfio/vfio_iommu_type1.c). They replace the package's files."""
    ref: str | None = None
    """Commit of the git repository `module`. Default: the files that are in the folder now."""
    series: PatchSources = ()
    """Patches on top of the package's source (and of `module`)."""

    @model_validator(mode="after")
    def _check_changed(self) -> ModuleKernel:
        if self.module is None and not self.series:
            raise ValueError("needs changed sources: module, or series")
        if self.ref is not None and self.module is None:
            raise ValueError("ref is the commit of a module's git repository; module is missing")
        return self

    @property
    def package(self) -> DebKernel:
        """The packaged kernel whose modules are rebuilt."""
        return DebKernel(deb=self.deb, suite=self.suite, version=self.version)

    def __str__(self) -> str:
        at = f"@{self.ref}" if self.ref else ""
        module = [f"module:{self.module}{at}"] if self.module else []
        return " + ".join([str(self.package), *module, *map(_shorten_patches, self.series)])


class DirKernel(ScenarioModel):
    """A kernel that is built already: a folder with vmlinuz and its modules."""

    dir: KernelPath
    """Folder with vmlinuz (or boot/vmlinuz-*) and lib/modules/RELEASE. A relative path starts at
    the scenario's folder."""

    def __str__(self) -> str:
        return f"dir:{self.dir}"


class _Built(ScenarioModel):
    """Keys that all kernels built from source share."""

    series: PatchSources = ()
    """Patches on top of the source, in this order: a file (mbox, patch), a folder of patches, a
    range of commits of the tree's repository (A..B), or the message-id of a mail on
    lore.kernel.org."""
    config: tuple[str, ...] = ()
    """Options on top of barometer's own small configuration for hosts: "CONFIG_X=y", or a file
    with such lines. A whole .config replaces barometer's, except for the options that a host
    needs."""


class TreeKernel(_Built):
    """A kernel that is built from a source tree."""

    tree: KernelPath
    """A git repository, a folder with a kernel's source, or a tarball of one."""
    ref: str | None = None
    """Commit of a git repository, by any name that git knows. Default: the commit that is checked
    out; uncommitted changes are then refused."""

    def __str__(self) -> str:
        at = f"@{self.ref}" if self.ref else ""
        return " + ".join([f"tree:{self.tree}{at}", *map(_shorten_patches, self.series)])


class SourceKernel(_Built):
    """A kernel that is built from one of Debian's source packages."""

    source: PackageName
    """Package name, for example linux-source-7.3, or linux-source for a suite's default."""
    suite: DebianSuite | None = None
    version: str | None = None

    @model_validator(mode="after")
    def _check_version_is_named(self) -> SourceKernel:
        _check_version("source", self.source, self.version, self.suite)
        return self

    def __str__(self) -> str:
        name = "source:" + _spell_package(self.source, self.version, self.suite)
        return " + ".join([name, *map(_shorten_patches, self.series)])


def _check_version(key: str, name: str, version: str | None, suite: str | None) -> None:
    if suite is None and version is None:
        raise ValueError(f'{{ {key} = "{name}" }} needs a suite or a version beside it')


def _spell_package(name: str, version: str | None, suite: str | None) -> str:
    return name + (f"={version}" if version else "") + (f"@{suite}" if suite else "")


def _shorten_patches(patches: str) -> str:
    return patches if is_message_id(patches) else Path(patches).name


def is_message_id(patches: str) -> bool:
    """True if an item of a series is the message-id of a mail on lore.kernel.org, and no such file
    exists."""
    return _MESSAGE_ID.fullmatch(patches) is not None and not os.path.lexists(patches)


def is_range(patches: str) -> bool:
    """True if an item of a series is a range of commits, A..B, and no such file exists."""
    return _RANGE.fullmatch(patches) is not None and not os.path.lexists(patches)


def _find_kernel_tag(value: Any) -> str:
    """Return the tag of the kernel form that the table's keys select."""
    if not isinstance(value, Mapping):
        forms: dict[type[Any], str] = {
            DirKernel: "dir", TreeKernel: "tree", SourceKernel: "source", ModuleKernel: "module"
        }  # fmt: skip
        return forms.get(type(value), "deb")
    for form in ("deb", "tree", "source", "dir"):
        if form in value:
            changed = form == "deb" and ("module" in value or "series" in value)
            return "module" if changed else form
    return "module" if "module" in value else "deb"


Kernel = Annotated[
    Annotated[DebKernel, Tag("deb")]
    | Annotated[DirKernel, Tag("dir")]
    | Annotated[TreeKernel, Tag("tree")]
    | Annotated[SourceKernel, Tag("source")]
    | Annotated[ModuleKernel, Tag("module")],
    Discriminator(_find_kernel_tag),
]


def resolve_kernel_paths(kernel: Kernel, folder: Path) -> Kernel:
    """Return the kernel with its relative paths resolved from `folder`."""
    more: dict[str, Any] = {}
    for key in ("dir", "tree", "module"):
        if (path := getattr(kernel, key, None)) is not None:
            more[key] = (folder / path).resolve()
    if series := getattr(kernel, "series", ()):
        more["series"] = tuple(
            p if (is_message_id(p) or is_range(p)) and not os.path.lexists(folder / p)
            else str((folder / p).resolve()) for p in series
        )  # fmt: skip
    if config := getattr(kernel, "config", ()):
        more["config"] = tuple(
            c if is_config_line(c) else str((folder / c).resolve()) for c in config
        )
    return kernel.model_copy(update=more)
