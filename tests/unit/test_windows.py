"""Where firmware puts BARs, by its own sources, and what a scenario refuses for it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import ScenarioError
from orchestrator.formats.units import GIB, MIB, TIB
from orchestrator.formats.windows import (
    OVMF_SHARES,
    Firmware,
    Vendor,
    choose_placed,
    find_least_bits,
    find_port_window,
    find_window,
)
from tests.unit.scenarios import scenario

FIRMWARES: tuple[Firmware, ...] = ("seabios", "ovmf")
SIZES = st.integers(20, 40).map(lambda bit: 1 << bit)
DEVICES = st.lists(st.lists(SIZES, min_size=1, max_size=3), min_size=1, max_size=8)
MEMORY = st.sampled_from([GIB // 2, 4 * GIB, 64 * GIB, 1536 * GIB])


def test_a_ports_window_is_rounded_up_to_its_largest_bar() -> None:
    """A GPU with a BAR of 128 GiB and one of 32 MiB takes 256 GiB of the window."""
    assert find_port_window([128 * GIB, 32 * MIB]) == (256 * GIB, 128 * GIB)


@pytest.mark.parametrize(
    ("firmware", "bits", "memory", "start", "end"),
    [
        # pci_bios_map_devices(): at the top; no padding without memory above 4 GiB
        ("seabios", 39, GIB // 2, (1 << 39) - 32 * GIB, 1 << 39),
        # with such memory the window is padded to an eighth of the address space
        ("seabios", 39, 8 * GIB, (1 << 39) - 64 * GIB, 1 << 39),
        # PlatformDynamicMmioWindow(): the uppermost eighth, of 46 bits at most
        ("ovmf", 42, GIB // 2, (1 << 42) - (1 << 39), 1 << 42),
        ("ovmf", 48, GIB // 2, (1 << 46) - (1 << 43), 1 << 46),
        # 40 bits may be QEMU's default: 32 GiB above the memory
        ("ovmf", 40, 64 * GIB, 96 * GIB, 128 * GIB),
    ],
)
def test_windows_are_those_of_the_firmwares_sources(
    firmware: Firmware, bits: int, memory: int, start: int, end: int
) -> None:
    window = find_window(firmware, bits, memory, [[32 * GIB]])
    assert (window.start, window.end) == (start, end)


def test_ovmf_believes_bits_that_the_vendors_processors_have() -> None:
    vendors: tuple[Vendor, ...] = ("intel", "amd")
    sizes = {
        (bits, vendor): find_window("ovmf", bits, GIB, [], vendor=vendor).size
        for bits, vendor in itertools.product((39, 40), vendors)
    }
    assert sizes == {
        (39, "intel"): 64 * GIB, (39, "amd"): 32 * GIB,
        (40, "intel"): 32 * GIB, (40, "amd"): 128 * GIB,
    }  # fmt: skip


def test_eight_gpus_of_512_gib_and_a_nic_fit_since_the_window_is_a_quarter() -> None:
    """The case of edk2 pull request 12997: with 46 bits an eighth is not enough."""
    devices = [*([[512 * GIB, 64 * MIB, 32 * MIB]] * 8), [16 * MIB]]
    eighth, quarter = (
        sum(choose_placed(find_window("ovmf", 46, 512 * GIB, devices, share=share), devices))
        for share in OVMF_SHARES
    )
    assert eighth < len(devices)
    assert quarter == len(devices)


@given(st.sampled_from(FIRMWARES), DEVICES, MEMORY, st.sampled_from(OVMF_SHARES))
def test_what_is_said_to_do_does_and_one_bit_less_does_not(
    firmware: Firmware, devices: list[list[int]], memory: int, share: int
) -> None:
    least = find_least_bits(firmware, memory, devices, share=share)
    if least is None:
        return
    window = find_window(firmware, least, memory, devices, share=share)
    assert all(choose_placed(window, devices))
    assert window.end <= 1 << least
    less = find_window(firmware, least - 1, memory, devices, share=share)
    assert not all(choose_placed(less, devices))


@given(st.sampled_from(FIRMWARES), st.integers(32, 52), DEVICES, MEMORY)
def test_nothing_is_placed_beyond_the_address_space(
    firmware: Firmware, bits: int, devices: list[list[int]], memory: int
) -> None:
    window = find_window(firmware, bits, memory, devices)
    placed = choose_placed(window, devices)
    sizes = [find_port_window(bars)[0] for bars, has in zip(devices, placed, strict=True) if has]
    assert sum(sizes) <= window.size
    if memory < TIB and any(placed):
        assert window.start >= min(memory, 4 * GIB)


# what a scenario refuses before anything boots --------------------------------------------------


def test_bars_that_the_guests_bits_have_no_room_for_are_refused() -> None:
    with pytest.raises(ScenarioError, match="1 of 2 BARs of 32GiB") as caught:
        scenario("device.count=2", "guest.phys_bits=36")
    assert "37 bits would do" in str(caught.value)
    assert caught.value.exit_code == 2
    assert scenario("device.count=2", "guest.phys_bits=37").device.count == 2


def test_a_firmware_with_a_smaller_window_needs_more_bits() -> None:
    with pytest.raises(ScenarioError, match="41 bits would do"):
        scenario("device.count=2", "guest.phys_bits=37", "guest.firmware=ovmf")
