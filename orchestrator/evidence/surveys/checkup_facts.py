"""What a machine reports about itself for `barometer doctor` and before a run.

guests/agents/checkup.py prints `CheckupAnswer`. orchestrator.machine.checkup.checkup adds what it
learns by other means and returns `CheckupFacts`. A fact that nobody looked for is NOT_EXAMINED,
which is neither good nor bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, Literal

from pydantic import Field

from orchestrator.evidence.model import Count, Evidence, parse_evidence
from orchestrator.scenario.vocabulary import BOOT_WAYS, BootWay


class NotExamined(Enum):
    """Type of NOT_EXAMINED."""

    NOT_EXAMINED = "not examined"


NOT_EXAMINED: Final = NotExamined.NOT_EXAMINED


class Program(Evidence):
    path: str
    version: str
    """First line that it prints for --version; empty if it was not run or printed nothing."""


class Folder(Evidence):
    """Space of a file system (statvfs(3)), in bytes."""

    at: str
    """The folder, or the nearest one above it that exists."""
    free: Count
    total: Count


class KernelTypes(Evidence):
    """Types of the running kernel, from its BTF (Documentation/bpf/btf.rst)."""

    source: tuple[str, ...]
    """Files that the types were read from: /sys/kernel/btf/vmlinux, and that of the module."""
    members: tuple[str, ...] | None
    """Members of struct follow_pfnmap_args (include/linux/mm.h, v6.12); None: no such struct."""
    parameters: tuple[tuple[str, str], ...] | None
    """Name and type of each parameter of vaddr_get_pfns() (drivers/vfio/vfio_iommu_type1.c); None:
    the function's types could not be read."""


class CheckupAnswer(Evidence):
    """The answer of guests/agents/checkup.py. Paths are the machine's."""

    schema_version: Literal[1] = Field(alias="schema")
    release: str
    """uname -r"""
    architecture: str
    """uname -m"""
    python: str
    """Version of python3: 3.11.7."""
    uid: Count
    """Effective user id of the login; 0 is root."""
    user: str
    """Name of that user, or its number."""
    files: Mapping[str, str]
    """Text of each file that exists and may be read. /proc/cpuinfo: the first processor's part."""
    unreadable: Mapping[str, str]
    """Why a file that exists could not be read (strerror(3))."""
    present: Mapping[str, bool]
    """Whether a path exists."""
    access: Mapping[str, bool]
    """Whether this user may read and write a path (access(2))."""
    iommus: tuple[str, ...]
    """Names in /sys/class/iommu: the IOMMUs that are on."""
    groups: Mapping[str, tuple[str, ...]]
    """PCI addresses of each group in /sys/kernel/iommu_groups."""
    interrupts: tuple[str, ...]
    """Interrupt chips in /proc/interrupts. Those of a remapping unit begin with IR-."""
    programs: Mapping[str, Program | None]
    """None: the program was not found."""
    symbols: Mapping[str, str | None]
    """File in which each traced function was found (/proc/kallsyms, a module's file); None: in
    none. Empty if no functions were requested."""
    unread: Mapping[str, str]
    """Why a file could not be searched for functions."""
    types: KernelTypes | None
    """None: the kernel has no BTF, or no functions were requested."""
    memlock: int = Field(ge=-1, lt=1 << 64)
    """RLIMIT_MEMLOCK (getrlimit(2)) in bytes; -1: no limit."""
    folders: Mapping[str, Folder | None]
    """Space at each requested folder; None: the file system did not tell."""
    sockets: Mapping[str, bool]
    """Whether somebody listens at a socket of libvirt's."""


class BarFacts(Evidence):
    """A memory BAR of a PCI function."""

    address: str
    """Address of the function: 0000:3b:00.0."""
    index: int = Field(ge=0, le=5)
    size: Count
    placed: bool
    """Whether the kernel gave it a place in the address space."""
    driver: str
    """Driver of the function; empty without one."""
    growable: Count | None
    """Largest size that it can be given (Resizable BAR); 0: its size is fixed; None: not known,
    because the function sleeps and its registers were not read."""
    refused: tuple[str, ...]
    """Why the machine cannot spare the function; empty if nothing is known to be in the way."""


class BootMethod(Evidence):
    usable: bool
    why: str
    """What is in the way; empty if it is usable."""


class Watchdog(Evidence):
    """A device in /sys/class/watchdog (Documentation/ABI/testing/sysfs-class-watchdog). None: it
    has no such file."""

    device: str
    """watchdog0"""
    driver: str | None
    """Name of its module; None: not known."""
    identity: str | None
    state: str | None
    """active or inactive."""
    nowayout: str | None
    """1: nothing can stop it once it is armed."""
    why: str
    """Why it cannot watch over a boot; empty if it can."""


class BootMeans(Evidence):
    """How a kernel can be booted once, as the machine's keeper detects it (guests/agents/keeper/
    means.py)."""

    kexec: BootMethod
    grub: BootMethod
    systemd_boot: BootMethod = Field(alias="systemd-boot")
    watchdogs: tuple[Watchdog, ...]
    watchdog_stop_on_reboot: str | None = None
    """/sys/module/watchdog/parameters/stop_on_reboot; None: there is no such file, or a keeper of
    before 0.1.0 did not report it."""
    secure_boot: bool | None
    """EFI variable SecureBoot; None: the machine has no such variable."""

    @property
    def methods(self) -> dict[BootWay, BootMethod]:
        methods = (self.kexec, self.grub, self.systemd_boot)
        return dict(zip(BOOT_WAYS, methods, strict=True))


class NoMeans(Evidence):
    why: str
    """The keeper's own words on why it could not detect the means."""


class LeaseOwner(Evidence):
    """What a runner wrote about itself into its lease. Each value is None if it wrote none."""

    user: str | None = None
    runner: str | None = None
    """Name of the runner."""
    what: str | None = None
    """What it does: `barometer run PATH`."""


class HeldLease(Evidence):
    """A lease on the machine or on devices (guests/agents/keeper/leases.py)."""

    token: Count
    resources: tuple[str, ...]
    """`machine`, or addresses of devices."""
    owner: LeaseOwner
    left: float
    """Seconds to its expiry; less than 0 after it."""
    expired: bool


class ChosenDevice(Evidence):
    chosen: str
    """Address of the function that the scenario selects, and that the machine can spare."""


class RefusedDevice(Evidence):
    why: str
    """Why no function can be given to a guest as the scenario wants it."""
    evidence: tuple[str, ...]
    hint: str
    """Remedy; may be empty."""


class CountedMap(Evidence):
    """One DMA map whose lookups the kernel counted (orchestrator.machine.checkup.probe)."""

    address: str
    """Address of the function whose BAR was mapped."""
    bytes: Count
    lookups: str
    """Histogram of the page lookups, in the kernel's words."""
    faults: str
    """Histogram of the page faults; empty if the kernel has no fault handler for huge pages."""


class NoCountedMap(Evidence):
    why: str
    """Why no map was counted."""


class CheckupFacts(CheckupAnswer):
    """All that is known of a machine. The fields say when a fact was examined."""

    kvm: str | NotExamined | None = NOT_EXAMINED
    """Why KVM runs no guest; None: a guest ran. Not examined before a run, and if `kvm_silent`."""
    kvm_silent: float | None = None
    """Seconds for which the guest that tries KVM was silent; None: it was not."""
    libvirt: str | NotExamined = NOT_EXAMINED
    """Version of libvirt's library in this process: 11.3.0. Examined on this machine only."""
    bars: tuple[BarFacts, ...] | NotExamined = NOT_EXAMINED
    """Memory BARs. Examined, like means and leases, for a metal host only."""
    means: BootMeans | NoMeans | NotExamined = NOT_EXAMINED
    leases: tuple[HeldLease, ...] | NotExamined = NOT_EXAMINED
    """NOT_EXAMINED also if the keeper did not answer."""
    device: ChosenDevice | RefusedDevice | None = None
    """None: the scenario names no device."""
    probe: CountedMap | NoCountedMap | None = None
    """None: no map was requested."""
    folder_uses: Mapping[Literal["nested", "metal"], tuple[str, ...]]
    """Folders in which each use needs space; keys of `folders`."""


def parse_checkup(text: str, source: str) -> CheckupFacts:
    """Parse the evidence of a machine. Raises EvidenceError with `source` and the key."""
    return parse_evidence(CheckupFacts, text, source)
