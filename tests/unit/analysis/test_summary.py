from __future__ import annotations

import pytest

from orchestrator.analysis.statistics.summary import Summary, summarize


@pytest.mark.parametrize(
    ("unit", "values", "summary"),
    [
        ("s", [8.5], Summary(8.5, None)),
        ("s", [8.0, 9.0], Summary(8.5, 0.5)),
        ("s", [1.0, 9.0, 2.0], Summary(2.0, 4.0)),
        ("s", [1.0, 2.0, 3.0, 4.0, 50.0], Summary(3.0, 1.0)),  # one outlier changes little
        ("count", [12, 12, 12, 12], Summary(12, 0)),
        ("Ginsn", [3.0, 4.0], Summary(3.0, 0.5)),
    ],
)
def test_arm_is_its_median_and_half_of_what_its_middle_half_covers(
    unit: str, values: list[float], summary: Summary
) -> None:
    assert summarize(unit, values) == summary
