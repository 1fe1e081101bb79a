"""The folder that `barometer profile --save` writes: the evidence of one boot of a domain.

facts.json      what the host, QEMU and the domain are; QEMU's mappings at the end
trace.txt.gz    the trace, with clock.txt, stats.txt and profile.txt (the tracer's own account)
domain.xml      the definition
host.txt        what the host says before the boot
after.txt       and after it
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from orchestrator.base.errors import EvidenceError
from orchestrator.base.plainfile import find_below, read_plain, unpack_plain
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import write_json
from orchestrator.evidence.model import Count, Evidence, parse_evidence

ShortText = Annotated[str, Field(max_length=1000)]
ProfileEnd = Literal["quiet", "agent", "domain-ended", "limit", "start-failed"]
"""What ended a profile: a time without records in the trace, the guest agent, the end of the
domain, the longest time that a boot may take; or QEMU never ran the guest."""
TRACER_FILES = ("trace.txt", "clock.txt", "stats.txt", "profile.txt")
HOST_FILE, AFTER_FILE = "host.txt", "after.txt"
"""What the host says before and after the boot (host_report.py). Older profiles lack them."""
_STORED = {"trace.txt": "trace.txt.gz"}
"""Names of the tracer's files in the folder, where they differ."""
_FACTS, _DEFINITION = "facts.json", "domain.xml"


class ProfileBar(Evidence):
    """A memory BAR of a device of the domain."""

    device: ShortText
    """0000:3b:00.0"""
    number: int = Field(ge=0, le=5)
    start: Count
    """Physical address (/sys/bus/pci/devices/*/resource)."""
    size: Annotated[Count, Field(gt=0)]

    @property
    def name(self) -> str:
        return f"{self.device} BAR {self.number}"


class HostSettings(Evidence):
    """Settings of the host's kernel. Empty: it has no such file. None: not recorded."""

    cmdline: str | None = None
    """/proc/cmdline"""
    transparent_hugepage: str | None = None
    """/sys/kernel/mm/transparent_hugepage/enabled: always [madvise] never."""
    clocksource: str | None = None
    """/sys/devices/system/clocksource/clocksource0/current_clocksource"""
    vfio_disable_hugepages: str | None = None
    """/sys/module/vfio_iommu_type1/parameters/disable_hugepages"""
    dma_entry_limit: str | None = None
    """/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"""


class QemuProcess(Evidence):
    """QEMU's process at the end of the boot, from /proc."""

    pid: Count
    threads: tuple[Count, ...]
    page_table_bytes: Count | None
    """VmPTE of proc_pid_status(5), in bytes."""
    maps: str
    """Lines of /proc/PID/maps about VFIO devices."""


class DomainFacts(Evidence):
    """What is known before the boot."""

    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(alias="schema")
    barometer: ShortText
    """Version of barometer."""
    domain: ShortText
    uri: str
    """URI of the host's libvirt."""
    boot: Literal["start", "reboot", "wait"]
    """Whether the domain was started, or its guest rebooted; or whether somebody else started
    QEMU."""
    until: float | Literal["agent"]
    """End of the boot. A number: it is over after this many seconds without a record in the trace.
    agent: it is over when the guest agent connects."""
    release: ShortText
    """Release of the host's kernel."""
    settings: HostSettings
    qemu: ShortText
    """Version of QEMU: 10.0.13."""
    libvirt: ShortText
    """Version of libvirt."""
    memory: Count
    """The guest's memory."""
    huge_pages: bool
    """Whether that memory comes from huge pages (<hugepages/> of the definition)."""
    kvm: bool
    """Whether the domain runs under KVM, and the trace has KVM's events."""
    parts: bool
    """Whether return probes know arguments (v6.9), so that the parts of a map were recorded."""
    huge_fault: bool
    """Whether the host's kernel has vfio_pci_mmap_huge_fault (v6.12)."""
    bars: Annotated[tuple[ProfileBar, ...], Field(min_length=1)]


class ProfileFacts(DomainFacts):
    """facts.json"""

    pid: Count
    """Process id of QEMU."""
    ended: ProfileEnd
    process: QemuProcess | None
    """None: QEMU had ended."""
    definition_changed: bool
    """Whether somebody changed the definition meanwhile."""

    @property
    def has_failed(self) -> bool:
        """True if the domain did not start."""
        return self.ended == "start-failed"

    @field_validator("ended")
    @classmethod
    def _fits_until(cls, ended: ProfileEnd, info: ValidationInfo) -> ProfileEnd:
        if ended == "quiet" and info.data.get("until") == "agent":
            raise ValueError("`until` is agent, so that quiet cannot have ended the boot")
        return ended


@dataclass(frozen=True)
class ProfileEvidence:
    """The folder's content."""

    facts: ProfileFacts
    files: Mapping[str, str]
    """Text of each of TRACER_FILES, and of HOST_FILE and AFTER_FILE if there are such."""
    xml: str
    """The domain's definition; empty for a QEMU that no libvirt started."""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _FACTS, self.facts.to_json())
        if self.xml:
            (folder / _DEFINITION).write_text(self.xml)
        for name, text in self.files.items():
            path = folder / _STORED.get(name, name)
            packed = path.suffix == ".gz"
            path.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())


def load_profile(folder: Path) -> ProfileEvidence:
    """Load a folder that `ProfileEvidence.save` wrote. Raises EvidenceError for a file that is
    missing, cannot be read or has a flaw."""
    facts = parse_evidence(ProfileFacts, _read(folder / _FACTS), str(folder / _FACTS))
    files = {name: _read(folder / _STORED.get(name, name)) for name in TRACER_FILES}
    files |= {
        name: _read(folder / name) for name in (HOST_FILE, AFTER_FILE) if (folder / name).exists()
    }
    # no libvirt knows a QEMU that somebody else started
    definition = _read(folder / _DEFINITION) if facts.boot != "wait" else ""
    return ProfileEvidence(facts, files, definition)


def _read(path: Path) -> str:
    try:
        path = find_below(path.parent, path.name)
        content = unpack_plain(path) if path.suffix == ".gz" else read_plain(path)
        return content.decode(errors="replace")
    except FileNotFoundError as exc:
        raise EvidenceError(f"{path} is missing", reason=Reason.MISSING_EVIDENCE) from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise EvidenceError(f"{path} cannot be read: {exc}", reason=Reason.BAD_EVIDENCE) from exc
