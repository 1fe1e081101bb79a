"""The order in which conditions are told."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.analysis.conditions.conditions import Difference

_DIGESTS = ("digest", "sha256", "srcversion", "host.kernel.vfio", "taint")
"""Parts of the names of conditions whose values say only that something differs. They are told
last."""


def sort_differences(differences: Iterable[Difference]) -> list[Difference]:
    """Return the differences, those last that are digests. The others keep their order."""
    return sorted(differences, key=lambda d: any(part in d.name for part in _DIGESTS))
