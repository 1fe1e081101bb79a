"""What each unit test costs: CPU seconds of this process and of the children it waited for, and
the number of processes it started. They become properties of the test in a junit file, from which
`ci/bench/slowest.py` writes slow.txt.

A fixture of a wider scope starts its processes for the first test alone, but for each test that
would run without the first: all of them are counted."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import Any

import pytest

STARTS = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system"})
"""Audit events of a process that starts others. `subprocess` reports one alone."""

_started = 0


def _count(event: str, _: tuple[Any, ...]) -> None:
    global _started  # noqa: PLW0603
    if event in STARTS:
        _started += 1


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


class Costs:
    """A plug-in of pytest."""

    def __init__(self) -> None:
        sys.addaudithook(_count)
        self._before: tuple[float, int] = (0, 0)
        self._starting: set[tuple[str, str]] = set()
        """Fixtures that started processes: the node they belong to, and their name."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self._before = _cpu_seconds(), _started

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        before = _started
        try:
            return (yield)
        finally:
            if _started > before:
                self._starting.add((fixturedef.baseid, fixturedef.argname))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Function, call: pytest.CallInfo[None]
    ) -> None:
        if call.when != "teardown":
            return
        cpu, started = self._before
        processes = (
            _started
            - started
            + sum(
                item.nodeid.startswith(node) and name in item.fixturenames
                for node, name in self._starting
            )
        )
        item.user_properties += [
            ("cpu", f"{_cpu_seconds() - cpu:.2f}"), ("processes", str(processes))
        ]  # fmt: skip
