"""Judge a saved run: evidence in, comparison.json and report.txt out. Connects to nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from orchestrator.analysis.comparison import Comparison, compare, to_json
from orchestrator.analysis.trial import read_result
from orchestrator.evidence import RunDir, write_json
from orchestrator.report.text import text_report
from orchestrator.scenario import ARMS, Scenario, parse_scenario

log = logging.getLogger("barometer.judge")


def judge(run: RunDir) -> tuple[Scenario, Comparison, str]:
    """The run's scenario, its comparison and the text report; both are saved in the run."""
    source = str(run.path / "scenario.toml")
    scenario, _ = parse_scenario(run.scenario(), source, run.path)
    plan = run.plan()
    kernels = {
        arm: {key: plan["kernels"][arm][key] for key in ("release", "source")} for arm in ARMS
    }
    trials = run.trials()
    comparison = compare(
        scenario,
        kernels,
        [read_result(trial) for trial in trials],
        len(plan["trials"]),
        plan["accel"],
    )
    report = text_report(scenario, comparison, plan)
    save(run.path, to_json(comparison), report)
    return scenario, comparison, report


def save(folder: Path, comparison: dict[str, Any], report: str) -> None:
    """comparison.json and report.txt, where that is allowed."""
    try:
        write_json(folder / "comparison.json", comparison)
        (folder / "report.txt").write_text(report)
    except PermissionError as exc:  # somebody else's run: judging it needs no right to write
        log.warning("barometer: the report is not saved: %s", exc)
