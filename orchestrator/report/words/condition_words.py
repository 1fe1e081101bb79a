"""The order in which conditions are told: what could matter first, digests last."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.analysis.conditions.conditions import Difference

_DIGESTS = ("digest", "sha256", "srcversion", "host.kernel.vfio")
"""Parts of the names of conditions whose values say only that something differs."""


def split_digests(
    differences: Iterable[Difference],
) -> tuple[list[Difference], list[Difference]]:
    """Return the differences that tell something, and those that are of digests. A difference that
    must not be is never one of the latter."""
    telling: list[Difference] = []
    digests: list[Difference] = []
    for difference in differences:
        is_digest = any(part in difference.name for part in _DIGESTS)
        is_expected = difference.planned or difference.allowed
        (digests if is_digest and is_expected else telling).append(difference)
    return telling, digests
