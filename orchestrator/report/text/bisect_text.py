"""A bisection as text for mail: the commit, the numbers of both ends, a table of all steps."""

from __future__ import annotations

from orchestrator.analysis.verdict.bisection import BisectEnds, Bisection, BisectStep, Measured
from orchestrator.report.words.columns import fit_lines, format_table, shorten
from orchestrator.report.words.quantities import arm_text, format_quantity, plural, ratio_text
from orchestrator.report.words.wording import metric_title

_HEADER = ("", "commit", "value", "of good", "took", "verdict")
_INDENT = "      "


def bisect_report(bisection: Bisection) -> str:
    """Report the answer so far, and the steps that led to it."""
    parts = [
        describe_answer(bisection),
        describe_numbers(bisection),
        "\n".join(_rows(bisection)) + "\n",
    ]
    return fit_lines("\n".join(part for part in parts if part))


def describe_answer(bisection: Bisection) -> str:
    """Name the first bad commit, or the commits that it may be."""
    if not bisection.found:
        return "The first bad commit is not known yet.\n"
    if len(bisection.found) == 1:
        (commit,) = bisection.found
        return (
            f"{commit.short} is the first bad commit\n\n"
            f"commit  {commit.sha}\n"
            f"author  {commit.author}\n"
            f"date    {commit.date}\n"
            f"subject {commit.subject}\n"
        )
    listed = [f"  {commit.short}  {commit.subject}" for commit in bisection.found]
    return (
        f"The first bad commit is one of these {len(listed)}; skipped commits hide which:\n\n"
        + "\n".join(map(shorten, listed))
        + "\n"
    )


def describe_numbers(bisection: Bisection) -> str:
    """Report the numbers of both ends, and the threshold between them."""
    ends = bisection.ends
    if ends is None:
        return ""
    good, bad = (arm_text(end.unit, end.values) for end in (ends.good, ends.bad))
    between = format_quantity(ends.threshold, ends.good.unit)
    return (
        f"{metric_title(bisection.metric)}: good {good}, bad {bad}; a number nearer to bad than"
        f" {between} is bad\n"
    )


def _rows(bisection: Bisection) -> list[str]:
    """Return two lines for each step: its numbers, then its kernel and the commit's subject."""
    rows: list[list[str] | str] = []
    ends = bisection.ends
    for number, step in _numbered(bisection):
        rows.append([number, step.commit.short, *_cells(step, ends), step.outcome])
        kernel = step.found.release if isinstance(step.found, Measured) else step.found.reason
        rows.append(shorten(f"{_INDENT}{kernel}: {step.commit.subject}"))
        if not isinstance(step.found, Measured):
            message = step.found.message.partition("\n")[0]
            rows.append(shorten(f"{_INDENT}{message}"))
    steps = sum(step.role == "step" for step in bisection.steps)
    return [plural(steps, "step"), "", *format_table(_HEADER, rows)]


def _numbered(bisection: Bisection) -> list[tuple[str, BisectStep]]:
    """Number the steps. The ends have no numbers."""
    numbered, number = [], 0
    for step in bisection.steps:
        number += step.role == "step"
        numbered.append((str(number) if step.role == "step" else step.role, step))
    return numbered


def _cells(step: BisectStep, ends: BisectEnds | None) -> tuple[str, str, str]:
    took = f"{step.seconds:.0f} s"
    if not isinstance(step.found, Measured):
        return "-", "-", took
    good = ends.good.value if ends is not None else 0.0
    ratio = ratio_text(step.found.value / good if good else None)
    return format_quantity(step.found.value, step.found.unit), ratio, took
