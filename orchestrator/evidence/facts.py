"""facts.json of a host and of a guest, and `runner` of a manifest: what machines report about
themselves. On the machine, guests/agents/facts.py and survey.py collect it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from orchestrator.evidence.model import Evidence

_DECIMAL = re.compile(r"\d{1,20}", re.ASCII)


def _check_taint(settings: Mapping[str, str | None]) -> Mapping[str, str | None]:
    taint = settings.get("tainted")
    if taint is not None and not _DECIMAL.fullmatch(taint):
        raise ValueError(f"tainted: {taint[:80]!r} is no number")
    return settings


Settings = Annotated[Mapping[str, str | None], AfterValidator(_check_taint)]
"""Name of a setting -> text of its file; null if the machine has no such file. A setting that
nobody looked at is not in it. facts.py lists the names with their files."""
PciId = Annotated[str, Field(pattern=r"^0x[0-9a-f]{4}$")]


class Processor(Evidence):
    """First processor of /proc/cpuinfo."""

    vendor: str = Field(alias="vendor_id")
    model: str = Field(alias="model name")
    microcode: str
    address_sizes: str = Field(alias="address sizes")
    pdpe1gb: str
    """"True" if the processor has pages of 1 GiB."""


class MachineFacts(Evidence):
    """Facts that describe any machine."""

    cpu: Processor
    cpus: int | None
    """Number of CPUs that are online (os.cpu_count)."""
    settings: Settings
    governor: str | None = None
    """Governors of all CPUs; null if there is none. Older runs lack it: nobody looked."""
    vulnerabilities: dict[str, str | None] | None = None
    """/sys/devices/system/cpu/vulnerabilities: name -> whether and how the kernel mitigates it, in
    its own words. Older runs lack it."""

    def looked_at(self) -> dict[str, str | None]:
        """Return the settings that were looked at, and the governor if it was."""
        governor = {"governor": self.governor} if "governor" in self.model_fields_set else {}
        return {**self.settings, **governor}


class RunnerFacts(MachineFacts):
    """The machine that barometer ran on."""

    system: str
    """Kernel and C library (platform.platform)."""


class DeviceFacts(Evidence):
    """A PCI function with a large BAR, after it was bound to vfio-pci."""

    address: str
    """DOMAIN:BUS:DEVICE.FUNCTION"""
    vendor: PciId
    device: PciId
    group_type: str | None
    """/sys/kernel/iommu_groups/N/type: the kind of the group's default domain. null: no group."""
    resource: tuple[str, ...]
    """Lines of /sys/bus/pci/devices/*/resource: `0xSTART 0xEND 0xFLAGS`."""


class HostFacts(MachineFacts):
    """host/facts.json: the host under the arm's kernel, with the devices bound."""

    release: str
    """Release of the kernel that runs (uname -r)."""
    version: str
    """Its version (uname -v): number of the build, and date."""
    iommus: tuple[str, ...]
    """Names in /sys/class/iommu; empty if no IOMMU is in use."""
    device: DeviceFacts
    """First device."""
    devices: tuple[DeviceFacts, ...] = ()
    """All devices. Older runs lack it: they had one device."""
    parameters: dict[str, str | None] | None = None
    """MODULE.NAME -> value of each parameter of VFIO's modules and of IOMMU drivers; null if it
    cannot be read. Older runs lack it."""


class GuestFacts(Evidence):
    """guest-N/facts.json: the guest at its boot mark."""

    release: str
    """Release of the guest's kernel (uname -r)."""
    cmdline: str
    """/proc/cmdline of the guest."""
    uptime: str = Field(alias="uptime_at_boot_mark")
    """/proc/uptime when the boot mark was printed: seconds, to 10 ms; empty if not known."""
