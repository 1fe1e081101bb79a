"""Numbers as text: a cost in its unit, an arm's trials, the size of a change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.analysis.statistics.summary import LEAST_FOR_QUARTILES, summarize
from orchestrator.analysis.verdict.comparison import MetricComparison
from orchestrator.analysis.verdict.effect import Effect
from orchestrator.formats.units import PREFIXES
from orchestrator.scenario.vocabulary import ARMS

_LARGE, _SMALL = 2.0, 0.1
"""A ratio of _LARGE or more, or of _SMALL or less, is printed as a factor: `2.3x`, `1/20151`."""


def format_quantity(value: float, unit: str) -> str:
    """Return a cost with four digits and the SI prefix that suits it: `8.432 s`, `494 us`, `5.832
    Minsn`. A `count` has all its digits. The caller has to say if seconds are emulated."""
    if unit == "count":
        return f"{value:.10g}"
    prefixes = [*PREFIXES.get(unit, PREFIXES["s"]).items()]
    if not value:
        return f"0 {prefixes[0][0]}"
    name, factor = next((p for p in prefixes if abs(value) >= 0.99995 * p[1]), prefixes[-1])
    return f"{format_digits(value / factor)} {name}"


def signed_quantity(value: float, unit: str) -> str:
    """Return a change with its sign: `-102.8 s`, `+2.083 s`."""
    return f"{'+' * (value > 0)}{format_quantity(value, unit)}"


def format_digits(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def count_cells(number: int, of: int) -> str:
    """Return the number of cells of a matrix: `8 cells`, or `7 of 8 cells` if not all were
    chosen."""
    return plural(of, "cell") if number == of else f"{number} of {plural(of, 'cell')}"


def arm_text(unit: str, values: Sequence[float]) -> str:
    """Return an arm's trials, summarised as `summarize` does: `8.635 s +- 1.2%`. There is
    no spread for one trial, or for values that are the same in all trials."""
    summary = summarize(unit, values)
    text = format_quantity(summary.middle, unit)
    if summary.spread is None or len(set(values)) == 1:
        return text
    if not summary.middle:
        return f"{text} +- {format_quantity(summary.spread, unit)}"
    share = 100 * summary.spread / abs(summary.middle)
    if share < 0.01:
        return f"{text} +- <0.01%"
    return f"{text} +- {share:.{0 if share >= 9.95 else 1 if share >= 0.95 else 2}f}%"


def explain_spreads(arms: Iterable[Sequence[float]]) -> list[str]:
    """Return the meanings of `+-` in the texts that `arm_text` returns for these arms; empty if
    none of them has it."""
    names = {True: "half the interquartile range", False: "half the range"}
    lengths = (len(values) for values in arms if len(set(values)) > 1)
    return [names[many] for many in dict.fromkeys(n >= LEAST_FOR_QUARTILES for n in lengths)]


def change_text(effect: Effect) -> str:
    """Return the change from the baseline's cost to the candidate's, with the 95 % interval if
    there is one: `-4.9% [-5.3, -4.4]`, `1/20151`, `2.3x [2.1, 2.5]`."""
    estimate = effect.estimate
    if estimate.ratio is None:
        return "from 0"
    if estimate.basis == "count" and estimate.same:
        return "same"
    return describe_ratio(estimate.ratio, estimate.interval or ())


def describe_ratio(ratio: float, ends: Sequence[float] = ()) -> str:
    """Return a ratio as a change, with the ends of its interval: as change_text."""
    if ratio >= _LARGE:
        sign, inner = "x", [_factor(end) for end in ends]
        text = _factor(ratio)
    elif 0 < ratio <= _SMALL:
        sign, inner = "", [f"1/{_factor(1 / end) if end else 'inf'}" for end in ends]
        text = f"1/{_factor(1 / ratio)}"
    else:
        percents = [100 * (value - 1) for value in (ratio, *ends)]
        fine = max(percents) - min(percents) < 0.2 and abs(percents[0]) < 10
        decimals = 2 if fine and (ends or abs(percents[0]) < 0.1) else 1
        sign, (text, *inner) = "%", [_percent(p, decimals) for p in percents]
    return f"{text}{sign}" + f" [{', '.join(inner)}]" * bool(inner)


def change_arms(metric: MetricComparison) -> str:
    """Return the medians of both arms and the change: `8.578 s -> 434.5 us, 1/19743`."""
    arms = (summarize(metric.unit, getattr(metric, arm)).middle for arm in ARMS)
    values = " -> ".join(format_quantity(middle, metric.unit) for middle in arms)
    return f"{values}, {change_text(metric.effect)}"


def ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.4g}"


def p_text(effect: Effect) -> str:
    """Return p, adjusted for the metrics that are judged together; empty if there is none."""
    p = effect.p_adjusted
    if p is None:
        return ""
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _factor(value: float) -> str:
    return f"{value:.0f}" if 100 <= value < 1e9 else f"{value:.3g}"


def _percent(value: float, decimals: int) -> str:
    if abs(value) >= 1e6:
        return f"{value:+.3g}"
    rounded = round(value, decimals)
    return f"{rounded:+.{decimals}f}" if rounded else f"{0:.{decimals}f}"
