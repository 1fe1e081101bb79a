from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.formats.abi import IORESOURCE_UNSET
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.host.pci import Resource, Survey, parse_resources
from tests.unit.machines import LARGE, RECORDED, recorded

LINES = st.builds(Resource, *[st.integers(0, 2**64 - 1)] * 3)


def test_resource_has_a_size_and_a_place() -> None:
    [bar, empty] = parse_resources(
        [
            "0x0000381800000000 0x000038183fffffff 0x000000000014220c",
            "0x0000000000000000 0x0000000000000000 0x0000000000000000",
        ]
    )
    assert (bar.size, bar.placed, bar.is_memory) == (GIB, True, True)
    assert (empty.size, empty.placed, empty.is_memory) == (0, False, False)
    assert str(bar) == "1GiB at 0x381800000000 (64-bit, prefetchable)"


def test_resource_without_a_place_says_so() -> None:
    unset = Resource(0, 32 * GIB - 1, LARGE | IORESOURCE_UNSET)
    assert str(unset) == "32GiB not placed (64-bit, prefetchable)"


@given(st.lists(LINES, max_size=8))
def test_any_resources_read_back(resources: list[Resource]) -> None:
    written = [f"0x{r.start:016x} 0x{r.end:016x} 0x{r.flags:016x}" for r in resources]
    assert parse_resources(written) == resources


def test_function_has_its_bars() -> None:
    card = recorded("gpu-server").functions["0000:39:00.0"]
    assert {index: bar.size for index, bar in card.bars.items()} == {
        0: 64 * MIB, 1: 128 * GIB, 3: 32 * MIB,
    }  # fmt: skip
    assert card.largest_bar == 128 * GIB
    assert max(card.resizable[1]) == 128 * GIB
    assert str(card) == "0000:39:00.0 (10de:2bb5, BAR 1 of 128GiB, driver nvidia)"


def test_function_without_a_bar() -> None:
    port = recorded("gpu-server").functions["0000:38:00.0"]
    assert (port.bars, port.largest_bar, port.resizable) == ({}, 0, {})
    assert (port.is_bridge, port.only_leads_on) == (True, True)


def test_sleeping_device_has_no_known_sizes() -> None:
    assert recorded("laptop").functions["0000:02:00.0"].resizable == {}


def test_bridge_reaches_what_is_behind_it() -> None:
    survey = recorded("gpu-server")
    reached = survey.reached([survey.functions["0000:38:00.0"]])
    assert [device.address for device in reached] == [
        "0000:38:00.0", "0000:39:00.0", "0000:39:00.1",
    ]  # fmt: skip


def test_users_behind_several_bridges_come_once() -> None:
    survey = recorded("gpu-server")
    ports = [survey.functions[address] for address in ("0000:36:01.0", "0000:38:00.0")]
    assert [user.name for user in survey.users_of(ports)] == ["/dev/nvidia0"]


def test_group_of_a_function_without_one_is_itself() -> None:
    survey = recorded("without-iommu")
    card = survey.functions["0000:01:00.0"]
    assert survey.members(card) == [card]


def test_flaw_of_a_survey_is_named() -> None:
    survey = json.loads((RECORDED / "gpu-server.json").read_text())
    survey["functions"][3]["resource"] = ["0x0 0x0"]
    with pytest.raises(BenchError, match=r"functions\.3\.resource\.0: "):
        Survey.parse(json.dumps(survey))


@pytest.mark.parametrize("text", ["", "Welcome!\n{}", "{}", "[]", '{"functions": [{}]}', "1"])
def test_survey_that_cannot_be_read_is_the_benchs_failure(text: str) -> None:
    with pytest.raises(BenchError) as caught:
        Survey.parse(text)
    assert caught.value.reason == "survey-unreadable"
    assert caught.value.evidence == text
