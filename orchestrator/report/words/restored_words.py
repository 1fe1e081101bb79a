"""What a report says about hosts that were restored instead of booted."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.analysis.trial import TrialResult


def describe_restored(results: Iterable[TrialResult]) -> list[str]:
    """Return a sentence for each saved host that trials' hosts were restored from."""
    trials: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if (restored := result.restored) is not None:
            trials.setdefault((restored.digest, restored.booted), []).append(result.name)
    return [
        f"The host of {' and '.join(names)} was restored from {digest}, booted {booted}."
        for (digest, booted), names in trials.items()
    ]
