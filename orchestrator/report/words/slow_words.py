"""What a report says about trials that are slow now and then."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison, SlowTrial
from orchestrator.report.words.quantities import format_quantity
from orchestrator.report.words.wording import metric_title


def describe_slow_trials(comparison: Comparison) -> Iterator[str]:
    """Yield the slow trials of the metrics that decide, and which share of slow boots the run
    excludes; also a single pair that another one has to confirm."""
    for metric in comparison.outcome.deciding:
        estimate, title = metric.effect.estimate, metric_title(metric.name)
        if estimate.unconfirmed:
            yield f"unconfirmed: {title}: a single pair differs; another one has to confirm it"
        for slow in metric.slow:
            yield _describe_slow_trial(metric, slow)
        if estimate.tail is not None and (metric.slow or metric.verdict == "equivalent"):
            share = f"{100 * estimate.tail.excluded_share:.2g}"
            yield f"{'candidate':<10} excluded: {title} slow in more than {share} % of boots"


def _describe_slow_trial(metric: MetricComparison, slow: SlowTrial) -> str:
    leaf = "" if slow.level is None else f", leaves of {slow.level.leaf}"
    reasons = slow.level.reasons if slow.level is not None else ()
    causes = "".join(f" ({reason.name})" for reason in reasons)
    cost = f"{metric_title(metric.name)} {format_quantity(slow.value, metric.unit)}"
    return f"{slow.arm:<10} slow: {cost} in {slow.trial}{leaf}{causes}"
