"""What a report says about the difference of the arms' instruction profiles."""

from __future__ import annotations

from orchestrator.analysis.maps.breakdown import FunctionChange, ProfileDifference
from orchestrator.report.words.quantities import signed_quantity

_MOST_NAMED = 3
"""Functions that are named. The page lists more of them, comparison.json all."""


def describe_profile(difference: ProfileDifference) -> str:
    """Say how far apart the arms' profiles are, and in which functions: `one map, warm: +0.06%,
    +0.4 instructions a page; mt_find +0.4 (not in the series' files)`."""
    whole = f"one {difference.operation}, {difference.state}"
    if not difference.functions:
        return f"{whole}: the same number of instructions in every function"
    change = difference.candidate - difference.baseline
    share = f"{change / difference.baseline:+.2%}, " if difference.baseline else ""
    per_page = sum(function.per_page for function in difference.functions)
    named = [_describe_function(function) for function in difference.functions[:_MOST_NAMED]]
    if (others := len(difference.functions) - len(named)) > 0:
        named.append(f"{others} more")
    text = f"{whole}: {share}{per_page:+.3g} instructions a page; {', '.join(named)}"
    if (outside := difference.outside_series) is not None:
        count = signed_quantity(outside / 1e9, "Ginsn") if outside else "none"
        text += f". Outside the series' files: {count}"
    return text


def _describe_function(change: FunctionChange) -> str:
    place = {True: "", False: " (not in the series' files)", None: ""}[change.in_series]
    return f"{change.function} {change.per_page:+.3g}{place}"
