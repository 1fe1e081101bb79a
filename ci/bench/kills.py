"""Kill the runner at every stage of a run on a metal machine: is everything put back?

    ci/bench/kills.py [--count 30] [--seed 7] [--dir DIR]

The machine is the stand-in of the metal lane. The number of kills is `--count`, or two for each
stage if that is more. At the first kill after which something is not put back, prints what was
left and exits with 1. Takes an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.lab.machine.standin import StandIn, standin
from tests.lab.metal_runs import Running, barometer, done, scenario_for, state_of

_BEGINS = re.compile(r"(.+) \.\.\.")


@dataclass(frozen=True)
class Stage:
    """A line of the run's progress, the number of its occurrence, and its length in seconds."""

    line: str
    occurrence: int
    seconds: float
    trial: int
    """Number of trials that had begun."""


def list_stages(running: Running) -> list[Stage]:
    """Return the stages that touch the machine, from a run that was not killed."""
    seen: Counter[str] = Counter()
    begun: list[tuple[float, str, int, int]] = []
    trials = 0
    for at, line in running.lines:
        if _BEGINS.fullmatch(line):
            trials += line.startswith("trial ")
            seen[line] += 1
            begun.append((at, line, seen[line], trials))
    ends = [at for at, *_ in begun[1:]] + [running.lines[-1][0]]
    stages = [
        Stage(line, occurrence, end - at, trial)
        for (at, line, occurrence, trial), end in zip(begun, ends, strict=True)
    ]
    return [s for s in stages if s.line.startswith(("host: ", "maps"))]


def draw_moments(stages: list[Stage], count: int, seed: int) -> Iterator[tuple[Stage, float]]:
    """Yield the stages in a random order, repeatedly, each time with a random share of its
    length."""
    draw = random.Random(seed)
    drawn: list[Stage] = []
    while len(drawn) < count:
        drawn += draw.sample(stages, len(stages))
    for stage in drawn[:count]:
        yield stage, draw.random()


def kill_at(stage: Stage, share: float, scenario: Path, whole: Path, out: Path) -> str:
    """Resume a run whose trials before that stage are complete, kill it there, and return the
    stage that was hit."""
    shutil.copytree(whole, out)
    trials = sorted((out / "trials").iterdir())
    for trial in trials[max(stage.trial - 1, 0) :]:
        shutil.rmtree(trial)
    occurrence = stage.occurrence if stage.trial < 2 else 1
    with barometer("run", scenario, "--out", out) as running:
        came = running.wait_until(stage.line, occurrence, within=900)
        assert came, f"never came to {stage}:\n{running.text()}"
        time.sleep(share * stage.seconds)
        last = [line for _, line in running.lines if _BEGINS.fullmatch(line)][-1]
        os.killpg(running.process.pid, signal.SIGKILL)
    return last


def kill_all(metal: StandIn, folder: Path, count: int, seed: int) -> None:
    """Kill and recover `count` times. Raises SystemExit with the difference that a kill left."""
    scenario = scenario_for(metal, folder)
    before = state_of(metal)
    with barometer("run", scenario, "--out", folder / "whole") as whole:
        if whole.process.wait(1800) != 0:
            raise SystemExit(whole.text())
    if (after := state_of(metal)) != before:
        raise SystemExit(f"a run that nobody killed left:\n{format_difference(before, after)}")
    stages = list_stages(whole)
    print(f"{len(stages)} stages", *stages, sep="\n", flush=True)
    hits: Counter[str] = Counter()
    count = max(count, 2 * len(stages))
    for number, (stage, share) in enumerate(draw_moments(stages, count, seed), 1):
        out = folder / f"killed-{number}"
        where = kill_at(stage, share, scenario, folder / "whole", out)
        began = time.monotonic()
        output = done("recover", "metal", "--ssh-config", metal.ssh_config, "--deadline", "300")
        took = time.monotonic() - began
        hits[f"{stage.line} {stage.occurrence}"] += 1
        print(
            f"kill {number}: {where} of trial {stage.trial} ({share:.0%} of"
            f" {stage.seconds:.0f} s); recovered in {took:.0f} s",
            flush=True,
        )
        if (after := state_of(metal)) != before:
            raise SystemExit(
                f"a kill at {where} left:\n{format_difference(before, after)}\n{output}"
            )
        done("clean")
    print(f"{count} of {count} put back; each stage was hit {min(hits.values())} times or more")


def format_difference(before: str, after: str) -> str:
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm=""))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dir", type=Path, help="for what the runs leave; else it is not kept")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.dir or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-"))
        )
        (folder / "machine").mkdir(parents=True)
        metal = stack.enter_context(standin(folder / "machine"))
        kill_all(metal, folder, options.count, options.seed)


if __name__ == "__main__":
    main()
