from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.qemu import (
    BarPlace,
    ConfigWrite,
    QemuEvent,
    Region,
    parse_bar_place,
    parse_config_write,
    parse_event,
    parse_region_added,
    parse_region_deleted,
)

READERS = (parse_config_write, parse_region_added, parse_region_deleted, parse_bar_place)


def event(text: str) -> QemuEvent:
    parsed = parse_event(f"351@1795397396.777687:{text}", 37.5)
    assert parsed is not None
    return parsed


def test_event_has_its_thread_and_both_times() -> None:
    assert event("vm_state_notify running 1 reason 9 (running)") == QemuEvent(
        "vm_state_notify", "running 1 reason 9 (running)", thread=351, wall=1795397396.777687,
        time=37.5,
    )  # fmt: skip


def test_event_may_have_nothing_to_say() -> None:
    assert event("vfio_reset").text == ""


def test_other_lines_are_no_events() -> None:
    events = [
        "", "barometer C 28 \"[    0.1] x\"", "qemu-system-x86_64: -device vfio-pci: no",
        "351@1795397396:vm_state_notify running 1", "2026-11-23 01:31:29.520+0000: shutting down",
        "-trace enable=vfio_attach_device \\",
    ]  # fmt: skip
    assert [parse_event(line) for line in events] == [None] * len(events)


def test_write_to_configuration_space_is_read() -> None:
    assert parse_config_write(
        event("pci_cfg_write mch 00:00.0 @0x90 <- 0x33333330")
    ) == ConfigWrite("mch", "00:00.0", 0x90, 0x33333330, thread=351, time=37.5)


def test_ports_and_bridges_are_bridges() -> None:
    def bridge(device: str) -> bool:
        write = parse_config_write(event(f"pci_cfg_write {device} 00:01.0 @0x4 <- 0x0"))
        assert write is not None
        return write.bridge

    for device in ("pcie-root-port", "x3130-upstream", "xio3130-downstream", "ioh3420",
                   "pci-bridge", "pcie-pci-bridge", "i82801b11-bridge"):  # fmt: skip
        assert bridge(device), device
    for device in ("mch", "vfio-pci", "ich9-ahci", "ICH9-LPC", "virtio-net-pci"):
        assert not bridge(device), device


def test_region_has_its_last_byte() -> None:
    added = event(
        "vfio_listener_region_add_ram region_add [ram] 0xe0000 - 0xfffff [0x7f8ae1420000]"
    )
    assert parse_region_added(added) == Region(0xE0000, 0x20000, 0x7F8AE1420000)
    assert parse_region_deleted(added) is None
    deleted = event("vfio_listener_region_del region_del 0xe0000 - 0xfffff")
    assert parse_region_deleted(deleted) == Region(0xE0000, 0x20000, None)
    assert parse_region_added(deleted) is None


def test_region_that_cannot_be_mapped_is_none_that_was_added() -> None:
    refused = event(
        'vfio_listener_region_add_no_dma_map Region "0000:01:00.0 BAR 0 mmaps[0]" 0xfe800000'
        " size=0x100 is not aligned to 0x1000 and cannot be mapped for DMA"
    )
    assert [read(refused) for read in READERS] == [None] * 4


def test_place_of_a_bar_has_a_name() -> None:
    place = parse_bar_place(
        event("pci_update_mappings_add vfio-pci 01:00.0 2,0x3fff80000000+0x40000000")
    )
    assert place == BarPlace("vfio-pci", "01:00.0", 2, 0x3FFF80000000, 0x40000000)
    assert place is not None
    assert place.name == "01:00.0 BAR 2"
    gone = event("pci_update_mappings_del vfio-pci 01:00.0 2,0x3fff80000000+0x40000000")
    assert parse_bar_place(gone) is None


def test_event_of_another_form_is_left_out() -> None:
    """Another version of QEMU may word its events differently."""
    for name in ("pci_cfg_write", "vfio_listener_region_add_ram", "vfio_listener_region_del",
                 "pci_update_mappings_add"):  # fmt: skip
        other = event(f"{name} something else")
        assert [read(other) for read in READERS] == [None] * 4


@given(st.text(max_size=100))
def test_any_text_is_an_event_or_none(text: str) -> None:
    for line in (text, f"351@1.5:{text}", f"351@1.5:pci_cfg_write {text}"):
        parsed = parse_event(line)
        if parsed is not None:
            for read in READERS:
                read(parsed)


@given(
    st.sampled_from(["vfio-pci", "pcie-root-port", "mch"]),
    st.from_regex(r"[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True),
    st.integers(0, 0xFFF), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_write_reads_back(device: str, address: str, offset: int, value: int) -> None:
    parsed = event(f"pci_cfg_write {device} {address} @{offset:#x} <- {value:#x}")
    assert parse_config_write(parsed) == ConfigWrite(device, address, offset, value, 351, 37.5)
