"""Twenty-eight public reports of slow and failing boots: what is said of each. The inputs and
their sources are in slowboots.py and failedstarts.py."""

from __future__ import annotations

import errno
import html
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.diagnosis.diagnosis import Profile
from orchestrator.analysis.doctor.finding import METAL, Needs
from orchestrator.analysis.doctor.findings import judge_machine
from orchestrator.evidence.surveys.collected import load_evidence
from orchestrator.formats.units import GIB, MIB
from orchestrator.report.html.html import html_profile
from orchestrator.report.html.profile_page import build_profile_page
from orchestrator.report.text.profile_text import (
    profile_json,
    profile_sentence,
    text_profile,
)
from tests.unit import failedstarts, slowboots
from tests.unit.analysis.test_findings import LOCKDOWN, bar
from tests.unit.checkups import file, server, value
from tests.unit.machine.test_passthrough import FREE, altered, idle, refused
from tests.unit.slowboots import SlowBoot


@dataclass(frozen=True)
class Row:
    boot: Callable[[], SlowBoot]
    causes: tuple[str, ...]
    """Names of which the first or the second thing that is said has one."""
    words: tuple[str, ...]
    """What the answer must have: numbers, and the remedy."""


REPORTS = [
    Row(slowboots.lxd_15872, ("no-huge-pfnmap",),
        ("40 maps of 8 BARs of 128GiB, 4.4 s each", "46%", "both are needed", "QEMU 9.2")),
    Row(slowboots.lxd_15872_by_waiting, ("no-huge-pfnmap",),
        ("382.6 s from QEMU's exec", "40 maps of 8 BARs of 128GiB", "both are needed")),
    Row(slowboots.kata_13270, ("bar-not-placed",),
        ("5 of 8 BARs", "40 address bits", "address bits would do", "maxphysaddr")),
    Row(slowboots.proxmox_1353, ("ram-pinning",),
        ("86%", "1TiB", "<hugepages/>", "threads='8'")),
    Row(slowboots.kubevirt_7279, ("preallocation",), ("86%", "512GiB of huge pages", "threads")),
    Row(slowboots.lookingglass_1184, ("address-bits",),
        ("needs 46 address bits, the IOMMU translates 39", "0x382000000000", "limit='39'")),
    Row(slowboots.talos_14356, ("bar-claimed",), ("BOOTFB", "initcall_blacklist=sysfb_init")),
    Row(slowboots.kubevirt_14593, ("memlock",), ("8MiB", "RLIMIT_MEMLOCK", "<hard_limit")),
    Row(slowboots.kata_11721, ("dma-entry-limit",),
        ("dma_entry_limit is 20", "20 were made", "65535")),
    Row(slowboots.harvester_7340, ("rmrr",), ("0xbdf6e000-0xbdf84fff", "another slot")),
    Row(slowboots.kata_11708, ("device-gone",), ("0000:17:00.0", "power cycle")),
    Row(slowboots.cloud_hypervisor_7991, ("qemu-unaligned",),
        ("2 maps", "the program that runs the guest did not align")),
    Row(slowboots.dra_driver_1191, ("group-shared",), ("group 15", "vfio-pci")),
    Row(slowboots.no_interrupt_remapping, ("interrupt-remapping",),
        ("allow_unsafe_interrupts=1",)),
    Row(slowboots.reset_timeout, ("device-reset",),
        ("65.5 s after FLR", "gave up", "reset_method")),
    Row(slowboots.checkbox_2007, ("bar-not-placed",),
        ("was never mapped, and 1 was", "64-bit hole (pci-hole64-size) is 64GiB",
         "phys-bits=", "1048576 for opt/ovmf/X-PciMmio64Mb")),
    # others of the same kinds
    Row(slowboots.guest_iommu, ("guest-iommu",), ("60000 small maps", "iommu=pt")),
    Row(slowboots.small_iommu_pages, ("iommu-map",), ("12 s, 50.0%", "take sp_off out")),
    Row(slowboots.wide_guest, ("guest-bits",), ("46 address bits", "the host's has 39")),
    Row(slowboots.managed_device, ("before-exec",), ("40 s, 81.6%", "managed='no'")),
    Row(slowboots.amd_hole, ("reserved-range",), ("HyperTransport", "0xfd00000000")),
    # twelve more reports
    Row(failedstarts.harvester_8294, ("group-busy",), ("/dev/vfio/1", "fuser -v /dev/vfio/1")),
    Row(failedstarts.harvester_7348, ("not-bound",), ("its driver is nvidia", "driverctl")),
    Row(failedstarts.kata_runtime_2774, ("vfio-node",),
        ("EPERM", "device cgroup", "/dev/vfio/84")),
    Row(failedstarts.macos_simple_kvm_579, ("no-iommu",), ("0000:17:00.0", "AMD-Vi")),
    Row(failedstarts.harvester_11029, ("no-vfio",), ("/dev/vfio/vfio", "container")),
    Row(failedstarts.qubes_10885, ("device-gone",), ("0000:17:00.0", "power cycle")),
    Row(failedstarts.incus_os_1146, ("device-gone",), ("0000:17:00.0", "D3cold")),
    Row(failedstarts.kubevirt_10379, ("host-memory",), ("its cgroup", "64GiB", "overcommit")),
    Row(failedstarts.kata_10360, ("host-memory",), ("EFAULT", "64GiB", "/dev/shm")),
    Row(slowboots.kata_10582, ("map-overlap",), ("EEXIST", "0x10000000000")),
    Row(slowboots.cloudpods_25408, ("bar-not-placed",),
        ("4 of 8 BARs", "262144 for opt/ovmf/X-PciMmio64Mb")),
    Row(failedstarts.rvvm_197, ("bar-unassigned",), ("0000:17:00.0 BAR 2", "above 4G")),
]  # fmt: skip
IDS = [row.boot.__name__ for row in REPORTS]


@cache
def judge(row: Row) -> Profile:
    return row.boot().profile()


@pytest.mark.parametrize("row", REPORTS, ids=IDS)
def test_the_true_cause_is_the_first_or_second_thing_said(row: Row) -> None:
    profile = judge(row)
    assert {advice.name for advice in profile.advice[:2]} & {*row.causes}
    text = " ".join(text_profile(profile).split())
    for words in row.words:
        assert words in text, text


@pytest.mark.parametrize("row", REPORTS, ids=IDS)
def test_the_sentence_names_it(row: Row) -> None:
    profile = judge(row)
    cause = next(advice for advice in profile.advice if advice.name in row.causes)
    sentence = profile_sentence(profile)
    assert cause.problem in sentence or cause.subject in sentence


@pytest.mark.parametrize("row", REPORTS, ids=IDS)
def test_all_of_the_boot_is_accounted_for(row: Row) -> None:
    profile = judge(row)
    costs = [advice.seconds for advice in profile.advice if not advice.is_wrong]
    if not profile.facts.has_failed:
        assert sum(costs) >= 0.95 * profile.whole_seconds
        assert sum(costs) + profile.unexplained == pytest.approx(profile.whole_seconds)


@pytest.mark.parametrize("row", REPORTS, ids=IDS)
def test_what_is_wrong_is_one_thing(row: Row) -> None:
    """Nothing false is said with confidence: a boot with one fault has one item that is wrong."""
    wrong = [advice.name for advice in judge(row).advice if advice.is_wrong]
    assert len(wrong) <= 1
    assert {*wrong} <= {*row.causes}


@pytest.mark.parametrize("row", REPORTS, ids=IDS)
def test_a_saved_report_is_shown_again(row: Row, tmp_path: Path) -> None:
    evidence = row.boot().evidence()
    evidence.save(tmp_path)
    assert load_evidence(tmp_path) == evidence


@pytest.mark.parametrize("row", REPORTS, ids=IDS)
def test_its_text_fits_and_its_document_is_json(row: Row) -> None:
    profile = judge(row)
    assert max(map(len, text_profile(profile).splitlines())) <= 100
    document = json.loads(json.dumps(profile_json(profile)))
    assert document["advice"][0]["help"]
    assert document["sentence"] == profile_sentence(profile)


@pytest.mark.parametrize(
    "row", [REPORTS[0], REPORTS[1], REPORTS[7]], ids=lambda r: r.boot.__name__
)
def test_its_page_needs_nothing_else(row: Row) -> None:
    page = html_profile(build_profile_page(judge(row)))
    assert "default-src 'none'" in page
    assert "http-equiv" in page
    for advice in judge(row).advice[:2]:
        assert html.escape(advice.problem, quote=False).partition("'")[0] in page


def test_a_bar_that_was_mapped_is_claimed_by_nobody_else() -> None:
    """An older line of the kernel's log is about an earlier boot."""
    boot = slowboots.talos_14356()
    boot.host |= boot.after
    boot.map_bar(boot.bars[0], 9.0, 0.001)
    assert "bar-claimed" not in {advice.name for advice in boot.profile().advice}


def test_of_a_start_that_failed_other_guests_are_left_out() -> None:
    boot = slowboots.kata_11721()
    for number in range(50):
        boot.trace.mapped(2.0 + number / 100, 0.001, 0x7000, 4096, thread=900, iova=number * 4096)
    assert "and 20 were made" in boot.profile().advice[0].problem


@given(st.integers(36, 51), st.integers(36, 64), st.integers(0, 3))
def test_the_bits_of_a_refused_map_are_counted(top: int, width: int, pieces: int) -> None:
    """EINVAL: beyond the IOMMU's bits, or for another reason; never guessed."""
    boot = SlowBoot(slowboots.start(), slowboots.list_bars(1, GIB), slowboots.write_xml())
    iova = (1 << top) + pieces * GIB
    boot.host = {"cpuinfo": slowboots.print_cpu(52), "iommu-cap": f"{(width - 1) << 16:x}"}
    boot.trace.mapped(9.0, 0.001, boot.address(boot.bars[0]), GIB, iova=iova, result=-22)
    boot.trace.mark(40.0, "agent")
    first, *_ = boot.profile().advice
    bits = (iova + GIB - 1).bit_length()
    assert f"needs {bits} address bits" in first.problem
    assert f"{iova:#x}" in first.problem
    if bits > width:
        assert first.name == "address-bits"
        assert f"the IOMMU translates {width}" in first.problem
        assert f"limit='{width}'" in first.help
    else:
        assert first.name == "map-refused"


@given(
    st.integers(0, 1 << 40).map(lambda n: n * 4096), st.integers(1, 1 << 20),
    st.integers(0, 1 << 40).map(lambda n: n * 4096), st.integers(1, 1 << 20),
    st.sampled_from(["reserved", "direct", "msi", "direct-relaxable"]),
)  # fmt: skip
def test_a_reserved_range_is_why_if_the_map_overlaps_it(
    iova: int, pages: int, start: int, reserved: int, kind: str
) -> None:
    size, end = pages * 4096, start + reserved * 4096 - 1
    boot = SlowBoot(slowboots.fail(22, size, iova), xml=slowboots.write_xml())
    boot.facts = {**slowboots.FAILED}
    device = boot.bars[0].device
    boot.host = {f"device/{device}/reserved_regions": f"{start:#018x} {end:#018x} {kind}",
                 "iommu-cap": f"{63 << 16:x}"}  # fmt: skip
    names = [advice.name for advice in boot.profile().advice]
    overlaps = iova <= end and start <= iova + size - 1 and kind != "direct-relaxable"
    assert ("reserved-range" in names) == overlaps


@pytest.mark.parametrize("limit", [1, 20, 65535])
def test_the_limit_of_maps_is_quoted(limit: int) -> None:
    boot = slowboots.kata_11721()
    boot.facts["settings"] = {"dma_entry_limit": str(limit)}
    assert f"dma_entry_limit is {limit}:" in boot.profile().advice[0].problem


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.05, 5))
def test_any_number_of_devices_is_one_item(count: int, maps: int, seconds: float) -> None:
    """Whatever the number of devices, the maps of all are one item, with their sum."""
    bars = slowboots.list_bars(count, 128 * GIB)
    boot = SlowBoot(slowboots.start(), bars, slowboots.write_xml(), misaligned=0x1000)
    boot.facts = {"qemu": "8.2.2", "huge_fault": False, "parts": False}
    at = 10.0
    for _ in range(maps):
        for each in bars:
            boot.map_bar(each, at, seconds)
            at += seconds + 0.1
    boot.trace.mark(at + 1, "agent")
    items = [a for a in boot.profile().advice if a.subject == "maps of BARs"]
    assert [set(item.bars) for item in items] == [{each.name for each in bars}]
    assert items[0].seconds == pytest.approx(count * maps * seconds, rel=1e-3)
    if count * maps > 1:
        assert items[0].problem.startswith(f"{count * maps} maps of ")


@given(st.integers(36, 44), st.integers(1, 8), st.data())
def test_a_bar_beyond_the_guests_bits_has_no_place(
    bits: int, count: int, data: st.DataObject
) -> None:
    """SeaBIOS puts what has no place above the address space, where it is mapped for DMA, too."""
    bars = slowboots.list_bars(count, GIB)
    beyond = data.draw(st.sets(st.sampled_from(range(count))))
    cpu = f"<cpu mode='custom'><maxphysaddr mode='emulate' bits='{bits}'/></cpu>"
    boot = SlowBoot(slowboots.start(4 * GIB), bars, slowboots.write_xml(cpu))
    boot.host = {"cpuinfo": slowboots.print_cpu(46)}
    for number, each in enumerate(bars):
        iova = (1 << bits) - GIB * (count - number)
        iova = (1 << bits) + GIB * number if number in beyond else iova
        boot.trace.mapped(9.0 + number, 0.001, boot.address(each), GIB, iova=iova)
    boot.trace.mark(30.0, "agent")
    wrong = [advice for advice in boot.profile().advice if advice.is_wrong]
    names = {bars[number].name for number in beyond}
    assert {bar for advice in wrong for bar in advice.bars} == names
    for advice in wrong:
        if len(beyond) < count:
            assert advice.name == "bar-not-placed"
            assert f"within {bits} address bits" in advice.problem


def test_a_bar_that_has_room_may_be_switched_off() -> None:
    boot = slowboots.kata_13270()
    boot.xml = slowboots.write_xml()
    first, *_ = boot.profile().advice
    assert first.name == "bar-not-placed"
    assert "or not switched on by the guest" in first.problem
    assert "edk2-stable202211" in first.help
    assert "maxphysaddr" not in first.help  # it has enough


@given(st.sampled_from(sorted(errno.errorcode)), st.integers(0, 4096), st.booleans())
def test_the_errno_of_a_node_decides(code: int, number: int, is_legacy: bool) -> None:
    """Whatever QEMU's words before it: a known errno has its cause, another one is quoted."""
    prefix = "vfio error: 0000:17:00.0" if is_legacy else "vfio 0000:17:00.0"
    node = f"/dev/vfio/{number}"
    profile = failedstarts.quote(f"{prefix}: failed to open {node}: {os.strerror(code)}").profile()
    (only,) = profile.advice
    names = {errno.EBUSY: "group-busy", errno.EPERM: "vfio-node", errno.EACCES: "vfio-node",
             errno.ENOENT: "not-bound"}  # fmt: skip
    assert only.name == names.get(code, "start-failed")
    assert node in only.problem


@pytest.mark.parametrize(
    ("driver", "name"), [("nvidia", "not-bound"), ("vfio-pci", "start-failed")]
)
def test_a_device_that_is_not_there_may_be_at_another_driver(driver: str, name: str) -> None:
    """VFIO_GROUP_GET_DEVICE_FD: ENODEV for a device that VFIO does not have, and for one that
    could not be switched on."""
    boot = failedstarts.quote(
        "vfio 0000:17:00.0: error getting device from group 2: No such device"
    )
    boot.host = {"device/0000:17:00.0/driver": driver}
    (only,) = boot.profile().advice
    assert only.name == name


@given(st.integers(1, 40), st.integers(1, 40))
def test_bars_that_iommufd_leaves_out_hide_nothing(before: int, after: int) -> None:
    """kata-containers#12549, #13270: iommufd has no pages of a BAR, and QEMU goes on. That is in
    every log, whatever the start failed of."""
    left_out = (
        "qemu-kvm: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?\n"
        "qemu-kvm: vfio_container_dma_map(0x55558771a400, 0xfa800000, 0x4000, 0x7788e9d2c000) ="
        " -14 (Bad address)\n"
    )
    refused = "qemu-kvm: IOMMU_IOAS_MAP failed: Cannot allocate memory\n"
    boot = SlowBoot(slowboots.fail(), xml=slowboots.write_xml(), facts={**slowboots.FAILED})
    boot.after = {"qemu-log": left_out * before + refused + left_out * after}
    assert [advice.name for advice in boot.profile().advice] == ["memlock"]
    boot.after = {"qemu-log": left_out * before}
    assert [advice.name for advice in boot.profile().advice] == ["start-failed"]


def test_an_older_line_of_a_device_that_answers_is_nothing() -> None:
    boot = slowboots.kata_11721()
    device = boot.bars[0].device
    line = f"[ 1.7] vfio-pci {device}: Unable to change power state from D3cold to D0,"
    boot.host = {"dmesg": f"{line} device inaccessible", f"device/{device}/config": " de 10 30 23"}
    assert [advice.name for advice in boot.profile().advice] == ["dma-entry-limit"]


@pytest.mark.parametrize("iommu", [None, "", "dmar0"])
@pytest.mark.parametrize("vendor", [None, "GenuineIntel", "AuthenticAMD"])
def test_intels_word_is_for_intels_machines(iommu: str | None, vendor: str | None) -> None:
    boot = failedstarts.macos_simple_kvm_579()
    boot.host = {} if iommu is None else {"iommu": iommu}
    if vendor:
        boot.host["cpuinfo"] = slowboots.print_cpu(46, vendor)
    (only,) = boot.profile().advice
    assert only.name == "no-iommu"
    assert ("intel_iommu=on" in only.help) == (vendor != "AuthenticAMD")
    assert ("AMD-Vi" in only.help) == (vendor != "GenuineIntel")
    # it is off only if the host says so
    assert ("no IOMMU in use" in only.problem) == (iommu == "")


def test_a_window_that_the_bits_have_no_room_for_is_no_remedy() -> None:
    text = text_profile(slowboots.kata_13270().profile())
    assert "X-PciMmio64Mb" not in text


def test_each_reset_of_a_device_counts() -> None:
    boot = slowboots.reset_timeout()
    device = boot.bars[0].device
    boot.after["dmesg"] = "\n".join([
        f"[ 1.1] vfio-pci {device}: not ready 1023ms after FLR; waiting",
        f"[ 4.1] vfio-pci {device}: ready 3071ms after FLR",
        f"[ 9.1] vfio-pci {device}: ready 2047ms after bus reset",
        f"[ 9.9] vfio-pci {device}: not ready 1023ms after resume; waiting",
        "[ 9.9] vfio-pci 0000:99:00.0: ready 60000ms after FLR",
    ])  # fmt: skip
    resets = next(a for a in boot.profile().advice if a.name == "device-reset")
    assert resets.seconds == pytest.approx(3.071 + 2.047 + 1.023)
    assert "0000:99" not in resets.problem


def test_a_register_dump_is_no_message() -> None:
    text = text_profile(slowboots.kata_11721().profile())
    assert "RAX" not in text
    assert "Code=" not in text


def test_a_start_that_failed_for_no_known_cause_quotes_qemu() -> None:
    boot = SlowBoot(slowboots.fail(), xml=slowboots.write_xml(), facts={**slowboots.FAILED})
    boot.after = {"error": f"qemu-kvm: -device vfio-pci: vfio error: strange\n{slowboots.DUMP}"}
    (only,) = boot.profile().advice
    assert only.name == "start-failed"
    assert only.problem.endswith("vfio error: strange")


# reports of which the doctor is asked ------------------------------------------------------------


def says(*changes: object) -> list[str]:
    """Return the findings that are not ok, in their order, as text."""
    found = judge_machine(server(*changes), Needs(METAL))  # type: ignore[arg-type]
    return [f"{f.name}: {f.what} {f.evidence} {f.fix}" for f in found if f.status != "ok"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # harvester#7340
        ({"reserved_regions": ["0xbdf6e000 0xbdf84fff direct"]}, "rmrr"),
        # kata#11708
        ({"answers": False, "power_state": "unknown"}, "device-gone"),
        # talos#14356
        ({"claims": ["BOOTFB"], "boot_vga": 0}, "bar-claimed"),
    ],
)
def test_the_doctor_names_why_a_device_cannot_be_given(
    change: dict[str, object], reason: str
) -> None:
    def changed(said: dict[str, dict[str, object]]) -> None:
        idle(said)
        said[FREE].update(change)

    found = refused(altered("gpu-server", changed), FREE)
    assert list(found) == [reason]
    first, *_ = says(bar(refused=[f"{reason}: {found[reason]}"]))
    assert reason in first


def test_the_doctor_names_a_group_that_is_shared() -> None:
    """dra-driver-nvidia-gpu#1191"""

    def shared(said: dict[str, dict[str, list[str]]]) -> None:
        idle(said)
        said[FREE]["group_devices"].append("0000:17:00.0")

    assert "group-shared" in refused(altered("gpu-server", shared), FREE)


def test_the_doctor_names_lockdown_and_interrupt_remapping() -> None:
    """bpftrace#853; the report on interrupt remapping"""
    first, *_ = says(file(LOCKDOWN, "none integrity [confidentiality]"))
    assert first.startswith("lockdown: ")
    first, *_ = says(value("interrupts", to=["IO-APIC", "PCI-MSIX"]))
    assert first.startswith("interrupt-remapping: ")


@pytest.mark.parametrize(
    ("growable", "words"), [(16 * GIB, "can have 16GiB"), (None, "the device sleeps")]
)
def test_the_doctor_names_a_bar_that_is_not_resized(growable: int | None, words: str) -> None:
    """ReBarUEFI, RVVM#197: awake, and asleep as an idle device of vfio-pci is."""
    found = says(bar(size=256 * MIB, growable=growable))
    assert any(line.startswith("resizable-bar: ") and words in line for line in found[:2])
