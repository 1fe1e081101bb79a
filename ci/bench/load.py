"""CPU load on this machine, for benchmarks that have to cope with it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep `loops` processes busy, one CPU each, while the block runs."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
