"""Measure the time to get a kernel: whole, with another series, as a module, from the cache.

    .venv/bin/python ci/bench/building.py [--cache FOLDER]

Kernels are built in a cache of their own (BAROMETER_CACHE of a folder that is removed afterwards,
unless --cache names one), so that only the build root is cached at the start, and ccache
contributes nothing. Seconds are wall-clock seconds; CPU seconds are those of all processes.
Ratios are to the whole kernel of the same run.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.kernels import check_kernel, materialise_kernel
from orchestrator.kernels.source.buildroot import build_root
from orchestrator.scenario.kernel_forms import Kernel, ModuleKernel, SourceKernel

SERIES = Path(__file__).parents[2] / "fixtures/series"
SUITE = "trixie-backports"


def make_kernel(*series: str) -> SourceKernel:
    paths = tuple(str(SERIES / name) for name in series)
    return SourceKernel(source="linux-source-7.3", suite=SUITE, series=paths)


def make_module(*series: str) -> ModuleKernel:
    paths = tuple(str(SERIES / name) for name in series)
    return ModuleKernel(deb="linux-image-cloud-amd64", suite=SUITE, series=paths)


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock seconds and the CPU seconds that `work` takes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, started = usage.ru_utime + usage.ru_stime, time.monotonic()
    work()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, help="keep what is built, and use what is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="building-") as folder:
        cache = Cache(options.cache.absolute() if options.cache else Path(folder))
        build_root(cache)

        def build(kernel: Kernel, tag: str) -> None:
            check_kernel(kernel, cache)
            materialise_kernel(kernel, cache, Progress(), tag)

        # fetches the sources and headers of the package, and proves its module
        build(make_module("placebo"), "cand")
        rows = [
            ("whole kernel, nothing cached", make_kernel(), "base"),
            ("another arm: one file of VFIO", make_kernel("stride-clamp"), "cand"),
            ("a third arm", make_kernel("slower-unmap"), "cand"),
            ("module arm", make_module("stride-clamp"), "cand"),
            ("module arm, cached", make_module("stride-clamp"), "cand"),
            ("whole kernel, cached", make_kernel("stride-clamp"), "cand"),
        ]
        whole = 0.0
        for name, kernel, tag in rows:
            seconds, cpu = measure(lambda kernel=kernel, tag=tag: build(kernel, tag))  # type: ignore[misc]
            whole = whole or seconds
            print(f"{name:<34} {seconds:7.1f} s {cpu:7.1f} CPU s  {seconds / whole:8.4f}")


if __name__ == "__main__":
    main()
