"""Compare the time to a proven kernel over SSH with virtme-ng running `true` on that kernel.

    .venv/bin/python ci/bench/host_boot.py [--repeats N] [--vng PATH]

Both run without KVM, in turn, on one machine; prints the ratio of the medians. virtme-ng is taken
from PATH or --vng (`pip install virtme-ng`). It needs a terminal (run this under script(1)),
busybox on PATH and the kernel's modules in /lib/modules. Without virtme-ng, only barometer's own
time is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.machine.nested.nested import prepare_host, proven_host, running_machine
from orchestrator.machine.nested.sharing import NestedMachine
from orchestrator.machine.runner.state import bench_state
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.vm import hypervisor
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import prepare
from orchestrator.scenario.loading import load_scenario

SCENARIO = Path(__file__).parents[2] / "fixtures/scenarios/small.toml"


def boot_once() -> None:
    """Boot one host from nothing to its proven kernel and shut it down: the work of `--once`."""
    scenario, _ = load_scenario(SCENARIO, ["host.accel=tcg"])
    cache, progress, keys = Cache(), Progress(), RunKeys.make()
    nested = NestedMachine.of(scenario.host, scenario.device)
    prepare(scenario, nested, RunKernels(cache), progress)
    spec = nested.boot_spec("baseline", (), with_libvirt=True)
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(bench_state())
        libvirt = stack.enter_context(
            hypervisor.embedded(state.folder / "libvirt", cache.folder("libvirt"))
        )
        machine = stack.enter_context(
            running_machine(spec, "once", keys=keys, state=state, libvirt=libvirt)
        )
        host, _ = stack.enter_context(
            proven_host(machine, spec.kernel, keys=keys, progress=progress)
        )
        prepare_host(host, spec)
        print("proven", flush=True)


def time_command(argv: list[str], until: str | None) -> float:
    """Return the seconds from the start of the command to the line `until`, or to its end."""
    started = time.monotonic()
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if until is not None and line.strip() == until:
                seconds = time.monotonic() - started
                process.stdout.read()
                return seconds
    if process.returncode:
        raise SystemExit(f"{argv[0]} failed with exit code {process.returncode}")
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vng", default=shutil.which("vng"))
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    if options.once:
        boot_once()
        return
    scenario, _ = load_scenario(SCENARIO)
    machine = NestedMachine.of(scenario.host, scenario.device)
    prepared = prepare(scenario, machine, RunKernels(Cache()), Progress())
    vmlinuz = prepared.kernels["baseline"].vmlinuz
    ours, theirs = [], []
    for _ in range(options.repeats):
        ours.append(time_command([sys.executable, __file__, "--once"], "proven"))
        if options.vng:
            vng = [options.vng, "--disable-kvm", "--run", str(vmlinuz), "--", "true"]
            theirs.append(time_command(vng, None))
    print(f"barometer: {' '.join(f'{s:.1f}' for s in ours)} s, median {median(ours):.2f} s")
    if theirs:
        print(
            f"virtme-ng: {' '.join(f'{s:.1f}' for s in theirs)} s, median {median(theirs):.2f} s"
        )
        print(f"ratio of the medians: {median(ours) / median(theirs):.2f}")


if __name__ == "__main__":
    main()
