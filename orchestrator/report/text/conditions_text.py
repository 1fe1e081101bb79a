"""The conditions of a comparison in text: what differed, and whether that was intended."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.conditions.conditions import Conditions, Difference
from orchestrator.analysis.conditions.kconfig import select_costly
from orchestrator.report.words.condition_words import split_digests
from orchestrator.report.words.quantities import plural

_MOST = 12


def describe_conditions(conditions: Conditions | None) -> str:
    """Report the conditions that differed between the arms. Those that must not differ come
    first, digests last."""
    if conditions is None or not (conditions.common or conditions.differences):
        return ""
    lines = [f"Conditions: {len(conditions.common)} the same in both arms."]
    telling, digests = split_digests(conditions.differences)
    lines += _listed(telling)
    lines += _config(conditions)
    if conditions.not_recorded:
        lines.append(f"  recorded of one arm only: {', '.join(conditions.not_recorded)}")
    lines += _listed(digests)
    return "\n".join(lines) + "\n"


def _listed(differences: Sequence[Difference]) -> list[str]:
    groups = {
        "NOT PLANNED": [d for d in differences if not d.planned and not d.allowed],
        "allowed": [d for d in differences if d.allowed and not d.planned],
        "planned": [d for d in differences if d.planned],
    }
    return [f"  {title}: {_describe(d)}" for title, group in groups.items() for d in group]


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
