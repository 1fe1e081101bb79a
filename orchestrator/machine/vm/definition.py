"""The facts of a domain's XML that a profile of the domain needs. Pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason

_UNITS = {
    "b": 1, "bytes": 1, "kb": 10**3, "k": 2**10, "kib": 2**10, "mb": 10**6, "m": 2**20,
    "mib": 2**20, "gb": 10**9, "g": 2**30, "gib": 2**30, "tb": 10**12, "t": 2**40, "tib": 2**40,
}  # fmt: skip
"""Bytes of each unit (https://libvirt.org/formatdomain.html#memory-allocation)."""
_AGENT = "org.qemu.guest_agent.0"
_QEMU = {"qemu": "http://libvirt.org/schemas/domain/qemu/1.0"}
_IOMMUFD = re.compile(r"""(?:^|[,"'\s])iommufd(?:$|[,=:"'])""")
_MEDIATED = re.compile(
    r"\bsysfsdev\b.*/(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.I
)
_VFIO_HOST = re.compile(
    r"""\b(?:host|sysfsdev)["']?\s*[=:]\s*["']?(?:/sys/\S*/)?"""
    r"(?:(?P<domain>[0-9a-fA-F]{4,8}):)?(?P<rest>[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])"
)


@dataclass(frozen=True)
class Definition:
    emulator: str
    """Path of the domain's QEMU on the host."""
    kvm: bool
    memory: int
    """Bytes."""
    huge_pages: bool
    """True if its memory consists of huge pages (memoryBacking)."""
    devices: tuple[str, ...]
    """Addresses of the host's PCI devices that are passed through to it: 0000:3b:00.0. Options for
    QEMU (qemu:commandline) may name some, too."""
    agent: bool
    """True if it has a channel for the guest agent."""
    mediated: tuple[str, ...] = ()
    """UUIDs of the mediated devices that it has."""
    iommufd: bool = False
    """True if its devices are mapped through iommufd."""


def parse_definition(text: str) -> Definition:
    """Parse libvirt's domain XML. Raises BenchError if `text` is something else."""
    try:
        domain = ET.fromstring(text)
        memory = domain.find("memory")
        assert memory is not None
        return Definition(
            emulator=domain.findtext("devices/emulator") or "",
            kvm=domain.get("type") == "kvm",
            memory=int(memory.text or "") * _UNITS[memory.get("unit", "KiB").lower()],
            huge_pages=domain.find("memoryBacking/hugepages") is not None,
            devices=tuple(
                dict.fromkeys(
                    _address(address.attrib)
                    for path in ("hostdev[@type='pci']", "interface[@type='hostdev']")
                    for address in domain.findall(f"devices/{path}/source/address")
                )
                | dict.fromkeys(_find_in_options(domain))
            ),
            iommufd=_uses_iommufd(domain),
            mediated=(
                *(
                    address.get("uuid", "")
                    for address in domain.findall("devices/hostdev[@type='mdev']/source/address")
                ),
                *(m["uuid"] for option in _options(domain) if (m := _MEDIATED.search(option))),
            ),
            agent=any(
                target.get("name") == _AGENT for target in domain.findall("devices/channel/target")
            ),
        )
    except (ET.ParseError, AssertionError, ValueError, KeyError) as exc:
        raise BenchError(
            f"libvirt's XML of the domain cannot be understood: {exc!r}",
            reason=Reason.BAD_DOMAIN_XML,
        ) from exc


def _uses_iommufd(domain: ET.Element) -> bool:
    """True if the domain or one of its devices asks for iommufd (formatdomain.html, hostdev), or
    an option for QEMU does."""
    enabled = [*domain.findall("iommufd"), *domain.findall("devices/hostdev/iommufd")]
    drivers = domain.findall("devices/*/driver[@iommufd='yes']")
    return (
        bool(drivers)
        or any(element.get("enabled", "yes") == "yes" for element in enabled)
        or any(_IOMMUFD.search(option) for option in _options(domain))
    )


def _find_in_options(domain: ET.Element) -> Iterator[str]:
    """Yield the PCI devices that options for QEMU pass through: `-device vfio-pci,host=3b:00.0`,
    with sysfsdev=, or as JSON."""
    for option in _options(domain):
        if "vfio-pci" in option and (match := _VFIO_HOST.search(option)):
            number, rest = match["domain"] or "0000", match["rest"]
            yield f"{number}:{rest}".lower()


def _options(domain: ET.Element) -> list[str]:
    """Return the options for QEMU that libvirt hands on as they are."""
    return [arg.get("value", "") for arg in domain.findall("qemu:commandline/qemu:arg", _QEMU)]


def _address(attributes: dict[str, str]) -> str:
    domain, bus, slot, function = (
        int(attributes.get(name, "0"), 0) for name in ("domain", "bus", "slot", "function")
    )
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
