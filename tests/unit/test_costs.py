"""The list of slow tests."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_slow_tests_are_tests_and_sorted() -> None:
    """A renamed test counts as quick until the next measurement, which writes the list anew."""
    listed = (HERE / "slow.txt").read_text().splitlines()
    assert listed == sorted({*listed})
    for test in listed:
        file, name = test.split("::")
        text = (HERE.parents[1] / file).read_text()
        assert re.search(rf"(?m)^def {name}\(", text), f"{test} is no test: ci/bench/slowest.py"
