"""The conditions of a comparison in text: what differed, and whether that was intended."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.conditions.conditions import Conditions, Difference
from orchestrator.analysis.conditions.kconfig import select_costly
from orchestrator.report.words.quantities import plural

_MOST = 12


def describe_conditions(conditions: Conditions | None) -> str:
    """Report the conditions that differed between the arms. Those that must not differ come
    first."""
    if conditions is None or not (conditions.common or conditions.differences):
        return ""
    lines = [f"Conditions: {len(conditions.common)} the same in both arms."]
    groups = {
        "NOT PLANNED": conditions.unplanned,
        "allowed": [d for d in conditions.differences if d.allowed and not d.planned],
        "planned": [d for d in conditions.differences if d.planned],
    }
    for title, differences in groups.items():
        lines += [f"  {title}: {_describe(difference)}" for difference in differences]
    lines += _config(conditions)
    if conditions.not_recorded:
        lines.append(f"  recorded of one arm only: {', '.join(conditions.not_recorded)}")
    return "\n".join(lines) + "\n"


def _describe(difference: Difference) -> str:
    sides = (" and ".join(values) or "-" for values in difference.values.values())
    return f"{difference.name}: {' | '.join(sides)}"


def _config(conditions: Conditions) -> Sequence[str]:
    if conditions.config is None:
        return ["  the kernels' configurations were not recorded"]
    if not conditions.config:
        return ["  planned: the kernels' configurations are the same"]
    shown = select_costly(conditions.config)
    lines = [
        f"  planned: the kernels' configurations differ in"
        f" {plural(len(conditions.config), 'symbol')}"
        + (", of these the likeliest to matter:" if shown else "")
    ]
    lines += [f"    {c.symbol}: {c.old} | {c.new}" for c in shown[:_MOST]]
    if len(shown) > _MOST:
        lines.append(f"    and {len(shown) - _MOST} more")
    return [*lines, "    all: RUN/kernels/*.config"]
