"""Domain XML as libvirt returns it, and broken in several ways."""

from __future__ import annotations

import contextlib
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.formats.units import GIB
from orchestrator.machine.vm.definition import Definition, parse_definition
from orchestrator.machine.vm.domain import GuestDomain, guest_xml

XML = """\
<domain type='kvm'>
  <name>gpu vm</name>
  <memory unit='KiB'>67108864</memory>
  <memoryBacking><hugepages/></memoryBacking>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></source>
      <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
    </hostdev>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>
    <interface type='hostdev' managed='yes'>
      <source><address type='pci' domain='0x0001' bus='0xaf' slot='0x1f' function='0x7'/></source>
    </interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>
"""


def test_devices_of_the_host_are_found_and_no_other_address() -> None:
    assert parse_definition(XML) == Definition(
        emulator="/usr/libexec/qemu-kvm", kvm=True, memory=64 * GIB, huge_pages=True,
        devices=("0000:3b:00.1", "0001:af:1f.7"), agent=True,
    )  # fmt: skip


@pytest.mark.parametrize(("option", "device"), [
    ("vfio-pci,host=0000:3b:00.0,id=gpu", "0000:3b:00.0"),
    ("vfio-pci,id=gpu,host=3B:00.1,multifunction=on", "0000:3b:00.1"),
    ("vfio-pci,sysfsdev=/sys/bus/pci/devices/10000:e1:00.0", "10000:e1:00.0"),
    ('{"driver":"vfio-pci","host":"0001:af:1f.7","bus":"pci.5"}', "0001:af:1f.7"),
    ('{"driver": "vfio-pci", "sysfsdev": "/sys/bus/pci/devices/0000:17:00.0"}', "0000:17:00.0"),
    ("virtio-net-pci,host_mtu=1500", None),
    ("vfio-pci,sysfsdev=/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", None),
])  # fmt: skip
def test_devices_in_options_for_qemu_are_found(option: str, device: str | None) -> None:
    arguments = "".join(f"<qemu:arg value={quoteattr(word)}/>" for word in ("-device", option))
    xml = (
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<memory>1</memory><devices/><qemu:commandline>{arguments}</qemu:commandline></domain>"
    )
    assert parse_definition(xml).devices == ((device,) if device else ())


@pytest.mark.parametrize(("inside", "options", "uses"), [
    ("<hostdev type='pci'><driver name='vfio' iommufd='yes'/></hostdev>", "", True),
    ("<hostdev type='pci'><driver name='vfio'/></hostdev>", "", False),
    ("", "<iommufd enabled='yes'/>", True),
    ("", "<iommufd enabled='no'/>", False),
    ("<interface type='hostdev'><driver name='vfio' iommufd='yes'/></interface>", "", True),
    *[("", f"<qemu:commandline><qemu:arg value={quoteattr(option)}/></qemu:commandline>", uses)
      for option, uses in {
          "iommufd,id=iommufd0": True, "vfio-pci,host=3b:00.0,iommufd=iommufd0": True,
          '{"qom-type":"iommufd","id":"iommufd0"}': True, "file=/srv/iommufd.img": False,
      }.items()],
])  # fmt: skip
def test_iommufd_is_found(inside: str, options: str, uses: bool) -> None:
    xml = (
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<memory>1</memory><devices>{inside}</devices>{options}</domain>"
    )
    assert parse_definition(xml).iommufd == uses


def test_mediated_devices_are_found() -> None:
    xml = (
        "<domain type='kvm'><memory>1</memory><devices><hostdev mode='subsystem' type='mdev'"
        " model='vfio-pci'><source><address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source>"
        "</hostdev></devices></domain>"
    )
    option = "vfio-pci,sysfsdev=/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    in_options = (
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<memory>1</memory><devices/><qemu:commandline><qemu:arg value='-device'/>"
        f"<qemu:arg value='{option}'/></qemu:commandline></domain>"
    )
    for text in (xml, in_options):
        found = parse_definition(text)
        assert (found.devices, len(found.mediated)) == ((), 1)


def test_a_guest_of_barometers_own_is_understood() -> None:
    spec = GuestDomain(
        name="g", uuid="u", kvm=False, memory=GIB, cpus=1, kernel="k", initramfs="", cmdline="",
        console_port=1, ssh_port=2, devices=("0000:01:00.0", "0000:02:00.0"),
    )  # fmt: skip
    found = parse_definition(guest_xml(spec))
    assert found.devices == spec.devices
    assert (found.kvm, found.memory, found.huge_pages, found.agent) == (False, GIB, False, False)


@given(
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))
)
def test_an_address_is_as_sysfs_spells_it(numbers: tuple[int, int, int, int]) -> None:
    domain, bus, slot, function = numbers
    address = (
        f"<address domain='{domain:#06x}' bus='{bus:#04x}' slot='{slot:#04x}'"
        f" function='{function:#x}'/>"
    )
    xml = (
        "<domain type='kvm'><memory>1</memory><devices><hostdev type='pci'>"
        f"<source>{address}</source></hostdev></devices></domain>"
    )
    assert parse_definition(xml).devices == (f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}",)


@given(st.text())
def test_no_text_is_more_than_refused(text: str) -> None:
    for xml in (text, f"<domain><memory>{text}</memory></domain>",
                f"<domain><memory unit='{text}'>1</memory></domain>"):  # fmt: skip
        with contextlib.suppress(BenchError):
            parse_definition(xml)


@pytest.mark.parametrize(
    ("unit", "size"), [("b", 1), ("KiB", 1024), ("KB", 1000), ("G", GIB), ("TiB", 1024 * GIB)]
)
def test_memory_has_libvirts_units(unit: str, size: int) -> None:
    xml = f"<domain><memory unit='{unit}'>3</memory></domain>"
    assert parse_definition(xml).memory == 3 * size
