"""Measure the time and the memory that judging a trial takes, by the size of its trace.

    .venv/bin/python ci/bench/judging.py [MEGABYTES ...]

Lengthens a recorded guest boot by repeating what happened between its kernel's first line and its
boot mark, later each time. Each size is judged in a process of its own. The last column is the
time per megabyte relative to the smallest size: 1 is linear.
"""

from __future__ import annotations

import gzip
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.analysis.trial import read_result
from orchestrator.base.hashing import sha256_file
from orchestrator.evidence.layout import TrialDir

TOP = Path(__file__).parents[2]
RECORDED = TOP / "fixtures/recorded/debian-6.12-vs-7/trials/0001-baseline"
TRACE = "host/trace-guest-1.txt.gz"
SIZES = [1, 5, 10, 25, 50, 100]
_TIME = re.compile(r"(\] \S+ +)(\d+\.\d+)(: )")


def lengthen(text: str, size: int) -> Iterator[str]:
    """Yield the lines of a trace of about `size` bytes."""
    lines = text.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if "Linux version" in line)
    last = next(i for i, line in enumerate(lines) if "barometer E" in line and " mark" in line)
    middle = [
        line for line in lines[first + 1 : last - 1]
        if "barometer" not in line and "kvm_pio" not in line
    ]  # fmt: skip
    span = _parse_seconds(lines[last - 1]) - _parse_seconds(lines[first + 1]) + 0.01
    again = max(0, size - len(text)) // sum(map(len, middle))
    yield from lines[: last - 1]
    for number in range(1, again + 1):
        yield from (_delay(line, number * span) for line in middle)
    yield from (_delay(line, again * span) for line in lines[last - 1 :])


def _parse_seconds(line: str) -> float:
    match = _TIME.search(line)
    return float(match[2]) if match else 0.0


def _delay(line: str, seconds: float) -> str:
    line = _TIME.sub(lambda m: f"{m[1]}{float(m[2]) + seconds:.6f}{m[3]}", line, count=1)
    # shift the agent's own clock as well
    return re.sub(
        r"(barometer [CEP] )(\d+)", lambda m: f"{m[1]}{int(m[2]) + int(seconds * 1e9)}", line
    )


def judge(folder: Path) -> None:
    """Judge the trial and print seconds and MiB. Runs in a process of its own."""
    started = time.monotonic()
    result = read_result(TrialDir.open(folder))
    seconds = time.monotonic() - started
    if result.kind != "measured":
        sys.exit(f"{result.reason}: {result.message}")
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    if sys.argv[1:2] == ["--judge"]:
        return judge(Path(sys.argv[2]))
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    text = gzip.decompress((RECORDED / TRACE).read_bytes()).decode()
    base = 0.0
    print("trace MB   seconds   MiB resident   seconds a MB, against the smallest")
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="judging-") as temporary:
            trial = Path(temporary) / RECORDED.name
            shutil.copytree(RECORDED, trial)
            trace = "".join(lengthen(text, size * 10**6))
            (trial / TRACE).write_bytes(gzip.compress(trace.encode(), 1))
            manifest = json.loads((trial / "manifest.json").read_text())
            manifest["files"][TRACE] = sha256_file(trial / TRACE)
            (trial / "manifest.json").write_text(json.dumps(manifest))
            done = subprocess.run(
                [sys.executable, __file__, "--judge", str(trial)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr)
        seconds, resident = map(float, done.stdout.split())
        each = seconds / (len(trace) / 1e6)
        base = base or each
        print(f"{len(trace) / 1e6:8.1f} {seconds:9.2f} {resident:14.0f} {each / base:12.2f}")
    print("aim: 50 MB under 5 s and 500 MB; time linear in the trace's size")
    return None


if __name__ == "__main__":
    main()
