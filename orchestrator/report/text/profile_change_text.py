"""Two profiles of one domain side by side, as plain text and as JSON."""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.analysis.diagnosis.compare import ProfileChange
from orchestrator.report.text.profile_text import profile_sentence
from orchestrator.report.words.columns import format_table, wrap_text
from orchestrator.report.words.quantities import format_digits, format_quantity

_LEAST_SHARE = 0.001
"""Share of the longer boot. A smaller change has no line."""


def change_sentence(change: ProfileChange) -> str:
    """Return `before: 60.3 s, after: 41 s; maps of BARs 7.5 s -> 10 ms`."""
    lengths = [format_digits(p.whole_seconds) for p in (change.before, change.after)]
    costs = [
        f"{cost.subject} {format_quantity(cost.before, 's')} -> {format_quantity(cost.after, 's')}"
        for cost in sorted(change.costs, key=lambda cost: cost.is_ordinary)[:3]
        if abs(cost.saved) >= _LEAST_SHARE * _longer(change)
    ]
    return "; ".join([f"before: {lengths[0]} s, after: {lengths[1]} s", *costs])


def _longer(change: ProfileChange) -> float:
    return max(change.before.whole_seconds, change.after.whole_seconds)


def text_change(change: ProfileChange) -> str:
    rows = [
        [cost.subject, *(format_quantity(s, "s") for s in (cost.before, cost.after)),
         f"{-cost.saved:+.4g} s"]
        for cost in change.costs
        if max(cost.before, cost.after) >= _LEAST_SHARE * _longer(change)
    ]  # fmt: skip
    lines = [*wrap_text(change_sentence(change)), ""]
    lines += format_table(["", "before", "after", "change"], rows)
    if change.differing:
        lines += ["", "What else differs"]
        for name, first, second in change.differing:
            lines += wrap_text(f"{name}: {first} -> {second}", "  ", "    ")
    for name, profile in (("before", change.before), ("after", change.after)):
        lines += ["", *wrap_text(f"{name}: {profile_sentence(profile)}")]
    return "\n".join(lines) + "\n"


def json_change(change: ProfileChange) -> dict[str, object]:
    """Return the document that `barometer profile --from BEFORE --from AFTER --json` prints."""
    return {
        "schema": 1,
        "sentence": change_sentence(change),
        "before_seconds": change.before.whole_seconds,
        "after_seconds": change.after.whole_seconds,
        "costs": [asdict(cost) | {"saved": round(cost.saved, 9)} for cost in change.costs],
        "differing": [
            {"name": name, "before": first, "after": second}
            for name, first, second in change.differing
        ],
    }
