"""What a report says about the difference of the arms' instruction profiles."""

from __future__ import annotations

from orchestrator.analysis.maps.breakdown import FunctionChange, ProfileDifference
from orchestrator.report.words.quantities import (
    describe_ratio,
    format_digits,
    format_quantity,
    plural,
    signed_quantity,
)

_MOST_NAMED = 3
"""Functions that are named. The page lists more of them, comparison.json all."""


def describe_profile(difference: ProfileDifference) -> str:
    """Say how far apart the arms' profiles are, and in which functions: `one map, warm: 1.108
    Ginsn -> 1.108 Ginsn, +0.06%; instructions for a page of 4 KiB: mt_find +0.6`."""
    whole = f"one {difference.operation}, {difference.state}"
    if not difference.functions:
        return f"{whole}: the same number of instructions in every function"
    arms = " -> ".join(
        format_quantity(count / 1e9, "Ginsn")
        for count in (difference.baseline, difference.candidate)
    )
    change = ""
    if difference.baseline:
        change = f", {describe_ratio(difference.candidate / difference.baseline)}"
    named = [_describe_function(function) for function in difference.functions[:_MOST_NAMED]]
    if (others := len(difference.functions) - len(named)) > 0:
        named.append(f"{plural(others, 'other')}")
    text = f"{whole}: {arms}{change}; instructions for a page of 4 KiB: {', '.join(named)}"
    if (outside := difference.outside_series) is not None:
        count = signed_quantity(outside / 1e9, "Ginsn") if outside else "none"
        text += f"; outside the series' files: {count} in all"
    return text


def describe_per_page(change: FunctionChange) -> str:
    return f"{'+' * (change.per_page > 0)}{format_digits(change.per_page)}"


def _describe_function(change: FunctionChange) -> str:
    place = " (not in the series' files)" * (change.in_series is False)
    return f"{change.function} {describe_per_page(change)}{place}"
