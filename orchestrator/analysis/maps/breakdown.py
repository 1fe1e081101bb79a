"""Instructions of a map and of an unmap, by kernel function (the `profile` pass)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from orchestrator.analysis.maps.maps import MapPass
from orchestrator.analysis.maps.theory import count_pages
from orchestrator.analysis.tracefs.completeness import read_needed
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialDir
from orchestrator.evidence.maps import LogRecord

_COUNT = re.compile(r"\d{1,18}", re.ASCII)

Stacks = dict[tuple[str, ...], float]
WALK = "iommu_iova_to_phys"
"""The function of an unmap whose cost depends on the size of the IOMMU's leaves."""


@dataclass(frozen=True)
class Breakdown:
    operation: str
    """map or unmap, of the whole BAR."""
    state: str
    stacks: Stacks
    """Call stack -> instructions in its innermost function, which is the last of the tuple. The
    first is the ioctl's function."""
    logged: bool
    """True if every instruction was logged. Otherwise the stacks are extrapolated from logs of
    smaller maps: the cost of a page times the pages, plus the cost of a map of no page."""

    @property
    def total(self) -> float:
        """Instructions of the ioctl's function, entry to return."""
        return sum(self.stacks.values())

    def by_function(self) -> list[tuple[str, float]]:
        """Instructions of each function itself, most first. They add up to the total."""
        own: Counter[str] = Counter()
        for stack, count in self.stacks.items():
            own[stack[-1]] += count  # type: ignore[assignment]  # a Counter of floats adds as well
        return sorted(own.items(), key=lambda item: (-item[1], item[0]))

    def within(self, function: str) -> float:
        """Instructions of a function with everything that it calls."""
        return sum(count for stack, count in self.stacks.items() if function in stack)


def read_breakdowns(trial: TrialDir) -> list[Breakdown]:
    """Return the breakdowns from the trial's instruction logs; none without a `profile` pass.

    Raises EvidenceError if a log is missing, or does not have as many instructions as profile.json
    says.
    """
    profile = trial.instruction_logs()
    if profile is None:
        return []
    breakdowns = []
    for operation in ("map", "unmap"):
        logs = [entry for entry in profile.logged if entry.operation == operation]
        whole = [entry for entry in logs if entry.size == profile.bar]
        if whole and not whole[0].window:
            breakdowns += [
                Breakdown(operation, log.state, _stacks(trial, log), logged=True) for log in whole
            ]
        elif logs:
            stacks = _extrapolated(trial, logs, profile.bar)
            breakdowns.append(Breakdown(operation, logs[0].state, stacks, logged=False))
    return breakdowns


def _interrupted(stack: tuple[str, ...]) -> bool:
    """True if the stack has an interrupt entry of arch/x86/entry, such as
    asm_sysvec_apic_timer_interrupt or asm_common_interrupt."""
    return any(name.startswith(("asm_sysvec_", "asm_common_interrupt")) for name in stack)


def _stacks(trial: TrialDir, log: LogRecord) -> Stacks:
    stacks: Stacks = {}
    for number, line in enumerate(read_needed(trial, f"host/{log.file}").splitlines(), 1):
        names, _, count = line.rpartition(" ")
        if not _COUNT.fullmatch(count):
            raise EvidenceError(
                f"host/{log.file}, line {number}, is no stack with its count: {line[:120]!r}",
                reason=Reason.BAD_EVIDENCE,
            )
        stacks[tuple(names.split(";"))] = int(count)
    if sum(stacks.values()) != log.instructions:
        raise EvidenceError(
            f"host/{log.file} has {sum(stacks.values())} instructions,"
            f" profile.json says {log.instructions}",
            reason=Reason.BAD_EVIDENCE,
        )
    return stacks


def measured_whole(breakdown: Breakdown, plain: MapPass) -> float | None:
    """Return the instructions of the same operation in the plain pass, where nothing is logged,
    minus those of an empty ioctl."""
    samples = plain.whole.of_state(breakdown.state) if plain.whole else []
    if not samples:
        return None
    unmap = breakdown.operation == "unmap"
    values = [s.unmap_seconds if unmap else s.map_seconds for s in samples]
    return (median_low(values) - median_low(plain.empty_seconds)) * 1e9


def check_sums(breakdowns: Iterable[Breakdown], plain: MapPass) -> None:
    """Raise EvidenceError if the instructions of the functions do not add up to the whole that was
    measured without a log. A difference of up to 1 % or 500 instructions is allowed, because of
    interrupts."""
    for breakdown in breakdowns:
        whole = measured_whole(breakdown, plain)
        if whole is not None and abs(breakdown.total - whole) > max(whole / 100, 500):
            raise EvidenceError(
                f"the functions of the {breakdown.operation} ({breakdown.state}) add up to"
                f" {breakdown.total:.0f} instructions, {whole:.0f} were measured",
                reason=Reason.SUMS_DISAGREE,
            )


def _extrapolated(trial: TrialDir, logs: Sequence[LogRecord], bar: int) -> Stacks:
    """Extrapolate each stack to the whole BAR from the logs of a small and a large map, linearly
    in pages: small + (pages of the BAR - pages of small) * (large - small) / pages between them.

    Interrupts that fell into a log are no cost of a page and are left out. A small map has smaller
    leaves in the IOMMU's tables than the whole BAR. So the cost of iommu_iova_to_phys is taken
    from the window, the logged beginning of the unmap of a large map: the cost of one call there,
    times the pages of the BAR. Raises EvidenceError if one of these logs is missing.
    """
    of_whole_ioctls = [log for log in logs if not log.window]
    if len(of_whole_ioctls) != 2 or of_whole_ioctls[0].size >= of_whole_ioctls[1].size:
        raise EvidenceError(
            f"host/profile.json needs two logs of the {logs[0].operation}, first a small one and"
            f" then a larger one; it has logs of {[log.size for log in of_whole_ioctls]} bytes",
            reason=Reason.BAD_EVIDENCE,
        )
    small, large = of_whole_ioctls
    window = next((log for log in logs if log.window), None)
    if small.calls.get(WALK) != count_pages(small.size):
        window = None  # this IOMMU is not walked for each page
    first, second = _stacks(trial, small), _stacks(trial, large)
    between = count_pages(large.size) - count_pages(small.size)
    more = count_pages(bar) - count_pages(small.size)
    result: Stacks = {}
    for stack in {*first, *second}:
        if (window is not None and WALK in stack) or _interrupted(stack):
            continue
        each = (second.get(stack, 0) - first.get(stack, 0)) / between
        # A stack that only the small log has by chance would get a negative cost for each page.
        result[stack] = first.get(stack, 0) + more * max(each, 0.0)
    if window is not None:
        calls = window.calls.get(WALK, 0)
        if not calls:
            raise EvidenceError(
                f"host/{window.file} has no call of {WALK}", reason=Reason.MISSING_EVIDENCE
            )
        for stack, count in _stacks(trial, window).items():
            if WALK in stack and not _interrupted(stack):
                result[stack] = count / calls * count_pages(bar)
    return {stack: count for stack, count in result.items() if count}
