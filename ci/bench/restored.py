"""Compare exact hosts that are booted with such that are restored: instruction counts, seconds.

    .venv/bin/python ci/bench/restored.py [--hosts 10] [--arm ARM] [KEY=VALUE ...]

The scenario is map-small.toml, the full BAR; KEY=VALUE overrides its keys. Booted hosts have
host.restore = "never", restored ones are all from one saved host. They take turns. Prints each
host's counts, how far apart the counts of each kind and of both kinds are, and the seconds from
the command to a bound device: of the clock, and of QEMU's CPU time, which other work on the
machine changes less. Fails if two counts differ by more than 0.01 %.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, median_low
from typing import Literal

from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.evidence.layout import RunDir, TrialDir, TrialWriter
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host
from orchestrator.machine.nested.nested import VmHost
from orchestrator.machine.nested.saved import SavedHosts
from orchestrator.machine.nested.sharing import HostPool, NestedMachine
from orchestrator.machine.runner.state import BenchState, bench_state, qemu_processes
from orchestrator.machine.vm import hypervisor
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import build_plan, prepare
from orchestrator.run.trial import Bench, run_trial
from orchestrator.scenario.loading import load_scenario
from orchestrator.scenario.plan import PlannedTrial
from orchestrator.scenario.vocabulary import ARMS, ArmName

SCENARIO = Path(__file__).parents[2] / "fixtures/scenarios/map-small.toml"
MEASURED = ['map.sizes=["full"]', 'trace.passes=["plain"]', "expect={}"]
MOST = 1e-4
"""Largest difference of two counts of one operation, as a share of the smaller one."""


@dataclass(frozen=True)
class Row:
    restored: bool
    seconds: float
    cpu: float
    counts: dict[str, float]
    """Operation and state -> the trial's value, in nanoseconds (an instruction is one)."""
    worst: float
    """Largest difference of a sample from the trial's value, as a share. Chance adds to some."""

    @property
    def kind(self) -> str:
        return "restored" if self.restored else "booted"


class Watched(NestedMachine):
    """Remembers when the device of its last host was bound, in seconds since `started`, and the
    CPU seconds that the host's QEMU had used by then."""

    started = bound = cpu = 0.0

    def bind_devices(self, host: Host, trial: TrialWriter) -> tuple[BoundDevice, ...]:
        devices = super().bind_devices(host, trial)
        assert isinstance(host, VmHost)
        self.bound, self.cpu = time.monotonic() - self.started, read_cpu(host.vm.domain.uuid)
        return devices


class Hosts:
    """Exact hosts for trials of maps, one after the other, as `host.restore` says."""

    def __init__(
        self, restore: Literal["auto", "never"], overrides: Sequence[str], folder: Path,
        state: BenchState, libvirt: hypervisor.Connection, pool: HostPool, cache: Cache,
    ) -> None:  # fmt: skip
        words = [*MEASURED, f"host.restore={restore}", *overrides]
        scenario, text = load_scenario(SCENARIO, words)
        self._machine = Watched.of(scenario.host, scenario.device, pool)
        prepared = prepare(scenario, self._machine, RunKernels(cache), Progress())
        run = RunDir.create(folder / restore, text, build_plan(scenario, prepared))
        self._bench = Bench(
            scenario, prepared, run, state, libvirt, Progress(), machine=self._machine
        )

    def measure(self, arm: ArmName) -> Row:
        """Make an arm's first trial."""
        planned = PlannedTrial(1, 1, arm, ("plain",))
        self._machine.started = time.monotonic()
        run_trial(self._bench, planned)
        trial = TrialDir.open(self._bench.run.trials_path / planned.name)
        counts: dict[str, list[float]] = {}
        answer = json.loads(trial.text("map.json") or "")["passes"]["plain"]
        for sample in answer["points"][-1]["samples"]:
            for operation in ("map", "unmap"):
                name = f"{operation}/{sample['state']}"
                counts.setdefault(name, []).append(sample[f"{operation}_ns"])
        # as the product reduces the samples of a trial: TrialResult.value
        values = {name: median_low(samples) for name, samples in counts.items()}
        worst = max(max(samples) / values[name] - 1 for name, samples in counts.items())
        restored = trial.manifest.host_restored is not None
        return Row(restored, self._machine.bound, self._machine.cpu, values, worst)


def read_cpu(uuid: str) -> float:
    """Return the CPU seconds that the QEMU of a domain has used."""
    [process] = qemu_processes([uuid])
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float]) -> float:
    return max(values) / min(values) - 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--arm", choices=ARMS, default="baseline")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    rows: list[Row] = []
    cache = Cache()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="restored-")))
        state = stack.enter_context(bench_state())
        libvirt = stack.enter_context(
            hypervisor.embedded(state.folder / "libvirt", cache.folder("libvirt"))
        )
        pool = HostPool(state, libvirt, SavedHosts(cache, libvirt))
        more = (options.overrides, folder, state, libvirt, pool, cache)
        booted, restored = Hosts("never", *more), Hosts("auto", *more)
        # the first may be booted, to be saved
        first = restored.measure(options.arm)
        print(f"first: {first.kind}", flush=True)
        for _ in range(options.hosts):
            for hosts in (booted, restored):
                row = hosts.measure(options.arm)
                rows.append(row)
                counts = "  ".join(f"{name} {n:.0f}" for name, n in row.counts.items())
                print(
                    f"{row.kind:<9} {row.seconds:6.1f} s {row.cpu:6.2f} s CPU"
                    f"  load {os.getloadavg()[0]:5.1f}  {counts}  worst sample {row.worst:+.3%}",
                    flush=True,
                )
    sys.exit(report(rows))


def report(rows: list[Row]) -> int:
    """Print how far apart the counts are; return the exit code."""
    for kind in ("booted", "restored"):
        of_kind = [row for row in rows if row.kind == kind]
        seconds = median(row.seconds for row in of_kind)
        cpu = median(row.cpu for row in of_kind)
        print(f"{kind:<9} {len(of_kind)} hosts: a bound device after {seconds:.1f} s,"
              f" {cpu:.2f} s of CPU")  # fmt: skip
    most = 0.0
    for name in rows[0].counts:
        of_kinds = {
            kind: [row.counts[name] for row in rows if row.kind == kind]
            for kind in ("booted", "restored")
        }
        both = [*of_kinds["booted"], *of_kinds["restored"]]
        medians = spread([median(values) for values in of_kinds.values()])
        print(
            f"{name:<11} booted {spread(of_kinds['booted']):.4%}  restored"
            f" {spread(of_kinds['restored']):.4%}  both {spread(both):.4%}  medians {medians:.4%}"
        )
        most = max(most, spread(both))
    return int(most > MOST)


if __name__ == "__main__":
    main()
