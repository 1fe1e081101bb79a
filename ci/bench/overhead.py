"""Measure what barometer itself costs: CPU and memory of its process, disk space of a trial.

    .venv/bin/python ci/bench/overhead.py [SCENARIO] [barometer run options]

Runs the scenario (default: small.toml) and prints ratios within that one run. The machines are
other processes; waiting for them costs nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).parents[2]


def main() -> None:
    arguments = sys.argv[1:] or [str(TOP / "fixtures/scenarios/small.toml")]
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        run = Path(folder) / "run"
        started = time.monotonic()
        barometer = str(Path(sys.executable).with_name("barometer"))
        process = subprocess.Popen([barometer, "run", *arguments, "--out", str(run)])
        code = process.wait()
        wall = time.monotonic() - started
        # includes the small programs that it ran and waited for; libvirt starts QEMU detached
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        print(f"exit code          {code}")
        print(f"wall               {wall:.1f} s")
        print(
            f"own CPU            {cpu:.2f} s, {cpu / wall:.2%} of the wall time (aim: under 5 %)"
        )
        print(f"largest process    {used.ru_maxrss / 1024:.0f} MiB resident (aim: under 200 MB)")
        for trial in sorted((run / "trials").iterdir()):
            size = sum(p.stat().st_size for p in trial.rglob("*") if p.is_file())
            print(f"{trial.name:<18} {size / 2**20:.2f} MiB on disk (aim: under 50 MB)")


if __name__ == "__main__":
    main()
