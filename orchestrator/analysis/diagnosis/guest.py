"""The guest of a profile, as far as it decides where BARs can be, what backs its memory and what
stands between its devices and it: from libvirt's XML, or from QEMU's command line. Pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.evidence.surveys.host_report import HostReport
from orchestrator.formats.units import KIB, MIB
from orchestrator.formats.windows import DEFAULT_BITS, Firmware

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_WINDOW = "opt/ovmf/X-PciMmio64Mb"
"""Name of the fw_cfg entry that sets the size of OVMF's window for BARs, in MiB."""
_HOLE_UNITS = {"b": 1, "bytes": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": 1 << 30,
               "gib": 1 << 30, "t": 1 << 40, "tib": 1 << 40}  # fmt: skip
_IOMMUS = re.compile(r"^(intel-iommu|amd-iommu|virtio-iommu|virtio-iommu-pci|arm-smmuv3)$")


@dataclass(frozen=True)
class GuestSetup:
    """None, False and empty: it is not set, or nobody recorded it."""

    is_known: bool = False
    is_libvirts: bool = False
    """True if libvirt's XML describes it, so that remedies are in its terms."""
    physical_bits: int | None = None
    """Physical address bits of its CPU."""
    bits_source: str = ""
    """Where that number comes from."""
    has_host_cpu: bool = False
    """True for a CPU that is passed through: QEMU heeds only a limit of its bits."""
    firmware: Firmware | None = None
    window_size: int | None = None
    """Bytes of the window for BARs, if the owner set it (X-PciMmio64Mb)."""
    hole_size: int | None = None
    """Bytes of the 64-bit hole that QEMU announces at least (pcihole64)."""
    iommu: str | None = None
    """The IOMMU that the guest sees."""
    has_iommufd: bool = False
    has_no_mmap: bool = False
    """True if QEMU maps no BAR of a device (x-no-mmap)."""
    has_huge_pages: bool = False
    """True if the memory consists of huge pages that were set aside."""
    is_preallocated: bool = False
    """True if all its memory is allocated before QEMU maps it."""
    allocation_threads: int | None = None
    hard_limit: int | None = None
    """Bytes that QEMU may lock (memtune)."""
    is_managed: bool = False
    """True if libvirt unbinds, resets and binds the devices itself (managed)."""


def read_guest(xml: str, report: HostReport) -> GuestSetup:
    """Return the guest's setup from its definition or, without one, from the command line of its
    QEMU. Text that is neither is a guest of which nothing is known."""
    if xml.strip():
        try:
            return _fill_bits(_read_xml(ET.fromstring(xml)), report)
        except ET.ParseError:
            return GuestSetup()
    arguments = report.text("after/cmdline").splitlines()
    return _fill_bits(_read_arguments(arguments), report) if arguments else GuestSetup()


def _fill_bits(guest: GuestSetup, report: HostReport) -> GuestSetup:
    """Fill in the bits of a CPU that is passed through: the host's, limited by what is set."""
    if not guest.has_host_cpu:
        return guest
    bits, limit = report.physical_bits, guest.physical_bits
    if bits is None:
        return guest
    if limit is not None and limit < bits:
        return guest
    return replace(guest, physical_bits=bits, bits_source="the host's CPU")


# libvirt ---------------------------------------------------------------------------------------


def _read_xml(domain: ET.Element) -> GuestSetup:
    arguments = [arg.get("value", "") for arg in domain.iter(f"{_QEMU}arg")]
    properties = {
        prop.get("name", ""): prop.get("value", "") for prop in domain.iter(f"{_QEMU}property")
    }
    own = _read_arguments(["qemu", *arguments])
    cpu = domain.find("cpu")
    bits, source = _read_cpu(cpu)
    allocation = domain.find("memoryBacking/allocation")
    threads = allocation.get("threads", "") if allocation is not None else ""
    has_huge_pages = domain.find("memoryBacking/hugepages") is not None
    iommu = domain.find("devices/iommu")
    hostdevs = domain.findall("devices/hostdev[@type='pci']")
    entry = domain.find(f"sysinfo/entry[@name='{_WINDOW}']")
    window = _read_number(entry.text) if entry is not None else None
    return GuestSetup(
        is_known=True, is_libvirts=True,
        physical_bits=own.physical_bits or bits,
        bits_source=own.bits_source if own.physical_bits else source,
        has_host_cpu=_has_host_bits(cpu),
        firmware=_read_firmware(domain),
        window_size=own.window_size or (window * MIB if window else None),
        hole_size=own.hole_size or _read_hole(domain),
        iommu=(iommu.get("model") or "intel") if iommu is not None else own.iommu,
        has_iommufd="iommufd" in properties or own.has_iommufd
        or any(driver.get("iommufd") == "yes"
               for dev in hostdevs for driver in dev.findall("driver")),
        has_no_mmap=own.has_no_mmap or properties.get("x-no-mmap") in ("true", "on", "yes"),
        has_huge_pages=has_huge_pages,
        # libvirt preallocates memory of huge pages, too (qemuBuildMemoryBackendProps())
        is_preallocated=has_huge_pages
        or (allocation is not None and allocation.get("mode") == "immediate"),
        allocation_threads=_read_number(threads),
        hard_limit=_read_size(domain.find("memtune/hard_limit")),
        is_managed=any(dev.get("managed") == "yes" for dev in hostdevs),
    )  # fmt: skip


def _read_cpu(cpu: ET.Element | None) -> tuple[int | None, str]:
    """Return the physical address bits that the definition gives, and where they are from."""
    size = cpu.find("maxphysaddr") if cpu is not None else None
    if size is not None and (bits := _read_number(size.get("bits") or size.get("limit"))):
        return bits, "<maxphysaddr>"
    mode = cpu.get("mode") if cpu is not None else None
    if mode in ("host-passthrough", "maximum"):
        return None, ""
    if size is not None and size.get("mode") == "passthrough":
        return None, ""
    return DEFAULT_BITS, "QEMU's default, without <maxphysaddr>"


def _has_host_bits(cpu: ET.Element | None) -> bool:
    """True if the guest has as many address bits as the host, or fewer by a limit."""
    size = cpu.find("maxphysaddr") if cpu is not None else None
    if size is not None and size.get("mode") == "emulate":  # host-phys-bits=off
        return False
    return cpu is not None and cpu.get("mode") in ("host-passthrough", "maximum")


def _read_firmware(domain: ET.Element) -> Firmware:
    system, loader = domain.find("os"), domain.find("os/loader")
    is_efi = system is not None and system.get("firmware") == "efi"
    is_flash = loader is not None and (
        loader.get("type") == "pflash" or "OVMF" in (loader.text or "").upper()
    )
    return "ovmf" if is_efi or is_flash else "seabios"


def _read_hole(domain: ET.Element) -> int | None:
    sizes = [_read_size(hole) for hole in domain.findall("devices/controller/pcihole64")]
    return max((size for size in sizes if size is not None), default=None)


def _read_size(element: ET.Element | None) -> int | None:
    if element is None or (number := _read_number(element.text)) is None:
        return None
    return number * _HOLE_UNITS.get(element.get("unit", "KiB").lower(), KIB)


def _read_number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None


# QEMU's command line ---------------------------------------------------------------------------


def _read_arguments(arguments: Sequence[str]) -> GuestSetup:
    """Read the options of a QEMU that no libvirt describes (Proxmox, LXD, Kata, a script)."""
    options = list(_pair(arguments))
    cpu = next((text for name, text in reversed(options) if name == "cpu"), "")
    model, cpu_properties = cpu.split(",")[0], _split(cpu)
    objects = [text for name, text in options if name in ("object", "machine", "mem-prealloc")]
    devices = [text for name, text in options if name == "device"]
    named = {text.split(",")[0]: text for text in devices if "=" not in text.split(",")[0]}
    iommu = next((name for name in named if _IOMMUS.match(name)), None)
    globals_ = dict(text.partition("=")[::2] for name, text in options if name == "global")
    hole = next((v for key, v in globals_.items() if key.endswith("pci-hole64-size")), None)
    files = [_split(text) for name, text in options if name == "fw_cfg"]
    window = next((f.get("string") for f in files if f.get("name") == _WINDOW), None)
    size = _read_number(window)
    is_flash = any(
        (name == "drive" and "pflash" in text) or (name == "bios" and "OVMF" in text.upper())
        for name, text in options
    )
    is_kvm = any(
        name == "enable-kvm" or (name in ("accel", "machine") and "kvm" in text)
        for name, text in options
    )
    has_host_bits = _follows_host(model, cpu_properties, is_kvm=is_kvm)
    bits, source = (None, "")
    if model:
        bits, source = _read_cpu_properties(cpu_properties, has_host_bits=has_host_bits)
    prealloc = [_split(text) for text in objects if "prealloc=on" in text]
    threads = next((p["prealloc-threads"] for p in prealloc if "prealloc-threads" in p), "")
    return GuestSetup(
        is_known=len(options) > 0, physical_bits=bits, bits_source=source,
        has_host_cpu=has_host_bits,
        firmware="ovmf" if is_flash else "seabios",
        window_size=size * MIB if size else None, hole_size=_read_qemu_size(hole or ""),
        iommu=iommu,
        has_iommufd=any(text.startswith("iommufd") for text in objects),
        has_no_mmap=any("x-no-mmap=on" in t or "x-no-mmap=true" in t for t in devices),
        has_huge_pages=any("hugetlb=on" in t or "hugepages" in t for t in objects),
        is_preallocated=bool(prealloc) or any(name == "mem-prealloc" for name, _ in options),
        allocation_threads=_read_number(threads),
    )  # fmt: skip


def _follows_host(model: str, properties: dict[str, str], *, is_kvm: bool) -> bool:
    """True if the guest has the host's address bits, whatever `phys-bits` says: so it is for
    `host`, and under KVM for `max`, unless host-phys-bits is off (host_cpu_max_instance_init(),
    host_cpu_adjust_phys_bits())."""
    is_default = model == "host" or (model == "max" and is_kvm)
    return properties.get("host-phys-bits", "on" if is_default else "off") in ("on", "true")


def _read_cpu_properties(
    properties: dict[str, str], *, has_host_bits: bool
) -> tuple[int | None, str]:
    key = "host-phys-bits-limit" if has_host_bits else "phys-bits"
    if bits := _read_number(properties.get(key)):
        return bits, f"-cpu {key}"
    return (None, "") if has_host_bits else (DEFAULT_BITS, "QEMU's default for a CPU model")


def _pair(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (option, value) of each option; an option without a value has an empty one."""
    for index, word in enumerate(arguments):
        if index and word.startswith("-") and len(word) > 1:
            after = arguments[index + 1] if index + 1 < len(arguments) else ""
            yield word.lstrip("-"), "" if after.startswith("-") else after


def _split(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split(","))


def _read_qemu_size(text: str) -> int | None:
    """Parse a size as QEMU takes it: 32G, 0x800000000, 1024."""
    match = re.fullmatch(r"(0x[0-9a-fA-F]{1,16}|[0-9]{1,19})([kKmMgGtT]?)", text)
    if match is None:
        return None
    number = int(match[1], 16 if match[1].startswith("0x") else 10)
    return number * _HOLE_UNITS.get(match[2].lower() or "b", 1)
