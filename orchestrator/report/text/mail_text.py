"""The result as a mail: a reply to a patch, at most fifteen lines, and a tag if one is due."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    has_more_failures,
)
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.analysis.verdict.outcome import MetricGroup, Outcome, group_metrics
from orchestrator.evidence.plan import Plan
from orchestrator.report.words.columns import shorten, to_ascii, wrap_text
from orchestrator.report.words.outcome_words import (
    change_group,
    describe_trials,
    describe_undecided_metrics,
    describe_unseen,
    shorten_group,
)
from orchestrator.report.words.quantities import change_arms
from orchestrator.report.words.sentence import explain_invalid, verdict_sentence
from orchestrator.report.words.variable_words import describe_differing
from orchestrator.report.words.wording import Setup, describe_setup, metric_title
from orchestrator.scenario.metrics import WORDS
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, Metric

MAIL_LINES = 15
"""Most lines of the mail before its tag."""
_HEADLINES: tuple[Metric, ...] = ("bar_map_cost", "guest_boot_cost", "pfn_lookups_per_map")
"""Metrics that a reader wants to see whether they decide or not."""
_TESTER = re.compile(r"[^<>\s](?:[^<>]*[^<>\s])? <[^<>@\s]+@[^<>@\s]+>")


class _Form(NamedTuple):
    """A form of the mail."""

    describe: Callable[[MetricGroup], str]
    """How a metric that regressed is told."""
    is_tight: bool = False
    """True for a mail without blank lines, in which each part of the setup has one line."""


def format_mail(scenario: Scenario, comparison: Comparison, plan: Plan, tester: str | None) -> str:
    """Return the mail. `plan` is plan.json; `tester` is `Name <mail>`, or None if git knows no
    user.

    Every metric that regressed is named. If there are many, other numbers give way to them.
    """
    setup = describe_setup(scenario, plan)
    tight = (_Form(shorten_group, is_tight=True), _Form(_name_metric, is_tight=True))
    for form in (_Form(change_group), _Form(shorten_group), *tight):
        for most in (4, 3, 2, 1):
            lines = _body(scenario.device.bar, setup, comparison, plan, most, form)
            tag = _tag(comparison, tester, 1 if form.is_tight else 2)
            if len(lines) + len(tag) - 1 <= MAIL_LINES:
                return "\n".join([*lines, *tag]) + "\n"
    raise AssertionError("the tightest form has at most MAIL_LINES lines")


def _name_metric(group: MetricGroup) -> str:
    return WORDS[group.base].title


def is_tester(text: str) -> bool:
    """True if the text is `Name <mail>` in one line, as a tag needs it."""
    return text.isprintable() and _TESTER.fullmatch(text) is not None


def _body(
    bar: int, setup: Setup, comparison: Comparison, plan: Plan, most: int, form: _Form
) -> list[str]:
    """Return the lines before the tag's paragraph. `bar`: size of the device's BAR. `most`: number
    of metrics whose numbers have a line."""
    outcome, blank = comparison.outcome, [""] * (not form.is_tight)
    shown = _chosen(comparison, most)
    lines = [*_few(_headline(bar, comparison, plan), 3 - form.is_tight), *blank]
    lines += [shorten(f"{metric_title(m.name)}: {change_arms(m)}") for m in shown]
    hidden = [m for m in comparison.metrics if m.verdict == "regressed" and m not in shown]
    if hidden:
        named = map(form.describe, group_metrics(hidden, comparison.metrics))
        lines += wrap_text(f"regressed: {'; '.join(named)}", then="  ")
    configuration = [
        line for text in _configuration(setup, comparison, plan)
        for line in _few(text, 1 if form.is_tight else 2)
    ]  # fmt: skip
    room = (
        MAIL_LINES - len(lines) - len(configuration) - 2 * len(blank) - 1
    )  # 1: the line above the tag
    for title, text in (
        ("undecided", describe_undecided_metrics(outcome)),
        ("not looked at", describe_unseen(outcome)),
    ):
        wrapped = wrap_text(f"{title}: {text}", then="  ") if text else []
        if len(wrapped) <= room:
            lines += wrapped
            room -= len(wrapped)
    return [*lines, *blank, *configuration, ""]


def _few(text: str, most: int) -> list[str]:
    """Return the lines of a text, at most `most` of them."""
    lines = wrap_text(text, then="  ")
    return [*lines[: most - 1], shorten(" ".join(lines[most - 1 :]))] if lines[most:] else lines


def _headline(bar: int, comparison: Comparison, plan: Plan) -> str:
    """Return the verdict. A verdict that is on numbers alone leaves them to the lines below it."""
    outcome = comparison.outcome
    is_on_numbers = any(m.verdict == outcome.verdict for m in outcome.deciding)
    is_on_failures = has_more_failures(comparison) or comparison.has_undecided
    if outcome.verdict == "invalid" or is_on_failures or not is_on_numbers:
        return verdict_sentence(bar, comparison, plan)
    old, new = (comparison.kernels[arm]["release"] for arm in ARMS)
    if old == new:
        old, new = f"{old} (baseline)", f"{new} (candidate)"
    made, planned = len(comparison.results), comparison.planned
    partly = f", {made} of {planned} trials so far" if made < planned else ""
    emulated = f" ({outcome.emulation})" * bool(outcome.emulation)
    return f"{new} against {old}: {outcome.title}{partly}{emulated}"


def _chosen(comparison: Comparison, most: int) -> list[MetricComparison]:
    """Return the metrics whose numbers are shown: those that decide, regressions first, then
    headlines that did not regress."""
    deciding = sorted(comparison.outcome.deciding, key=lambda m: m.verdict != "regressed")
    besides = [
        metric for name in _HEADLINES
        if (metric := comparison.metric(name)) is not None
        and metric not in deciding and metric.verdict != "regressed"
    ]  # fmt: skip
    return [*deciding, *besides][:most]


def _configuration(setup: Setup, comparison: Comparison, plan: Plan) -> Iterator[str]:
    old, new = (comparison.kernels[arm]["release"] for arm in ARMS)
    if variable := comparison.variable:
        apart = [d for d in variable.differs if d.kind == "setting" or old == new]
        if apart:
            yield f"arms differ in: {describe_differing(apart)}"
    yield f"{setup.device}; {': '.join(setup.workload)}"
    versions = ", ".join(
        f"{version} ({room})" for room in ("runner", "host")
        if (version := _condition(comparison, f"{room}.qemu"))
    )  # fmt: skip
    yield f"barometer {plan.barometer}, accel {plan.accel}" + f", QEMU {versions}" * bool(versions)


def _condition(comparison: Comparison, name: str) -> str:
    """Return the different values of a condition in all trials, joined by "and"."""
    values = (result.conditions.get(name) for result in comparison.results)
    return " and ".join(dict.fromkeys(filter(None, values)))


def _tag(comparison: Comparison, tester: str | None, most: int) -> list[str]:
    """Return the last paragraph: the result with its number of trials, and below it the tag with
    the name of the person who vouches for it, in one line, or the reason why there is no tag. Both
    lines have the form of a trailer, so that `git interpret-trailers` reads the paragraph. `most`:
    lines of the reason."""
    outcome = comparison.outcome
    reason = _no_tag(comparison, outcome)
    if not reason and tester is not None and not is_tester(tester):
        reason = "the tester is not in the form NAME <MAIL>, in one line"
    result = f"Result: {outcome.title}; {describe_trials(outcome)}"
    if reason:
        return [result, *_few(f"(no Tested-by: {to_ascii(reason)})", most)]
    by = tester or "(set git's user.name and user.email, then `barometer report`)"
    return [result, f"{'Reported-by' if outcome.verdict == 'regressed' else 'Tested-by'}: {by}"]


def _no_tag(comparison: Comparison, outcome: Outcome) -> str:
    """Return the reason why there is no tag; empty if there is one."""
    baseline, candidate = (comparison.kernels[arm] for arm in ARMS)
    reason = ""
    if outcome.verdict == "invalid":
        reason = f"the run is invalid: {explain_invalid(comparison)}"
    elif baseline == candidate:
        reason = "both arms ran the same kernel"
    elif not comparison.paired:
        reason = "the trials are of two runs"
    elif outcome.verdict == "inconclusive":
        reason = "the run is inconclusive"
    elif outcome.verdict != "regressed" and choose_exit_code(comparison) != 0:
        reason = f"the run is {outcome.title}, which is not what the scenario expects"
    return reason
