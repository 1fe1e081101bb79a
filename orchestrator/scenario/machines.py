"""The machines of a scenario: the host under test, its device, the guest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from orchestrator.formats.units import GIB, MIB, format_size
from orchestrator.formats.windows import (
    OVMF_SHARES,
    Vendor,
    choose_placed,
    find_least_bits,
    find_window,
)
from orchestrator.scenario.fields import (
    BarSize,
    ByteSize,
    Command,
    CommandLine,
    FunctionAddress,
    KernelPath,
    ScenarioModel,
    SshAddress,
)
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.vocabulary import Backing, BootWay


class HostRules(ScenarioModel):
    """Facts and checks of every kind of host. A kind overrides what differs."""

    @property
    def exact(self) -> bool:
        """True if the host counts instructions, one per nanosecond."""
        return False

    @property
    def measures_boot(self) -> bool:
        """True if the time of the host's boot is a metric."""
        return False

    def check_device(self, device: Device, guest: Guest | None) -> None:
        """Raise ValueError if the devices' BARs have no place on the host, or none in the
        guest."""
        if guest is not None and guest.phys_bits is not None:
            _check_guest_window(device, guest, guest.phys_bits, "guest.phys_bits")

    def check_map(self, bar: int) -> None:
        """Raise ValueError if the host's IOMMU cannot address a map of the whole BAR."""

    def check_guest(self, guest: Guest) -> None:
        """Raise ValueError if the host cannot boot the guest."""

    def check_backing(self, guest: Guest) -> None:
        """Raise ValueError if the host would not find the pages of the guest's memory."""


class NestedHost(HostRules):
    """The host under test is a VM of this machine."""

    kind: Literal["nested"] = "nested"
    title: ClassVar[str] = "nested VM"
    address: ClassVar[None] = None
    ssh_config: ClassVar[None] = None
    accel: Literal["auto", "kvm", "tcg", "exact"] = "auto"
    """auto: kvm if a guest really runs under it, else tcg. tcg: emulation; its seconds are
    emulated. exact: emulation that counts instructions, one per nanosecond; the numbers are always
    the same."""
    suite: Literal["trixie", "bookworm"] = "trixie"
    """Debian release of the host's user space: bookworm's QEMU 7.2 does not align BAR mappings."""
    viommu: Literal["intel", "virtio"] = "intel"
    """IOMMU that the host sees. Only the costs of intel are comparable between kernels."""
    viommu_aw_bits: Literal[39, 48] = 48
    """Address width of the intel IOMMU. With 39 bits, a BAR that the guest places above 512 GiB is
    refused."""
    phys_bits: Annotated[int, Field(ge=36, le=52)] = 46
    """Physical address bits of the host's CPU. The BARs must fit into its window for 64-bit BARs,
    a quarter of the address space."""
    memory: Annotated[ByteSize, Field(ge=GIB)] = 4 * GIB
    cpus: Annotated[int, Field(ge=1, le=64)] = 2
    """Number of CPUs. An exact host always has 1, which is then also the default."""
    cmdline: CommandLine = ""
    """Words appended to the host's kernel command line in both arms."""
    settle: Annotated[int, Field(ge=0, le=3600)] = 300
    """Seconds of the host's own clock that an exact host idles before anything is measured, so
    that late work of its boot does not share the only CPU with the measurement. They cost almost
    no real time. Other hosts do not wait."""
    fresh_boots: bool = True
    """true: the host boots anew for each trial. false: consecutive trials of one arm share a boot,
    as on a metal host; this is faster, and such trials count as one. Guest boots with accel exact
    need true."""
    restore: Literal["auto", "never"] = "auto"
    """auto: if maps are counted on exact hosts, the host of an arm's first trial is restored from
    one that was saved when it was booted before. never: every host boots."""

    @model_validator(mode="before")
    @classmethod
    def _default_exact_to_one_cpu(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("accel") == "exact":
            return {"cpus": 1, **data}
        return data

    @model_validator(mode="after")
    def _check_cpus(self) -> NestedHost:
        if self.accel == "exact" and self.cpus != 1:
            raise ValueError(
                f'accel = "exact" counts the instructions of one CPU; cpus is {self.cpus}'
            )
        return self

    @property
    def name(self) -> str:
        return self.title

    @property
    def exact(self) -> bool:
        return self.accel == "exact"

    @property
    def measures_boot(self) -> bool:
        return self.fresh_boots and not self.exact

    def check_device(self, device: Device, guest: Guest | None) -> None:
        # firmware puts 64-bit BARs into a window that is a part of the address space
        bits, window = self.phys_bits, 2**self.phys_bits // 4
        guest_bits = guest.phys_bits if guest is not None else None
        if guest_bits is not None and guest_bits > bits:
            raise ValueError(
                f"guest.phys_bits is {guest_bits}, more than host.phys_bits, {bits}: the guest has"
                " the host's CPU"
            )
        if device.count * device.bar > window:
            raise ValueError(
                f"device.count x device.bar is {format_size(device.count * device.bar)};"
                f" host.phys_bits = {bits} leaves {format_size(window)} for BARs, a quarter of"
                " what they address: fewer or smaller devices, or more bits"
            )
        if guest is not None:
            key = "host.phys_bits" if guest_bits is None else "guest.phys_bits"
            _check_guest_window(device, guest, guest_bits or bits, key)

    def check_map(self, bar: int) -> None:
        if self.viommu_aw_bits == 39 and bar > 256 * GIB:
            raise ValueError(
                f"host.viommu_aw_bits: 39 bits have no room for a BAR of {format_size(bar)}"
            )

    def check_guest(self, guest: Guest) -> None:
        if guest.memory > self.memory - GIB:
            raise ValueError(
                f"guest.memory is {format_size(guest.memory)}; it must be at least 1GiB less than"
                f" host.memory ({format_size(self.memory)})"
            )

    def check_backing(self, guest: Guest) -> None:
        if guest.backing == "hugetlb-1GiB" and self.memory < guest.memory + 2 * GIB:
            raise ValueError(
                f"host.memory is {format_size(self.memory)}; guest.backing ="
                f' "{guest.backing}" needs 2GiB more than guest.memory'
                f" ({format_size(guest.memory)}), or the host finds no pages of that size"
            )


class MetalHost(HostRules):
    """The host under test is an existing machine, reached over SSH as root or with sudo. A run
    leaves it as it was, and on the kernel that it ran before."""

    kind: Literal["metal"]
    title: ClassVar[str] = "real machine"
    viommu: ClassVar[None] = None
    cpus: ClassVar[None] = None
    phys_bits: ClassVar[None] = None
    address: SshAddress
    """Address as ssh(1) takes it: a Host of its configuration, USER@HOST, or
    ssh://USER@HOST:PORT."""
    ssh_config: KernelPath | None = None
    """Configuration file for `ssh -F`. Default: the user's. A relative path starts at the
    scenario's folder."""
    boot: Literal["auto", BootWay] = "auto"
    """Method to boot a kernel under test. auto: kexec if the machine can, else a one-shot entry of
    its boot loader."""
    deadline: Annotated[int, Field(ge=180, le=7200)] = 600
    """Seconds within which the machine must answer again after a boot, its firmware included."""
    wait: Annotated[int, Field(ge=0, le=86400)] = 0
    """Seconds to wait while another runner holds the machine's lease."""
    lease: Annotated[int, Field(ge=30, le=3600)] = 60
    """Seconds without a sign of the runner after which another runner may use the machine. After
    as many seconds again, the machine restarts into its own kernel."""
    console: Command | None = None
    """Command on this machine whose output is the host's serial console, for example "ipmitool -H
    bmc sol activate". With it, a failed boot is reported with the last lines of the console."""
    power_cycle: Command | None = None
    """Command on this machine that turns the host off and on, as the last resort."""
    fresh_boots: bool = False
    """true: the host boots anew for each trial. false: consecutive trials of one arm share a boot.
    This is faster, but what differs from boot to boot is then in all of them, so they count as
    one."""
    cmdline: CommandLine = ""
    """Words appended, in both arms, to the kernel command line with which the host runs its own
    kernel."""

    @property
    def name(self) -> str:
        return self.address

    def check_guest(self, guest: Guest) -> None:
        if guest.boot == "disk":
            raise ValueError('guest.boot: "disk" needs a nested host; use "direct"')


def _find_host_tag(value: Any) -> str | None:
    kind = value.get("kind", "nested") if isinstance(value, Mapping) else value.kind
    return kind if kind in ("nested", "metal") else None


HostSpec = Annotated[
    Annotated[NestedHost, Tag("nested")] | Annotated[MetalHost, Tag("metal")],
    Discriminator(
        _find_host_tag, custom_error_type="kind", custom_error_message='"nested" or "metal"'
    ),
]


class EmulatedDevice(ScenarioModel):
    """A device that barometer makes for a nested host."""

    host_kind: ClassVar[str] = "nested"
    kind: Literal["ivshmem", "pci-testdev"] = "ivshmem"
    """ivshmem: a sparse shared-memory file backs the BAR. pci-testdev: a BAR without memory."""
    bar: BarSize = 32 * GIB
    """Size of the large BAR: a power of two from 1MiB to 1TiB."""
    count: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of devices, each with a BAR of that size behind a root port of its own. The workload
    map takes one device."""
    mmap: bool = True
    """false: the guest's QEMU has x-no-mmap=on, so the BAR is never mapped for DMA and each access
    to it traps. For guest boots only."""


class HostDevice(ScenarioModel):
    """A PCI function of a metal host."""

    host_kind: ClassVar[str] = "metal"
    kind: Literal["hostdev"]
    address: FunctionAddress | None = None
    """Address of the function: "0000:3b:00.0"."""
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")] | None = None
    """Vendor and device ID, "10de:2330". The machine must have exactly one such function."""
    pick: Literal["largest-bar"] | None = None
    """largest-bar: the function with the largest BAR among those that may be used."""
    bar: BarSize
    """Size of the function's large BAR. A function without a BAR of this size is refused."""
    mmap: bool = True
    """false: the guest's QEMU has x-no-mmap=on, so the BAR is never mapped for DMA and each access
    to it traps. For guest boots only."""

    @model_validator(mode="after")
    def _check_one_way(self) -> HostDevice:
        present = [key for key in ("address", "id", "pick") if getattr(self, key) is not None]
        if len(present) != 1:
            raise ValueError(
                "needs one of address, id and pick; it has " + (" and ".join(present) or "none")
            )
        return self

    @property
    def count(self) -> int:
        return 1


def _find_device_tag(value: Any) -> str | None:
    kind = value.get("kind", "ivshmem") if isinstance(value, Mapping) else value.kind
    return {"hostdev": "hostdev", "ivshmem": "emulated", "pci-testdev": "emulated"}.get(kind)


Device = Annotated[
    Annotated[EmulatedDevice, Tag("emulated")] | Annotated[HostDevice, Tag("hostdev")],
    Discriminator(
        _find_device_tag, custom_error_type="kind",
        custom_error_message='"ivshmem", "pci-testdev" or "hostdev"',
    ),
]  # fmt: skip


class Guest(ScenarioModel):
    kernel: Kernel
    """Kernel of the guest, the same in both arms. Its PCI code decides how often a BAR is
    mapped."""
    memory: ByteSize = 512 * MIB
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    cmdline: str = ""
    """Words appended to the guest's kernel command line in both arms."""
    firmware: Literal["seabios", "ovmf"] = "seabios"
    """Firmware of the guest: a BIOS (seabios) or UEFI (ovmf). It places the BARs before the kernel
    runs."""
    boot: Literal["direct", "disk"] = "direct"
    """direct: QEMU loads kernel and initramfs, and there is no disk. disk: the guest boots from a
    disk with GRUB and systemd; it needs 512MiB of memory or more."""
    backing: Backing = "anonymous"
    """Memory of the host that backs the guest's memory, whose size must be a multiple of the
    backing's pages."""
    viommu: Literal["none", "intel"] = "none"
    """IOMMU that the guest sees."""
    backend: Literal["type1", "iommufd"] = "type1"
    """Interface by which QEMU assigns the device: VFIO's container and group (type1), or iommufd
    and the device's cdev, which maps a BAR only as a dma-buf (QEMU 11.1, Linux v6.19)."""
    phys_bits: Annotated[int, Field(ge=36, le=52)] | None = None
    """Physical address bits of the guest's CPU, at most the host's; default: the host's."""


def _check_guest_window(device: Device, guest: Guest, bits: int, key: str) -> None:
    """Raise ValueError if the guest's firmware cannot place the BARs of all devices in `bits`
    address bits, which `key` sets. OVMF is given the benefit of the doubt: its newest window, and
    a processor whose bits it believes."""
    devices = [(device.bar,)] * device.count
    vendors: tuple[Vendor | None, ...] = (None, "intel", "amd")
    windows = [
        find_window(guest.firmware, bits, guest.memory, devices, vendor=vendor, share=share)
        for vendor in vendors
        for share in OVMF_SHARES
    ]
    most = max(sum(choose_placed(window, devices)) for window in windows)
    if most == device.count:
        return
    least = find_least_bits(guest.firmware, guest.memory, devices)
    remedy = "no number of bits would do" if least is None else f"{least} bits would do"
    raise ValueError(
        f"{key} = {bits}: {guest.firmware} can place {most} of {device.count} BARs of"
        f" {format_size(device.bar)} in the guest's address space; {remedy}"
    )
