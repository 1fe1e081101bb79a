"""The matrix of faults (tests/faults/table.py): every row has a test, and every test has a row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.base.ends import Ends
from orchestrator.base.reasons import find_reason
from tests.faults.table import EXIT_CODES, ROWS, Row

ROOT = Path(__file__).parents[2]
LEAST = 60
"""Least number of kinds of faults."""


def collected() -> list[str]:
    """Return the ids of all tests of faults, relative to their folder."""
    argv = ["-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests/faults"]
    listed = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    lines = (line for line in listed.stdout.splitlines() if "::" in line)
    return [line.removeprefix("tests/faults/") for line in lines]


def test_every_row_has_its_test_and_every_test_its_row() -> None:
    tests = collected()
    rows = {row.test for row in ROWS}
    without_case = {test.partition("[")[0] for test in tests}
    assert rows - {*tests} - without_case == set()
    assert [t for t in tests if t not in rows and t.partition("[")[0] not in rows] == []


def test_faults_are_of_many_kinds() -> None:
    assert len({row.fault for row in ROWS}) == len(ROWS) >= LEAST
    assert len({row.test for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.test)
def test_row_is_sound(row: Row) -> None:
    assert row.code in EXIT_CODES[row.whose]
    assert 0 < row.seconds <= 75
    if row.reason:
        reason = find_reason(row.reason)
        if row.whose != "nobody" and Ends.TRIAL not in reason.ends:
            assert row.whose == ("user" if Ends.INPUT in reason.ends else "bench")
    if row.whose in ("user", "bench") and not row.test.startswith("test_hosts"):
        assert row.names or row.is_judged, "its message names nothing"
