"""Judge a saved run: evidence in, a comparison out; saving it writes comparison.json, report.txt,
report.html and files for other tools. Also compare runs with one another, and read a trial's
traced boots. Connects to nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from orchestrator.analysis.boot.boot import read_timelines
from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.conditions.conditions import compare_conditions, is_recorded_in_all
from orchestrator.analysis.conditions.variable import find_variable
from orchestrator.analysis.copies import count_copies_once
from orchestrator.analysis.trial import Findings, TrialResult, read_result
from orchestrator.analysis.verdict.across import SavedRun, compare_runs, plan_across
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    boots_of,
    compare_trials,
)
from orchestrator.analysis.verdict.comparison_file import COMPARISON_SCHEMA, comparison_json
from orchestrator.analysis.verdict.metrics import unit_of, values_by_pair
from orchestrator.analysis.verdict.stopping import is_enough
from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.base.installed import MissingExtraError, missing_extra_explained
from orchestrator.base.plainfile import find_below, replace_file
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import MANIFEST, RunDir, TrialDir, write_json
from orchestrator.evidence.manifest import Ended
from orchestrator.evidence.plan import Plan
from orchestrator.report.exports.cases import Suite, build_suite, combine_exit_codes
from orchestrator.report.exports.junit import junit_xml
from orchestrator.report.exports.kcidb import kcidb_objects
from orchestrator.report.exports.ktap import format_ktap
from orchestrator.report.exports.results_csv import results_csv
from orchestrator.report.text.brief import run_brief
from orchestrator.report.text.mail_text import format_mail
from orchestrator.report.text.run_text import text_report
from orchestrator.report.words.redact import NOTHING_HIDDEN, Redaction
from orchestrator.run.judging.private import find_private
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.trials import explain_no_condition
from orchestrator.scenario.vocabulary import ARMS, CONTROL, WARM_UP, ArmName, Metric, Role

_log = logging.getLogger("barometer.judge")


class ArmSamples(NamedTuple):
    """The values of one metric in one arm of a run."""

    unit: str
    """s, count or Ginsn."""
    values: tuple[float, ...]
    """One for each measured trial, in the order in which they ran."""
    unmeasured: tuple[TrialResult, ...]
    """The arm's trials that failed or are invalid."""


class Judged(NamedTuple):
    """The command's output for a run, or for the cells of a matrix."""

    report: str
    """report.txt."""
    exit_code: int
    document: dict[str, object]
    """comparison.json."""
    suites: tuple[Suite, ...]
    brief: str
    """The end of a run: at most twelve lines, the last of which names its folder."""
    mail: str = ""
    """The reply to a patch; of a matrix that of each cell, below the cell's name."""
    hidden: Redaction = NOTHING_HIDDEN
    """What to take out of what is published."""


class TrialSample(NamedTuple):
    """One metric of one measured trial."""

    metric: Metric
    role: Role
    trial: str
    """Name of the trial, such as 0001-baseline."""
    value: float
    unit: str
    """s, count or Ginsn."""


@dataclass(frozen=True)
class Run:
    """A judged run, in memory: nothing is written until `save`."""

    path: Path
    scenario: Scenario
    comparison: Comparison
    plan: Plan
    report: str
    """The text of report.txt, which begins with the mail."""
    mail: str
    """The reply to a patch, with a tag if one is due."""
    suite: Suite

    @property
    def trials(self) -> tuple[TrialResult, ...]:
        """Every trial in the order in which they ran: measured, failed or invalid."""
        return self.comparison.results

    @property
    def exit_code(self) -> int:
        """The exit code of `barometer report`: 0 if the expectation is met."""
        return self.suite.exit_code

    def document(self) -> dict[str, object]:
        """Return the content of comparison.json."""
        return comparison_json(self.comparison)

    def samples(self) -> tuple[TrialSample, ...]:
        """Return the value of each metric in each measured trial, without the warm-up."""
        trials = [r for r in self.trials if r.kind == "measured" and r.arm != WARM_UP]
        return tuple(
            TrialSample(metric.name, trial.arm, trial.name, value, metric.unit)
            for metric in self.comparison.metrics
            for trial in trials
            if (value := trial.value(metric.name)) is not None
        )

    def save(self, *, redact: bool = True) -> Judged:
        """Write the reports, and the files for other tools, into the run. Return the output of the
        command. `redact`: leave names of people and machines out of what is published: the page
        and the files for other tools."""
        scenario, comparison, plan = self.scenario, self.comparison, self.plan
        document = self.document()
        hidden = find_private(scenario.host) if redact else NOTHING_HIDDEN
        exports = {name: hidden.apply(text) for name, text in self._export_files().items()}
        save_reports(self.path, document, {"report.txt": self.report, **exports})
        self._save_page(hidden)
        _save_timelines(self.path / "timelines", comparison)
        # after the page, which it names only if it exists
        brief = run_brief(scenario.device.bar, comparison, plan, self.path)
        return Judged(
            self.report, self.exit_code, document, (self.suite,), brief, self.mail, hidden
        )

    def _export_files(self) -> dict[str, str]:
        """Return the files that other tools read, besides comparison.json: file name -> text."""
        scenario, comparison, plan = self.scenario, self.comparison, self.plan
        objects = kcidb_objects(
            scenario.host, scenario.device, scenario.workload, comparison, plan
        )
        return {
            "junit.xml": junit_xml([self.suite]),
            "results.ktap": format_ktap([self.suite]),
            "kcidb.json": json.dumps(objects, indent=1) + "\n",
            "results.csv": results_csv(scenario.metrics(), comparison, plan),
        }

    def _save_page(self, hidden: Redaction) -> None:
        with warning_if_refused("page"):
            # Imported only here: it loads the libraries for pages and charts.
            from orchestrator.report.html.html import html_report  # noqa: PLC0415

            page = html_report(self.scenario, self.comparison, self.plan)
            replace_file(self.path / "report.html", hidden.apply(page))


def judge(run: RunDir, tester: str | None = None) -> Run:
    """Judge a run. `tester`: `Name <mail>` of whoever would give a Tested-by. Raises the errors of
    `read_saved_run`."""
    return judge_saved_run(read_saved_run(run), run.path, tester)


def judge_saved_run(saved: SavedRun, folder: Path, tester: str | None = None) -> Run:
    """Judge a run that was read from `folder`."""
    scenario, plan = saved.scenario, saved.plan
    sides = {
        arm: [r.conditions for r in saved.results if r.arm in roles and r.kind != "invalid"]
        for arm, roles in (("baseline", ("baseline", CONTROL)), ("candidate", ("candidate",)))
    }
    configs = (saved.configs["baseline"], saved.configs["candidate"])
    conditions = compare_conditions(sides, configs, scenario.judgement.allow)
    comparison = replace(
        compare_trials(
            scenario, plan.named_kernels(), saved.results, saved.planned, plan.accel, conditions
        ),
        variable=find_variable(plan, conditions if is_recorded_in_all(sides) else None),
        changed_functions=_changed_functions(plan),
    )
    report = text_report(scenario, comparison, plan, tester)
    mail = format_mail(scenario, comparison, plan, tester)
    suite = build_suite(comparison, plan)
    return Run(folder, scenario, comparison, plan, report, mail, suite)


def _changed_functions(plan: Plan) -> frozenset[str] | None:
    """Return the functions in the files that the run's kernels change; None if neither tells."""
    known = [plan.kernels[arm].provenance.functions for arm in ARMS]
    if not any(known):
        return None
    return frozenset(name for functions in known for name in functions or ())


def open_run(folder: Path) -> RunDir:
    """Open the folder of a run. Raises ScenarioError for that of a matrix, and EvidenceError if
    there is no run."""
    if (folder / "matrix.json").exists():
        raise ScenarioError(
            f"{folder} is a run of a [matrix]: each of its cells is a run",
            hint=f"give one of {folder}/cells/NAME",
            reason=Reason.NOT_A_RUN,
        )
    return RunDir.open(folder)


def read_saved_run(run: RunDir) -> SavedRun:
    """Read a run's folder. Raises EvidenceError or ScenarioError if the folder does not hold a
    run. A trial with bad evidence raises nothing: it is an invalid result."""
    scenario, _ = parse_scenario(run.scenario(), str(run.path / "scenario.toml"), run.path)
    plan = run.plan()
    if scenario.workload == "guest-boot" and plan.guest_kernel is None:
        raise EvidenceError(
            f"{run.path / 'plan.json'}: guest_kernel is null, and the workload is guest-boot",
            reason=Reason.BAD_EVIDENCE,
        )
    distinct: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    results = []
    for trial in run.trials():
        result = _judge_trial(trial, plan)
        # thousands of trials have the same conditions: hundreds of names, kept once
        same = distinct.setdefault(tuple(result.conditions.items()), result.conditions)
        results.append(replace(result, conditions=same))
    configs = {arm: run.config(arm) for arm in ARMS}
    return SavedRun(str(run.path), scenario, plan, tuple(count_copies_once(results)), configs)


def _judge_trial(trial: TrialDir, plan: Plan) -> TrialResult:
    """Judge a trial of a run. A measured trial is invalid if its arm has settings and it does not
    show that they were proven."""
    result = read_result(trial)
    settings = plan.arm_settings
    has_settings = settings is not None and any(settings[arm].is_set for arm in ARMS)
    if result.kind != "measured" or not has_settings or trial.manifest.arm_settings is not None:
        return result
    return TrialResult(
        result.name, result.arm, "invalid", Reason.SETTINGS_NOT_PROVEN, pair=result.pair,
        message="the run's arms differ in settings, and manifest.json has no arm_settings",
        started=result.started, seconds=result.seconds, digest=result.digest,
        repeated=result.repeated,
    )  # fmt: skip


def read_samples(run: RunDir, arm: ArmName, metric: Metric) -> ArmSamples:
    """Return the values of a metric in one arm, whether or not the other arm has run. Raises the
    errors of `read_saved_run`."""
    saved = read_saved_run(run)
    return ArmSamples(
        unit_of(metric, saved.plan.accel),
        tuple(values_by_pair(saved.results, arm, metric).values()),
        tuple(r for r in saved.results if r.arm == arm and r.kind != "measured"),
    )


def judge_across(
    folders: Sequence[Path], arm: ArmName, allow: Sequence[str],
    usual_change: Callable[[Scenario, Metric], float | None] | None = None,
) -> Judged:  # fmt: skip
    """Judge each run but the first against the first. Nothing is saved. `usual_change` is that of
    `compare_runs`. The exit code is 1 if any
    comparison has 1, else the largest. Raises ScenarioError if the request is wrong, and the
    errors of `read_saved_run` and `compare_runs`."""
    if len(folders) < 2:
        raise ScenarioError("compare needs two runs or more", reason=Reason.ONE_RUN)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ScenarioError("compare: the same run is named twice", reason=Reason.ONE_RUN)
    if wrong := explain_no_condition(allow):
        raise ScenarioError(f"--allow: {wrong}", reason=Reason.NO_CONDITION)
    runs = [open_run(folder) for folder in folders]
    first, *others = map(read_saved_run, runs)
    reports, documents, suites = [], [], []
    for other in others:
        scenario, comparison = compare_runs(first, other, arm, allow, usual_change)
        plan = plan_across(first, other, arm)
        suite = build_suite(comparison, plan)
        suites.append(replace(suite, name=f"{other.name} against {first.name}, {arm}"))
        report = text_report(scenario, comparison, plan)
        reports.append(f"{other.name}\n  against {first.name}, {arm}:\n\n{report}")
        documents.append({
            "run": other.name, "exit_code": suite.exit_code, **comparison_json(comparison)
        })  # fmt: skip
    code = combine_exit_codes(suites)
    whole = {
        "schema": COMPARISON_SCHEMA, "first": first.name, "arm": arm, "exit_code": code,
        "comparisons": documents,
    }  # fmt: skip
    report = "\n\n".join(reports)
    # in full: it is saved nowhere
    return Judged(report, code, whole, tuple(suites), report, hidden=find_private())


def stop_rule(scenario: Scenario) -> Callable[[RunDir, int], bool] | None:
    """Return the stop rule of `trials.until`, called after each block, or None without `until`.
    The rule decides on the first `pairs` pairs, even if an interrupted run left more. Each trial
    is read once."""
    if scenario.trials.until is None:
        return None
    known: dict[str, TrialResult] = {}
    planned_trials = make_plan(scenario)

    def has_enough(run: RunDir, pairs: int) -> bool:
        blocks = {planned.name for planned in planned_trials if planned.pair <= pairs}
        plan = run.plan()
        for trial in run.trials():
            if trial.path.name in blocks - known.keys():
                known[trial.path.name] = replace(_judge_trial(trial, plan), findings=Findings())
        seen = [result for name, result in known.items() if name in blocks]
        return is_enough(scenario, seen, plan.accel)

    return has_enough


def save_reports(folder: Path, comparison: dict[str, object], texts: Mapping[str, str]) -> None:
    """Write comparison.json and the other files by their names, if the folder's owner permits."""
    with warning_if_refused("report"):
        write_json(folder / "comparison.json", comparison)
        for name, text in texts.items():
            replace_file(folder / name, text)


@contextlib.contextmanager
def warning_if_refused(report: str) -> Iterator[None]:
    """Only log a warning if the block may not write the report, or if an extra is missing that
    makes it. Somebody else's run, or one in a read-only archive, can be judged without the right
    to write."""
    try:
        with missing_extra_explained():
            yield
    except MissingExtraError as exc:
        _log.warning("barometer: the %s is not saved: %s", report, exc)
    except OSError as exc:
        if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _log.warning("barometer: the %s is not saved: %s", report, exc)


def _save_timelines(folder: Path, comparison: Comparison) -> None:
    """Write a trace for ui.perfetto.dev of each traced boot: TRIAL-GUEST.pftrace."""
    boots = [boot for of_arm in boots_of(comparison).values() for boot in of_arm]
    if not boots:
        return
    try:
        with missing_extra_explained():
            # Imported only here: it loads Perfetto's protobuf.
            from orchestrator.report.exports.perfetto import perfetto_trace  # noqa: PLC0415

        find_below(folder.parent, folder.name).mkdir(exist_ok=True)
        for boot in boots:
            name = f"{boot.trial}-{boot.guest}.pftrace"
            replace_file(folder / name, perfetto_trace(boot))
    except (OSError, MissingExtraError) as exc:
        _log.warning("barometer: the timelines are not saved: %s", exc)


def read_traced_boots(folder: Path) -> list[Timeline]:
    """Return the timelines of a trial's traced guest boots, at least one.

    Raises ScenarioError for the folder of a run, and EvidenceError if there is no trial, if it has
    no traced guest boot, or if its files are not those that were collected.
    """
    trial = _open_trial(folder)
    if (changed := trial.verify()) is not None:
        raise EvidenceError(f"{folder}: {changed}", reason=Reason.EVIDENCE_CHANGED)
    outcome = trial.manifest.outcome
    ended = outcome if isinstance(outcome, Ended) else None
    flaw = f"{ended.reason}: {ended.message}" if ended else ""
    try:
        timelines = read_timelines(trial)
    except EvidenceError as exc:
        if ended is None:
            raise
        hint = f"it ended at {ended.stage}: {ended.message}"
        raise EvidenceError(f"{folder}: {exc.message}", hint=hint, reason=exc.reason) from exc
    return [replace(timeline, invalid=timeline.invalid or flaw) for timeline in timelines]


def _open_trial(folder: Path) -> TrialDir:
    if (folder / MANIFEST).exists():
        return TrialDir.open(folder)
    patterns = (f"trials/[0-9]*/{MANIFEST}", f"cells/*/trials/[0-9]*/{MANIFEST}")
    if trials := sorted(path.parent for glob in patterns for path in folder.glob(glob)):
        raise ScenarioError(
            f"{folder} is a run: give one of its trials",
            hint="its trials are " + ", ".join(map(str, trials)),
            reason=Reason.NOT_A_TRIAL,
        )
    raise EvidenceError(
        f"{folder} holds no trial: it has no {MANIFEST}",
        hint="give the folder of a trial, as RUN/trials/0001-baseline",
        reason=Reason.MISSING_EVIDENCE,
    )
