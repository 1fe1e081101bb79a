from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.formats.abi import IORESOURCE_UNSET
from orchestrator.machine.host.device import (
    BoundDevice,
    bind_emulated,
    find_devices,
    parse_devices,
    read_host_facts,
)
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.pci import Resource
from orchestrator.machine.transport.shell import Completed
from orchestrator.scenario.machines import EmulatedDevice
from tests.unit.recorded import BAR, MEASURED, RUN

LISTED = (RUN / "trials" / MEASURED / "guest-1/pci.txt").read_text()
SPEC = EmulatedDevice.model_validate({"kind": "ivshmem", "bar": "1GiB"})
ADDRESSES = st.from_regex(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True)
LINES = st.builds(Resource, *[st.integers(0, 2**64 - 1)] * 3)


def written(resource: Resource) -> str:
    return f"0x{resource.start:016x} 0x{resource.end:016x} 0x{resource.flags:016x}"


def test_recorded_device_is_found_with_its_bar() -> None:
    [device] = find_devices(parse_devices(LISTED), SPEC)
    assert (device.address, device.bar_index) == ("0000:01:00.0", 2)
    assert (device.bar_start, device.bar_bytes) == (0x3FFF80000000, BAR)


@given(st.dictionaries(ADDRESSES, st.lists(LINES, min_size=1, max_size=7), max_size=5))
def test_any_devices_read_back(devices: dict[str, list[Resource]]) -> None:
    text = "".join(
        f"device {address} 0x1af4 0x1110 \n" + "".join(f"{written(r)}\n" for r in resources)
        for address, resources in devices.items()
    )
    assert parse_devices(text) == {a: ("0x1af4", "0x1110", r) for a, r in devices.items()}


def test_several_devices_are_found_in_the_order_of_their_addresses() -> None:
    moved = LISTED.replace("0000:01:00.0", "0000:02:00.0").replace("0x00003fff", "0x00003ffe")
    spec = SPEC.model_copy(update={"count": 2})
    found = find_devices(parse_devices(moved + LISTED), spec)
    assert [(d.address, d.bar_start) for d in found] == [
        ("0000:01:00.0", 0x3FFF80000000), ("0000:02:00.0", 0x3FFE80000000),
    ]  # fmt: skip


def test_one_device_of_several_that_is_missing_is_the_benchs_failure() -> None:
    spec = SPEC.model_copy(update={"count": 2})
    with pytest.raises(BenchError, match="expected 2 ivshmem on the host, found 1"):
        find_devices(parse_devices(LISTED), spec)


def test_no_device_is_the_benchs_failure() -> None:
    with pytest.raises(BenchError, match="expected 1 ivshmem on the host, found 0") as caught:
        find_devices(parse_devices(LISTED.replace("0x1110", "0x1111")), SPEC)
    assert caught.value.reason == "device-missing"
    assert "0000:01:00.0 0x1af4:0x1111" in caught.value.evidence


def test_two_devices_are_the_benchs_failure() -> None:
    with pytest.raises(BenchError, match="found 2"):
        find_devices(parse_devices(LISTED + LISTED.replace("0000:01:00.0", "0000:02:00.0")), SPEC)


class Binder:
    """Changes of a host on which the binder answers this."""

    def __init__(self, reason: Reason | None = None) -> None:
        self.reason = reason
        self.bound: list[str] = []

    def bind(self, addresses: list[str]) -> None:
        if self.reason is not None:
            raise BenchError("host: not taken", evidence="EINVAL", reason=self.reason)
        self.bound += addresses


def host_with(binder: Binder, listed: str = LISTED) -> Host:
    shell = SimpleNamespace(name="host", run=lambda *_, **__: Completed(listed, "", 0))
    return cast(Host, SimpleNamespace(shell=shell, change=binder))


def test_all_devices_are_bound_at_once() -> None:
    moved = LISTED.replace("0000:01:00.0", "0000:02:00.0")
    binder = Binder()
    found = bind_emulated(host_with(binder, LISTED + moved), SPEC.model_copy(update={"count": 2}))
    assert binder.bound == [d.address for d in found] == ["0000:01:00.0", "0000:02:00.0"]


@pytest.mark.parametrize(
    ("reason", "error"),
    [(Reason.BIND, ArmFailedError), (Reason.DRIVER_HANGS, ArmFailedError),
     (Reason.DECODE_ALWAYS_ON, ArmFailedError), (Reason.ANSWER_GARBLED, BenchError),
     (Reason.HOST_SSH_LOST, BenchError)],
)  # fmt: skip
def test_device_that_vfio_pci_does_not_take_is_the_kernels_or_undecided(
    reason: Reason, error: type[Exception]
) -> None:
    with pytest.raises((ArmFailedError, BenchError)) as caught:
        bind_emulated(host_with(Binder(reason)), SPEC)
    assert (type(caught.value), caught.value.reason) == (error, reason)
    assert caught.value.evidence == "EINVAL"


def test_other_kind_of_device_is_not_taken_for_it() -> None:
    with pytest.raises(BenchError, match="expected 1 pci-testdev"):
        find_devices(parse_devices(LISTED), EmulatedDevice.model_validate({"kind": "pci-testdev"}))


@pytest.mark.parametrize(
    "line",
    [
        "0x0000000000000000 0x000000003fffffff 0x000000000014220c",
        f"0x0000381800000000 0x000038183fffffff {IORESOURCE_UNSET | 0x14220C:#018x}",
    ],
)
def test_bar_that_was_not_placed_is_the_arms_failure(line: str) -> None:
    text = LISTED.replace("0x00003fff80000000 0x00003fffbfffffff 0x000000000014220c", line)
    assert text != LISTED
    with pytest.raises(ArmFailedError, match=r"did not place the 1GiB BAR of 0000:01:00\.0"):
        find_devices(parse_devices(text), SPEC)


def test_bar_of_another_size_is_the_arms_failure() -> None:
    with pytest.raises(ArmFailedError) as caught:
        find_devices(parse_devices(LISTED), EmulatedDevice.model_validate({"bar": "512MiB"}))
    assert caught.value.reason == "device-not-placed"
    assert "BAR 2: 0x3fff80000000-0x3fffbfffffff" in caught.value.evidence


def test_facts_are_the_machines_and_its_devices() -> None:
    asked: list[list[str]] = []

    def run_agent(*argv: str, doing: str, limit: int) -> Completed:
        asked.append([*argv])
        said: dict[str, Any] = {"cpus": 2}
        if argv[0] == "survey":
            said = {"functions": [{"address": address} for address in argv[1:]]}
        return Completed(json.dumps(said), "", 0)

    host = SimpleNamespace(run_agent=run_agent)
    devices = [BoundDevice(f"0000:0{n}:00.0", 2, 1 << 40, BAR) for n in (1, 2)]
    assert read_host_facts(cast(Host, host), devices) == {
        "cpus": 2, "device": {"address": "0000:01:00.0"},
        "devices": [{"address": "0000:01:00.0"}, {"address": "0000:02:00.0"}],
    }  # fmt: skip
    assert asked == [["facts"], ["survey", "0000:01:00.0", "0000:02:00.0"]]
