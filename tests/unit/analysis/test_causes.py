from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.causes import UNKNOWN, Causes
from orchestrator.analysis.boot.qemu import ConfigWrite
from orchestrator.analysis.boot.timeline import RAM
from orchestrator.analysis.tracefs.trace import Operation
from tests.unit.analysis.boots import BAR_2, MAIN, VCPU, Guest, recorded_timeline

DEVICE, BRIDGE = "01:00.0", "00:01.0"
COMMAND, ROM, BRIDGE_ROM = 0x04, 0x30, 0x38
OFF, ON = 0x100, 0x103
BAR_0, BAR_1, BAR_3, BAR_4, BAR_5 = 0x10, 0x14, 0x1C, 0x20, 0x24
BAR_2_LOW = 0x18
SIZING = [
    "enabling",
    "sizing BAR 0 of bridge 00:01.0", "sizing BAR 1 of bridge 00:01.0",
    "sizing ROM of bridge 00:01.0", "sizing the window of bridge 00:01.0",
    "sizing BAR 0", "sizing BAR 1", "sizing BAR 2", "sizing BAR 4", "sizing BAR 5", "sizing ROM",
    "setting the window of bridge 00:01.0",
]  # fmt: skip


def causes(guest: Guest) -> Causes:
    return Causes(guest.events, guest.writes, ())


def enabled(*addresses: str) -> Guest:
    """Make a guest whose firmware has switched memory decoding on."""
    guest = Guest()
    for address in addresses or (DEVICE,):
        guest.write(address, COMMAND, ON)
    return guest


def linux_sizes(guest: Guest, address: str = DEVICE) -> tuple[float, float]:
    """Size the BARs as Linux does since "PCI: Batch BAR sizing operations" (v6.14): decoding goes
    off and on once. Return both times."""
    off = guest.write(address, COMMAND, OFF)
    for offset, value in ((BAR_0, 0xFE800000), (BAR_1, 0), (BAR_2_LOW, 0x8000000C),
                          (BAR_3, 0x3FFF), (BAR_4, 0), (BAR_5, 0), (ROM, 0)):  # fmt: skip
        guest.size(address, offset, value)
    return off, guest.write(address, COMMAND, ON)


@pytest.mark.parametrize(("number", "cause"), [*enumerate(SIZING)])
def test_every_map_of_the_recorded_boot_has_its_cause(number: int, cause: str) -> None:
    steps = [s for s in recorded_timeline().steps if s.bar == BAR_2 and s.kind == "map"]
    assert len(steps) == len(SIZING)
    assert steps[number].cause == cause


def test_every_unmap_of_the_recorded_boot_has_the_cause_of_the_map_after_it() -> None:
    steps = [s for s in recorded_timeline().steps if s.bar == BAR_2]
    assert [s.cause for s in steps if s.kind == "unmap"] == [*SIZING[1:], "exit"]


def test_every_map_of_ram_in_the_recorded_boot_has_its_cause() -> None:
    steps = [s for s in recorded_timeline().steps if s.bar == RAM]
    assert {s.cause for s in steps} == {
        "device attached", "device reset", "shadowing the firmware (PAM)", "exit",
    }  # fmt: skip


def test_page_tables_of_the_recorded_boot_were_torn_down_for_the_same_reasons() -> None:
    assert [zap.cause for zap in recorded_timeline().zaps] == [
        "device reset",
        *[f"{cause} of 01:00.0" for cause in SIZING[5:11]],
    ]


def test_kernel_that_sizes_all_bars_at_once_has_one_cause() -> None:
    guest = enabled()
    off, on = linux_sizes(guest)
    for at in (off, on):
        assert causes(guest).at(VCPU, at, BAR_2) == "sizing BARs 0, 1, 2, 4, 5 and ROM"


def test_bar_that_is_written_while_decoding_is_off_was_moved() -> None:
    guest = enabled()
    off = guest.write(DEVICE, COMMAND, OFF)
    guest.write(DEVICE, BAR_2_LOW, 0xC)
    guest.write(DEVICE, BAR_3, 0x3800)
    on = guest.write(DEVICE, COMMAND, ON)
    for at in (off, on):
        assert causes(guest).at(VCPU, at, BAR_2) == "moving BAR 2"


def test_bar_that_was_sized_before_can_be_moved_later() -> None:
    guest = enabled()
    linux_sizes(guest)
    off = guest.write(DEVICE, COMMAND, OFF)
    guest.write(DEVICE, BAR_0, 0xFEA00000)
    guest.write(DEVICE, COMMAND, ON)
    assert causes(guest).at(VCPU, off, f"{DEVICE} BAR 0") == "moving BAR 0"


def test_bar_that_is_written_while_decoding_is_on_is_moved_or_sized() -> None:
    guest = enabled()
    moved = guest.write(DEVICE, BAR_0, 0xFEA00000)
    sized = guest.write(DEVICE, BAR_0, 0xFFFFFFFF)
    undone = guest.write(DEVICE, BAR_0, 0xFEA00000)
    named = [causes(guest).at(VCPU, at, f"{DEVICE} BAR 0") for at in (moved, sized, undone)]
    assert named == ["moving BAR 0", "sizing BAR 0", "sizing BAR 0"]


def test_decoding_that_goes_off_for_good_is_switched_off() -> None:
    guest = enabled()
    off = guest.write(DEVICE, COMMAND, OFF)
    assert causes(guest).at(VCPU, off, BAR_2) == "disabling"


def test_decoding_that_goes_on_again_without_another_write_is_switched_on() -> None:
    guest = enabled()
    guest.write(DEVICE, COMMAND, OFF)
    on = guest.write(DEVICE, COMMAND, ON)
    assert causes(guest).at(VCPU, on, BAR_2) == "enabling"


def test_firmware_places_the_bars_before_it_switches_decoding_on() -> None:
    guest = Guest()
    guest.size(DEVICE, BAR_0, 0)
    guest.write(DEVICE, BAR_0, 0xFE800000)
    on = guest.write(DEVICE, COMMAND, ON)
    assert causes(guest).at(VCPU, on, f"{DEVICE} BAR 0") == "enabling"


def test_other_bits_of_the_command_register_are_no_move() -> None:
    guest = enabled()
    guest.write(DEVICE, BAR_0, 0xFE800000)
    master = guest.write(DEVICE, COMMAND, ON | 0x4)
    assert causes(guest).at(VCPU, master, f"{DEVICE} BAR 0") == "command register"


@pytest.mark.parametrize(
    ("offset", "value", "cause"),
    [
        (0x19, 0x1, "bus numbers"),
        (0x1C, 0xFFFF, "sizing the window"),
        (0x24, 0xBFF08000, "setting the window"),
        (0x28, 0xFFFFFFFF, "sizing the window"),
        (0x2C, 0x3FFF, "setting the window"),
        (0x3E, 0x2, "bridge control"),
        (0x10, 0xFEA00000, "moving BAR 0"),
        (0x38, 0xFFFFF800, "sizing ROM"),
        (0x70, 0x8, "configuration register 0x70"),
    ],
)
def test_what_is_written_to_a_bridge_is_said(offset: int, value: int, cause: str) -> None:
    guest = Guest()
    at = guest.to_bridge(BRIDGE, offset, value)
    assert causes(guest).at(VCPU, at, BAR_2) == f"{cause} of bridge 00:01.0"


def test_window_whose_all_ones_are_undone_is_sized() -> None:
    guest = Guest()
    guest.to_bridge(BRIDGE, 0x28, 0xFFFFFFFF)
    undone = guest.to_bridge(BRIDGE, 0x28, 0x3FFF)
    set_ = guest.to_bridge(BRIDGE, 0x28, 0x3800)
    named = [causes(guest).at(VCPU, at, BAR_2) for at in (undone, set_)]
    assert named == [
        "sizing the window of bridge 00:01.0", "setting the window of bridge 00:01.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "offset", "cause"),
    [
        ("mch", 0x90, "shadowing the firmware (PAM)"),
        ("mch", 0x96, "shadowing the firmware (PAM)"),
        ("i440FX", 0x59, "shadowing the firmware (PAM)"),
        ("mch", 0x60, "placing the PCIe configuration space"),
        ("mch", 0x9D, "system management memory"),
        ("mch", 0xA0, "configuration register 0xa0"),
    ],
)
def test_what_is_written_to_the_host_bridge_is_said(device: str, offset: int, cause: str) -> None:
    guest = Guest()
    at = guest.write("00:00.0", offset, 0x33, device)
    assert causes(guest).at(VCPU, at, RAM) == cause


def test_one_device_can_be_the_cause_for_another() -> None:
    other = "02:00.0"
    guest = enabled(DEVICE, other)
    off, _ = linux_sizes(guest, other)
    known = causes(guest)
    assert known.at(VCPU, off, f"{other} BAR 2") == "sizing BARs 0, 1, 2, 4, 5 and ROM"
    assert known.at(VCPU, off, BAR_2) == "sizing BARs 0, 1, 2, 4, 5 and ROM of 02:00.0"


def test_devices_are_sized_apart_even_when_their_writes_mix() -> None:
    guest = enabled("01:00.0", "02:00.0")
    first = guest.write("01:00.0", COMMAND, OFF)
    second = guest.write("02:00.0", COMMAND, OFF)
    guest.size("02:00.0", BAR_1, 0)
    guest.size("01:00.0", BAR_0, 0)
    guest.write("01:00.0", COMMAND, ON)
    guest.write("02:00.0", COMMAND, ON)
    known = causes(guest)
    assert known.at(VCPU, first, "01:00.0 BAR 2") == "sizing BAR 0"
    assert known.at(VCPU, second, "02:00.0 BAR 2") == "sizing BAR 1"


def test_function_is_told_from_one_whose_address_begins_alike() -> None:
    guest = Guest()
    at = guest.write("01:00.1", COMMAND, ON)
    assert causes(guest).at(VCPU, at, "01:00.1 BAR 2") == "enabling"
    assert causes(guest).at(VCPU, at, "01:00.10 BAR 2") == "enabling of 01:00.1"


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        ("vfio_attach_device", "device attached"),
        ("vfio_pci_reset", "device reset"),
        ("qemu_system_shutdown_request", "exit"),
        ("fw_cfg_select", UNKNOWN),
    ],
)
def test_what_qemu_does_of_itself_is_a_cause(event: str, cause: str) -> None:
    guest = enabled()
    at = guest.log(event)
    assert causes(guest).at(VCPU, at, BAR_2) == cause


def test_other_events_are_no_causes() -> None:
    guest = enabled()
    guest.log("pci_update_mappings_add")
    assert causes(guest).at(VCPU, guest.now, BAR_2) == "enabling"


def test_cause_is_sought_in_the_thread_of_the_operation() -> None:
    guest = enabled()
    guest.log("vfio_pci_reset", thread=MAIN)
    known = causes(guest)
    assert known.at(VCPU, guest.now, BAR_2) == "enabling"
    assert known.at(MAIN, guest.now, BAR_2) == "device reset"
    assert known.at(4711, guest.now, BAR_2) == UNKNOWN


def test_nothing_is_known_before_the_first_event() -> None:
    guest = enabled()
    assert causes(guest).at(VCPU, 0.0005, BAR_2) == UNKNOWN
    assert causes(guest).trigger(VCPU, 0.0005) is None


def test_cause_that_has_the_very_time_of_its_operation_is_found() -> None:
    guest = enabled()
    assert causes(guest).trigger(VCPU, guest.now) == guest.writes[-1]


def test_last_unmap_is_the_exit_whatever_was_written() -> None:
    guest = enabled()
    release = Operation("release", 1.0, 0.1, 0x1000, 4096, 0, pid=VCPU)
    assert causes(guest).of(release, BAR_2) == "exit"
    unmap = Operation("unmap", 1.0, 0.1, 0x1000, 4096, 0, pid=VCPU)
    assert causes(guest).of(unmap, BAR_2) == "enabling"


WRITES = st.builds(
    ConfigWrite,
    st.sampled_from(["vfio-pci", "pcie-root-port", "mch"]),
    st.sampled_from([DEVICE, BRIDGE, "00:00.0"]), st.integers(0, 0x70) | st.just(COMMAND),
    st.sampled_from([0, ON, OFF, 0xFFFFFFFF, 0xFFFF, 0x8000000C]) | st.integers(0, 2**32 - 1),
    st.just(VCPU), st.floats(0, 10),
)  # fmt: skip


@given(st.lists(WRITES, max_size=30), st.floats(0, 10))
def test_any_writes_have_one_cause_in_words(writes: list[ConfigWrite], at: float) -> None:
    known = Causes([], sorted(writes, key=lambda w: w.time), ())
    cause = known.at(VCPU, at, BAR_2)
    assert cause
    assert cause.split()[0] in {
        "not", "enabling", "disabling", "sizing", "moving", "setting", "bus", "bridge",
        "configuration", "shadowing", "placing", "system", "command",
    }  # fmt: skip
    assert (cause == UNKNOWN) == (known.trigger(VCPU, at) is None)
