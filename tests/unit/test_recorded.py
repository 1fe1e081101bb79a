"""The recorded full-size run: judged again, it gives the numbers it gave when it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.analysis.theory import lookups, pages
from orchestrator.evidence import RunDir
from orchestrator.judge import judge

RECORDED = Path(__file__).parents[2] / "fixtures/recorded"
RUNS = sorted(path.parent for path in RECORDED.glob("*/plan.json"))


def test_a_run_of_both_kernels_is_recorded() -> None:
    assert RUNS, f"no run in {RECORDED}"


@pytest.mark.parametrize("recorded", RUNS, ids=lambda path: path.name)
def test_recorded_evidence_is_judged_to_the_same_numbers(recorded: Path, tmp_path: Path) -> None:
    run = shutil.copytree(recorded, tmp_path / recorded.name)
    scenario, comparison, report = judge(RunDir.open(run))
    assert json.loads((run / "comparison.json").read_text()) == json.loads(
        (recorded / "comparison.json").read_text()
    )
    assert report == (recorded / "report.txt").read_text()
    assert not [r for r in comparison.results if r.kind != "measured"]
    metric = comparison.metric("pfn_lookups_per_map")
    assert metric is not None
    bar = scenario.device.bar
    assert set(metric.baseline) == {pages(bar)}
    assert set(metric.candidate) == {lookups(bar)["1GiB"]}
    maps = comparison.metric("bar_map_seconds")
    assert maps is not None
    assert maps.ratio is not None
    assert maps.ratio < 1 / 1000
