"""What a host says around a profiled boot: host.txt before it, after.txt after it.

guests/agents/report.sh prints both, as sections. A section that the host lacks is missing, and
what it would have told is None: not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from orchestrator.evidence.surveys.pci_survey import is_lasting_claim

_HEAD = re.compile(r"(?m)^==== barometer (.+)$")
_REGION = re.compile(r"(?m)^0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) ([a-z-]+)$")
_IOMEM = re.compile(r"(?m)^( *)([0-9a-f]+)-([0-9a-f]+) : (.+)$")
_OWN_CLAIMS = re.compile(r"vfio|PCI Bus|PCI MMCONFIG|[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
"""Names in /proc/iomem of what may hold a BAR: the device itself, its bridges, and vfio-pci once
it is open."""
_LOCKED = re.compile(r"(?m)^Max locked memory\s+(unlimited|\d+)")
UNLIMITED = -1


@dataclass(frozen=True)
class ReservedRegion:
    """A range that the IOMMU keeps from a group (reserved_regions: sysfs-kernel-iommu_groups)."""

    start: int
    end: int
    kind: str
    """direct: the firmware needs it mapped one to one (RMRR). direct-relaxable: it needs that only
    until a driver takes the device. reserved: nothing can be mapped there. msi: interrupts."""


@dataclass(frozen=True)
class BarClaim:
    """A range inside a BAR that somebody holds (/proc/iomem)."""

    start: int
    end: int
    name: str
    """BOOTFB, simpledrm, nvidia."""


@dataclass(frozen=True)
class DeviceReport:
    """What sysfs says of one of the domain's devices."""

    address: str
    driver: str | None = None
    power_state: str | None = None
    answers: bool | None = None
    """False if its configuration space reads all ones; None if nobody read it."""
    reserved: tuple[ReservedRegion, ...] = ()
    claims: tuple[BarClaim, ...] = ()
    """Parts of its BARs that somebody holds and that its driver would not give back."""


@dataclass(frozen=True)
class HostReport:
    """The sections of both files by name. Those of after.txt begin with `after/`."""

    sections: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        return self.sections.get(name, "")

    @cached_property
    def physical_bits(self) -> int | None:
        """Physical address bits of the host's CPU (/proc/cpuinfo)."""
        match = re.search(r"(?m)^address sizes\s*: (\d{1,3}) bits physical", self.text("cpuinfo"))
        return int(match[1]) if match else None

    @cached_property
    def is_intel(self) -> bool | None:
        match = re.search(r"(?m)^vendor_id\s*: (\S+)", self.text("cpuinfo"))
        return match[1] == "GenuineIntel" if match else None

    @cached_property
    def iommu_bits(self) -> int | None:
        """Narrowest address width of the host's VT-d units: MGAW, bits 21:16 of CAP_REG (Intel
        VT-d specification, 11.4.2). None for another IOMMU, which has no such file."""
        words = re.findall(r"(?m)^(?:0x)?([0-9a-f]{1,16})$", self.text("iommu-cap"))
        return min(((int(word, 16) >> 16 & 0x3F) + 1 for word in words), default=None)

    @cached_property
    def devices(self) -> dict[str, DeviceReport]:
        names = {
            match[1] for name in self.sections if (match := re.match(r"device/([^/]+)/", name))
        }
        return {address: self._read_device(address) for address in sorted(names)}

    def _read_device(self, address: str) -> DeviceReport:
        def read(name: str) -> str | None:
            return self.text(f"device/{address}/{name}").strip() or None

        config = (read("config") or "").split()
        regions = _REGION.findall(self.text(f"device/{address}/reserved_regions"))
        return DeviceReport(
            address, read("driver"), read("power_state"),
            answers=set(config) != {"ff"} if config else None,
            reserved=tuple(
                ReservedRegion(int(start, 16), int(end, 16), kind) for start, end, kind in regions
            ),
            claims=tuple(
                claim for claim in list_bar_claims(self.text("iomem")).get(address, ())
                if is_lasting_claim(claim.name, read("driver"))
            ),
        )  # fmt: skip

    @cached_property
    def new_kernel_log(self) -> tuple[str, ...]:
        """Lines that the host's kernel printed during the boot. A line of the kernel's log begins
        with its time, so that no two are alike."""
        before = set(self.text("dmesg").splitlines())
        return tuple(line for line in self.text("after/dmesg").splitlines() if line not in before)

    @cached_property
    def memlock(self) -> int | None:
        """Bytes that QEMU may lock (RLIMIT_MEMLOCK); UNLIMITED."""
        match = _LOCKED.search(self.text("after/limits"))
        if match is None:
            return None
        return UNLIMITED if match[1] == "unlimited" else int(match[1])


def list_bar_claims(iomem: str) -> dict[str, tuple[BarClaim, ...]]:
    """Return PCI address -> ranges of /proc/iomem inside the device's BARs, without those of the
    device itself. A user without root sees zeros, and then nothing is found."""
    claims: dict[str, list[BarClaim]] = {}
    owner: tuple[int, str] | None = None
    for indent, start, end, name in _IOMEM.findall(iomem):
        if int(end, 16) <= int(start, 16):
            continue
        if owner is not None and len(indent) > owner[0]:
            if not _OWN_CLAIMS.match(name):
                claim = BarClaim(int(start, 16), int(end, 16), name.strip())
                claims.setdefault(owner[1], []).append(claim)
            continue
        is_function = re.fullmatch(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", name)
        owner = (len(indent), name) if is_function else None
    return {address: tuple(dict.fromkeys(found)) for address, found in claims.items()}


def parse_host_report(before: str, after: str = "") -> HostReport:
    """Parse both files. Text before the first section is left out: a login may have printed it."""
    return HostReport(
        {
            f"{prefix}{name.strip()}": text.strip("\n")
            for prefix, whole in (("", before), ("after/", after))
            for name, text in _split(whole)
        }
    )


def _split(text: str) -> list[tuple[str, str]]:
    parts = _HEAD.split(text)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))
