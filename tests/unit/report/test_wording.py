from __future__ import annotations

import pytest

from orchestrator.report.words.wording import describe_device, describe_host
from orchestrator.scenario.model import Scenario
from tests.unit.scenarios import map_scenario, metal_scenario, scenario


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (metal_scenario(), "hostdev, BAR 1GiB"),
        (metal_scenario(
            "workload=guest-boot", "guest={kernel = {dir = 'g'}}", "device.mmap=false",
            'trace.passes=["plain"]',
        ), "hostdev, BAR 1GiB, no mmap"),
        (map_scenario(), "ivshmem, BAR 32GiB, intel vIOMMU"),
        (scenario("device.count=2"), "2 x ivshmem, BAR 32GiB, intel vIOMMU"),
    ],
)  # fmt: skip
def test_device_is_said_with_what_is_in_front_of_it(chosen: Scenario, expected: str) -> None:
    assert describe_device(chosen.device, chosen.host) == expected


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (metal_scenario(), "root@gpu1.lab, accel none, a real machine"),
        (scenario("host.cpus=2"), "nested VM, 2 CPUs, accel none, a real machine"),
        (scenario("host.cpus=1"), "nested VM, 1 CPU, accel none, a real machine"),
    ],
)
def test_metal_host_is_said_by_its_address(chosen: Scenario, expected: str) -> None:
    assert describe_host(chosen.host, "none", "a real machine") == expected
