"""The outcome of a run in words. Every report quotes these, so that all say the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import get_args

from orchestrator.analysis.verdict.outcome import MetricGroup, Outcome
from orchestrator.formats.abi import LEAVES
from orchestrator.formats.units import SIZE, parse_size
from orchestrator.report.words.quantities import change_arms, change_text, plural
from orchestrator.report.words.wording import metric_title
from orchestrator.scenario.metrics import METRIC_WORDS, WORDS, MetricSource
from orchestrator.scenario.vocabulary import ARMS, HEADLINE_POINT, Metric, State

_STATES: tuple[str, ...] = get_args(State)
_POINT = re.compile(rf"(full|{SIZE.pattern})/({'|'.join(LEAVES)})/({'|'.join(_STATES)})")
Product = tuple[tuple[str, ...], ...]
"""The values of each part of a point; every combination of them is one of the points."""
_TOGETHER: dict[MetricSource, str] = {
    "plain": "times of guest boots",
    "timing": "maps and unmaps of guest boots",
    "counts": "lookups, faults and walks",
}
"""Name of all metrics of a pass together."""


def name_group(group: MetricGroup) -> str:
    """Name the metric and its points: `one DMA unmap at all 18 points`, `one DMA map at 6 of 18
    points`, or a single one as the tables do."""
    number = len(group.metrics)
    if number == 1:
        return metric_title(group.worst.name)
    which = f"all {number}" if number == group.of else f"{number} of {group.of}"
    return f"{WORDS[group.base].title} at {which} points"


def describe_group(group: MetricGroup) -> str:
    """Name the metric, its points and their largest change: `one DMA map at 6 of 18 points
    ({1GiB,2GiB,full}/4KiB/{cold,warm}), at worst +7.1%`."""
    change = change_text(group.worst.effect)
    if len(group.metrics) == 1:
        return f"{name_group(group)} {change}"
    points = "" if len(group.metrics) == group.of else f" ({spell_points(group.names)})"
    return f"{name_group(group)}{points}, at worst {change}"


def change_group(group: MetricGroup) -> str:
    """Name the metric, and the values of both arms at its worst point."""
    at_worst = ", at worst" * (len(group.metrics) > 1)
    return f"{name_group(group)}{at_worst} {change_arms(group.worst)}"


def shorten_group(group: MetricGroup) -> str:
    """Name the metric and its largest change, without points and interval."""
    title, change = WORDS[group.base].title, change_text(group.worst.effect).partition(" [")[0]
    number = f" ({len(group.metrics)} of {group.of} points)" * (group.of > 1)
    return f"{title}{number} {change}"


def describe_regressions(groups: Sequence[MetricGroup]) -> str:
    """Name the metrics that regressed (`regressed` or `besides` of an outcome), the worst first.
    Empty if there is none."""
    return "; ".join(map(describe_group, groups))


def describe_undecided_metrics(outcome: Outcome) -> str:
    """Name the metrics whose verdict is inconclusive, and what would decide them. Empty if there
    is none."""
    if not outcome.undecided:
        return ""
    names = "; ".join(map(describe_group, outcome.undecided))
    pairs = outcome.pairs_to_decide
    return names + (f" ({plural(pairs, 'pair')} or more would decide)" if pairs else "")


def describe_unseen(outcome: Outcome) -> str:
    """Name what the run did not measure, with the pass of a guest boot that does: all metrics of a
    pass together, if none of them was measured. Empty if it measured every cost."""
    unseen: list[str] = []
    for source, together in _TOGETHER.items():
        of_source = [words for words in METRIC_WORDS if words.in_boots == source]
        missing = [words for words in of_source if words.name in outcome.not_looked_at]
        # the workload map has one map and one unmap, too
        own = [words for words in of_source if not words.in_maps] or of_source
        if missing:
            is_all = all(words in missing for words in own)
            name = together if is_all else ", ".join(words.title for words in missing)
            unseen.append(f"{name} (pass {source})")
    return "; ".join(unseen)


def describe_trials(outcome: Outcome) -> str:
    """Return the measured trials of both arms, and whether they were emulated: `1 + 1 trials,
    emulated`."""
    numbers = " + ".join(str(outcome.trials[arm]) for arm in ARMS)
    return f"{numbers} trials" + f", {outcome.emulation}" * bool(outcome.emulation)


def spell_points(names: Sequence[Metric]) -> str:
    """Spell the points of a metric as a shell would expand them:
    `{1GiB,2GiB}/4KiB/{cold,warm} full/1GiB/warm`. The plain name is the point of the headline. A
    point of another form, which only evidence by another program has, is told as it is."""
    spelled = {name.partition("@")[2] or HEADLINE_POINT for name in names}
    if not all(map(_POINT.fullmatch, spelled)):
        return " ".join(sorted(spelled))
    points = sorted((tuple(point.split("/")) for point in spelled), key=_rank)
    products: list[Product] = [tuple((part,) for part in point) for point in points]
    for axis in (2, 0, 1):
        products = _merge(products, axis)
    return " ".join("/".join(map(_braces, product)) for product in products)


def _rank(point: tuple[str, ...]) -> tuple[float, ...]:
    """Return the place of a point in a list: the best alignment first, the whole BAR last."""
    size, alignment, state = point
    return (
        -LEAVES[alignment],
        math.inf if size == "full" else parse_size(size),
        _STATES.index(state),
    )


def _merge(products: Iterable[Product], axis: int) -> list[Product]:
    """Merge the products that differ along one axis only."""
    merged: dict[Product, tuple[str, ...]] = {}
    for product in products:
        others = product[:axis] + product[axis + 1 :]
        merged[others] = (*merged.get(others, ()), *product[axis])
    return [(*others[:axis], values, *others[axis:]) for others, values in merged.items()]


def _braces(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{{{','.join(values)}}}"
