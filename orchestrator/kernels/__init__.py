"""Where a kernel comes from: a Debian package or a folder. Both end as a KernelBundle.

materialised(kernel, cache)    -> KernelBundle    downloads and unpacks what is not cached
describe(kernel, cache)        -> str             what would be used, from package lists alone
"""

from __future__ import annotations

from orchestrator.cache import Cache
from orchestrator.kernels import directory, package
from orchestrator.kernels.bundle import KernelBundle
from orchestrator.scenario import DirKernel, Kernel

__all__ = ["KernelBundle", "describe", "materialised"]


def materialised(kernel: Kernel, cache: Cache) -> KernelBundle:
    """The kernel, unpacked and cached by content.

    Raises ScenarioError when no such suite, package, version or folder exists, and BenchError
    when the mirror cannot be reached.
    """
    if isinstance(kernel, DirKernel):
        return directory.materialised(kernel, cache)
    return package.materialised(kernel, cache)


def describe(kernel: Kernel, cache: Cache) -> str:
    """One line for a plan: which exact version would be used. Raises as `materialised`."""
    if isinstance(kernel, DirKernel):
        return f"{kernel} ({directory.release_of(kernel)})"
    version, _ = package.resolved(kernel, cache)
    return f"{kernel} ({version})"
