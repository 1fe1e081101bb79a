"""Domain XML from specifications, for the nested host and for the guest. Pure."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.formats.abi import OVMF_CODE, OVMF_VARIABLES
from orchestrator.machine.runner.accel import Accel

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
BAR_BUS = 1
"""Bus of the first device with a large BAR. Each such device sits alone behind a root port, in an
IOMMU group of its own."""
# A device in QEMU's option syntax needs a slot that libvirt does not assign. libvirt assigns slots
# from 1 upwards.
_NIC_SLOT = 0x1D
_SPARE_PORTS = 2
"""Ports of a host for disks that are plugged in: its keys, and an arm's modules."""
# An exact machine's real-time clock always starts at 2026-01-01.
_EXACT_EPOCH = 1767225600


@dataclass(frozen=True)
class Disk:
    path: Path
    serial: str
    block: bool = False
    """True if the path is a block device."""


@dataclass(frozen=True)
class HostDomain:
    """Specification of the nested host. Sizes in bytes."""

    name: str
    uuid: str
    accel: Accel
    memory: int
    cpus: int
    phys_bits: int
    kernel: Path
    initramfs: Path | None
    cmdline: str
    console: Path
    disks: tuple[Disk, ...]
    viommu: Literal["intel", "virtio"]
    viommu_aw_bits: int
    device: Literal["ivshmem", "pci-testdev"]
    bar: int
    shm_names: tuple[str, ...]
    """One name for each device: the file under /dev/shm that backs the BAR of an ivshmem."""
    reserve: int = 0
    """Bytes of address space for each device that is plugged into the running host. With 0 the
    devices are there from the start."""
    restored: bool = False
    """True: QEMU waits for the state of a saved host instead of booting."""


@dataclass(frozen=True)
class GuestDomain:
    """Specification of the guest that owns the device. Sizes in bytes, paths on the host."""

    name: str
    uuid: str
    kvm: bool
    memory: int
    cpus: int
    kernel: str
    """Path of the kernel. Empty, as are initramfs and cmdline, if the guest boots from disks."""
    initramfs: str
    cmdline: str
    console_port: int
    """A TCP port of the host on which something listens for the guest's serial console."""
    ssh_port: int
    """A TCP port of the host that QEMU forwards to the guest's SSH server."""
    devices: tuple[str, ...]
    """Addresses of the devices with a large BAR: 0000:01:00.0"""
    mmap: bool = True
    """False: QEMU does not map the BARs of the devices (x-no-mmap)."""
    iommufd: bool = False
    """True: QEMU uses iommufd and the devices' cdevs, not VFIO's container."""
    firmware: Literal["seabios", "ovmf"] = "seabios"
    backing: Literal["anonymous", "memfd", "hugetlb-2MiB", "hugetlb-1GiB"] = "anonymous"
    """Backing of the guest's memory on the host."""
    viommu: Literal["none", "intel"] = "none"
    phys_bits: int | None = None
    """Physical address bits of the guest's CPU; None: as many as the host's."""
    disks: tuple[Disk, ...] = ()
    """Disks to boot from instead of the kernel."""
    pinned: tuple[int, ...] = ()
    """The host CPU that each guest CPU is pinned to. Empty if they are not pinned."""
    trace_events: tuple[str, ...] = ()
    """QEMU's own trace events to enable."""
    trace_log: str = ""
    """File for the trace events. If it is empty, they go to libvirt's log of the domain, among
    QEMU's errors."""
    unconfined: tuple[str, ...] = ()
    """Security models of the host's libvirt that must not confine this QEMU: it runs as root and
    writes to the host's trace."""


def host_xml(spec: HostDomain) -> str:
    """Return the domain XML of the nested host."""
    domain = _domain(spec.name, spec.uuid, "kvm" if spec.accel == "kvm" else "qemu",
                     spec.memory, spec.cpus)  # fmt: skip
    _direct_boot(domain, str(spec.kernel), str(spec.initramfs or ""), spec.cmdline)
    features = _sub(domain, "features")
    _sub(features, "acpi")
    _sub(features, "apic")
    # interrupt remapping needs the I/O APIC in QEMU, not in KVM
    _sub(features, "ioapic", driver="qemu")
    if spec.accel != "kvm":
        _sub(_sub(features, "tcg"), "tb-cache", "1024", unit="MiB")
        cpu = _sub(domain, "cpu", mode="maximum", check="none")
        # With virtual GIF the nested host has lost interrupts under emulation.
        _sub(cpu, "feature", policy="disable", name="vgif")
    else:
        cpu = _sub(domain, "cpu", mode="host-passthrough", check="none")
    _sub(cpu, "maxphysaddr", mode="emulate", bits=str(spec.phys_bits))
    arguments: list[str] = []
    if spec.accel == "exact":
        # QEMU counts instructions, one for each nanosecond of the machine's time, and skips the
        # time in which the machine idles; all its clocks follow that count.
        arguments += ["-icount", "shift=0,sleep=off"]
        clock = _sub(domain, "clock", offset="absolute", start=str(_EXACT_EPOCH))
        _sub(clock, "timer", name="rtc", track="guest")
    devices = _sub(domain, "devices")
    count = len(spec.shm_names)
    _root_ports(devices, count + len(spec.disks) + (_SPARE_PORTS if spec.reserve else 0))
    _disks(devices, spec.disks, BAR_BUS + count)
    serial = _sub(devices, "serial", type="file")
    # a restored host's console begins with what the saved host printed
    more = {"append": "on"} if spec.restored else {}
    _sub(serial, "source", path=str(spec.console), **more)
    _quiet_devices(devices)
    # User-mode networking that reaches nothing: libvirt's own portForward needs passt, which
    # refuses to serve root. QEMU picks the port; `info usernet` prints it.
    arguments += [
        "-netdev", "user,id=ssh0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", f"virtio-net-pci,netdev=ssh0,romfile=,bus=pcie.0,addr={_NIC_SLOT:#x}",
    ]  # fmt: skip
    overrides: dict[str, Properties] = {}
    for bus, shm_name in enumerate(spec.shm_names, BAR_BUS):
        if spec.reserve:
            overrides[f"pci.{bus}"] = [("pref64-reserve", "unsigned", str(spec.reserve))]
        elif spec.device == "ivshmem":
            devices.append(_shmem(spec, shm_name, bus))
        else:
            # in JSON, as libvirt passes its own devices: QEMU makes devices in its older syntax
            # first, when the root port does not exist yet
            testdev = {"driver": "pci-testdev", "membar": spec.bar, "bus": f"pci.{bus}",
                       "addr": "0x0"}  # fmt: skip
            arguments += ["-device", json.dumps(testdev)]
    if spec.reserve:
        # By default devices are plugged in through ACPI, which not every kernel under test knows.
        # PCIe's own way is in all of them (guests/kernel/host.config).
        arguments += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    if spec.restored:
        arguments += ["-incoming", "defer"]
    if spec.viommu == "intel":
        iommu = _sub(devices, "iommu", model="intel")
        _sub(iommu, "driver", intremap="on", aw_bits=str(spec.viommu_aw_bits))
    else:
        _sub(devices, "iommu", model="virtio")
    return _text(domain, arguments, overrides)


def shmem_xml(spec: HostDomain, number: int) -> str:
    """Return the XML of an ivshmem device, to plug it into the running host."""
    return ET.tostring(_shmem(spec, spec.shm_names[number], BAR_BUS + number), encoding="unicode")


def disk_xml(spec: HostDomain, disk: Disk, number: int) -> str:
    """Return the XML of a disk, to plug it into spare port `number` of the running host."""
    devices, at = ET.Element("devices"), len(spec.disks) + number
    _disks(devices, (disk,), BAR_BUS + len(spec.shm_names) + at, first=at)
    return ET.tostring(devices[0], encoding="unicode")


def _shmem(spec: HostDomain, name: str, bus: int) -> ET.Element:
    shmem = ET.Element("shmem", name=name)
    _sub(shmem, "model", type="ivshmem-plain")
    _sub(shmem, "size", str(spec.bar >> 20), unit="M")
    _pci(shmem, bus)
    return shmem


def guest_xml(spec: GuestDomain) -> str:
    """Return the domain XML of the guest, for the host's libvirt."""
    domain = _domain(spec.name, spec.uuid, "kvm" if spec.kvm else "qemu", spec.memory, spec.cpus)
    _backing(domain, spec.backing)
    if spec.pinned:
        tuning = _sub(domain, "cputune")
        for vcpu, core in enumerate(spec.pinned):
            _sub(tuning, "vcpupin", vcpu=str(vcpu), cpuset=str(core))
        _sub(tuning, "emulatorpin", cpuset=str(spec.pinned[0]))
    if spec.kernel:
        system = _direct_boot(domain, spec.kernel, spec.initramfs, spec.cmdline)
    else:
        system = _machine(domain)
    if spec.firmware == "ovmf":
        _sub(system, "loader", OVMF_CODE, readonly="yes", type="pflash")
        variables = f"/run/barometer/{spec.name}.vars.fd"
        _sub(system, "nvram", variables, template=OVMF_VARIABLES)
    features = _sub(domain, "features")
    _sub(features, "acpi")
    _sub(features, "apic")
    if spec.viommu == "intel":
        _sub(features, "ioapic", driver="qemu")
    mode = "host-passthrough" if spec.kvm else "maximum"
    cpu = _sub(domain, "cpu", mode=mode, check="none")
    if spec.phys_bits is not None:
        bits = str(spec.phys_bits)
        # for a CPU that is passed through, QEMU heeds only a limit
        how = {"mode": "passthrough", "limit": bits} if spec.kvm else {
            "mode": "emulate", "bits": bits}  # fmt: skip
        _sub(cpu, "maxphysaddr", **how)
    for model in spec.unconfined:
        if model == "dac":
            label = _sub(domain, "seclabel", type="static", model=model, relabel="no")
            _sub(label, "label", "+0:+0")
        else:
            _sub(domain, "seclabel", type="none", model=model)
    devices = _sub(domain, "devices")
    _root_ports(devices, len(spec.devices) + len(spec.disks))
    _disks(devices, spec.disks, BAR_BUS + len(spec.devices), boot=True)
    serial = _sub(devices, "serial", type="tcp")
    _sub(serial, "source", mode="connect", host="127.0.0.1", service=str(spec.console_port))
    _sub(serial, "protocol", type="raw")
    buses = range(BAR_BUS, BAR_BUS + len(spec.devices))
    for bus, device in zip(buses, spec.devices, strict=True):
        _hostdev(devices, device, bus)
    _quiet_devices(devices)
    if spec.viommu == "intel":
        # caching mode, because vfio has to see each mapping that the guest makes for the device
        iommu = _sub(devices, "iommu", model="intel")
        _sub(iommu, "driver", intremap="on", caching_mode="on", aw_bits="48")
    arguments = [
        "-netdev", f"user,id=ssh0,restrict=on,hostfwd=tcp:127.0.0.1:{spec.ssh_port}-:22",
        "-device", f"virtio-net-pci,netdev=ssh0,romfile=,bus=pcie.0,addr={_NIC_SLOT:#x}",
        *(["-object", "iommufd,id=iommufd0"] if spec.iommufd else []),
        *[part for event in spec.trace_events for part in ("-trace", f"enable={event}")],
        *(["-D", spec.trace_log] if spec.trace_log else []),
        *(["-msg", "timestamp=on"] if spec.trace_events else []),
    ]  # fmt: skip
    properties = [("x-no-mmap", "bool", "true")] if not spec.mmap else []
    properties += [("iommufd", "string", "iommufd0")] if spec.iommufd else []
    return _text(domain, arguments, {_alias(bus): properties for bus in buses if properties})


def _alias(bus: int) -> str:
    return f"ua-bar{bus}"


def _backing(domain: ET.Element, kind: str) -> None:
    """Add the backing of the guest's memory."""
    if kind == "anonymous":
        return
    backing = _sub(domain, "memoryBacking")
    if kind == "memfd":
        _sub(backing, "source", type="memfd")
    else:
        size, unit = {"hugetlb-2MiB": ("2", "M"), "hugetlb-1GiB": ("1", "G")}[kind]
        _sub(_sub(backing, "hugepages"), "page", size=size, unit=unit)


def _hostdev(devices: ET.Element, address: str, bus: int) -> None:
    hostdev = _sub(devices, "hostdev", mode="subsystem", type="pci", managed="no")
    bdf, _, function = address.rpartition(".")
    segment, host_bus, slot = bdf.split(":")
    _sub(_sub(hostdev, "source"), "address", domain=f"0x{segment}", bus=f"0x{host_bus}",
         slot=f"0x{slot}", function=f"0x{function}")  # fmt: skip
    _sub(hostdev, "alias", name=_alias(bus))
    _pci(hostdev, bus)


def _domain(name: str, uuid: str, kind: str, memory: int, cpus: int) -> ET.Element:
    domain = ET.Element("domain", type=kind)
    _sub(domain, "name", name)
    _sub(domain, "uuid", uuid)
    _sub(domain, "memory", str(memory), unit="b")
    _sub(domain, "vcpu", str(cpus))
    # A machine that panics must end and not start again. The reason is on its console.
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _sub(domain, event, "destroy")
    return domain


def _machine(domain: ET.Element) -> ET.Element:
    system = _sub(domain, "os")
    _sub(system, "type", "hvm", arch="x86_64", machine="q35")
    return system


def _direct_boot(domain: ET.Element, kernel: str, initramfs: str, cmdline: str) -> ET.Element:
    system = _machine(domain)
    _sub(system, "kernel", kernel)
    if initramfs:
        _sub(system, "initrd", initramfs)
    _sub(system, "cmdline", cmdline)
    return system


def _disks(
    devices: ET.Element, disks: tuple[Disk, ...], bus: int, *, boot: bool = False, first: int = 0
) -> None:
    """Add read-only disks, one on each bus from `bus` on; the name of the first is vda, or as many
    letters later as `first` says. Every address is explicit: libvirt would give a disk the port
    that a device in QEMU's option syntax takes."""
    letters = "abcdefgh"[first : first + len(disks)]
    for number, (letter, disk) in enumerate(zip(letters, disks, strict=True)):
        kind, source = ("block", "dev") if disk.block else ("file", "file")
        element = _sub(devices, "disk", type=kind, device="disk")
        _sub(element, "driver", name="qemu", type="raw", cache="unsafe")
        _sub(element, "source", **{source: str(disk.path)})
        _sub(element, "target", dev=f"vd{letter}", bus="virtio")
        _sub(element, "serial", disk.serial)
        if boot and number == 0:
            _sub(element, "boot", order="1")
        _sub(element, "readonly")
        _pci(element, bus + number)


def _root_ports(devices: ET.Element, count: int) -> None:
    """Add root ports with the buses BAR_BUS, BAR_BUS + 1, ..."""
    _sub(devices, "controller", type="pci", index="0", model="pcie-root")
    for index in range(BAR_BUS, BAR_BUS + count):
        _sub(devices, "controller", type="pci", index=str(index), model="pcie-root-port")


def _quiet_devices(devices: ET.Element) -> None:
    """Leave out default devices, which a boot would have to probe."""
    _sub(devices, "controller", type="usb", model="none")
    _sub(devices, "memballoon", model="none")
    _sub(devices, "input", type="mouse", bus="ps2")
    _sub(_sub(devices, "video"), "model", type="none")
    _sub(devices, "audio", id="1", type="none")


def _pci(device: ET.Element, bus: int) -> None:
    _sub(device, "address", type="pci", domain="0x0000", bus=f"{bus:#04x}", slot="0x00",
         function="0x0")  # fmt: skip


def _sub(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text or None
    return element


Properties = list[tuple[str, str, str]]
"""Name, type and value of each property."""


def _text(
    domain: ET.Element, qemu_arguments: list[str], overrides: dict[str, Properties] | None = None
) -> str:
    """Return the document as text. Add what libvirt has no elements for: arguments for QEMU, and
    properties of its devices, by alias."""
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    commandline = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    for argument in qemu_arguments:
        ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}arg", value=argument)
    if overrides:
        override = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}override")
        for alias, properties in overrides.items():
            device = ET.SubElement(override, f"{{{QEMU_NAMESPACE}}}device", alias=alias)
            frontend = ET.SubElement(device, f"{{{QEMU_NAMESPACE}}}frontend")
            for name, kind, value in properties:
                ET.SubElement(frontend, f"{{{QEMU_NAMESPACE}}}property", name=name, type=kind,
                              value=value)  # fmt: skip
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"
