"""Measure emulated guest boots on a busy machine: how often the bench fails, and boot times.

    ci/bench/boots.py VARIANT ... [--boots 30] [--busy 2] [--out DIR] [--begun-again]

VARIANTS lists the variants; the runner's QEMU is the one on PATH. Each host boots three guests,
one after the other; the arms take turns. `--busy` is the number of loops that run beside them. A
failed trial counts as one failed boot and is repeated only with `--begun-again`. DIR keeps the
evidence of failed trials. Prints a line for each host and a table at the end; results.jsonl has a
line for each host, and another run with the same DIR appends to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from ci.bench.load import busy
from orchestrator.base import interrupts
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError
from orchestrator.base.progress import Progress
from orchestrator.evidence.layout import RunDir, TrialDir
from orchestrator.machine.nested.sharing import HostPool, NestedMachine
from orchestrator.machine.runner.state import bench_state
from orchestrator.machine.vm import hypervisor
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import build_plan, prepare
from orchestrator.run.trial import Bench, run_trial
from orchestrator.run.trials import run_until_it_counts
from orchestrator.scenario.loading import load_scenario
from orchestrator.scenario.plan import PlannedTrial
from orchestrator.scenario.vocabulary import ARMS, Pass

SCENARIO = Path(__file__).parents[2] / "fixtures/scenarios/small.toml"
PASSES: tuple[Pass, ...] = ("plain",) * 3
"""Passes on one host: one guest boot each."""
QUIET = "guest.cmdline=quiet"
VARIANTS: dict[str, tuple[str, ...]] = {
    "today": (),
    "1-cpu": ("host.cpus=1",),
    "nohz-off": ("host.cmdline=nohz=off",),
    "1-cpu-nohz-off": ("host.cpus=1", "host.cmdline=nohz=off"),
    "no-watchdogs": ("host.cmdline=nowatchdog rcupdate.rcu_cpu_stall_suppress=1",),
    "no-hpet": ("host.cmdline=hpet=disable",),
    "guest-2-cpus": ("guest.cpus=2",),
}


def boot_hosts(variant: str, boots: int, out: Path, *, begun_again: bool) -> list[dict[str, Any]]:
    """Boot hosts of a variant until `boots` guests have booted; return a row for each host."""
    scenario, text = load_scenario(SCENARIO, ["expect={}", QUIET, *VARIANTS[variant]])
    cache, progress = Cache(), Progress()
    rows: list[dict[str, Any]] = []
    run_one = run_until_it_counts if begun_again else run_trial
    with (
        bench_state() as state,
        hypervisor.embedded(state.folder / "libvirt", cache.folder("libvirt")) as libvirt,
        interrupts.at_once(libvirt.stop),
        contextlib.closing(HostPool(state, libvirt)) as pool,
    ):
        machine = NestedMachine.of(scenario.host, scenario.device, pool)
        prepared = prepare(scenario, machine, RunKernels(cache), progress)
        run = RunDir.create(out / variant, text, build_plan(scenario, prepared))
        bench = Bench(scenario, prepared, run, state, libvirt, progress, machine=machine)
        first = 1 + max((int(trial.name[:4]) for trial in run.trials_path.glob("*")), default=0)
        while sum(row["boots"] for row in rows) < boots:
            number = first + len(rows)
            arm = ARMS[number % 2]
            planned = PlannedTrial(number, number, arm, PASSES)
            load, started = os.getloadavg()[0], time.monotonic()
            with contextlib.suppress(BarometerError):
                run_one(bench, planned)
            trial = TrialDir.open(run.trials_path / planned.name)
            seconds = round(time.monotonic() - started, 1)
            row = {"variant": variant, "load": load, "seconds": seconds, **row_of(trial)}
            rows.append(row)
            with (out / "results.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            if not row["reason"]:
                shutil.rmtree(trial.path)
    return rows


def row_of(trial: TrialDir) -> dict[str, Any]:
    """Summarize a host from its trial's evidence."""
    *_, last = trial.attempts()
    stages = trial.manifest.stages
    return {
        "arm": last.arm,
        "host_seconds": next((s.seconds for s in stages if s.name == "host-boot"), None),
        "guest_seconds": [s.seconds for s in stages
                          if s.name.startswith("guest-") and s.outcome == "ok"],
        "boots": len(trial.manifest.guests),
        "reason": last.reason, "charged": last.charge if last.reason else "",
        "repeated": trial.manifest.to_json().get("repeated", []),
    }  # fmt: skip


def table_of(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| variant | hosts | guest boots | failed | reasons | begun again | guest boot, s: median"
        " (range) | host boot, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        some = [row for row in rows if row["variant"] == variant]
        guests = [s for row in some for s in row["guest_seconds"]]
        hosts = [row["host_seconds"] for row in some if row["host_seconds"] is not None]
        reasons = Counter(row["reason"] for row in some if row["reason"])
        again = sum(len(row["repeated"]) for row in some)
        said = ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "-"
        spread = (
            f"{statistics.median(guests):.1f} ({min(guests):.1f} to {max(guests):.1f})"
            if guests
            else "-"
        )
        host = f"{statistics.median(hosts):.1f}" if hosts else "-"
        lines.append(
            f"| {variant} | {len(some)} | {sum(row['boots'] for row in some)} "
            f"| {sum(reasons.values())} | {said} | {again} | {spread} | {host} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("variants", nargs="+", choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--boots", type=int, default=30)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("boots"))
    parser.add_argument("--begun-again", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    interrupts.install()  # so that a signal ends what was started
    if given.one:
        [variant] = given.variants
        boot_hosts(variant, given.boots, given.out, begun_again=given.begun_again)
        return
    with busy(given.busy):
        for variant in given.variants:
            # libvirt's embedded driver can be opened only once in a process
            again = ["--begun-again"] if given.begun_again else []
            subprocess.run(
                [sys.executable, __file__, variant, "--one", "--boots", str(given.boots),
                 "--out", given.out, *again], check=True,
            )  # fmt: skip
    rows = [json.loads(line) for line in (given.out / "results.jsonl").read_text().splitlines()]
    print(table_of(rows))


if __name__ == "__main__":
    main()
