"""The differences between the arms of a comparison, in a sentence or two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.report.words.quantities import plural


def describe_variable(variable: Variable | None, *, counted: bool = True) -> str:
    """Return one paragraph; empty for a comparison without a variable. `counted`: add the number
    of conditions that were checked."""
    return " ".join(_sentences(variable, counted=counted)) if variable is not None else ""


def describe_differing(differs: Iterable[Differing]) -> str:
    """Name what differs, with both arms' values: `vfio_iommu_type1.disable_hugepages: N | Y;
    command line: not set | nosmt`."""
    return "; ".join(
        f"{d.what}: {d.baseline} | {d.candidate}" if d.baseline or d.candidate else d.what
        for d in differs
    )  # fmt: skip


def _sentences(variable: Variable, *, counted: bool) -> Iterator[str]:
    same = ", ".join(variable.same)
    if not variable.differs:
        yield f"Arms do not differ (A/A): {same}."
    else:
        is_all = variable.checked is not None and not (variable.unplanned or variable.allowed)
        yield (
            f"Arms differ in: {describe_differing(variable.differs)}"
            + "; nothing else" * is_all
            + (f" ({same})." if same else ".")
        )
    if variable.unplanned:
        yield f"NOT all that differs: {', '.join(variable.unplanned)}."
    if variable.allowed:
        yield f"Also different, which is allowed: {', '.join(variable.allowed)}."
    if variable.checked is None:
        yield "Whether that is all is not known: not every arm recorded its conditions."
    elif counted:
        yield f"Checked: {plural(variable.checked, 'condition')} the same."
