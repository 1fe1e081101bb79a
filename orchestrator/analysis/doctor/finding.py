"""A finding of the doctor, and the needs that a machine is checked against. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.formats.units import GIB
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.kernel_forms import DebKernel, DirKernel
from orchestrator.scenario.machines import NestedHost
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import Backing

Status = Literal["ok", "note", "warning", "problem"]
STATUSES: tuple[Status, ...] = ("problem", "warning", "note", "ok")
"""The worst first. problem: something is in the way. warning: the machine can be used, but
something costs or distorts the numbers. note: for information."""
Use = Literal["nested", "metal"]
USES: tuple[Use, ...] = ("nested", "metal")
"""nested: the machine runs hosts under test as its VMs. metal: it is the host under test."""
BOTH = USES
METAL: tuple[Use, ...] = ("metal",)
NESTED: tuple[Use, ...] = ("nested",)


FINDINGS = (
    "1gib-pages", "address-bits", "boot", "checkup", "clocksource", "device", "disk",
    "dma-entries", "experiment", "firmware", "governor", "hugepages", "interrupt-remapping",
    "iommu", "iommu-groups", "iommu-superpages", "kvm", "kvm-unanswered", "large-bar", "libvirt",
    "libvirt-library", "lockdown", "memlock", "memory", "nested-virtualisation", "profiling",
    "programs", "python", "qemu", "qemu-alignment", "resizable-bar", "restore", "root", "series",
    "shm", "ssh", "subuid", "symbols", "thp", "tracing", "turbo", "vfio", "watchdog",
)  # fmt: skip
"""Names of all findings. One that is not made has nothing to tell: its check found nothing."""


@dataclass(frozen=True)
class Finding:
    name: str
    """Short and stable, for programs."""
    status: Status
    what: str
    """One line."""
    evidence: tuple[str, ...] = ()
    """Each is `file: content`, or a command and its output."""
    fix: str = ""
    """Remedy, one line; empty for ok."""
    uses: tuple[Use, ...] = METAL
    """Uses that the finding is about; a problem is in their way."""


@dataclass(frozen=True)
class Needs:
    """Requirements on a machine. Sizes are bytes."""

    uses: tuple[Use, ...]
    accel: Literal["auto", "kvm", "tcg", "exact"] = "auto"
    bar: int | None = None
    """Least size of the BAR; None: any large BAR."""
    host_memory: int = 4 * GIB
    guest_memory: int = GIB // 2
    backing: Backing = "anonymous"
    firmware: Literal["seabios", "ovmf"] = "seabios"
    """Firmware of the guest."""
    guest_bits: int | None = None
    """Physical address bits of the guest's CPU; None: the machine's own."""
    boots_guest: bool = True
    traced: bool = True
    """True if a pass needs the tracer."""
    builds: bool = False
    """True if a kernel is built."""
    boot: Literal["auto", "kexec", "grub", "systemd-boot"] = "auto"
    boots_because: str = ""
    """Why the scenario's nested hosts are never restored; empty if they may be."""


def derive_needs(scenario: Scenario) -> Needs:
    host = scenario.host
    kernels = [arm.kernel for arm in (scenario.arms.baseline, scenario.arms.candidate)]
    needs = Needs(
        METAL,
        bar=scenario.device.bar,
        guest_memory=0,
        boots_guest=False,
        traced={*scenario.trace.passes} != {"plain"},
        builds=not all(type(kernel) in (DebKernel, DirKernel) for kernel in kernels),
    )
    if scenario.workload == "guest-boot" and (guest := scenario.guest) is not None:
        needs = replace(
            needs, boots_guest=True, guest_memory=guest.memory, backing=guest.backing,
            guest_bits=guest.phys_bits, firmware=guest.firmware,
        )  # fmt: skip
    if host.kind == "metal":
        return replace(needs, boot=host.boot)
    return replace(
        needs, uses=NESTED, accel=host.accel, host_memory=host.memory,
        boots_because=_why_hosts_boot(scenario.workload, host),
    )  # fmt: skip


def _why_hosts_boot(workload: Workload, host: NestedHost) -> str:
    if workload != "map":
        return f'workload = "{workload}"'
    if not host.exact:
        return f'host.accel = "{host.accel}"'
    return 'host.restore = "never"' if host.restore == "never" else ""
