"""How long the history takes, by the number of nights in it: a night written, a series read.

    .venv/bin/python -m ci.bench.history [--nights 3000] [--store PLACE]

Nights are made up: 25 metrics, two arms, 12 trials each. PLACE is that of a new store; without it
a SQLite file in the current folder, which is removed at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from orchestrator.history.store import Store
from tests.unit.history.made import night_of

_METRICS = 25
_PAIRS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=3000)
    parser.add_argument("--store", default="")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        Store.open(options.store or f"{folder}/history.db") as store,
    ):
        measure(store, options.nights)


def measure(store: Store, nights: int) -> None:
    seconds = []
    for day in range(nights):
        night = night_of(day, {f"metric{i}": 1.0 for i in range(_METRICS)}, pairs=_PAIRS)
        start = time.perf_counter()
        store.add(night)
        seconds.append(time.perf_counter() - start)
    last = seconds[-min(500, nights) :]
    slow = quantiles(last, n=20)[-1] if len(last) > 1 else last[0]
    print(f"a night written: {median(last) * 1000:.1f} ms, 95 % below {slow * 1000:.1f} ms")
    start = time.perf_counter()
    series = store.series()
    print(f"{len(series)} series listed: {(time.perf_counter() - start) * 1000:.1f} ms")
    reads = []
    for of_metric in series:
        start = time.perf_counter()
        points = store.points(of_metric)
        reads.append(time.perf_counter() - start)
        assert len(points) == nights
    print(f"a series of {nights} nights read: {median(reads) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
