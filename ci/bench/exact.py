"""Measure how exact `exact` is: the spread of instruction counts over fresh host boots.

    .venv/bin/python ci/bench/exact.py [--load] [SCENARIO] [barometer run options]

Runs the scenario (default: map-exact.toml, plain pass, the full BAR, 3 pairs of trials) and
prints, for each arm, the values of every boot and how far apart they are. --load keeps every CPU
of this machine busy with other work meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))
from ci.bench.load import busy

TOP = Path(__file__).parents[2]
DEFAULT = [
    str(TOP / "fixtures/scenarios/map-exact.toml"), "--pairs", "3",
    "--set", 'map.sizes=["full"]', "--set", "map.repeats=3", "--set", 'trace.passes=["plain"]',
    "--set", "expect={}",
]  # fmt: skip


def main() -> None:
    arguments = sys.argv[1:]
    load = "--load" in arguments
    arguments = [word for word in arguments if word != "--load"]
    if not arguments or arguments[0].startswith("-"):
        arguments = [*DEFAULT, *arguments]
    loops = len(os.sched_getaffinity(0)) if load else 0
    with busy(loops), tempfile.TemporaryDirectory(prefix="exact-") as folder:
        run = Path(folder) / "run"
        barometer = str(Path(sys.executable).with_name("barometer"))
        done = subprocess.run([barometer, "run", *arguments, "--out", str(run)], check=False)
        if not (run / "comparison.json").exists():
            sys.exit(done.returncode)
        comparison = json.loads((run / "comparison.json").read_text())
    print(f"spread over fresh host boots, {'busy' if load else 'idle'} machine (aim: 0.005 %)")
    for arm, facts in comparison["arms"].items():
        for name, metric in facts["metrics"].items():
            values = metric["samples"]
            if metric["unit"] != "Ginsn":
                continue
            spread = (max(values) - min(values)) / median(values)
            shown = " ".join(f"{value * 1e9:.0f}" for value in values)
            print(f"{arm:<10} {name:<36} {spread:.5%}   {shown} insn")


if __name__ == "__main__":
    main()
