"""Domains that belong to somebody else: persistent, with a serial port in a file."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from orchestrator.machine.vm.domain import GuestDomain, guest_xml
from orchestrator.machine.vm.hypervisor import Connection, Domain


def define(libvirt: Connection, guest: GuestDomain, serial: str, *, managed: bool) -> Domain:
    """Define a persistent domain. `serial` is the file of its serial port. If `managed`, libvirt
    binds the devices to vfio-pci."""
    domain = ET.fromstring(guest_xml(guest))
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        domain.remove(domain.find(event))  # type: ignore[arg-type]
    port = domain.find("devices/serial")
    assert port is not None
    port.clear()
    port.set("type", "file")
    ET.SubElement(port, "source", path=serial)
    for device in domain.iter("hostdev"):
        device.set("managed", "yes" if managed else "no")
    libvirt._raw.defineXML(ET.tostring(domain, encoding="unicode"))
    return libvirt.lookup(guest.name)
