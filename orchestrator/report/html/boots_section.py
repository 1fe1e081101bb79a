"""The page's section on the traced guest boots."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.analysis.boot.cost import (
    BootDifference,
    CostTable,
    OperationCost,
    build_cost_table,
)
from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.verdict.comparison import Comparison, boots_of, middle_boots
from orchestrator.report.html.charts import boots_chart, change_bar
from orchestrator.report.html.svg import Axis
from orchestrator.report.text.timeline_text import cost_cells, explain_difference, text_timeline
from orchestrator.report.words.quantities import format_quantity, plural, signed_quantity
from orchestrator.scenario.vocabulary import ArmName

_LEAST_SHARE = 0.001
"""Share of the longer boot. Smaller changes have no row of their own."""


@dataclass(frozen=True)
class ChangeRow:
    """A row of the way from the baseline's boot to the candidate's."""

    name: str
    number: str
    bar: Markup


@dataclass(frozen=True)
class TracedBoots:
    """The traced guest boots."""

    shown: dict[ArmName, Timeline]
    """One boot of each arm that has any: the one of median length."""
    number: dict[ArmName, int]
    chart: Markup
    costs: CostTable
    changes: list[ChangeRow]
    notes: tuple[tuple[ArmName, str, str], ...]
    """Arm, name and text of each note."""

    @property
    def difference(self) -> str:
        difference = self.costs.difference
        return "" if difference is None else explain_difference(difference, self.costs.unit)

    @property
    def caption(self) -> str:
        several = [
            f"of the {arm}'s {plural(number, 'boot')} that of the median length is shown"
            for arm, number in self.number.items() if number > 1
        ]  # fmt: skip
        return "; ".join(["One traced guest boot of each kernel, on one axis", *several]) + "."

    def text(self, arm: ArmName) -> str:
        return text_timeline(self.shown[arm])

    def cells(self, cost: OperationCost) -> list[str]:
        return cost_cells(cost, self.costs.unit)


def build_boots(comparison: Comparison) -> TracedBoots | None:
    """Return the section, or None if no arm has a traced boot."""
    by_arm = {arm: boots for arm, boots in boots_of(comparison).items() if boots}
    if not by_arm:
        return None
    notes = dict.fromkeys(
        (arm, note.name, note.text)
        for arm, boots in by_arm.items() for boot in boots for note in boot.notes
    )  # fmt: skip
    shown, costs = middle_boots(by_arm), build_cost_table(by_arm)
    changes = [] if costs.difference is None else list_changes(costs.difference, costs.unit)
    number = {arm: len(boots) for arm, boots in by_arm.items()}
    return TracedBoots(shown, number, boots_chart(shown), costs, changes, tuple(notes))


def list_changes(difference: BootDifference, unit: str) -> list[ChangeRow]:
    """Return the way from the baseline's boot to the candidate's: a row for each operation in
    which they differ, the largest change first."""
    longest = max(difference.baseline, difference.candidate)
    steps = {n: v for n, v in difference.operations.items() if abs(v) >= _LEAST_SHARE * longest}
    steps = dict(sorted(steps.items(), key=lambda step: -abs(step[1])))
    steps["all else"] = difference.whole - sum(steps.values())
    lengths = [difference.baseline]
    for change in steps.values():
        lengths.append(lengths[-1] + change)
    axis = Axis(min(0.0, *lengths), max(lengths) or 1.0)
    rows = [_whole("baseline", difference.baseline, unit, axis)]
    for (name, change), start, end in zip(steps.items(), lengths, lengths[1:], strict=False):
        bar = change_bar(axis, start, end, "more" if change > 0 else "less")
        rows.append(ChangeRow(name, signed_quantity(change, unit), bar))
    return [*rows, _whole("candidate", difference.candidate, unit, axis)]


def _whole(arm: ArmName, seconds: float, unit: str, axis: Axis) -> ChangeRow:
    return ChangeRow(arm, format_quantity(seconds, unit), change_bar(axis, 0.0, seconds, arm))
