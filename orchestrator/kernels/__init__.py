"""Get a kernel ready to boot: a Debian package, a folder, a tree that is built, or a package whose
modules are rebuilt. Each becomes a KernelBundle.

check_kernel(kernel, cache)            -> None          checks that it can be built; builds nothing
materialise_kernel(kernel, cache, ...) -> KernelBundle  downloads, unpacks, builds what is missing
describe_kernel(kernel, cache)         -> str           names what would be used; builds nothing
"""

from __future__ import annotations

from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.kernels import directory
from orchestrator.kernels.debian import package
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.kernels.module import rebuild
from orchestrator.kernels.source import tree
from orchestrator.scenario.kernel_forms import (
    DirKernel,
    Kernel,
    ModuleKernel,
    SourceKernel,
    TreeKernel,
)

__all__ = ["KernelBundle", "check_kernel", "describe_kernel", "materialise_kernel"]


def check_kernel(kernel: Kernel, cache: Cache) -> None:
    """Check that a kernel can be built: its sources exist, its series applies. Builds nothing.

    Raises ScenarioError if it cannot.
    """
    if isinstance(kernel, TreeKernel | SourceKernel):
        tree.check_source(kernel, cache)
    elif isinstance(kernel, ModuleKernel):
        rebuild.check_modules(kernel, cache)
    else:
        describe_kernel(kernel, cache)


def materialise_kernel(
    kernel: Kernel, cache: Cache, progress: Progress, tag: str = "base"
) -> KernelBundle:
    """Return the kernel ready to boot, cached by content. `tag` is four letters that name the arm
    in the release of a kernel that is built.

    Raises ScenarioError if no such suite, package, version, folder or commit exists, or if the
    kernel does not build; BenchError if the mirror cannot be reached.
    """
    if isinstance(kernel, TreeKernel | SourceKernel):
        return tree.build_kernel(kernel, cache, tag, progress)
    if isinstance(kernel, ModuleKernel):
        return rebuild.rebuild_modules(kernel, cache, progress)
    if isinstance(kernel, DirKernel):
        return directory.copy_kernel(kernel, cache)
    return package.unpack_kernel(kernel, cache)


def describe_kernel(kernel: Kernel, cache: Cache) -> str:
    """Return a line for a plan: the exact version that would be used. Raises ScenarioError if
    there is none, BenchError if the mirror cannot be reached."""
    if isinstance(kernel, TreeKernel | SourceKernel):
        return tree.describe_source(kernel, cache)
    if isinstance(kernel, DirKernel):
        return f"{kernel} ({directory.release_of(kernel)})"
    version, _ = package.resolve_version(kernel, cache)
    return f"{kernel} ({version})"
