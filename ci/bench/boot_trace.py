"""Measure what the timing pass costs the guest boot that it traces, in instructions.

    .venv/bin/python ci/bench/boot_trace.py [SCENARIO] [barometer run options]

Boots the scenario (default: the main job's kernels, 32 GiB, accel exact) with the plain and the
timing pass, several pairs of each, and prints the boots under both and their ratio. The same watch
agent measures both, from QEMU's start to the boot mark.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from orchestrator.analysis.boot.marks import parse_marks
from orchestrator.analysis.tracefs.trace import count_lost_events

TOP = Path(__file__).parents[2]
DEFAULT = [
    str(TOP / "fixtures/scenarios/debian-6.12-vs-7.toml"), "--pairs", "3",
    "--set", "host.accel=exact", "--set", 'trace.passes=["plain", "timing"]',
    "--set", "expect={}",
]  # fmt: skip


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        arguments = [*DEFAULT, *arguments]
    boots: dict[tuple[str, str], list[float]] = {}
    lost = 0
    with tempfile.TemporaryDirectory(prefix="boot-trace-") as folder:
        run = Path(folder) / "run"
        barometer = str(Path(sys.executable).with_name("barometer"))
        subprocess.run([barometer, "run", *arguments, "--out", str(run)], check=False)
        for trial in sorted(run.glob("trials/[0-9]*")):
            manifest = json.loads((trial / "manifest.json").read_text())
            for guest in manifest["guests"]:
                marks = parse_marks((trial / f"guest-{guest['index']}/marks.txt").read_text())
                if manifest["outcome"]["kind"] == "collected" and marks.boot_seconds is not None:
                    key = (manifest["arm"], guest["pass"])
                    boots.setdefault(key, []).append(marks.boot_seconds)
            lost += sum(count_lost_events(p.read_text()) for p in trial.glob("host/stats-guest*"))
    print("guest boot in Ginsn (exact) or seconds; aim: timing within 2 % of plain, nothing lost")
    for arm in ("baseline", "candidate"):
        plain, timing = (boots.get((arm, which), []) for which in ("plain", "timing"))
        for which, values in (("plain", plain), ("timing", timing)):
            print(f"{arm:<10} {which:<7} {' '.join(f'{value:.4f}' for value in values)}")
        if plain and timing:
            print(f"{arm:<10} ratio   {median(timing) / median(plain):.4f}")
    print(f"lost events: {lost}")


if __name__ == "__main__":
    main()
