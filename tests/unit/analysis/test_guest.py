"""What a domain's XML, or the command line of a QEMU that no libvirt started, says of a guest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.diagnosis.guest import GuestSetup, read_guest
from orchestrator.evidence.surveys.host_report import HostReport, parse_host_report
from orchestrator.formats.units import GIB
from tests.unit.slowboots import print_cpu, print_sections, write_xml

NOTHING = HostReport()
HOST = parse_host_report(print_sections({"cpuinfo": print_cpu(46)}))
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def of_command(*arguments: str) -> GuestSetup:
    after = print_sections({"cmdline": "\n".join(["/usr/bin/kvm", *arguments])})
    return read_guest("", parse_host_report(print_sections({"cpuinfo": print_cpu(46)}), after))


@pytest.mark.parametrize(
    ("cpu", "bits", "source"),
    [
        ("", 40, "QEMU's default"),
        ("<cpu mode='custom'><model>Skylake-Server</model></cpu>", 40, "QEMU's default"),
        ("<cpu mode='host-model'/>", 40, "QEMU's default"),
        ("<cpu mode='host-model'><maxphysaddr mode='emulate' bits='43'/></cpu>", 43, "maxphys"),
        ("<cpu mode='host-passthrough'/>", 46, "the host's"),
        ("<cpu mode='host-passthrough'><maxphysaddr mode='passthrough' limit='39'/></cpu>", 39,
         "maxphys"),
        ("<cpu mode='host-passthrough'><maxphysaddr mode='passthrough' limit='48'/></cpu>", 46,
         "the host's"),
        ("<cpu mode='maximum'/>", 46, "the host's"),
    ],
)  # fmt: skip
def test_address_bits_of_a_domain(cpu: str, bits: int, source: str) -> None:
    guest = read_guest(write_xml(cpu), HOST)
    assert guest.physical_bits == bits
    assert source in guest.bits_source


def test_bits_of_a_cpu_that_is_passed_through_are_not_known_without_the_host() -> None:
    assert read_guest(write_xml(), NOTHING).physical_bits is None


@pytest.mark.parametrize(
    ("arguments", "bits"),
    [
        (["-cpu", "host"], 46),
        (["-cpu", "host,host-phys-bits-limit=39"], 39),
        (["-cpu", "EPYC,phys-bits=43"], 43),
        (["-cpu", "kvm64,+lahf_lm"], 40),
        (["-cpu", "Skylake-Server,host-phys-bits=on"], 46),
        (["-cpu", "host,phys-bits=36"], 46),
        (["-cpu", "host,host-phys-bits=off,phys-bits=36"], 36),
        (["-accel", "kvm", "-cpu", "max,phys-bits=36"], 46),
        (["-enable-kvm", "-cpu", "max,host-phys-bits=off"], 40),
        (["-accel", "tcg", "-cpu", "max,phys-bits=36"], 36),
    ],
)
def test_address_bits_of_a_command_line(arguments: list[str], bits: int | None) -> None:
    assert of_command(*arguments).physical_bits == bits


def test_a_command_line_of_kata() -> None:
    guest = of_command(
        "-machine", "q35,accel=kvm", "-cpu", "host", "-m", "64G",
        "-object", "memory-backend-memfd,id=m,size=64G,hugetlb=on,prealloc=on,prealloc-threads=4",
        "-device", "vfio-pci,host=0000:17:00.0,x-no-mmap=on", "-device", "intel-iommu,intremap=on",
        "-global", "q35-pcihost.pci-hole64-size=0x4000000000",
        "-drive", "if=pflash,format=raw,file=/OVMF.fd",
        "-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=262144",
    )  # fmt: skip
    assert guest.is_known
    assert not guest.is_libvirts
    assert (guest.firmware, guest.iommu, guest.has_no_mmap) == ("ovmf", "intel-iommu", True)
    assert (guest.has_huge_pages, guest.is_preallocated, guest.allocation_threads) == (
        True, True, 4
    )  # fmt: skip
    assert (guest.hole_size, guest.window_size) == (256 * GIB, 256 * GIB)


def test_a_domain_with_everything() -> None:
    xml = f"""<domain type='kvm' {QEMU}>
      <memory unit='GiB'>8</memory>
      <memtune><hard_limit unit='GiB'>12</hard_limit></memtune>
      <memoryBacking><hugepages/><allocation mode='immediate' threads='16'/></memoryBacking>
      <os firmware='efi'><type>hvm</type></os>
      <sysinfo type='fwcfg'><entry name='opt/ovmf/X-PciMmio64Mb'>65536</entry></sysinfo>
      <devices>
        <controller type='pci' index='0' model='pcie-root'>
          <pcihole64 unit='GiB'>1024</pcihole64>
        </controller>
        <iommu model='virtio'/>
        <hostdev mode='subsystem' type='pci' managed='yes'><alias name='ua-gpu'/></hostdev>
      </devices>
      <qemu:override><qemu:device alias='ua-gpu'><qemu:frontend>
        <qemu:property name='x-no-mmap' type='bool' value='true'/>
        <qemu:property name='iommufd' type='string' value='iommufd0'/>
      </qemu:frontend></qemu:device></qemu:override>
    </domain>"""
    assert replace(read_guest(xml, NOTHING), physical_bits=None, bits_source="") == GuestSetup(
        is_known=True, is_libvirts=True, firmware="ovmf", window_size=64 * GIB,
        hole_size=1024 * GIB, iommu="virtio", has_iommufd=True, has_no_mmap=True,
        has_huge_pages=True, is_preallocated=True, allocation_threads=16, hard_limit=12 * GIB,
        is_managed=True,
    )  # fmt: skip


def test_options_that_a_domain_passes_to_qemu_count() -> None:
    options = "<qemu:arg value='-global'/><qemu:arg value='q35-pcihost.pci-hole64-size=2T'/>"
    line = f"<qemu:commandline>{options}</qemu:commandline></domain>"
    xml = write_xml().replace("<domain ", f"<domain {QEMU} ").replace("</domain>", line)
    assert read_guest(xml, HOST).hole_size == 2 << 40


def test_without_either_nothing_is_known() -> None:
    assert read_guest("", NOTHING) == GuestSetup()
    assert read_guest("<domain", NOTHING) == GuestSetup()


@given(st.text(max_size=300), st.lists(st.text(max_size=40), max_size=12))
def test_no_text_breaks_it(xml: str, arguments: list[str]) -> None:
    read_guest(xml, HOST)
    of_command(*arguments)
    of_command(*(f"-{word}" for word in arguments))
