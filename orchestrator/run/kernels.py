"""The kernels of one command, however many arms, cells and commits name them."""

from __future__ import annotations

from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.kernels import KernelBundle, check_kernel, describe_kernel, materialise_kernel
from orchestrator.scenario.kernel_forms import Kernel, SourceKernel, TreeKernel


class RunKernels:
    """Kernels by what names them. Each is checked, described and built at most once, so that all
    uses of a command have the same version. What failed is tried again."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._checked: set[Kernel] = set()
        self._descriptions: dict[Kernel, str] = {}
        self._bundles: dict[tuple[Kernel, str], KernelBundle] = {}

    def check(self, kernel: Kernel) -> None:
        """Do what `check_kernel` does."""
        if kernel not in self._checked:
            check_kernel(kernel, self.cache)
            self._checked.add(kernel)

    def describe(self, kernel: Kernel) -> str:
        """Do what `describe_kernel` does."""
        if kernel not in self._descriptions:
            self._descriptions[kernel] = describe_kernel(kernel, self.cache)
        return self._descriptions[kernel]

    def materialise(self, kernel: Kernel, progress: Progress, tag: str) -> KernelBundle:
        """Do what `materialise_kernel` does. Only a kernel that is built whole has the tag in its
        release; any other is the same under every tag."""
        key = (kernel, tag if isinstance(kernel, TreeKernel | SourceKernel) else "")
        if key not in self._bundles:
            self._bundles[key] = materialise_kernel(kernel, self.cache, progress, tag)
        return self._bundles[key]
