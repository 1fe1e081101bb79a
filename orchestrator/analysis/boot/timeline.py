"""A guest boot as one timeline on the host's trace clock: phases, maps and unmaps, causes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

RAM, IOVA = "RAM", "guest IOVA"
"""Values of `Step.bar` that name no BAR: the guest's memory, and ranges that QEMU maps or unmaps
on behalf of the guest's own IOMMU."""


@dataclass(frozen=True)
class Phase:
    """A span of the boot. Phases follow one another and do not overlap."""

    name: str
    """`firmware: PCI enumeration`, `kernel: BAR sizing, 01:00.0`: what runs, then what it does."""
    start: float
    """Seconds since QEMU's exec."""
    seconds: float

    @property
    def end(self) -> float:
        return self.start + self.seconds


@dataclass(frozen=True)
class DmaStep:
    """One DMA map or unmap, placed and explained. Seconds of the trace clock."""

    kind: Literal["map", "unmap"]
    bar: str
    """`01:00.0 BAR 2`, with the guest's address of the device; RAM; or guest IOVA."""
    size: int
    """Bytes."""
    phase: str
    """The name of the phase in which it began."""
    cause: str
    """Why QEMU mapped or unmapped: `sizing BAR 2`, `exit`."""
    start: float
    """Seconds since QEMU's exec."""
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    """Name of a part -> its seconds. The parts do not overlap."""
    result: int = 0
    """Result of the ioctl: 0, or a negative errno."""
    cpu: int = 0
    """CPU of the host on which it began."""
    faults: int | None = None
    """Page faults within it, if they were probed (maps that the firmware causes)."""
    iova: int | None = None
    """Guest's address of the range, where it was recorded."""

    @property
    def attributed_share(self) -> float:
        """Share of its time that is in a part: 1 for all."""
        return min(1.0, sum(self.parts.values()) / self.seconds) if self.seconds else 1.0

    @property
    def other(self) -> float:
        """Seconds that are in no part."""
        return max(0.0, round(self.seconds - sum(self.parts.values()), 9))


@dataclass(frozen=True)
class Zap:
    """Teardown of the page tables of a device's BARs, because its memory decoding was switched off
    (vfio_pci_zap_and_down_write_memory_lock)."""

    start: float
    seconds: float
    phase: str
    cause: str


@dataclass(frozen=True)
class Note:
    """Something that the reader of a boot must know. The short name is stable, for programs."""

    name: str
    text: str


@dataclass(frozen=True)
class Timeline:
    """Times in seconds since QEMU's exec, on the host's trace clock; on an exact host instructions
    / 10^9."""

    trial: str
    """0001-baseline"""
    guest: str
    """guest-1"""
    release: str
    """Release of the host's kernel."""
    unit: Literal["s", "emulated s", "Ginsn"]
    boot_seconds: float
    """Time to the boot mark."""
    ssh_seconds: float | None
    end_seconds: float
    """Time to the end of QEMU."""
    phases: tuple[Phase, ...]
    steps: tuple[DmaStep, ...]
    zaps: tuple[Zap, ...]
    console: tuple[tuple[float, str], ...]
    cpu_use: tuple[tuple[float, float], ...] = ()
    """(when, seconds of CPU that QEMU had used by then)."""
    mark_bound: float | None = None
    """Longest time by which a console line's time may be late, apart from the time of reading the
    trace clock. None if it is not known."""
    mark_source: str = ""
    """Source of the console lines' times."""
    systemd: dict[str, float] = field(default_factory=dict)
    """Figures of the guest's own systemd-analyze, in seconds of the guest's clock."""
    notes: tuple[Note, ...] = ()
    invalid: str = ""
    """`reason: message` if its trial does not count, else empty."""

    @property
    def attributed_share(self) -> float:
        """Share of the time from QEMU's exec to the boot mark that is in a phase."""
        covered = sum(map(self.before_mark, self.phases))
        return min(1.0, covered / self.boot_seconds) if self.boot_seconds else 0.0

    def before_mark(self, phase: Phase) -> float:
        """Return the seconds of a phase that are part of the boot."""
        return max(0.0, min(phase.end, self.boot_seconds) - max(phase.start, 0.0))

    def steps_before_mark(self) -> Sequence[DmaStep]:
        return [step for step in self.steps if step.start < self.boot_seconds]


def timeline_json(timeline: Timeline) -> dict[str, object]:
    """Return one of the boots that `barometer timeline --json` prints."""
    return {
        "trial": timeline.trial, "guest": timeline.guest,
        "release": timeline.release, "unit": timeline.unit, "invalid": timeline.invalid or None,
        "boot_seconds": timeline.boot_seconds, "ssh_seconds": timeline.ssh_seconds,
        "end_seconds": timeline.end_seconds,
        "attributed_share": timeline.attributed_share,
        "phases": [
            {"name": p.name, "start": p.start, "seconds": p.seconds} for p in timeline.phases
        ],
        "operations": [
            {"kind": s.kind, "bar": s.bar, "bytes": s.size, "phase": s.phase, "cause": s.cause,
             "start": s.start, "seconds": s.seconds, "parts": {**s.parts, "other": s.other},
             "result": s.result, "cpu": s.cpu, "faults": s.faults,
             "attributed_share": s.attributed_share}
            for s in timeline.steps
        ],
        "zaps": [
            {"start": z.start, "seconds": z.seconds, "phase": z.phase, "cause": z.cause}
            for z in timeline.zaps
        ],
        "marks": {"bound_seconds": timeline.mark_bound, "source": timeline.mark_source},
        "systemd": timeline.systemd,
        "notes": [{"name": n.name, "text": n.text} for n in timeline.notes],
    }  # fmt: skip
