"""The sections that a host prints around a profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.surveys.host_report import (
    UNLIMITED,
    BarClaim,
    HostReport,
    ReservedRegion,
    list_bar_claims,
    parse_host_report,
)
from tests.unit.slowboots import INTEL_39, INTEL_48, print_cpu, print_sections

DEVICE = "0000:3b:00.0"


def report(before: dict[str, str], after: dict[str, str] | None = None) -> HostReport:
    return parse_host_report(print_sections(before), print_sections(after or {}))


def test_what_a_host_does_not_say_is_not_known() -> None:
    nothing = parse_host_report("Welcome to this machine!\n")
    assert nothing == HostReport()
    assert (nothing.physical_bits, nothing.is_intel, nothing.iommu_bits) == (None, None, None)
    assert (nothing.memlock, nothing.devices, nothing.new_kernel_log) == (None, {}, ())


def test_a_processor_and_its_iommus() -> None:
    found = report({"cpuinfo": print_cpu(46), "iommu-cap": f"{INTEL_48}\n{INTEL_39}"})
    assert (found.physical_bits, found.is_intel, found.iommu_bits) == (46, True, 39)
    assert report({"cpuinfo": print_cpu(48, "AuthenticAMD")}).is_intel is False
    assert report({"iommu-cap": INTEL_48}).iommu_bits == 48


def test_a_device() -> None:
    found = report({
        f"device/{DEVICE}/driver": "vfio-pci", f"device/{DEVICE}/power_state": "D3hot",
        f"device/{DEVICE}/config": " de 10 30 23",
        f"device/{DEVICE}/reserved_regions": "0x00000000000a0000 0x00000000000bffff direct\n"
        "0x00000000fee00000 0x00000000feefffff msi",
    }).devices[DEVICE]  # fmt: skip
    assert (found.driver, found.power_state, found.answers) == ("vfio-pci", "D3hot", True)
    assert found.reserved[0] == ReservedRegion(0xA0000, 0xBFFFF, "direct")
    assert found.claims == ()
    gone = report({f"device/{DEVICE}/config": " ff ff ff ff"}).devices[DEVICE]
    assert gone.answers is False
    assert report({f"device/{DEVICE}/config": ""}).devices[DEVICE].answers is None


def test_lines_of_the_kernel_from_before_are_not_of_this_boot() -> None:
    old, new = "[ 1.0] pci: old", "[ 9.0] vfio-pci: new"
    assert report({"dmesg": old}, {"dmesg": f"{old}\n{new}"}).new_kernel_log == (new,)


@pytest.mark.parametrize(
    ("line", "memlock"),
    [("Max locked memory  8388608  8388608  bytes", 8388608),
     ("Max locked memory  unlimited  unlimited  bytes", UNLIMITED), ("", None)],
)  # fmt: skip
def test_the_memory_that_qemu_may_lock(line: str, memlock: int | None) -> None:
    assert report({}, {"limits": line}).memlock == memlock


def test_claims_are_those_inside_a_function() -> None:
    iomem = (
        "380000000000-383fffffffff : PCI Bus 0000:38\n"
        "  380000000000-381fffffffff : 0000:39:00.0\n"
        "    380000000000-3800007e8fff : BOOTFB\n"
        "      380000000000-3800007e8fff : simpledrm\n"
        "  384000000000-385fffffffff : 0000:3a:00.0\n"
        "    384000000000-385fffffffff : vfio-pci\n"
        "fee00000-fee00fff : Local APIC\n"
    )
    found = list_bar_claims(iomem)
    assert {address: [claim.name for claim in claims] for address, claims in found.items()} == {
        "0000:39:00.0": ["BOOTFB", "simpledrm"]
    }
    assert found["0000:39:00.0"][0] == BarClaim(0x380000000000, 0x3800007E8FFF, "BOOTFB")


def test_a_driver_may_hold_its_own_device() -> None:
    iomem = f"1000-1fff : {DEVICE}\n  1000-1fff : nvidia\n"
    found = report({"iomem": iomem, f"device/{DEVICE}/driver": "nvidia"})
    assert found.devices[DEVICE].claims == ()


@given(st.text(), st.text())
def test_no_text_of_a_host_breaks_it(before: str, after: str) -> None:
    for found in (parse_host_report(before, after), report({
        "cpuinfo": before, "iommu-cap": after, "iomem": before, f"device/{DEVICE}/config": after,
        f"device/{DEVICE}/reserved_regions": before,
    }, {"limits": before, "dmesg": after})):  # fmt: skip
        assert found.memlock is None or found.memlock >= UNLIMITED
        assert all(device.address for device in found.devices.values())
        assert found.iommu_bits is None or 1 <= found.iommu_bits <= 64
        assert found.physical_bits is None or found.physical_bits < 1000
