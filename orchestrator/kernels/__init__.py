"""Get a kernel ready to boot: a Debian package, a folder, a tree that is built, or a package whose
modules are rebuilt. Each becomes a KernelBundle.

checked(kernel, cache)              -> None           checks that it can be built; builds nothing
materialised(kernel, cache, ...)    -> KernelBundle   downloads, unpacks, builds what is missing
describe(kernel, cache)             -> str            names what would be used; builds nothing
"""

from __future__ import annotations

from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.kernels import directory
from orchestrator.kernels.debian import package
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.kernels.module import module
from orchestrator.kernels.source import tree
from orchestrator.scenario.kernel_forms import (
    DirKernel,
    Kernel,
    ModuleKernel,
    SourceKernel,
    TreeKernel,
)

__all__ = ["KernelBundle", "checked", "describe", "materialised"]


def checked(kernel: Kernel, cache: Cache) -> None:
    """Check that a kernel can be built: its sources exist, its series applies. Builds nothing.

    Raises ScenarioError if it cannot.
    """
    if isinstance(kernel, TreeKernel | SourceKernel):
        tree.checked(kernel, cache)
    elif isinstance(kernel, ModuleKernel):
        module.checked(kernel, cache)
    else:
        describe(kernel, cache)


def materialised(
    kernel: Kernel, cache: Cache, progress: Progress, tag: str = "base"
) -> KernelBundle:
    """Return the kernel ready to boot, cached by content. `tag` is four letters that name the arm
    in the release of a kernel that is built.

    Raises ScenarioError if no such suite, package, version, folder or commit exists, or if the
    kernel does not build; BenchError if the mirror cannot be reached.
    """
    if isinstance(kernel, TreeKernel | SourceKernel):
        return tree.materialised(kernel, cache, tag, progress)
    if isinstance(kernel, ModuleKernel):
        return module.materialised(kernel, cache, progress)
    if isinstance(kernel, DirKernel):
        return directory.materialised(kernel, cache)
    return package.materialised(kernel, cache)


def describe(kernel: Kernel, cache: Cache) -> str:
    """Return a line for a plan: the exact version that would be used. Raises ScenarioError if
    there is none, BenchError if the mirror cannot be reached."""
    if isinstance(kernel, TreeKernel | SourceKernel):
        return tree.describe(kernel, cache)
    if isinstance(kernel, DirKernel):
        return f"{kernel} ({directory.release_of(kernel)})"
    version, _ = package.resolved(kernel, cache)
    return f"{kernel} ({version})"
