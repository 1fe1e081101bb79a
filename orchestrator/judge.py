"""Judge a saved run: evidence in; comparison.json, report.txt and files for other tools out. Or:
the boots of a trial. Connects to nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.analysis import boot
from orchestrator.analysis.comparison import Comparison, boots_of, compare, to_json
from orchestrator.analysis.timeline import Timeline
from orchestrator.analysis.trial import read_result
from orchestrator.errors import EvidenceError, ScenarioError
from orchestrator.evidence import MANIFEST, RunDir, TrialDir, write_json
from orchestrator.report.cases import Suite, suite
from orchestrator.report.junit import junit_xml
from orchestrator.report.kcidb import kcidb_objects
from orchestrator.report.ktap import ktap
from orchestrator.report.results_csv import results_csv
from orchestrator.report.text import text_report
from orchestrator.scenario import ARMS, Scenario, parse_scenario

log = logging.getLogger("barometer.judge")


class Judged(NamedTuple):
    """What the command says of a run, or of the cells of a matrix."""

    report: str
    exit_code: int
    document: dict[str, Any]
    """comparison.json."""
    suites: tuple[Suite, ...]


def judged(run: RunDir) -> Judged:
    """A run alone, judged and saved."""
    scenario, comparison, report = judge(run)
    one = suite(scenario, comparison, run.plan())
    return Judged(report, one.exit_code, to_json(comparison), (one,))


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
    texts = {"report.txt": report, **for_machines(scenario, comparison, plan)}
    save(run.path, to_json(comparison), texts)
    _save_timelines(run.path / "timelines", comparison)
    return scenario, comparison, report


def for_machines(
    scenario: Scenario, comparison: Comparison, plan: Mapping[str, Any]
) -> dict[str, str]:
    """What other tools read of a run, besides comparison.json: name of the file -> text."""
    suites = [suite(scenario, comparison, plan)]
    return {
        "junit.xml": junit_xml(suites),
        "results.ktap": ktap(suites),
        "kcidb.json": json.dumps(kcidb_objects(scenario, comparison, plan), indent=1) + "\n",
        "results.csv": results_csv(scenario, comparison, plan),
    }


def save(folder: Path, comparison: dict[str, Any], texts: Mapping[str, str]) -> None:
    """comparison.json and the other files by their names, where that is allowed."""
    try:
        write_json(folder / "comparison.json", comparison)
        for name, text in texts.items():
            (folder / name).write_text(text, "utf-8")
    except PermissionError as exc:  # somebody else's run: judging it needs no right to write
        log.warning("barometer: the report is not saved: %s", exc)


def _save_timelines(folder: Path, comparison: Comparison) -> None:
    """A trace for ui.perfetto.dev of each traced boot: TRIAL-GUEST.pftrace."""
    boots = [found for of_arm in boots_of(comparison).values() for found in of_arm]
    if not boots:
        return
    # Only here: it loads Perfetto's protobuf.
    from orchestrator.report.perfetto import perfetto_trace  # noqa: PLC0415

    try:
        folder.mkdir(exist_ok=True)
        for found in boots:
            name = f"{found.trial}-{found.guest}.pftrace"
            (folder / name).write_bytes(perfetto_trace(found))
    except OSError as exc:
        log.warning("barometer: the timelines are not saved: %s", exc)


def traced_boots(folder: Path) -> list[Timeline]:
    """The timelines of a trial's traced guest boots, at least one.

    Raises ScenarioError for the folder of a run, EvidenceError where there is no trial, no traced
    guest boot in it, or its files are not what was collected.
    """
    trial = _trial(folder)
    if (changed := trial.verify()) is not None:
        raise EvidenceError(f"{folder}: {changed}", reason="evidence-changed")
    outcome = trial.manifest["outcome"]
    ended = f"{outcome['reason']}: {outcome['message']}" if "reason" in outcome else ""
    try:
        found = boot.timelines_of(trial)
        return [replace(one, invalid=one.invalid or ended) for one in found]
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as exc:
        # evidence is data from outside: what does not have its form is bad evidence, not a bug
        message = f"{folder}: the evidence does not have its form: {type(exc).__name__}: {exc}"
        raise EvidenceError(message, reason="bad-evidence") from exc
    except EvidenceError as exc:
        if "stage" not in outcome:
            raise
        hint = f"it ended at {outcome['stage']}: {outcome['message']}"
        raise EvidenceError(f"{folder}: {exc.message}", hint=hint, reason=exc.reason) from exc


def _trial(folder: Path) -> TrialDir:
    if (folder / MANIFEST).exists():
        return TrialDir.open(folder)
    patterns = (f"trials/[0-9]*/{MANIFEST}", f"cells/*/trials/[0-9]*/{MANIFEST}")
    if trials := sorted(path.parent for glob in patterns for path in folder.glob(glob)):
        raise ScenarioError(
            f"{folder} is a run, and one of its trials is wanted",
            hint="its trials are " + ", ".join(map(str, trials)),
            reason="not-a-trial",
        )
    raise EvidenceError(
        f"{folder} holds no trial: it has no {MANIFEST}",
        hint="give the folder of a trial, as RUN/trials/0001-baseline",
        reason="missing-evidence",
    )
