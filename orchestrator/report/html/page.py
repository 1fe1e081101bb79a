"""Content of the HTML report: values for its templates, and its charts. The parts on metrics,
boots and maps are in files of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import tomlkit
from markupsafe import Markup

from orchestrator.analysis.conditions.conditions import Difference
from orchestrator.analysis.conditions.kconfig import ConfigChange, select_costly
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    guest_accels,
    merge_findings,
    subtract_profiles,
)
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.plan import Plan
from orchestrator.report.html.boots_section import TracedBoots, build_boots
from orchestrator.report.html.flames import Flames, build_flames
from orchestrator.report.html.maps_section import (
    LawSeries,
    PartLevel,
    Theory,
    list_levels,
    list_series,
    list_theory,
)
from orchestrator.report.html.metrics_section import (
    Line,
    Panel,
    draw_arms,
    draw_effects,
    list_lines,
    list_panels,
    list_rules,
)
from orchestrator.report.text.maps_text import inside_maps
from orchestrator.report.text.run_text import explain_values
from orchestrator.report.words.condition_words import split_digests
from orchestrator.report.words.outcome_words import (
    describe_regressions,
    describe_trials,
    describe_undecided_metrics,
    describe_unseen,
)
from orchestrator.report.words.quantities import plural
from orchestrator.report.words.sentence import verdict_sentence
from orchestrator.report.words.slow_words import describe_slow_trials
from orchestrator.report.words.variable_words import describe_variable
from orchestrator.report.words.wording import (
    Setup,
    describe_attempts,
    describe_left,
    describe_setup,
)
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, CONTROL, WARM_UP, Role, is_emulated

MOST_TAILS, MOST_PROBLEMS = 20, 200
"""Most trials that do not count: those shown with the end of their evidence, and those shown at
all."""
_TAIL_LINES, _TAIL_WIDTH = 40, 400
MOST_CONFIG = 2000
_MOST_COSTLY = 12
DIGESTS = "digests, which tell only that something differs"
"""Title of the last of the differences."""


@dataclass(frozen=True)
class Problem:
    result: TrialResult
    tail: str
    """The end of the trial's evidence."""


@dataclass(frozen=True)
class Page:
    sentence: str
    regressed: str
    """Every metric that regressed; empty if none did."""
    outcome: list[tuple[str, str]]
    """What else the outcome has: what it is about, and the text."""
    variable: str
    """Sentence on the differences between the arms, and on whether those are all."""
    verdict: str
    title: str
    """Title of the outcome: `improved, with regressions`."""
    scenario: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    lines: list[Line]
    rules: list[str]
    """Rules by which the verdicts are reached."""
    overview: Markup | None
    """Chart of what maps cost in both arms."""
    effects: Markup | None
    """Chart of the metrics' changes."""
    panels: list[Panel]
    boots: TracedBoots | None
    series: list[LawSeries]
    flames: list[Flames]
    theory: list[Theory]
    levels: list[PartLevel]
    inside: str
    """Text on where the cost of a map and an unmap goes."""
    notes: str
    differences: dict[str, list[Difference]]
    """Conditions that differ, by what that means: those that must not come first."""
    costly: list[ConfigChange]
    """Symbols of the kernels' configurations that differ and are the likeliest to matter."""
    problems: list[Problem]
    problem_counts: dict[str, int]
    """Number of trials by what went wrong."""
    toml: str
    """The scenario with every key."""
    barometer: str
    """Version of barometer."""
    kernels: dict[str, KernelRecord]
    """Kernels of plan.json, the guest's included."""


def build_page(scenario: Scenario, comparison: Comparison, plan: Plan) -> Page:
    """Return the content of the page. `plan` is plan.json."""
    exact, emulated = plan.accel == "exact", is_emulated(plan.accel)
    maps = scenario.map if scenario.workload == "map" else None
    points = scenario.points() if maps else ()
    lines = list_lines(points, comparison, emulated=emulated)
    bad = [result for result in comparison.results if result.kind != "measured"]
    outcome = comparison.outcome
    return Page(
        sentence=verdict_sentence(scenario.device.bar, comparison, plan),
        regressed=describe_regressions(outcome.regressed),
        outcome=list(_outcome(comparison)),
        variable=describe_variable(comparison.variable),
        verdict=comparison.verdict,
        title=outcome.title,
        scenario=comparison.scenario,
        facts=list(_facts(describe_setup(scenario, plan), comparison)),
        warnings=list(_warnings(comparison, exact=exact, emulated=emulated)),
        lines=lines,
        rules=list(list_rules(comparison, scenario.workload, lines)),
        overview=draw_arms(points, lines),
        effects=draw_effects(lines, comparison.judgement),
        panels=list_panels(comparison, lines),
        boots=build_boots(comparison),
        series=list(list_series(scenario.points(), comparison, exact=exact)),
        flames=build_flames(
            {arm: merge_findings(comparison, arm).breakdowns for arm in ARMS},
            subtract_profiles(comparison),
        ),
        theory=list(list_theory(scenario.points(), comparison)),
        levels=list(list_levels(comparison)),
        inside=inside_maps(comparison, exact=exact, names_missing=False),
        notes=explain_values(
            scenario.host, scenario.trace, maps, comparison, emulated=emulated, exact=exact
        ),
        differences=_differences(comparison),
        costly=_costly(comparison),
        problems=[
            Problem(result, _tail(result.evidence) if number < MOST_TAILS else "")
            for number, result in enumerate(bad[:MOST_PROBLEMS])
        ],
        problem_counts=dict(Counter(f"{r.arm}: {r.kind}, {r.reason}" for r in bad)),
        toml=tomlkit.dumps(scenario.model_dump(mode="json", exclude_none=True)),
        barometer=plan.barometer,
        kernels={arm: plan.kernels[arm] for arm in ARMS}
        | ({"guest": plan.guest_kernel} if plan.guest_kernel else {}),
    )


def _outcome(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield what a reader of the verdict must not miss, besides what regressed."""
    outcome = comparison.outcome
    yield "undecided", describe_undecided_metrics(outcome)
    yield "not looked at", describe_unseen(outcome)
    bad = sum(result.kind != "measured" for result in comparison.results)
    lost = f"; {plural(bad, 'trial')} did not count, see the end" if bad else ""
    yield "trials", describe_trials(outcome) + lost


def _costly(comparison: Comparison) -> list[ConfigChange]:
    config = comparison.conditions.config if comparison.conditions is not None else None
    return list(select_costly(config or ())[:_MOST_COSTLY])


def _differences(comparison: Comparison) -> dict[str, list[Difference]]:
    if comparison.conditions is None:
        return {}
    every, digests = split_digests(comparison.conditions.differences)
    groups = {
        "must not differ, and does": [d for d in every if not d.planned and not d.allowed],
        "planned: the arms' kernels and settings, and what follows from them": [
            d for d in every if d.planned
        ],
        "may differ: allowed by the scenario, or without effect on instruction counts": [
            d for d in every if d.allowed and not d.planned
        ],
        DIGESTS: digests,
    }
    return {title: group for title, group in groups.items() if group}


def _facts(setup: Setup, comparison: Comparison) -> Iterator[tuple[str, str]]:
    for arm in ARMS:
        kernel = comparison.kernels[arm]
        yield arm, f"{kernel['release']} ({kernel['source']}; {_trials(comparison, arm)})"
    for role in (CONTROL, WARM_UP):
        if comparison.of_arm(role):
            yield role, f"the baseline's kernel ({_trials(comparison, role)})"
    yield "device", setup.device
    yield setup.workload
    yield "host", setup.host


def _trials(comparison: Comparison, role: Role) -> str:
    counts = {kind: comparison.count(role, kind) for kind in ("measured", "failed", "invalid")}
    text = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n) or "no trials"
    again = Counter(
        text for result in comparison.of_arm(role) for text in describe_attempts(result)
    )
    if again:
        text += "; repeated: " + ", ".join(f"{n} x {why}" for why, n in again.items())
    return text


def _warnings(comparison: Comparison, *, exact: bool, emulated: bool) -> Iterator[str]:
    """Yield what a reader must know before any number."""
    if len(comparison.results) < comparison.planned:
        yield f"Not complete: {len(comparison.results)} of {comparison.planned} trials."
    if len(guest_accels(comparison.results)) > 1:
        yield "Not comparable: guests ran under KVM in some trials and were emulated in others."
    if exact:
        yield (
            "Costs are instructions of an emulated machine (Ginsn: 10^9; one is one nanosecond of"
            " its clocks), not times. With the same QEMU they are the same on any machine."
        )
    elif emulated:
        yield "Emulated: compare its seconds with one another, not with hardware's."
    elif any(r.guest_accel == "tcg" for r in comparison.results):
        yield "The guests are emulated: there is no KVM in the host."
    for text in describe_slow_trials(comparison):
        yield " ".join(text.split())
    yield from describe_left(comparison.results)


def _tail(evidence: str) -> str:
    lines = evidence.splitlines()[-_TAIL_LINES:]
    return "\n".join(
        line if len(line) <= _TAIL_WIDTH else f"{line[:_TAIL_WIDTH]}..." for line in lines
    )
