"""Measure the time and memory of judging and reporting, for a usual run and for a huge one.

    .venv/bin/python ci/bench/reporting.py [TRIALS]

The usual run is the recorded main job. The huge one (default: 10 000 trials) is made of one
recorded trial of maps: its costs vary by noise around the recorded ones, and count as times, so
that there are statistics. Its other files are hard links. `barometer report` judges each run in a
process of its own.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.base.hashing import sha256_file
from orchestrator.evidence.layout import MANIFEST
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.plan import make_plan

RECORDED = Path(__file__).parents[2] / "fixtures/recorded"
USUAL, MAPS = RECORDED / "debian-6.12-vs-7", RECORDED / "verdicts/placebo"


def make_huge_run(folder: Path, trials: int) -> Path:
    """Make a run of about `trials` trials."""
    text = (MAPS / "scenario.toml").read_text()
    overrides = [
        f"trials={{pairs = {trials // 2}, warm_up = false, control = false}}", "expect={}",
        "host.accel=tcg",
    ]  # fmt: skip
    scenario, text = parse_scenario(text, "huge", overrides=overrides)
    folder.mkdir()
    (folder / "scenario.toml").write_text(text)
    plan = json.loads((MAPS / "plan.json").read_text()) | {"accel": "tcg"}
    (folder / "plan.json").write_text(json.dumps(plan))
    source = sorted((MAPS / "trials").iterdir())[0]
    draw = random.Random(1)
    for planned in make_plan(scenario):
        _make_trial(
            source, folder / "trials" / planned.name, draw, arm=planned.arm, pair=planned.pair,
            number=planned.number, trial=planned.name, accel="tcg",
        )  # fmt: skip
    return folder


def _make_trial(source: Path, target: Path, draw: random.Random, **facts: Any) -> None:
    shutil.copytree(source, target, copy_function=os.link)
    answer = json.loads((source / "map.json").read_text())
    off = math.exp(draw.gauss(0, 0.03))
    for point in answer["passes"]["plain"]["points"]:
        for sample in point["samples"]:
            for clock in ("map_ns", "unmap_ns"):
                sample[clock] = int(sample[clock] * off * math.exp(draw.gauss(0, 0.01)))
    manifest = json.loads((source / MANIFEST).read_text()) | facts
    for name, value in (("map.json", answer), (MANIFEST, manifest)):
        (target / name).unlink()
        (target / name).write_text(json.dumps(value))
        if name != MANIFEST:
            manifest["files"][name] = sha256_file(target / name)


def report(run: Path) -> None:
    """Judge the run in a process of its own and print what that took."""
    barometer = str(Path(sys.executable).with_name("barometer"))
    started = time.monotonic()
    process = subprocess.Popen([barometer, "report", str(run)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    trials = len(list((run / "trials").iterdir()))
    html = (run / "report.html").stat().st_size / 2**20
    print(
        f"{trials:6} trials: {seconds:6.2f} s, {usage.ru_maxrss / 1024:6.0f} MiB,"
        f" report.html {html:.2f} MiB, exit code {os.waitstatus_to_exitcode(status)}"
    )


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory(prefix="reporting-", dir=RECORDED.parents[1]) as folder:
        report(Path(shutil.copytree(USUAL, Path(folder) / "usual")))
        report(make_huge_run(Path(folder) / "huge", trials))


if __name__ == "__main__":
    main()
