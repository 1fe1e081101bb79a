"""Hosts that were restored from one boot are copies of it. They share all that differs from boot
to boot, so they are one sample, however many trials they carried. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.analysis.trial import TrialResult
from orchestrator.base.reasons import Reason


def count_copies_once(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Return the results, of which only the first of each kernel's trials in a boot is measured,
    if one of its hosts was restored. The others are invalid. Both arms may have the same boot:
    they are a pair in it."""
    judged: list[TrialResult] = []
    first: dict[tuple[bool, str], TrialResult] = {}
    for result in results:
        if result.kind != "measured" or not result.boot_id:
            judged.append(result)
            continue
        # control and warm-up are of the baseline's kernel
        before = first.setdefault((result.arm == "candidate", result.boot_id), result)
        is_copy = before is not result and (before.restored or result.restored)
        judged.append(_copied(result, before) if is_copy else result)
    return judged


def _copied(result: TrialResult, first: TrialResult) -> TrialResult:
    return replace(
        result, kind="invalid", reason=Reason.SAME_BOOT, samples={},
        message=f"its host is a copy of that of {first.name}, and no second sample",
    )  # fmt: skip
