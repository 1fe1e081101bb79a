"""Where a kernel comes from: a Debian package, a folder, a tree that is built, a package whose
modules are rebuilt. All end as a KernelBundle.

checked(kernel, cache)              -> None           is what it takes there; builds nothing
materialised(kernel, cache, ...)    -> KernelBundle   downloads, unpacks, builds what is missing
describe(kernel, cache)             -> str            what would be used, without building it
"""

from __future__ import annotations

from orchestrator.cache import Cache
from orchestrator.kernels import directory, module, package, tree
from orchestrator.kernels.bundle import KernelBundle
from orchestrator.progress import Progress
from orchestrator.scenario import DirKernel, Kernel, ModuleKernel, SourceKernel, TreeKernel

__all__ = ["KernelBundle", "checked", "describe", "materialised"]


def checked(kernel: Kernel, cache: Cache) -> None:
    """Whether it can be built: its sources are there, its series applies. Builds nothing.

    Raises ScenarioError when not.
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
    """The kernel, ready to boot, cached by content. `tag`: four letters that name the arm in the
    release of a kernel that is built.

    Raises ScenarioError when no such suite, package, version, folder or commit exists, or it does
    not build; BenchError when the mirror cannot be reached.
    """
    if isinstance(kernel, TreeKernel | SourceKernel):
        return tree.materialised(kernel, cache, tag, progress)
    if isinstance(kernel, ModuleKernel):
        return module.materialised(kernel, cache, progress)
    if isinstance(kernel, DirKernel):
        return directory.materialised(kernel, cache)
    return package.materialised(kernel, cache)


def describe(kernel: Kernel, cache: Cache) -> str:
    """One line for a plan: which exact version would be used. Raises as `checked`."""
    if isinstance(kernel, TreeKernel | SourceKernel):
        return tree.describe(kernel, cache)
    if isinstance(kernel, DirKernel):
        return f"{kernel} ({directory.release_of(kernel)})"
    version, _ = package.resolved(kernel, cache)
    return f"{kernel} ({version})"
