"""Measure how long `barometer --help` takes, against a Python that does nothing.

    .venv/bin/python ci/bench/help.py [TIMES]

Each command runs TIMES times (default: 20), in turns. The smallest time of each counts: other work
on the machine disturbs it least. Both the time that passes and that of the CPU are printed, with
their ratio to `python -c pass`. Modules are compiled beforehand.
"""

from __future__ import annotations

import compileall
import resource
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).parents[2]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "--version": ["-m", "orchestrator.cli", "--version"],
    "--help": ["-m", "orchestrator.cli", "--help"],
    "ab --help": ["-m", "orchestrator.cli", "ab", "--help"],
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run a command of this Python. Return the seconds that passed, and those of the CPU."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *arguments], cwd=TOP, check=True, stdout=subprocess.DEVNULL)
    passed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    compileall.compile_dir(TOP / "orchestrator", quiet=1)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(times):
        for name, arguments in COMMANDS.items():
            measured[name].append(measure(arguments))
    least = {name: tuple(map(min, *pairs)) for name, pairs in measured.items()}
    nothing = least["python -c pass"]
    for name, (passed, cpu) in least.items():
        print(
            f"{name:<15} {1000 * passed:6.0f} ms, {passed / nothing[0]:4.1f} x;"
            f" CPU {1000 * cpu:6.0f} ms, {cpu / nothing[1]:4.1f} x"
        )


if __name__ == "__main__":
    main()
