"""Measure what each unit test costs: CPU seconds of this process and of the children it waited
for, seconds in which it waited for anything but a core, and the number of processes it started.
They become properties of the test in a junit file, from which `ci/bench/slowest.py` writes
slow.txt."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

STARTS = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system"})
"""Audit events of a process that starts others. `subprocess` raises only one of them."""

_started = 0


def _count(event: str, _: tuple[Any, ...]) -> None:
    global _started  # noqa: PLW0603
    if event in STARTS:
        _started += 1


class _Clocks(NamedTuple):
    wall: float
    own_cpu: float
    """Seconds that this thread ran."""
    queued: float
    """Seconds that it could have run while another thread had the core."""
    cpu: float
    """CPU seconds of all threads, and of children that were waited for."""
    started: int


def _clocks() -> _Clocks:
    # /proc/PID/schedstat: nanoseconds on a core, nanoseconds in its queue, time slices
    ran, queued, _ = Path("/proc/thread-self/schedstat").read_text().split()
    cpu = sum(os.times()[:4])
    return _Clocks(time.monotonic(), int(ran) / 1e9, int(queued) / 1e9, cpu, _started)


class Costs:
    """A pytest plug-in that records the costs."""

    def __init__(self) -> None:
        sys.addaudithook(_count)
        self._before = _clocks()
        self._starting: set[tuple[str, str]] = set()
        """Fixtures of a wider scope that started processes, by the node they belong to and their
        name. Only the first test starts them, but any other test would if it ran alone."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self._before = _clocks()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        before = _started
        try:
            return (yield)
        finally:
            if _started > before and fixturedef.scope != "function":
                self._starting.add((fixturedef.baseid, fixturedef.argname))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Function, call: pytest.CallInfo[None]
    ) -> None:
        if call.when != "teardown":
            return
        wall, own_cpu, queued, cpu, started = map(operator.sub, _clocks(), self._before)
        of_fixtures = sum(
            item.nodeid.startswith(node) and name in item.fixturenames
            for node, name in self._starting
        )
        item.user_properties += [
            ("cpu", f"{cpu:.2f}"),
            ("waited", f"{wall - own_cpu - queued:.2f}"),
            ("processes", str(started + of_fixtures)),
        ]
