"""The differences between the arms of a comparison, in a sentence or two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.report.words.quantities import plural


def describe_variable(found: Variable | None, *, counted: bool = True) -> str:
    """Return one paragraph; empty for a comparison without a variable. `counted`: add the number
    of conditions that were checked."""
    return " ".join(_sentences(found, counted=counted)) if found is not None else ""


def describe_differing(differs: Iterable[Differing]) -> str:
    """Name what differs, with both arms' values: `vfio_iommu_type1.disable_hugepages: N | Y;
    command line: not set | nosmt`."""
    return "; ".join(
        f"{one.what}: {one.baseline} | {one.candidate}" if one.baseline or one.candidate
        else one.what
        for one in differs
    )  # fmt: skip


def _sentences(found: Variable, *, counted: bool) -> Iterator[str]:
    same = ", ".join(found.same)
    if not found.differs:
        yield f"Arms do not differ (A/A): {same}."
    else:
        is_all = found.checked is not None and not (found.unplanned or found.allowed)
        yield (
            f"Arms differ in: {describe_differing(found.differs)}"
            + "; nothing else" * is_all
            + (f" ({same})." if same else ".")
        )
    if found.unplanned:
        yield f"NOT all that differs: {', '.join(found.unplanned)}."
    if found.allowed:
        yield f"Also different, which is allowed: {', '.join(found.allowed)}."
    if found.checked is None:
        yield "Whether that is all is not known: not every arm recorded its conditions."
    elif counted:
        yield f"Checked: {plural(found.checked, 'condition')} the same."
