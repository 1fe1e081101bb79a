"""The recorded boot as text and parsed, and made-up boots."""

from __future__ import annotations

from functools import cache

from orchestrator.analysis.boot.boot import build_timeline
from orchestrator.analysis.boot.boottrace import BootTrace, read_boot
from orchestrator.analysis.boot.qemu import ConfigWrite, QemuEvent
from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.evidence.layout import TrialDir
from tests.unit.recorded import MEASURED, RUN, TRACE, read

RECORDED = read(RUN / "trials" / MEASURED / TRACE)
VCPU, MAIN = 311, 307
"""Threads of the recorded QEMU."""
BAR_2 = "01:00.0 BAR 2"


def recorded_boot() -> BootTrace:
    return read_boot(RECORDED)


@cache
def recorded_timeline() -> Timeline:
    return build_timeline(TrialDir.open(RUN / "trials" / MEASURED), 1, recorded_boot())


class Guest:
    """A guest that writes to PCI configuration space, one write per millisecond."""

    def __init__(self, now: float = 0.0, thread: int = VCPU) -> None:
        self.now, self.thread = now, thread
        self.writes: list[ConfigWrite] = []
        self.events: list[QemuEvent] = []

    def write(self, address: str, offset: int, value: int, device: str = "vfio-pci") -> float:
        """Write and return the time of the write."""
        self.now = round(self.now + 0.001, 6)
        self.writes.append(ConfigWrite(device, address, offset, value, self.thread, self.now))
        return self.now

    def to_bridge(self, address: str, offset: int, value: int) -> float:
        return self.write(address, offset, value, "pcie-root-port")

    def log(self, name: str, text: str = "", thread: int | None = None) -> float:
        self.now = round(self.now + 0.001, 6)
        by = self.thread if thread is None else thread
        self.events.append(QemuEvent(name, text, by, self.now, self.now))
        return self.now

    def size(self, address: str, offset: int, value: int, device: str = "vfio-pci") -> None:
        """Size a BAR: write all ones, then the former value."""
        self.write(address, offset, 0xFFFFFFFF, device)
        self.write(address, offset, value, device)
