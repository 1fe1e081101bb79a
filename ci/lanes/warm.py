"""Fill the caches for the lanes that boot machines or build, in the order of their need.

    .venv/bin/python -m ci.lanes.warm [--full] [STEP ...]

Meant to run beside the unit lane. Each step calls the product's own functions, whose locks hold
across processes: a test that needs the same content meanwhile waits for it, and nothing is built
twice. A cached step takes a second. A step that fails ends the command with its error and exit
code.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError
from orchestrator.base.progress import Progress
from orchestrator.kernels.source.buildroot import build_root
from orchestrator.kernels.source.debsource import find_package_source
from orchestrator.machine.nested.sharing import NestedMachine
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import prepare
from orchestrator.scenario.kernel_forms import DebKernel
from orchestrator.scenario.loading import load_scenario
from tests.lab.machine.disk import machine_disk
from tests.lab.test_guestdisk import firmware

FIXTURES = Path(__file__).parents[2] / "fixtures"
CLOUD = "linux-image-cloud-amd64"
Step = Callable[[Cache, Progress], object]


def make_scenario_step(*overrides: str) -> Step:
    """Prepare the small scenario: kernels, host image, modules, initramfs, guest."""

    def step(cache: Cache, progress: Progress) -> None:
        scenario, _ = load_scenario(
            FIXTURES / "scenarios/small.toml", ["host.accel=tcg", *overrides]
        )
        machine = NestedMachine.of(scenario.host, scenario.device)
        prepare(scenario, machine, RunKernels(cache), progress)

    return step


def make_sources_step(suite: str) -> Step:
    """Fetch the headers and the source of the suite's kernel, for builds of its VFIO modules."""

    def step(cache: Cache, _progress: Progress) -> object:
        source = find_package_source(DebKernel(deb=CLOUD, suite=suite), cache)
        return source.headers_layer, source.names, source.tree(["drivers/vfio"])

    return step


def build_firmware(_cache: Cache, _progress: Progress) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        firmware("uefi", Path(scratch))


BOOKWORM = f'arms.baseline.kernel={{deb="{CLOUD}", suite="bookworm"}}'
LANDING: Mapping[str, Step] = {
    "host": make_scenario_step(),
    "machine": lambda cache, _: machine_disk(cache),
    "guest-disk": make_scenario_step("guest.boot=disk"),
    "firmware": build_firmware,
    "build-root": lambda cache, _: build_root(cache),
    "sources": make_sources_step("trixie-backports"),
    "bookworm-kernel": make_scenario_step(BOOKWORM),
    "uefi-machine": lambda cache, _: machine_disk(cache, "systemd-boot"),
}
FULL: Mapping[str, Step] = {
    "bookworm-host": make_scenario_step("host.suite=bookworm", BOOKWORM),
    "older-sources": make_sources_step("trixie"),
}
"""Further steps for tests marked `full`."""


def main() -> int:
    steps = {**LANDING, **FULL}
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [--full] [STEP ...]")
    parser.add_argument("--full", action="store_true", help="for tests marked `full`, too")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(steps))
    options = parser.parse_args()
    names = options.steps or [*(steps if options.full else LANDING)]
    if unknown := [name for name in names if name not in steps]:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(steps)}")
    cache, progress = Cache(), Progress()
    for name in names:
        try:
            with progress.stage(name):
                steps[name](cache, progress)
        except BarometerError as exc:
            print(f"warm: {name}: {exc}", file=sys.stderr)
            return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
