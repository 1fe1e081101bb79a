from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.surveys.checkup_facts import CountedMap, NoCountedMap
from orchestrator.machine.checkup import probe
from orchestrator.machine.checkup.probe import count_map
from orchestrator.machine.host.machine import FoundMachine
from orchestrator.machine.host.pci import Survey
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.runner.agents import run_agent, sent_agent
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.tracing.armer import ProbeSpec
from orchestrator.machine.tracing.probes import FAULT, FAULT_BEFORE
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Completed
from tests.unit.machines import RECORDED

FREE = "0000:3a:00.0"
"""Function of the GPU server."""
HIST = "{ ret: 512 } hitcount: 1\n\nTotals:\n    Hits: 1\n    Entries: 1\n    Dropped: 0\n"
MAPPED = '{"agent": {}}\n{"point": {"bytes": 1073741824}}\n{"sample": {}}\n{"end": true}\n'


class Machine(LocalMachine):
    """A machine with an answer for the map agent."""

    def __init__(self, *, mapped: str = MAPPED, state: bool = False) -> None:
        self.mapped, self.state = mapped, state
        self.functions = {FAULT, FAULT_BEFORE}
        """Fault handlers that the kernel has."""
        self.asked: list[str] = []
        self.refusal: BenchError | None = None
        self.specification: ProbeSpec | None = None

    def run(self, argv: Sequence[str] | str, *, stdin: bytes = b"", **_how: Any) -> Completed:
        if argv == ["test", "-e", STATE]:
            return Completed("", "", 0 if self.state else 1)
        assert [*argv[:2]] == ["setarch", "-R"]
        at = argv.index("-c")
        verb, length = argv[at + 3], int(argv[at + 2])
        assert stdin[:length] == (GUESTS / "agents/map.py").read_bytes()
        assert json.loads(stdin[length:])["points"] == []
        self.asked.append(verb)
        return Completed(self.mapped, "", 0)

    @contextlib.contextmanager
    def armed(self, shell: object, spec: ProbeSpec) -> Iterator[Machine]:
        assert shell is self
        if self.refusal:
            raise self.refusal
        self.specification = spec
        self.asked.append("arm")
        try:
            yield self
        finally:
            self.asked.append("clear")

    def files(self) -> dict[str, str]:
        self.asked.append("files")
        return {"hist-lookup.txt": HIST, "hist-fault.txt": ""}


def counted(
    machine: Machine, survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> CountedMap | NoCountedMap:
    monkeypatch.setattr(probe, "armed_probes", machine.armed)
    monkeypatch.setattr(
        probe, "find_functions", lambda _shell, names: [n for n in names if n in machine.functions]
    )
    return count_map(FoundMachine(machine), survey)


def server(driver: str) -> Survey:
    said = json.loads((RECORDED / "gpu-server.json").read_text())
    for facts in said["functions"]:
        if facts["address"] == FREE:
            facts["driver"] = driver
    return Survey.parse(json.dumps(said))


@pytest.fixture
def survey() -> Survey:
    return server("vfio-pci")


def test_a_map_is_counted_and_nothing_is_left(
    survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    assert counted(machine, survey, monkeypatch) == CountedMap(
        address=FREE, bytes=1 << 30, lookups=HIST, faults=""
    )
    assert machine.asked == ["arm", FREE, "files", "clear"]


def test_a_kernel_before_huge_pfnmaps_is_counted_by_its_own_handler(
    survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before v6.12 there is another fault handler; a probe of the later one would be refused."""
    machine = Machine()
    machine.functions = {FAULT_BEFORE}
    assert isinstance(counted(machine, survey, monkeypatch), CountedMap)
    assert machine.specification is not None
    assert FAULT_BEFORE in machine.specification.symbols
    assert FAULT not in machine.specification.symbols


def test_probes_have_names_of_their_own(survey: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes of an experiment must stay."""
    machine = Machine()
    counted(machine, survey, monkeypatch)
    spec = machine.specification
    assert spec is not None
    assert spec.instance == spec.group == "barodoctor"
    assert set(spec.triggers) >= {"barodoctor/lookup", "barodoctor/fault"}
    assert all(" " in line and ":barodoctor/" in line for line in spec.definitions)
    assert spec.modules == ()  # it loads none


REFUSED = BenchError("the probes cannot be armed: lockdown", reason=Reason.TRACER_REFUSED)


@pytest.mark.parametrize(
    ("machine", "refusal", "why", "asked"),
    [
        (Machine(state=True), None, f"or left {STATE}", []),
        (Machine(), REFUSED, "cannot be armed: lockdown", []),
        (Machine(mapped='{"refused": "not viable"}\n'), None, "not viable", ["clear"]),
        (Machine(mapped=""), None, "ended without its last word", ["clear"]),
        (Machine(mapped=MAPPED.replace("1073741824", '"all"')), None, "cannot be understood",
         ["clear"]),
    ],
)  # fmt: skip
def test_what_keeps_it_from_counting_is_said(
    machine: Machine, refusal: BenchError | None, why: str, asked: list[str], survey: Survey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine.refusal = refusal
    answer = counted(machine, survey, monkeypatch)
    assert isinstance(answer, NoCountedMap)
    assert why in answer.why
    assert machine.asked[-1:] == asked


def test_a_device_that_is_bound_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    answer = counted(machine, server("nvidia"), monkeypatch)
    assert isinstance(answer, NoCountedMap)
    assert "no device that nobody uses" in answer.why
    assert machine.asked == []


def test_agent_is_sent_with_what_it_is_asked() -> None:
    """It is the real agent, on this machine."""
    mapper = sent_agent("map").under("setarch", "-R")
    request = b'{"points": []}\n'
    refused = run_agent(LocalMachine(), mapper, "ffff:ff:1f.7", request=request, check=False)
    assert "ffff:ff:1f.7/iommu_group" in json.loads(refused.stdout)["refused"]
