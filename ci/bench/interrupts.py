"""Interrupt a run at random moments: does it end within ten seconds and leave nothing behind?

    ci/bench/interrupts.py [--int 40] [--term 20] [--hup 5] [--within 150] [--seed 7] [SCENARIO]

Each moment is drawn from the first `--within` seconds, which should be about as long as a run
takes here. Prints a line for each, with the stage that was interrupted. The exit code is 1 if a
run took longer, left something, or ended with an exit code other than 130 (or the verdict's, if
all trials were made by then).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.lab.conftest import SMALL, leftovers

MOST_SECONDS = 10.0
BAROMETER = Path(sys.executable).with_name("barometer")


@dataclass(frozen=True)
class Interrupted:
    stage: str
    seconds: float
    """Seconds from the signal to the end of the process."""
    code: int
    made: bool
    """True if all trials were made by then: the run was judged, or had ended already."""
    left: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return self.seconds < MOST_SECONDS and not self.left and (self.made or self.code == 130)


def interrupt_run(
    scenario: Path, number: signal.Signals, after: float, folder: Path
) -> Interrupted:
    """Run the scenario and send the signal `number` after `after` seconds."""
    command = [str(BAROMETER), "run", str(scenario), "--out", str(folder / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines: deque[str] = deque(maxlen=50)
        reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
        reader.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        stage = next((line.strip() for line in reversed([*lines]) if line.strip()), "")
        sent = time.monotonic()
        process.send_signal(number)
        code = process.wait(600)
        seconds = time.monotonic() - sent
        reader.join(10)
    trials = [
        path
        for path in (folder / "run/trials").glob("[0-9]*")
        if (path / "manifest.json").exists()
    ]
    left = [*leftovers(), *map(str, (folder / "state").glob("*.json"))]
    left += map(str, (folder / "run/trials").glob(".*"))
    return Interrupted(stage, seconds, code, len(trials) == 2, tuple(sorted(left)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", nargs="?", type=Path, default=SMALL)
    for name, count in (("int", 40), ("term", 20), ("hup", 5)):
        parser.add_argument(f"--{name}", type=int, default=count, dest=f"sig{name}")
    parser.add_argument("--within", type=float, default=150.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    numbers = [
        *[signal.SIGINT] * options.sigint, *[signal.SIGTERM] * options.sigterm,
        *[signal.SIGHUP] * options.sighup,
    ]  # fmt: skip
    draw.shuffle(numbers)
    bad = 0
    for count, number in enumerate(numbers, 1):
        after = draw.uniform(0.2, options.within)
        with tempfile.TemporaryDirectory(prefix="int-") as name:
            os.environ["BAROMETER_STATE"] = f"{name}/state"
            run = interrupt_run(options.scenario, number, after, Path(name))
        bad += not run.is_good
        stage = re.sub(r"\s+", " ", run.stage)[:60]
        print(
            f"{count:3} {number.name} after {after:5.1f} s, in {stage!r}: code {run.code},"
            f" {run.seconds:.1f} s, left {list(run.left)}{'' if run.is_good else '  BAD'}",
            flush=True,
        )
    print(f"{len(numbers) - bad} of {len(numbers)} ended in time with nothing left")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
