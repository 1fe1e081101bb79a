"""Claims of a test about a judged run. One that is wrong is an AssertionError with the report's
row; one that the run cannot decide is an EvidenceError, which is neither a pass nor a skip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.analysis.maps.level import Level
from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    compare_trials,
    has_more_failures,
    merge_findings,
)
from orchestrator.analysis.verdict.effect import Verdict
from orchestrator.analysis.verdict.expectations import (
    ExpectationOutcome,
    judge_expectation,
    judge_expectations,
)
from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.report.text.run_text import metric_lines
from orchestrator.report.words.columns import wrap_text
from orchestrator.report.words.sentence import explain_invalid, verdict_sentence
from orchestrator.report.words.variable_words import describe_variable
from orchestrator.run.judging.judge import Run
from orchestrator.scenario.fields import Bound, Expectation, parse_bound
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import METRICS, ArmName, Metric, current_name

Record = Callable[[str, object], None]
"""Called with the name and the value of each property of a test."""
_UNITS = {"count": "a number", "s": 'a time, such as "1ms"', "Ginsn": 'such as "50 kinsn"'}


class JudgedPair:
    """A run with both arms, judged: `ab["bar_map_cost"].improved(by=10)`."""

    def __init__(self, run: Run, record: Record = lambda _name, _value: None) -> None:
        """Raises EvidenceError if the run is invalid."""
        self.run = run
        self._record = record
        record("barometer.run", run.path)
        record("barometer.verdict", self.verdict)
        if run.comparison.verdict == "invalid":
            raise EvidenceError(
                f"{run.path}: the run is invalid: {explain_invalid(run.comparison)}",
                evidence=run.report, reason=Reason.NOT_JUDGED,
            )  # fmt: skip

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return self.run.path

    @property
    def scenario(self) -> Scenario:
        return self.run.scenario

    @property
    def comparison(self) -> Comparison:
        return self.run.comparison

    @property
    def verdict(self) -> Verdict:
        """Verdict of the whole run."""
        return self.comparison.verdict

    def __getitem__(self, metric: Metric) -> JudgedMetric:
        """Return a metric, at a point of a map by NAME@SIZE/ALIGNMENT/STATE. Raises ScenarioError
        if the run's scenario does not measure it."""
        name, measured = current_name(metric), self.scenario.metrics()
        if name not in measured:
            known = name.partition("@")[0] in METRICS
            raise ScenarioError(
                f"{name}: {'is not measured by this run' if known else 'is not a metric'}"
                + nearest_name(name, measured, measured),
                reason=Reason.NO_SUCH_METRIC,
            )
        return JudgedMetric(self, name, self._record)

    def level(self, size: str = "full", alignment: str = "1GiB", *, arm: ArmName) -> Level:
        """Return the leaves by which an arm mapped the BAR, and why they are not larger. Raises
        EvidenceError if no measured trial counted them."""
        levels = {level.place: level for level in merge_findings(self.comparison, arm).levels}
        place = f"{size}/{alignment}"
        if place not in levels:
            raise EvidenceError(
                f"{self.path}: no level of {place} in the {arm}; known: {', '.join(levels)}",
                hint="the pass `counts` shows it", reason=Reason.NOT_JUDGED,
            )  # fmt: skip
        return levels[place]

    def as_expected(self) -> JudgedPair:
        """Claim that every metric with an expectation (`expect`) came out as expected."""
        __tracebackhide__ = True
        for name in judge_expectations(self.comparison):
            expectation = self.comparison.expect.get(name)
            text = "not to regress" if expectation is None else str(expectation)
            JudgedMetric(self, name, self._record).claim(text, expectation)
        return self


class JudgedMetric:
    """A metric of both arms, and the claims about it. Each claim returns the metric."""

    def __init__(self, pair: JudgedPair, name: Metric, record: Record) -> None:
        self.name = name
        self._pair = pair
        self._record = record

    @property
    def baseline(self) -> float:
        """Median of the baseline's trials, in `unit`."""
        return summarize(self.unit, self._measured.baseline).middle

    @property
    def candidate(self) -> float:
        """Median of the candidate's trials, in `unit`."""
        return summarize(self.unit, self._measured.candidate).middle

    @property
    def ratio(self) -> float | None:
        """Candidate / baseline; None if the baseline is 0."""
        return self._measured.ratio

    @property
    def unit(self) -> str:
        """s, count or Ginsn."""
        return self._measured.unit

    @property
    def verdict(self) -> Verdict:
        return self._measured.verdict

    def improved(self, by: float | str | None = None) -> JudgedMetric:
        """Claim that the candidate is cheaper; `by` a factor (10 or "10x") or a share ("20%") at
        least."""
        __tracebackhide__ = True
        self.claim("improved", "improved")
        if by is not None:
            self.claim(f"improved by {by} at least", Bound("<=", _parse_gain(by), "x"))
        return self

    def equivalent(self, margin: float | str | None = None) -> JudgedMetric:
        """Claim that the arms are the same within `margin`, as 0.03 or "3%"; by default that of
        the scenario's judgement."""
        __tracebackhide__ = True
        if margin is None:
            return self.claim("equivalent", "equivalent")
        share = _parse_share(margin, "margin", 0.5)
        judgement = self._pair.scenario.judgement
        judgement = judgement.model_copy(
            update={"margin": share, "floor": min(share, judgement.floor)}
        )
        scenario = self._pair.scenario.model_copy(update={"judgement": judgement})
        return self.claim(
            f"equivalent within {share:.3g}", "equivalent",
            _judge_again(scenario, self._pair.comparison),
        )  # fmt: skip

    def not_regressed(self) -> JudgedMetric:
        """Claim that the candidate is not dearer."""
        __tracebackhide__ = True
        return self.claim("not regressed", "not-regressed")

    def at_most(self, number: float | str, arm: ArmName = "candidate") -> JudgedMetric:
        """Claim that an arm's own number is no larger: a count as 32, a cost with its unit as
        "1ms" or "50 kinsn"."""
        __tracebackhide__ = True
        text = f"{number:.0f}" if isinstance(number, float) and number.is_integer() else number
        bound = parse_bound(f"<= {text}")
        unit = self.unit
        if bound is None or bound.bounded(METRICS[self.name.partition("@")[0]]) != unit:
            raise ScenarioError(
                f"{self.name}: at_most({number!r}): the metric is {_UNITS[unit]}",
                reason=Reason.SCENARIO,
            )
        return self.claim(f"at most {text} in the {arm}", bound, arm=arm)

    def claim(
        self, text: str, expectation: Expectation | None, comparison: Comparison | None = None,
        arm: ArmName = "candidate",
    ) -> JudgedMetric:  # fmt: skip
        """Raise AssertionError if the metric is not as expected, and EvidenceError if that is not
        known. `text`: the expectation in words. `comparison`: the run, judged by other limits."""
        __tracebackhide__ = True
        whole = comparison or self._pair.comparison
        for name, value in self._pair.run.suite.metrics.get(self.name, {}).items():
            self._record(f"{self.name}.{name}", value)
        outcome: ExpectationOutcome = judge_expectation(whole, self.name, expectation, arm)
        if has_more_failures(whole):
            outcome = "not met"  # whatever the times are of the trials that did not fail
        self._record(f"{self.name}: {text}", outcome)
        if outcome == "not met":
            raise AssertionError(self._explain(text, whole))
        if outcome == "not known":
            raise EvidenceError(
                f"not known whether {self._explain(text, whole)}", reason=Reason.NOT_JUDGED
            )
        return self

    def _explain(self, text: str, comparison: Comparison) -> str:
        """Return the claim, the report's row, what the arms differ in, and where the run is."""
        run, metric = self._pair.run, comparison.metric(self.name)
        verdict = "not measured in both arms" if metric is None else metric.verdict
        lines = [f"{self.name} is {text}: it is {verdict}"]
        lines += metric_lines(comparison, metric) if metric is not None else []
        if metric is None or has_more_failures(comparison) or comparison.has_undecided:
            lines.append(verdict_sentence(run.scenario.device.bar, comparison, run.plan))
        lines += wrap_text(describe_variable(comparison.variable))
        return "\n".join([*filter(None, lines), f"run: {run.path}"])

    @property
    def _measured(self) -> MetricComparison:
        metric = self._pair.comparison.metric(self.name)
        if metric is None:
            raise EvidenceError(
                f"{self.name}: not measured in both arms of {self._pair.path}",
                reason=Reason.NOT_JUDGED,
            )
        return metric

    def __repr__(self) -> str:
        metric = self._pair.comparison.metric(self.name)
        return f"<{self.name}: {'not measured' if metric is None else metric.verdict}>"


def _judge_again(scenario: Scenario, comparison: Comparison) -> Comparison:
    """Compare the same trials by another scenario's limits."""
    again = compare_trials(
        scenario, comparison.kernels, comparison.results, comparison.planned, comparison.accel,
        comparison.conditions,
    )  # fmt: skip
    return replace(again, variable=comparison.variable)


def _parse_gain(by: float | str) -> float:
    """Return the largest ratio that is an improvement by a factor or a share."""
    text = str(by).strip()
    if text.endswith("%"):
        return 1 - _parse_share(by, "by", 1.0)
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if factor <= 1:
        raise ScenarioError(
            f'improved(by={by!r}): expected a factor above 1 as 10 or "10x", or a share as "20%"',
            reason=Reason.SCENARIO,
        )
    return 1 / factor


def _parse_share(value: float | str, name: str, most: float) -> float:
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= most:
        raise ScenarioError(
            f'{name}={value!r}: expected a share as 0.03 or "3%", up to {most:.0%}',
            reason=Reason.SCENARIO,
        )
    return share
