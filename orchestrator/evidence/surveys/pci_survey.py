"""The answer of guests/agents/survey.py: a machine's PCI functions, and what uses them.

Documentation/ABI/testing/sysfs-bus-pci describes the files of a function, unless another source is
named below. A value is None if its file does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

from orchestrator.evidence.model import Count, Evidence, parse_evidence

_HEX = "0x[0-9a-f]{1,16}"
HexNumber = Annotated[str, StringConstraints(pattern=f"^{_HEX}$")]
ResourceLine = Annotated[str, StringConstraints(pattern=f"^{_HEX} {_HEX} {_HEX}$")]
"""First address, last address and flags (include/linux/ioport.h) of a resource."""


_FRAMEBUFFER = re.compile(r"BOOTFB|(efi|simple|vesa)-?(fb|drm|framebuffer)", re.IGNORECASE)


class FunctionFacts(Evidence):
    """A PCI function, as its files in /sys/bus/pci/devices/ADDRESS say."""

    address: str
    """0000:3b:00.0"""
    vendor: HexNumber | None
    device: HexNumber | None
    subsystem_vendor: HexNumber | None
    subsystem_device: HexNumber | None
    class_code: HexNumber | None = Field(alias="class")
    """Base class, subclass and programming interface: 0x030000."""
    revision: HexNumber | None
    reset_method: str | None
    """Methods in their order; a kernel before v5.15 has no such file."""
    power_state: str | None
    numa_node: int | None
    """-1: none."""
    enable: int | None
    """How often it was enabled."""
    boot_vga: int | None
    """1: the machine's console is on it."""
    d3cold_allowed: int | None
    sriov_numvfs: int | None
    sriov_totalvfs: int | None
    resource: tuple[ResourceLine, ...]
    """The first six are the BARs."""
    reset: bool
    """Whether the file `reset` exists."""
    resizable: Mapping[int, tuple[Count, ...]] | None
    """BAR -> sizes that it can have (resourceN_resize); None: not looked at, because the function
    sleeps and would be woken."""
    command: Annotated[int, Field(ge=0, lt=1 << 16)] | None
    """Command word of its configuration space (PCI Local Bus Specification, 6.2.2); None: not
    looked at, or not readable."""
    answers: bool | None = None
    """False: its configuration space reads all ones; None: not looked at, or not readable. Older
    recordings lack it, as they lack reserved_regions, claims and module_holders."""
    iommu_group: str | None
    group_devices: tuple[str, ...]
    """Addresses in /sys/kernel/iommu_groups/GROUP/devices."""
    group_type: str | None
    """Type of the group's default domain (sysfs-kernel-iommu_groups)."""
    reserved_regions: tuple[str, ...] = ()
    """Lines `0xSTART 0xEND KIND` of the group's file of that name."""
    claims: tuple[str, ...] = ()
    """Names of what else holds memory inside its BARs (/proc/iomem): BOOTFB."""
    driver: str | None
    """None: no driver is bound."""
    driver_override: str | None
    module: str | None
    """Module of the driver."""
    module_use: int | None
    """Number of users of that module (refcnt)."""
    module_holders: tuple[str, ...] = ()
    """Modules that use that module; each is one of its users."""
    physfn: str | None
    """Physical function of this virtual function."""
    virtual_functions: tuple[str, ...]
    parents: tuple[str, ...]
    """Addresses of the bridges above it, from the root down."""
    power_control: str | None
    """auto or on (sysfs-devices-power)."""
    runtime_status: str | None
    """suspended: the function sleeps (sysfs-devices-power)."""


class User(Evidence):
    """Something on the machine that uses a function."""

    function: str
    """Address."""
    kind: str
    """network, disk, display, console, input, open."""
    name: str
    path: str
    up: bool
    """Whether the interface is up; false for all other kinds."""
    above: tuple[str, ...]
    """Interfaces or block devices that are built on this one, directly or through others."""
    serves: tuple[str, ...]
    """What the machine needs it for, or the processes that have it open."""


class SurveyFacts(Evidence):
    iommus: tuple[str, ...]
    """Names in /sys/class/iommu."""
    functions: tuple[FunctionFacts, ...]
    users: tuple[User, ...]
    unread: Count
    """Number of processes whose open files could not be read. They may use a function."""


def is_lasting_claim(name: str, driver: str | None) -> bool:
    """True if a range of /proc/iomem inside a BAR would stay when the function's driver lets go of
    it: the firmware's framebuffer (BOOTFB: drivers/firmware/sysfb_simplefb.c), or any range while
    no driver of the function's own is bound."""
    return _FRAMEBUFFER.search(name) is not None or driver in (None, "vfio-pci", "pci-stub")


def parse_survey_facts(text: str) -> SurveyFacts:
    """Parse the answer. Raises EvidenceError with its first flaw."""
    return parse_evidence(SurveyFacts, text, "the survey of the machine's PCI devices")
