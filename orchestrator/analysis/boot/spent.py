"""Where the whole of a boot went: every second belongs to a map, an unmap, a zap, or to who ran
meanwhile. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Phase, Timeline

IOMMU_MAP = "IOMMU map"
"""Part of a map that the IOMMU's page tables take (orchestrator.analysis.boot.boot.parts_of)."""
UNEXPLAINED = "not explained"
_CLOCK_STEP = 1e-9
"""Seconds of a step of the trace's clock. Less than that is rounding of the sums."""


@dataclass(frozen=True)
class Spent:
    """Seconds of a boot. Those of `steps`, `zaps`, `own` and `unexplained` add up to the boot:
    what two threads do at a time counts once, for who began first."""

    steps: tuple[tuple[DmaStep, float], ...]
    """Each map or unmap before the mark, with its seconds that no other has."""
    zaps: float
    own: dict[str, float] = field(default_factory=dict)
    """Phase -> its seconds without maps, unmaps and zaps."""
    unexplained: float = 0.0
    """Seconds in no phase, without maps, unmaps and zaps."""

    @property
    def named(self) -> float:
        """Seconds that have a name."""
        return sum(seconds for _, seconds in self.steps) + self.zaps + sum(self.own.values())


def split_boot(timeline: Timeline) -> Spent:
    """Return where the boot up to its mark went."""
    end = timeline.boot_seconds
    items: list[tuple[float, float, DmaStep | None]] = [
        (step.start, step.start + step.seconds, step) for step in timeline.steps_before_mark()
    ]
    items += [(zap.start, zap.start + zap.seconds, None) for zap in timeline.zaps]
    items.sort(key=lambda item: item[:2])
    steps: list[tuple[DmaStep, float]] = []
    taken: list[tuple[float, float]] = []
    zaps, cursor = 0.0, 0.0
    for start, stop, step in items:
        first, last = max(start, cursor), min(stop, end)
        seconds = max(0.0, last - first)
        if step is not None:
            steps.append((step, seconds))
        else:
            zaps += seconds
        if seconds:
            taken.append((first, last))
            cursor = last
    own, covered = _find_own(timeline, taken)
    busy = sum(last - first for first, last in taken)
    rest = end - busy - covered
    unexplained = rest if rest >= _CLOCK_STEP else 0.0
    return Spent(tuple(steps), zaps, own, unexplained)


def _find_own(
    timeline: Timeline, taken: Sequence[tuple[float, float]]
) -> tuple[dict[str, float], float]:
    """Return the seconds of each phase outside the spans `taken`, which are sorted and do not
    overlap, and the sum of them."""
    own: defaultdict[str, float] = defaultdict(float)
    starts = [first for first, _ in taken]
    for phase in timeline.phases:
        begin, end = max(0.0, phase.start), min(phase.end, timeline.boot_seconds)
        if end > begin:
            own[phase.name] += end - begin - _overlap(begin, end, taken, starts)
    return dict(own), sum(own.values())


def _overlap(
    begin: float, end: float, taken: Sequence[tuple[float, float]], starts: Sequence[float]
) -> float:
    first = max(0, bisect_right(starts, begin) - 1)
    last = bisect_right(starts, end)
    return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in taken[first:last])


def name_actor(phase: Phase | str) -> str:
    """Return who runs in a phase: QEMU, firmware, boot loader, kernel, guest, userspace."""
    name = phase if isinstance(phase, str) else phase.name
    who = name.partition(":")[0]
    return "QEMU" if who in ("QEMU start", "machine init", "QEMU waits to be started") else who


def summarize_spent(timeline: Timeline) -> dict[str, float]:
    """Return name -> seconds of each kind of cost, the largest first; what is in no phase is under
    UNEXPLAINED. They add up to the boot."""
    spent = split_boot(timeline)
    costs: defaultdict[str, float] = defaultdict(float)
    for step, seconds in spent.steps:
        whose = {RAM: "RAM", IOVA: "guest IOVA"}.get(step.bar, "BARs")
        costs[f"{step.kind}s of {whose}"] += seconds
    if spent.zaps:
        costs["zaps"] = spent.zaps
    for phase, seconds in spent.own.items():
        costs[f"{name_actor(phase)} itself"] += seconds
    costs[UNEXPLAINED] = spent.unexplained
    return dict(sorted(costs.items(), key=lambda cost: -cost[1]))
