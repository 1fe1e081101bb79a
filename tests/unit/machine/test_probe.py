from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.evidence.checkup_facts import CountedMap, NoCountedMap
from orchestrator.machine.checkup import probe
from orchestrator.machine.checkup.probe import count_map
from orchestrator.machine.host.pci import Survey
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Completed
from tests.unit.machines import RECORDED

FREE = "0000:3a:00.0"
"""Function of the GPU server."""
HIST = "{ ret: 512 } hitcount: 1\n\nTotals:\n    Hits: 1\n    Entries: 1\n    Dropped: 0\n"
MAPPED = '{"agent": {}}\n{"point": {"bytes": 1073741824}}\n{"sample": {}}\n{"end": true}\n'


class Machine(LocalMachine):
    """A machine with answers for the agents, which records their requests."""

    def __init__(self, *, armed: bool = True, mapped: str = MAPPED, state: bool = False) -> None:
        self.answers = {
            "symbols": '["vfio_pci_mmap_fault"]',
            "arm": json.dumps({"armed": armed, "why": "lockdown"}),
            "finish": json.dumps({"files": {"hist-lookup.txt": HIST}}), "clear": "", FREE: mapped,
        }  # fmt: skip
        self.state = state
        self.asked: list[str] = []
        self.specification: dict[str, Any] = {}

    def run(self, argv: Sequence[str] | str, *, stdin: bytes = b"", **_how: Any) -> Completed:
        if argv == ["test", "-e", STATE]:
            return Completed("", "", 0 if self.state else 1)
        at = argv.index("-c")
        verb, length = argv[at + 3], int(argv[at + 2])
        name = "map" if verb == FREE else "tracer"
        assert stdin[:length] == (GUESTS / f"agents/{name}.py").read_bytes()
        if verb == "arm":
            self.specification = json.loads(stdin[length:])
        self.asked.append(verb)
        return Completed(self.answers[verb], "", 0)


def server(driver: str) -> Survey:
    said = json.loads((RECORDED / "gpu-server.json").read_text())
    for facts in said["functions"]:
        if facts["address"] == FREE:
            facts["driver"] = driver
    return Survey.parse(json.dumps(said))


@pytest.fixture
def survey() -> Survey:
    return server("vfio-pci")


def test_a_map_is_counted_and_nothing_is_left(survey: Survey) -> None:
    machine = Machine()
    assert count_map(machine, survey) == CountedMap(
        address=FREE, bytes=1 << 30, lookups=HIST, faults=""
    )
    assert machine.asked == ["symbols", "arm", FREE, "finish", "clear"]


def test_probes_have_names_of_their_own(survey: Survey) -> None:
    """The probes of an experiment must stay."""
    machine = Machine()
    count_map(machine, survey)
    spec = machine.specification
    assert spec["instance"] == spec["group"] == "barodoctor"
    assert "barocount" not in json.dumps(spec)
    assert set(spec["triggers"]) >= {"barodoctor/lookup", "barodoctor/fault"}
    assert all(" " in line and ":barodoctor/" in line for line in spec["definitions"])


@pytest.mark.parametrize(
    ("machine", "why", "cleared"),
    [
        (Machine(state=True), f"or left {STATE}", False),
        (Machine(armed=False), "takes no probes: lockdown", False),
        (Machine(mapped='{"refused": "not viable"}\n'), "not viable", True),
        (Machine(mapped=""), "ended without its last word", True),
        (Machine(mapped=MAPPED.replace("1073741824", '"all"')), "cannot be understood", True),
    ],
)
def test_what_keeps_it_from_counting_is_said(
    machine: Machine, why: str, cleared: bool, survey: Survey
) -> None:
    answer = count_map(machine, survey)
    assert isinstance(answer, NoCountedMap)
    assert why in answer.why
    assert (machine.asked[-1:] == ["clear"]) == cleared


def test_a_device_that_is_bound_otherwise_is_left_alone() -> None:
    machine = Machine()
    answer = count_map(machine, server("nvidia"))
    assert isinstance(answer, NoCountedMap)
    assert "no device that nobody uses" in answer.why
    assert machine.asked == []


def test_agents_are_sent_with_what_they_are_asked() -> None:
    """These are the real agents, on this machine."""
    said = probe._agent(LocalMachine(), "tracer", ["symbols", "no_such_function"]).stdout
    assert json.loads(said) == []
    refused = probe._agent(
        LocalMachine(), "map", ["ffff:ff:1f.7"], {"points": []}, ["setarch", "-R"]
    )
    assert "ffff:ff:1f.7/iommu_group" in json.loads(refused.stdout)["refused"]


def test_an_agent_that_breaks_is_an_error() -> None:
    with pytest.raises(BenchError):
        probe._agent(LocalMachine(), "tracer", ["finish"])
