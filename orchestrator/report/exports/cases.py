"""A run as the test cases that CI systems know: its verdict, each metric that decides, each that
regressed besides, and each trial.

The outputs for machines share these cases: `junit.py`, `ktap.py` and `github.py` only format them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator import __version__
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    count_failures,
    guest_accels,
    has_more_failures,
)
from orchestrator.analysis.verdict.expectations import choose_exit_code, judge_expectations
from orchestrator.analysis.verdict.outcome import Outcome
from orchestrator.base.hashing import digest_of
from orchestrator.evidence.plan import Plan
from orchestrator.report.words.outcome_words import describe_regressions
from orchestrator.report.words.quantities import change_text, format_quantity
from orchestrator.report.words.sentence import describe_undecided, describe_unplanned
from orchestrator.report.words.variable_words import describe_variable
from orchestrator.report.words.wording import describe_attempts
from orchestrator.scenario.fields import Expectation
from orchestrator.scenario.vocabulary import ARMS, ArmName, Metric

CaseOutcome = Literal["passed", "failed", "unknown"]
"""unknown: invalid or inconclusive; it is no evidence on the kernels, and no success."""
Numbers = dict[str, float | str]

_OUTCOMES: dict[str, CaseOutcome] = {"met": "passed", "not met": "failed", "not known": "unknown"}

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
# Everything that XML 1.0 cannot contain (https://www.w3.org/TR/xml/#charsets), DEL and the C1
# controls
_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    kind: Literal["run", "metric", "trial"]
    name: str
    """Name of the case, unique within a suite among cases of its kind."""
    outcome: CaseOutcome
    reason: str
    """Short stable name of the result: improved, guest-panic, ..."""
    message: str
    """Message of one line."""
    tail: str = ""
    """The end of a console, or other proof."""
    numbers: Numbers = field(default_factory=dict)
    seconds: float | None = None
    """Wall-clock seconds that a trial took on the runner."""


@dataclass(frozen=True)
class Suite:
    """One run, or one cell of a matrix."""

    name: str
    exit_code: int
    cases: tuple[Case, ...]
    """The run's case first, then the metrics that decide, those that regressed besides, and the
    trials in their order."""
    facts: dict[str, str] = field(default_factory=dict)
    outcome: Outcome | None = None
    """Outcome of the run; None for a cell that has not begun."""
    metrics: dict[Metric, Numbers] = field(default_factory=dict)
    """Numbers of every metric that both arms have."""
    texts: dict[Metric, tuple[str, str, str]] = field(default_factory=dict)
    """Of every metric what people read: both arms' medians, and the change."""
    started: str = ""
    """Start of the first trial: ISO 8601, UTC; "" if the evidence has no time."""
    digest: str = ""
    """Digest of the plan and the evidence: the same for the same run, wherever it is judged."""


def clean_text(text: object) -> str:
    """Remove escape sequences, and replace control characters. The result is valid in XML, in JSON
    and on any terminal."""
    lines = _ANSI.sub("", str(text)).replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub("\ufffd", lines)


def clean_line(text: object) -> str:
    """Clean text from outside as `plain` does, and join its lines to one."""
    return " ".join(clean_text(text).split())


def build_suite(comparison: Comparison, plan: Plan) -> Suite:
    """Return a run as a suite of cases. `plan` is plan.json."""
    unit = cost_unit(plan)
    code = choose_exit_code(comparison)
    metrics = {
        m.name: _numbers(m, comparison.expect.get(m.name), unit) for m in comparison.metrics
    }
    outcomes = {name: _OUTCOMES[met] for name, met in judge_expectations(comparison).items()}
    # in an invalid run nothing is known of the kernels
    of_besides: CaseOutcome = "unknown" if comparison.verdict == "invalid" else "failed"
    cases = [
        _run_case(comparison, code, outcomes),
        *(
            _metric_case(comparison, name, outcome, metrics.get(name, {}))
            for name, outcome in outcomes.items()
        ),
        *(
            _metric_case(comparison, metric.name, of_besides, metrics[metric.name])
            for group in comparison.outcome.besides
            for metric in group.metrics
        ),
        *map(_trial_case, comparison.results),
    ]
    facts = {
        "barometer": __version__, "scenario": comparison.scenario, "verdict": comparison.verdict,
        "outcome": comparison.outcome.title, "exit_code": str(code), "accel": plan.accel,
        "cost_unit": unit,
        **{f"{arm}.kernel": clean_line(kernel_of(comparison, arm)) for arm in ARMS},
    }  # fmt: skip
    if variable := describe_variable(comparison.variable):
        facts["variable"] = clean_line(variable)
    started = min((r.started for r in comparison.results if r.started), default="")
    digest = digest_of({"plan": plan.to_json(), "trials": [r.digest for r in comparison.results]})
    return Suite(
        comparison.scenario,
        code,
        tuple(cases),
        facts,
        comparison.outcome,
        metrics,
        {metric.name: _texts(metric) for metric in comparison.metrics},
        started,
        digest,
    )


def combine_exit_codes(suites: Sequence[Suite]) -> int:
    """Return the exit code of several runs together: 1 if any run has 1, else the largest."""
    codes = [suite.exit_code for suite in suites]
    return 1 if 1 in codes else max(codes)


def not_run(name: str, code: int) -> Suite:
    """Return the suite of a matrix cell that has not begun."""
    return Suite(name, code, (Case("run", "verdict", "unknown", "not-run", "not run"),))


def kernel_of(comparison: Comparison, arm: ArmName) -> str:
    kernel = comparison.kernels[arm]
    return f"{kernel['release']} ({kernel['source']})"


def cost_unit(plan: Plan) -> str:
    """Return the unit of costs: s, emulated s or Ginsn. It depends on the accelerator."""
    return {"kvm": "s", "none": "s", "exact": "Ginsn"}.get(plan.accel, "emulated s")


def _run_case(comparison: Comparison, code: int, outcomes: Mapping[Metric, CaseOutcome]) -> Case:
    parts: list[str] = [comparison.outcome.title]
    if comparison.conditions is not None and comparison.conditions.unplanned:
        parts.append(clean_line(describe_unplanned(comparison.conditions.unplanned)))
    if len(comparison.results) < comparison.planned:
        parts.append(f"not complete: {len(comparison.results)} of {comparison.planned} trials")
    if len(guest_accels(comparison.results)) > 1:
        parts.append("guests ran under KVM in some trials and were emulated in others")
    if has_more_failures(comparison):
        (before, of_before), (after, of_after) = (
            count_failures(comparison.results, a) for a in ARMS
        )
        parts.append(
            f"the candidate fails more often: {after} of its {of_after} trials, and {before} of"
            f" the baseline's {of_before}"
        )
    if comparison.has_undecided and comparison.verdict == "inconclusive":
        parts.append(clean_line(describe_undecided(comparison)))
    for arm in ARMS:
        if not comparison.count(arm, "measured"):
            parts.append(f"no trial of the {arm} was measured")
    for outcome, met in (("passed", "met"), ("failed", "not met"), ("unknown", "not known")):
        names = [name for name in comparison.expect if outcomes[name] == outcome]
        if names:
            parts.append(f"expectation {met}: {', '.join(names)}")
    if regressed := comparison.outcome.regressed:
        parts.append(f"regressed: {describe_regressions(regressed)}")
    of_run: CaseOutcome = "passed" if code == 0 else "failed" if code == 1 else "unknown"
    return Case("run", "verdict", of_run, comparison.verdict, "; ".join(parts))


def _metric_case(
    comparison: Comparison, name: Metric, outcome: CaseOutcome, numbers: Numbers
) -> Case:
    metric, expectation = comparison.metric(name), comparison.expect.get(name)
    expected = "" if expectation is None else f", expected {expectation}"
    if metric is None:
        message = f"not measured in both arms{expected}"
        return Case("metric", name, outcome, "not-measured", message)
    why = ""
    if metric.verdict == "invalid":
        why = "; the bench finds a difference between the baseline's kernel and itself"
    elif outcome == "unknown" and metric.verdict != "inconclusive":
        why = "; the run is " + ("invalid" if comparison.verdict == "invalid" else "not complete")
    message = f"{metric.verdict}{expected}{why}; {_effect(metric)}"
    return Case("metric", name, outcome, metric.verdict, message, numbers=numbers)


def _effect(metric: MetricComparison) -> str:
    estimate = metric.effect.estimate
    parts = [f"ratio {estimate.ratio:.4g}" if estimate.ratio is not None else "the baseline is 0"]
    if estimate.interval is not None:
        parts.append(f"95 % interval {estimate.interval[0]:.4g} .. {estimate.interval[1]:.4g}")
    if metric.effect.p_adjusted is not None:
        parts.append(f"p {metric.effect.p_adjusted:.2g}")
    return ", ".join(parts)


def _texts(metric: MetricComparison) -> tuple[str, str, str]:
    before, after = (
        format_quantity(summarize(metric.unit, getattr(metric, arm)).middle, metric.unit)
        for arm in ARMS
    )
    return before, after, change_text(metric.effect)


def _numbers(metric: MetricComparison, expected: Expectation | None, seconds: str) -> Numbers:
    estimate = metric.effect.estimate
    low, high = estimate.interval or (None, None)
    numbers: dict[str, float | str | None] = {
        "unit": seconds if metric.unit == "s" else metric.unit,
        "baseline.median": summarize(metric.unit, metric.baseline).middle,
        "candidate.median": summarize(metric.unit, metric.candidate).middle,
        "ratio": estimate.ratio, "ci95.low": low, "ci95.high": high,
        "p": estimate.p, "p_adjusted": metric.effect.p_adjusted,
        "pairs": estimate.pairs, "basis": estimate.basis, "verdict": metric.verdict,
        "expected": None if expected is None else str(expected),
    }  # fmt: skip
    return {name: value for name, value in numbers.items() if value is not None}


def _trial_case(result: TrialResult) -> Case:
    values: Numbers = {
        name: value for name in result.samples if (value := result.value(name)) is not None
    }
    if again := describe_attempts(result):
        values["begun_again"] = clean_line(", ".join(again))
    if result.kind == "measured":
        return Case("trial", clean_line(result.name), "passed", "measured", "measured",
                    numbers=values, seconds=result.seconds)  # fmt: skip
    where = f" at {result.stage}" if result.stage else ""
    message = clean_line(f"{result.kind}{where}: {result.reason}: {result.message}")
    outcome: CaseOutcome = "failed" if result.kind == "failed" else "unknown"
    return Case("trial", clean_line(result.name), outcome, clean_line(result.reason), message,
                clean_text(result.evidence), values, result.seconds)  # fmt: skip
