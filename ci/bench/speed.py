"""How long the jobs take that a kernel developer waits for, in one run.

    .venv/bin/python ci/bench/speed.py [--bar 32GiB] [--only NAME ...]

Each job is a command of barometer's, from its start to its last line. What a base needs (kernels,
images, the build root, saved hosts) is made before by a run of the same kind, which is not
counted. What a change needs is counted: each patch here is a new one. The last column is the goal,
for 2 CPUs without KVM. Also prints the CPU that barometer itself and the small programs that it
runs used, as a share of the wall time. Exit code 1: a job failed.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.kernels.source.debsource import find_package_source
from orchestrator.scenario.kernel_forms import DebKernel

TOP = Path(__file__).parents[2]
BAROMETER = str(Path(sys.executable).with_name("barometer"))
BASE, SUITE = "linux-image-cloud-amd64", "trixie-backports"
TYPE1 = "drivers/vfio/vfio_iommu_type1.c"
COMMITS = 64
SLOWER = TOP / "fixtures/series/slower-unmap"
NUMBERED = re.compile(r"(?m)^(\+#define UNMAP_STEPS )\d+$")


@dataclass(frozen=True)
class Job:
    name: str
    what: str
    goal: str
    commands: Callable[[Path], list[list[str]]]
    """The commands, given an empty folder; the last one is measured."""


def make_patch(folder: Path, name: str, steps: int) -> Path:
    """Write the series slower-unmap with another number of steps, so that no cache has it."""
    (patch,) = SLOWER.glob("*.patch")
    path = folder / name
    path.write_text(NUMBERED.sub(rf"\g<1>{steps}", patch.read_text()))
    return path


def make_repository(folder: Path, commits: int, bad: int, stamp: str = "") -> Path:
    """Make a repository of one file, in which the commit `bad` makes unmaps slower. With another
    `stamp` its commits are others."""

    def git(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)

    source = find_package_source(DebKernel(deb=BASE, suite=SUITE), Cache())
    place = folder / TYPE1
    place.parent.mkdir(parents=True)
    place.write_bytes((source.tree(["drivers/vfio"]) / TYPE1).read_bytes())
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "as it was")
    git("tag", "good")
    for number in range(1, commits + 1):
        if number == bad:
            (patch,) = SLOWER.glob("*.patch")
            git("apply", str(patch))
        else:
            with place.open("a") as file:
                file.write(f'MODULE_INFO(step{number}, "{number}{stamp}");\n')
        git("commit", "-qam", f"step {number}")
    git("tag", "bad")
    return folder


def ab(series: Path, out: Path, bar: str) -> list[str]:
    return [
        BAROMETER, "ab", "--base", f"deb:{BASE}@{SUITE}", "--series", str(series), "--bar", bar,
        "--accel", "exact", "--out", str(out),
    ]  # fmt: skip


def list_jobs(bar: str) -> list[Job]:
    draw = time.time_ns() % 1000 * 4 + 5  # numbers of steps that no earlier run had, as a rule

    def series(folder: Path) -> list[list[str]]:
        """Another series of the same file has warmed the base."""
        patch = make_patch(folder, "first.patch", draw)
        placebo = TOP / "fixtures/series/placebo"
        return [ab(placebo, folder / "before", bar), ab(patch, folder / "run", bar)]

    def changed(folder: Path) -> list[list[str]]:
        patches = [make_patch(folder, f"{n}.patch", draw + 1 + n) for n in range(2)]
        return [ab(patch, folder / f"run{n}", bar) for n, patch in enumerate(patches)]

    def bisection(folder: Path) -> list[list[str]]:
        # no commit was built before
        tree = make_repository(folder / "tree", COMMITS, COMMITS // 3, f"-{time.time_ns()}")
        return [[
            BAROMETER, "bisect", "--tree", str(tree), "--good", "good", "--bad", "bad", "--on",
            f"deb:{BASE}@{SUITE}", "--metric", "bar_unmap_cost", "--bar", "1GiB", "--accel",
            "exact", "--out", str(folder / "out"),
        ]]  # fmt: skip

    def scenario(name: str, *more: str) -> Callable[[Path], list[list[str]]]:
        return lambda folder: [[
            BAROMETER, "run", str(TOP / f"fixtures/scenarios/{name}.toml"), "--out",
            str(folder / "run"), *more,
        ]]  # fmt: skip

    return [
        Job("series", f"ab --series, module arm, exact, {bar}", "30 s", series),
        Job("changed", "the same with one line of the patch changed", "20 s", changed),
        Job("bisect", f"bisection of {COMMITS} commits as modules, exact, 1GiB", "2 min",
            bisection),
        Job("map-small", "map-small.toml", "40 s", scenario("map-small")),
        Job("main-job", f"main job, {bar}, all passes", "6 min",
            scenario("debian-6.12-vs-7", "--set", f"device.bar={bar}")),
    ]  # fmt: skip


def own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_job(job: Job, folder: Path) -> tuple[float, float, int]:
    """Return the wall-clock seconds of the job's last command, the CPU seconds of its own
    processes, and its exit code."""
    folder.mkdir()
    *before, measured = job.commands(folder)
    for command in before:
        subprocess.run(command, check=False, capture_output=True)
    cpu, started = own_cpu(), time.monotonic()
    done = subprocess.run(measured, check=False, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode not in (0, 1):  # 1: slower-unmap regresses, which is what it is for
        print(done.stdout + done.stderr, file=sys.stderr)
    return seconds, own_cpu() - cpu, done.returncode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bar", default="32GiB")
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    worst = 0
    print(f"{'job':<52} {'wall':>8} {'own CPU':>8}  goal", flush=True)
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        for job in list_jobs(options.bar):
            if options.only and job.name not in options.only:
                continue
            seconds, cpu, code = run_job(job, Path(folder) / job.name)
            worst = max(worst, int(code not in (0, 1)))
            failed = "" if code in (0, 1) else f"  FAILED, exit code {code}"
            print(
                f"{job.what:<52} {seconds:6.1f} s {cpu / seconds:8.2%}  {job.goal}{failed}",
                flush=True,
            )
    sys.exit(worst)


if __name__ == "__main__":
    main()
