"""The report for mail and terminals: plain text that survives being quoted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, log2
from statistics import median

from orchestrator.analysis.maps.theory import best_leaf, count_pages, find_stride, predict_lookups
from orchestrator.analysis.statistics.sequential import LEAST_FOR_P
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    boots_of,
    guest_accels,
)
from orchestrator.analysis.verdict.effect import FEW_FLOOR
from orchestrator.evidence.plan import Plan
from orchestrator.formats.units import format_size
from orchestrator.report.text.conditions_text import describe_conditions
from orchestrator.report.text.mail_text import format_mail
from orchestrator.report.text.maps_text import map_sections
from orchestrator.report.text.timeline_text import calls_and_cost
from orchestrator.report.words.columns import WIDTH, fit_lines, format_table, shorten, wrap_text
from orchestrator.report.words.outcome_words import (
    describe_regressions,
    describe_undecided_metrics,
    describe_unseen,
)
from orchestrator.report.words.quantities import arm_text, change_text, explain_spreads, plural
from orchestrator.report.words.restored_words import describe_restored
from orchestrator.report.words.sentence import verdict_sentence
from orchestrator.report.words.slow_words import describe_slow_trials
from orchestrator.report.words.variable_words import describe_variable
from orchestrator.report.words.wall_time import describe_wall_time
from orchestrator.report.words.wording import (
    Setup,
    describe_attempts,
    describe_left,
    describe_setup,
    explain_few_pairs,
    explain_resolution,
    metric_title,
)
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.machines import HostSpec
from orchestrator.scenario.map_workload import Map
from orchestrator.scenario.metrics import METRIC_WORDS
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.trials import Trace
from orchestrator.scenario.vocabulary import ARMS, AT_POINTS, Point, is_emulated

CUT = "--->8--- end of what to paste under a patch --->8---"
"""The line below the mail."""
_TAIL = 12
"""Lines of a console that are shown."""


def text_report(
    scenario: Scenario, comparison: Comparison, plan: Plan, tester: str | None = None
) -> str:
    """Return the whole report: the mail, and below it everything else. It is ASCII in lines of at
    most 76 columns, except for the tag. `plan` is plan.json; `tester` is `Name <mail>` of whoever
    ran it, or None if that is not known."""
    emulated, exact = is_emulated(plan.accel), plan.accel == "exact"
    setup = describe_setup(scenario, plan)
    maps = scenario.map if scenario.workload == "map" else None
    parts = [
        "\n".join(wrap_text(verdict_sentence(scenario.device.bar, comparison, plan))) + "\n",
        _variable(comparison),
        _verdicts(comparison),
        _setup(setup, comparison, plan, emulated=emulated),
        _table(scenario.points() if maps else (), comparison, emulated=emulated, exact=exact),
        _statistics(scenario.workload, comparison),
        "" if maps else _theory(scenario.device.bar, comparison),
        _noted(comparison),
        describe_conditions(comparison.conditions),
        calls_and_cost(boots_of(comparison)),
        map_sections(comparison, exact=exact),
        explain_values(
            scenario.host, scenario.trace, maps, comparison, emulated=emulated, exact=exact
        ),
        _problems(comparison.results),
    ]
    mail = format_mail(scenario, comparison, plan, tester)
    return f"{mail}\n{CUT}\n\n" + fit_lines("\n".join(part for part in parts if part))


def _variable(comparison: Comparison) -> str:
    text = describe_variable(comparison.variable)
    return "\n".join(wrap_text(text)) + "\n" if text else ""


def _verdicts(comparison: Comparison) -> str:
    """Report the verdict of the run, and the verdicts of the metrics that decide it."""
    outcome = comparison.outcome
    lines = [f"{comparison.scenario}: {outcome.title}"]
    for name in comparison.deciding:
        if (metric := comparison.metric(name)) is not None:
            lines.append(f"  * {name}: {metric.verdict}{describe_expected(comparison, metric)}")
    for title, text in (
        ("also regressed", describe_regressions(outcome.besides)),
        ("undecided", describe_undecided_metrics(outcome)),
        ("not looked at", describe_unseen(outcome)),
    ):
        lines += wrap_text(f"{title}: {text}", "  ", "    ") if text else []
    if len(comparison.results) < comparison.planned:
        lines.append(f"  NOT COMPLETE: {len(comparison.results)} of {comparison.planned} trials")
    if len(guest_accels(comparison.results)) > 1:
        lines.append("  NOT COMPARABLE: guests ran under KVM in some trials, emulated in others")
    return "\n".join(lines) + "\n"


def describe_expected(comparison: Comparison, metric: MetricComparison) -> str:
    """Return what the scenario expects of the metric, and the metric's p; empty if there is
    neither."""
    expectation, p = comparison.expect.get(metric.name), metric.effect.p_adjusted
    text = "" if expectation is None else f", expected: {expectation}"
    return text + (f"; p {p:.2g}" if p is not None else "")


def _setup(setup: Setup, comparison: Comparison, plan: Plan, *, emulated: bool) -> str:
    lines = []
    for arm in ARMS:
        kernel = comparison.kernels[arm]
        trials = ", ".join(
            f"{comparison.count(arm, kind)} {kind}"
            for kind in ("measured", "failed", "invalid")
            if comparison.count(arm, kind)
        )
        again = [attempt for r in comparison.of_arm(arm) for attempt in describe_attempts(r)]
        if again:
            trials += f"; repeated: {', '.join(again)}"
        lines.append(
            f"{arm:<11}{kernel['release']}  ({kernel['source']}; {trials or 'no trials'})"
        )
    noun, workload = setup.workload
    lines += [
        f"device     {setup.device}", f"{noun:<11}{workload}", f"host       {setup.host}"
    ]  # fmt: skip
    if any(r.guest_accel == "tcg" for r in comparison.results) and not emulated:
        lines.append("           its guests are EMULATED: there is no KVM in the host")
    if plan.accel == "exact":
        lines.append("           INSTRUCTIONS of an emulated machine (Ginsn: 10^9), not times")
    elif emulated:
        lines.append("           EMULATED: compare seconds with one another, not with hardware's")
    return "\n".join(lines) + "\n"


def _table(points: Sequence[Point], comparison: Comparison, *, emulated: bool, exact: bool) -> str:
    """Return the table of all metrics. `points`: those of maps; none for guest boots."""
    if not comparison.metrics:
        return ""
    rows: list[Sequence[str] | str] = []
    for words in METRIC_WORDS:
        base, name = words.name, words.title
        group = [m for m in comparison.metrics if m.name.partition("@")[0] == base]
        if not group:
            continue
        if not points or base not in AT_POINTS:
            rows += [_row(name, metric, comparison) for metric in group]
            continue
        by_name = {metric.name: metric for metric in group}
        plain = [f"; {p.name} is {base}" for p in points if p.metric(base) == base]
        rows.append(name + "".join(plain))
        for point in points:
            if (of_point := by_name.get(point.metric(base))) is not None:
                rows.append(_row(f"  {point.name}", of_point, comparison))
    return "\n".join(format_table(_header(emulated=emulated, exact=exact), rows)) + "\n"


def metric_lines(comparison: Comparison, metric: MetricComparison) -> list[str]:
    """Return the table's header and its row of one metric."""
    header = _header(emulated=is_emulated(comparison.accel), exact=comparison.accel == "exact")
    return format_table(header, [_row(metric_title(metric.name), metric, comparison)])


def _header(*, emulated: bool, exact: bool) -> tuple[str, ...]:
    unit = "INSTRUCTIONS" if exact else "EMULATED seconds" if emulated else "metric"
    return (unit, *ARMS, "change", "verdict")


def _row(name: str, metric: MetricComparison, comparison: Comparison) -> Sequence[str]:
    arms = (arm_text(metric.unit, getattr(metric, arm)) for arm in ARMS)
    decides = " *" * (metric.name in comparison.deciding)
    return (name, *arms, change_text(metric.effect), metric.verdict + decides)


def _statistics(workload: Workload, comparison: Comparison) -> str:
    """Explain the kinds of numbers that the table has."""
    metrics = comparison.metrics
    lines = ["*: metrics that decide the verdict of the run."] * bool(metrics)
    lines += [
        f"+-: {spread} of an arm's trials, around their median."
        for spread in explain_spreads(getattr(m, arm) for m in metrics for arm in ARMS)
    ]
    paired, effects = comparison.paired, [metric.effect for metric in metrics]
    if any(effect.interval for effect in effects):
        of = "the pairs" if paired else "each trial with each of the other arm"
        lines.append(
            f"change: the Hodges-Lehmann estimate over {of}, with its 95 % interval; it may differ"
            " from the change of the medians."
        )
    if any(effect.p_adjusted is not None for effect in effects):
        test = "Wilcoxon signed-rank" if paired else "Mann-Whitney U"
        lines.append(f"p: {test} test, adjusted for the number of metrics (Holm).")
    if any(m.effect.estimate.basis == "few" and m.unit != "Ginsn" for m in metrics):
        few = f"fewer than {LEAST_FOR_P} pairs" if paired else "few trials"
        lines.append(f"{few}: {explain_few_pairs()}")
    lines += _too_few_together(comparison)
    if any(metric.unit == "Ginsn" for metric in metrics):
        lines.append(explain_resolution(workload))
    lines += _control(comparison)
    return "".join(f"{line}\n" for text in lines for line in wrap_text(text, then="  "))


def _too_few_together(comparison: Comparison) -> Iterator[str]:
    """Report that the number of pairs is too small for the number of metrics: their smallest
    possible p is not small enough."""
    tested = [m for m in comparison.metrics if m.effect.estimate.p is not None]
    for decide, which in ((True, "that decide"), (False, "that do not")):
        group = [m for m in tested if (m.name in comparison.deciding) == decide]
        if not comparison.paired or len(group) < 2:
            continue
        needed = ceil(log2(2 * len(group) / comparison.levels.difference))
        if (pairs := max(m.effect.estimate.pairs for m in group)) < needed:
            yield (
                f"{len(group)} metrics {which} are tested together: a significant change of less"
                f" than a factor of {FEW_FLOOR:g} needs {needed} pairs, and there are {pairs}."
            )


def _control(comparison: Comparison) -> Iterator[str]:
    """Report the control: a kernel against itself."""
    with_one = [(m, m.control) for m in comparison.metrics if m.control is not None]
    if not with_one:
        return
    kernel = "the baseline" if comparison.paired else "the other arm's kernel"
    trials = plural(max(len(metric.controls) for metric, _ in with_one), "trial")
    head = f"control: {kernel} against itself, {trials}:"
    differing = ", ".join(
        f"{metric.name} {change_text(control)}" for metric, control in with_one
        if control.verdict in ("improved", "regressed")
    )  # fmt: skip
    if differing:
        yield f"{head} DIFFERS in {differing}. A metric that differs without a cause is invalid."
    elif all(control.estimate.basis == "few" for _, control in with_one):
        yield f"{head} no difference found; so few show only a factor of {FEW_FLOOR:g} or more."
    else:
        yield f"{head} no difference found."


def _theory(bar: int, comparison: Comparison) -> str:
    metric = comparison.metric("pfn_lookups_per_map")
    if metric is None:
        return ""
    lines = [
        f"Lookups in theory: a {format_size(bar)} BAR has {count_pages(bar)} pages of 4 KiB; with"
        " a stride of",
        "  " + ", ".join(f"{leaf} {n}" for leaf, n in predict_lookups(bar).items()) + ".",
    ]
    for arm in ARMS:
        count = median(getattr(metric, arm))
        stride = find_stride(bar, count)
        match = f"one for each {stride}, exactly" if stride else "no leaf size fits that number"
        lines.append(f"  {arm:<10} {count:.10g}: {match}")
    best = best_leaf(bar)
    if find_stride(bar, median(metric.candidate)) not in (None, best):
        lines.append(f"  The candidate's lookups do not have the best stride, {best}.")
    return "\n".join(lines) + "\n"


def _noted(comparison: Comparison) -> str:
    """Report what may mislead: notes on single boots, shapes of an arm's trials, and trials that
    changed the host that others shared."""
    lines: dict[str, None] = {}
    for arm in ARMS:
        for boot in boots_of(comparison)[arm]:
            for note in boot.notes:
                lines.setdefault(f"  {arm:<10} {note.name}: {note.text}")
    for metric in comparison.metrics:
        for arm, shapes in metric.shapes.items():
            for shape in shapes:
                lines.setdefault(
                    f"  {arm:<10} {shape.kind}: {metric_title(metric.name)} {shape.text}"
                )
    for text in describe_slow_trials(comparison):
        lines.setdefault(f"  {text}")
    for text in describe_left(comparison.results):
        lines.setdefault(f"  {text}")
    return "\n".join(["Notes:", *lines]) + "\n" if lines else ""


def explain_values(
    host: HostSpec, trace: Trace, maps: Map | None, comparison: Comparison, *, emulated: bool,
    exact: bool,
) -> str:  # fmt: skip
    """Explain what a value in the table is, and which pass it comes from. `maps`: None for guest
    boots."""
    if not comparison.metrics:
        return ""
    if not host.fresh_boots:
        lines = [
            "Each value is of one trial; samples within a trial are reduced to their median."
            " Consecutive trials of one arm share a host boot: p and intervals take them as one"
            " value; with host.fresh_boots = true each trial has a boot of its own."
        ]
    else:
        lines = [
            "Each value is of one trial, which is one host boot; samples within a trial are"
            " reduced to their median."
        ]
    lines += describe_restored(comparison.results)
    if maps is not None:
        lines += [
            "A point is SIZE/ALIGNMENT/STATE: how much of the BAR, how its virtual address is"
            " aligned to it, and whether its page tables were zapped before (cold) or are as the"
            " last map left them (warm).",
            "plain: one map and one unmap, timed by the agent's own clock around each ioctl.",
        ]
        if "counts" in trace.passes and maps.backend == "type1":
            lines.append(
                "counts: lookups, faults and walks, counted by in-kernel histograms and checked"
                " against minor faults and page-table bytes; this pass gives no times."
            )
    else:
        clock = "" if exact else "; its clock has steps of 1 us"
        texts = {
            "plain": "plain: guest boots, untraced, from QEMU's start, which is known to 10 ms.",
            "timing": "timing: maps and unmaps of a guest boot, by probes around each of them but"
            f" not around each page{clock}.",
            "counts": "counts: lookups, faults and walks of one cold map from the host's user"
            " space; this pass gives no times.",
        }
        lines += [text for which, text in texts.items() if which in trace.passes]
    if exact:
        lines.append(
            "Ginsn: 10^9 instructions of the emulated host, whose clocks advance by 1 ns with"
            " each. The same QEMU gives the same counts on any machine, however busy."
        )
    elif emulated:
        lines.append("All seconds are those of a slow, emulated machine.")
    lines += describe_wall_time(comparison.results)
    return "\n".join(line for text in lines for line in wrap_text(text, then="  ")) + "\n"


def _problems(results: Sequence[TrialResult]) -> str:
    lines = []
    for result in results:
        if result.kind == "measured":
            continue
        where = f" at {result.stage}" if result.stage else ""
        text = f"{result.name}: {result.kind}{where}: {result.reason}: {result.message}"
        lines += wrap_text(text, then="    ")
        tail = result.evidence.splitlines()[-_TAIL:]
        lines += [f"  | {shorten(line, WIDTH - 4)}" for line in tail]
    return "\n".join(["Trials that do not count:", *lines]) + "\n" if lines else ""
