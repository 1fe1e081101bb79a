"""Golden files: run this module to write them anew, and read the difference."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.vm.domain import (
    BAR_BUS,
    QEMU_NAMESPACE,
    Disk,
    GuestDomain,
    HostDomain,
    disk_xml,
    guest_xml,
    host_xml,
    shmem_xml,
)

DATA = Path(__file__).parent / "data"
HOST = HostDomain(
    name="barometer-1234-0001-baseline", uuid="11111111-2222-3333-4444-555555555555",
    accel="tcg", memory=4 * GIB, cpus=2, phys_bits=46, kernel=Path("/cache/vmlinuz"),
    initramfs=Path("/state/token.initramfs"), cmdline="console=ttyS0 panic=-1",
    console=Path("/run/host/console.log"),
    disks=(Disk(Path("/cache/root.ext4"), "root"), Disk(Path("/cache/modules.ext4"), "modules")),
    viommu="intel", viommu_aw_bits=48, device="ivshmem", bar=32 * GIB,
    shm_names=("barometer-1234-0",),
)  # fmt: skip
GUEST = GuestDomain(
    name="guest-1", uuid="66666666-7777-8888-9999-000000000000", kvm=True, memory=512 * MIB,
    cpus=1, kernel="/opt/barometer/guest/vmlinuz", initramfs="/run/barometer/guest.initramfs",
    cmdline="console=ttyS0", console_port=40001, ssh_port=40002, devices=("0000:01:00.0",),
    trace_events=("vfio_listener_region_add_ram",),
)  # fmt: skip
PAYLOAD = Disk(Path("/cache/payload.ext4"), "payload")
GOLDEN = {
    "host-tcg-ivshmem": host_xml(HOST),
    "host-kvm-testdev": host_xml(
        replace(HOST, accel="kvm", device="pci-testdev", viommu="virtio")
    ),
    "host-exact": host_xml(replace(HOST, accel="exact", cpus=1)),
    "guest-kvm": guest_xml(GUEST),
    "guest-tcg": guest_xml(replace(GUEST, kvm=False, trace_events=())),
    "guest-disk-ovmf": guest_xml(
        replace(
            GUEST,
            firmware="ovmf",
            kernel="",
            initramfs="",
            cmdline="",
            backing="hugetlb-2MiB",
            viommu="intel",
            phys_bits=46,
            mmap=False,
            devices=("0000:01:00.0", "0000:02:00.0"),
            disks=(Disk(Path("/run/barometer/system.raw"), "system"),),
            trace_log="/trace_marker",
        )
    ),
    "host-to-be-saved": host_xml(
        replace(HOST, accel="exact", cpus=1, reserve=64 * GIB, disks=(*HOST.disks, PAYLOAD))
    ),
    "host-two-devices": host_xml(replace(HOST, shm_names=("barometer-0", "barometer-1"))),
}


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


def found(document: ET.Element, path: str) -> ET.Element:
    element = document.find(path)
    assert element is not None, path
    return element


def arguments(document: ET.Element) -> list[str]:
    return [arg.get("value", "") for arg in document.iter(f"{{{QEMU_NAMESPACE}}}arg")]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_domain_is_the_golden_one(name: str) -> None:
    assert GOLDEN[name] == (DATA / f"{name}.xml").read_text()


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_domain_ends_instead_of_starting_again(name: str) -> None:
    domain = parsed(GOLDEN[name])
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        assert found(domain, event).text == "destroy"


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_network_of_a_domain_reaches_nothing(name: str) -> None:
    domain = parsed(GOLDEN[name])
    [network] = [arg for arg in arguments(domain) if arg.startswith("user,")]
    assert "restrict=on" in network
    assert "hostfwd=tcp:127.0.0.1:" in network
    assert domain.find(".//interface") is None


def test_host_gets_its_sizes_in_bytes_and_the_bar_in_mebibytes() -> None:
    domain = parsed(host_xml(HOST))
    memory, size = found(domain, "memory"), found(domain, "devices/shmem/size")
    assert (memory.text, memory.get("unit")) == (str(4 * GIB), "b")
    assert (size.text, size.get("unit")) == (str(32 * 1024), "M")


def test_disks_of_the_host_are_read_only_and_known_by_serial() -> None:
    disks = parsed(host_xml(HOST)).findall("devices/disk")
    assert [found(d, "serial").text for d in disks] == ["root", "modules"]
    assert [found(d, "target").get("dev") for d in disks] == ["vda", "vdb"]
    assert all(d.find("readonly") is not None for d in disks)


@pytest.mark.parametrize("viommu", ["intel", "virtio"])
def test_viommu_of_the_host_is_a_setting(viommu: Literal["intel", "virtio"]) -> None:
    spec = replace(HOST, viommu=viommu, viommu_aw_bits=39)
    iommu = found(parsed(host_xml(spec)), "devices/iommu")
    assert iommu.get("model") == viommu
    driver = iommu.find("driver")
    assert (driver.get("aw_bits") if driver is not None else None) == (
        "39" if viommu == "intel" else None
    )


def test_device_of_the_host_is_alone_behind_its_root_port() -> None:
    domain = parsed(host_xml(HOST))
    ports = domain.findall("devices/controller[@model='pcie-root-port']")
    assert [p.get("index") for p in ports] == [
        str(BAR_BUS + n) for n in range(1 + len(HOST.disks))
    ]
    address = found(domain, "devices/shmem/address")
    assert int(address.get("bus", ""), 16) == BAR_BUS
    others = [a for a in domain.iter("address") if a is not address and a.get("type") == "pci"]
    assert all(int(a.get("bus", "0"), 16) != BAR_BUS for a in others)


def test_testdev_is_given_to_qemu_with_its_size_in_bytes() -> None:
    domain = parsed(host_xml(replace(HOST, device="pci-testdev")))
    device = json.loads(arguments(domain)[-1])
    assert device == {
        "driver": "pci-testdev", "membar": 32 * GIB, "bus": f"pci.{BAR_BUS}", "addr": "0x0",
    }  # fmt: skip
    assert domain.find("devices/shmem") is None


def test_kvm_host_is_no_emulated_one() -> None:
    domain = parsed(host_xml(replace(HOST, accel="kvm")))
    assert domain.get("type") == "kvm"
    assert found(domain, "cpu").get("mode") == "host-passthrough"
    assert domain.find("features/tcg") is None
    assert found(domain, "cpu/maxphysaddr").get("bits") == "46"


def test_exact_host_counts_its_instructions_and_skips_its_idle_time() -> None:
    domain = parsed(GOLDEN["host-exact"])
    words = arguments(domain)
    assert words[words.index("-icount") + 1] == "shift=0,sleep=off"
    clock = found(domain, "clock")
    # its clocks always begin at the same time, and follow its instructions
    assert (clock.get("offset"), clock.get("start")) == ("absolute", "1767225600")
    assert found(clock, "timer").attrib == {"name": "rtc", "track": "guest"}
    assert domain.get("type") == "qemu"
    assert found(domain, "vcpu").text == "1"


@pytest.mark.parametrize("name", sorted(GOLDEN.keys() - {"host-exact", "host-to-be-saved"}))
def test_only_an_exact_host_counts_its_instructions(name: str) -> None:
    domain = parsed(GOLDEN[name])
    assert "-icount" not in arguments(domain)
    assert domain.find("clock") is None


def test_exact_host_is_an_emulated_one_but_for_its_clock() -> None:
    exact, emulated = (parsed(host_xml(replace(HOST, accel=a))) for a in ("exact", "tcg"))
    for path in ("features", "cpu", "devices", "os"):
        assert ET.tostring(found(exact, path)) == ET.tostring(found(emulated, path))
    assert set(arguments(exact)) - set(arguments(emulated)) == {"-icount", "shift=0,sleep=off"}


def test_guest_gets_the_device_of_its_address() -> None:
    address = found(
        parsed(guest_xml(replace(GUEST, devices=("0001:a2:1f.7",)))), ".//source/address"
    )
    assert address.attrib == {
        "domain": "0x0001", "bus": "0xa2", "slot": "0x1f", "function": "0x7",
    }  # fmt: skip
    hostdev = found(parsed(guest_xml(GUEST)), "devices/hostdev")
    assert hostdev.get("managed") == "no"


def test_guest_has_its_ports_and_trace_events() -> None:
    domain = parsed(guest_xml(GUEST))
    assert found(domain, "devices/serial/source").get("service") == "40001"
    words = arguments(domain)
    assert any("hostfwd=tcp:127.0.0.1:40002-:22" in word for word in words)
    assert words[words.index("-trace") + 1] == "enable=vfio_listener_region_add_ram"
    assert "-trace" not in arguments(parsed(guest_xml(replace(GUEST, trace_events=()))))


TWO = replace(GUEST, devices=("0000:01:00.0", "0000:02:00.0"))


def buses(devices: list[ET.Element]) -> list[int]:
    return [int(found(d, "address[@type='pci']").get("bus", ""), 16) for d in devices]


def test_devices_of_a_guest_are_each_behind_a_root_port() -> None:
    domain = parsed(guest_xml(TWO))
    hostdevs = domain.findall("devices/hostdev")
    assert [found(d, "source/address").get("bus") for d in hostdevs] == ["0x01", "0x02"]
    assert buses(hostdevs) == [BAR_BUS, BAR_BUS + 1]
    assert [found(d, "alias").get("name") for d in hostdevs] == ["ua-bar1", "ua-bar2"]
    ports = domain.findall("devices/controller[@model='pcie-root-port']")
    assert [p.get("index") for p in ports] == ["1", "2"]


@pytest.mark.parametrize("kind", ["ivshmem", "pci-testdev"])
def test_devices_of_a_host_are_each_behind_a_root_port(
    kind: Literal["ivshmem", "pci-testdev"],
) -> None:
    domain = parsed(host_xml(replace(HOST, device=kind, shm_names=("a", "b"))))
    if kind == "ivshmem":
        shared = domain.findall("devices/shmem")
        assert [s.get("name") for s in shared] == ["a", "b"]
        assert buses(shared) == [1, 2]
    else:
        testdevs = [json.loads(a) for a in arguments(domain) if a.startswith("{")]
        assert [t["bus"] for t in testdevs] == ["pci.1", "pci.2"]
    assert buses(domain.findall("devices/disk")) == [3, 4]
    ports = domain.findall("devices/controller[@model='pcie-root-port']")
    assert [p.get("index") for p in ports] == ["1", "2", "3", "4"]


def overridden(domain: ET.Element) -> dict[str, dict[str, str]]:
    """Return alias -> the property that the domain sets in QEMU."""
    path = f"{{{QEMU_NAMESPACE}}}override/{{{QEMU_NAMESPACE}}}device"
    prop = f"{{{QEMU_NAMESPACE}}}frontend/{{{QEMU_NAMESPACE}}}property"
    return {d.get("alias", ""): found(d, prop).attrib for d in domain.findall(path)}


def test_bars_are_not_mapped_where_that_is_asked_for() -> None:
    no_mmap = {"name": "x-no-mmap", "type": "bool", "value": "true"}
    domain = parsed(guest_xml(replace(TWO, mmap=False)))
    assert overridden(domain) == {"ua-bar1": no_mmap, "ua-bar2": no_mmap}
    aliases = {found(d, "alias").get("name") for d in domain.findall("devices/hostdev")}
    assert aliases == set(overridden(domain))


def test_bars_are_mapped_else() -> None:
    assert overridden(parsed(guest_xml(TWO))) == {}


def test_guest_boots_by_seabios_unless_it_is_told_otherwise() -> None:
    assert parsed(guest_xml(GUEST)).find("os/loader") is None


def test_guest_with_ovmf_has_its_code_and_variables_of_its_own() -> None:
    domain = parsed(guest_xml(replace(GUEST, firmware="ovmf")))
    loader, nvram = found(domain, "os/loader"), found(domain, "os/nvram")
    assert loader.attrib == {"readonly": "yes", "type": "pflash"}
    assert loader.text == "/usr/share/OVMF/OVMF_CODE_4M.fd"
    assert nvram.get("template") == "/usr/share/OVMF/OVMF_VARS_4M.fd"
    assert nvram.text == "/run/barometer/guest-1.vars.fd"
    assert found(domain, "os/kernel").text == GUEST.kernel


def test_guest_without_a_kernel_boots_from_its_first_disk() -> None:
    disks = (Disk(Path("/a.raw"), "system"), Disk(Path("/b.raw"), "seed"))
    spec = replace(TWO, kernel="", initramfs="", cmdline="", disks=disks)
    domain = parsed(guest_xml(spec))
    assert [domain.find(f"os/{tag}") for tag in ("kernel", "initrd", "cmdline")] == [None] * 3
    found_disks = domain.findall("devices/disk")
    assert [found(d, "source").get("file") for d in found_disks] == ["/a.raw", "/b.raw"]
    orders = [d.find("boot") for d in found_disks]
    assert [o if o is None else o.get("order") for o in orders] == ["1", None]
    assert all(d.find("readonly") is not None for d in found_disks)
    # after the devices with a BAR, whose places do not depend on disks
    assert buses(found_disks) == [3, 4]


def test_disks_of_the_host_are_not_booted_from() -> None:
    assert parsed(host_xml(HOST)).find("devices/disk/boot") is None


@pytest.mark.parametrize(
    ("backing", "path", "attributes"),
    [
        ("memfd", "source", {"type": "memfd"}),
        ("hugetlb-2MiB", "hugepages/page", {"size": "2", "unit": "M"}),
        ("hugetlb-1GiB", "hugepages/page", {"size": "1", "unit": "G"}),
    ],
)
def test_memory_of_the_guest_is_what_is_asked_for(
    backing: Literal["memfd", "hugetlb-2MiB", "hugetlb-1GiB"], path: str,
    attributes: dict[str, str],
) -> None:  # fmt: skip
    domain = parsed(guest_xml(replace(GUEST, backing=backing)))
    assert found(domain, f"memoryBacking/{path}").attrib == attributes
    assert len(found(domain, "memoryBacking")) == 1


def test_memory_of_the_guest_is_anonymous_else() -> None:
    assert parsed(guest_xml(GUEST)).find("memoryBacking") is None


def test_iommu_of_the_guest_hears_of_each_mapping() -> None:
    domain = parsed(guest_xml(replace(GUEST, viommu="intel")))
    iommu = found(domain, "devices/iommu")
    assert iommu.get("model") == "intel"
    assert found(iommu, "driver").attrib == {
        "intremap": "on", "caching_mode": "on", "aw_bits": "48",
    }  # fmt: skip
    assert found(domain, "features/ioapic").get("driver") == "qemu"


def test_guest_has_no_iommu_else() -> None:
    domain = parsed(guest_xml(GUEST))
    assert domain.find("devices/iommu") is None
    assert domain.find("features/ioapic") is None


@pytest.mark.parametrize("kvm", [True, False])
def test_address_width_of_the_guest_can_be_set(kvm: bool) -> None:
    cpu = found(parsed(guest_xml(replace(GUEST, kvm=kvm, phys_bits=39))), "cpu/maxphysaddr")
    passed_through = {"mode": "passthrough", "limit": "39"}
    assert cpu.attrib == (passed_through if kvm else {"mode": "emulate", "bits": "39"})
    assert parsed(guest_xml(replace(GUEST, kvm=kvm))).find("cpu/maxphysaddr") is None


def test_events_of_qemu_go_where_they_are_asked_for() -> None:
    words = arguments(parsed(guest_xml(replace(GUEST, trace_log="/t/trace_marker"))))
    assert words[words.index("-D") + 1] == "/t/trace_marker"
    # QEMU prints the thread and the time before each event
    assert words[words.index("-msg") + 1] == "timestamp=on"
    assert "-D" not in arguments(parsed(guest_xml(GUEST)))


def test_words_that_are_special_in_xml_survive() -> None:
    cmdline = "a=\"<&>\" b='c'"
    domain = parsed(guest_xml(replace(GUEST, cmdline=cmdline)))
    assert found(domain, "os/cmdline").text == cmdline


@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_is_plugged_in_later_has_a_port_of_its_own(count: int) -> None:
    names = tuple(f"barometer-{n}" for n in range(count))
    spec = replace(HOST, shm_names=names, reserve=64 * GIB)
    domain = parsed(host_xml(spec))
    assert domain.find("devices/shmem") is None
    later = [parsed(shmem_xml(spec, n)) for n in range(count)] + [
        parsed(disk_xml(spec, Disk(Path(f"/{name}"), name), n))
        for n, name in enumerate(("keys", "arm-modules"))
    ]
    there = domain.findall("devices/disk")
    buses = [
        int(found(device, "address").get("bus", ""), 16) for device in (*there, *later)
    ]  # fmt: skip
    ports = domain.findall("devices/controller[@model='pcie-root-port']")
    assert sorted(buses) == [int(port.get("index", "")) for port in ports]
    targets = [d.get("dev") for device in (*there, *later) for d in device.iter("target")]
    assert len({*targets}) == len(targets) == len(there) + 2


def test_port_of_a_device_has_room_for_its_bar_before_it_is_plugged_in() -> None:
    domain = parsed(GOLDEN["host-to-be-saved"])
    overrides = domain.iter(f"{{{QEMU_NAMESPACE}}}device")
    values = {device.get("alias"): [*device.iter()][-1].attrib for device in overrides}
    assert values == {
        f"pci.{BAR_BUS}": {"name": "pref64-reserve", "type": "unsigned", "value": str(64 * GIB)}
    }
    # no kernel of barometer's own knows ACPI's way (guests/kernel/host.config)
    assert "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off" in arguments(domain)


def test_restored_host_differs_from_a_saved_one_by_where_its_state_is_from() -> None:
    saved = replace(HOST, accel="exact", cpus=1, reserve=64 * GIB)
    restored = parsed(host_xml(replace(saved, restored=True)))
    words = arguments(restored)
    assert words[words.index("-incoming") + 1] == "defer"
    console = found(restored, "devices/serial/source")
    # what the saved host printed is there already
    assert console.attrib.pop("append") == "on"
    for path in ("features", "cpu", "devices", "os", "clock"):
        assert ET.tostring(found(restored, path)) == ET.tostring(
            found(parsed(host_xml(saved)), path)
        )


if __name__ == "__main__":
    for name, text in GOLDEN.items():
        (DATA / f"{name}.xml").write_text(text)
