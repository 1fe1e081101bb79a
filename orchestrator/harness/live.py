"""A live host of one arm, as tests use it: its shell and files, probes, maps, guest boots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.maps.level import Level
from orchestrator.analysis.tracefs.hist import parse_hist
from orchestrator.base.errors import BenchError, EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.facts import HostFacts
from orchestrator.harness.kernel_log import KernelLog
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import explained_by_the_host
from orchestrator.machine.tracing.mapagent import build_point_request, parse_answer
from orchestrator.machine.transport.shell import Completed, Dialogue
from orchestrator.run.holding import HeldHost, Mapped
from orchestrator.run.probing import RecordedProbes, counting_calls, tracing_calls
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ArmName

_ANSWER_SECONDS = 300.0
"""Longest wait for the map agent: one map of an unpatched kernel, emulated."""

_QUESTIONS = 3
"""What the map agent asks in each sample: before the map, before the unmap, after it."""


class CountedCalls:
    """Number of calls of a function while a block ran."""

    def __init__(self, recorded: RecordedProbes) -> None:
        self._recorded = recorded

    @property
    def number(self) -> int:
        """Raises EvidenceError if the block has not ended, or if hits were dropped."""
        if not self._recorded.files:
            raise EvidenceError(
                "calls are counted until the block ends", reason=Reason.MISSING_EVIDENCE
            )
        table = parse_hist(self._recorded.histogram("calls"))
        if table.dropped:
            raise EvidenceError(f"{table.dropped} hits were dropped", reason=Reason.LOST_EVENTS)
        return table.hits


class LiveHost:
    """The host of one arm: booted, proven, settled."""

    def __init__(self, held: HeldHost) -> None:
        self._held = held
        self._host = held.ready.host

    @property
    def arm(self) -> ArmName:
        return self._held.arm

    @property
    def release(self) -> str:
        """Release of the proven kernel."""
        return self._host.release

    @property
    def facts(self) -> HostFacts:
        return self._held.facts

    @property
    def log(self) -> KernelLog:
        return KernelLog(self._held.console())

    def run(self, command: Sequence[str] | str, *, check: bool = True,
            timeout: float = 120) -> Completed:  # fmt: skip
        """Run a program (a list) or a shell script (a text) as root. Raises BenchError if its exit
        code is not 0, unless `check` is off."""
        with explained_by_the_host(self._host):
            return self._host.shell.run(command, check=check, timeout=timeout)

    def sysfs(self, path: str, value: str | None = None) -> str:
        """Return the content of a file of /sys or /proc/sys; write `value` to it first. What it
        was comes back when the host is given back."""
        if value is not None:
            self._host.change.write(path, value)
        return self._host.shell.read(path).strip()

    def module_param(self, name: str, value: str | None = None) -> str:
        """Return a parameter of a loaded module, MODULE.NAME; write `value` to it first."""
        module, _, parameter = name.partition(".")
        folder = f"/sys/module/{module.replace('-', '_')}/parameters"
        return self.sysfs(f"{folder}/{parameter}", value)

    @contextmanager
    def counting(self, function: str) -> Iterator[CountedCalls]:
        """Count the calls of a kernel function, `NAME` or `MODULE:NAME`, while the block runs."""
        with counting_calls(self._host, function) as recorded:
            yield CountedCalls(recorded)

    @contextmanager
    def tracing(self, **probes: str) -> Iterator[RecordedProbes]:
        """Trace kernel functions while the block runs: event="FUNCTION arg=$arg2:u64"."""
        with tracing_calls(self._host, probes) as recorded:
            yield recorded

    def require_alive(self) -> None:
        """Raise ArmFailedError or BenchError if the host's kernel is broken or gone."""
        self._host.check()


@dataclass(frozen=True)
class MappedBar:
    """One map and unmap of the BAR. Costs are in `unit`: s, or Ginsn on an exact host."""

    unit: str
    map_cost: float
    unmap_cost: float
    lookups: int
    """Calls of vaddr_get_pfns."""
    faults: int
    walks: int
    """Calls of iommu_iova_to_phys in the unmap."""
    level: Level

    @classmethod
    def of(cls, mapped: Mapped, unit: str) -> MappedBar:
        counts = mapped.counted.counts
        if counts is None:
            raise EvidenceError("the map was not counted", reason=Reason.MISSING_EVIDENCE)
        return cls(
            unit, mapped.sample.map_seconds, mapped.sample.unmap_seconds,
            sum(counts.lookups.values()), counts.installed, counts.iova_walks, mapped.level,
        )  # fmt: skip


class HeldMapping:
    """The BAR while it is mapped for DMA."""

    def __init__(self, agent: Dialogue) -> None:
        self._agent = agent
        self.unmapped_bytes: int | None = None
        """Bytes that the kernel said it unmapped at the end of the block."""

    def toggle_decode(self) -> None:
        """Switch the device's memory decoding off and on: vfio-pci zaps the page tables of the
        BAR in every process."""
        self._agent.say("toggle")
        _expect(self._agent, "next")


class LiveBar:
    """The device's BAR on a live host."""

    def __init__(self, held: HeldHost, text: str, device: BoundDevice) -> None:
        """`text`: that of the scenario, whose points a map may replace."""
        self._held, self._text, self._device = held, text, device

    @property
    def size(self) -> int:
        """Bytes."""
        return self._device.bar_bytes

    @property
    def address(self) -> str:
        """Address of the PCI function."""
        return self._device.address

    def map(
        self, size: str = "full", *, alignment: str = "1GiB", state: str = "cold"
    ) -> MappedBar:
        """Map and unmap the BAR, or its first `size`, from the host's user space, as a trial does:
        untraced for the costs, and once more for the counts."""
        scenario = self._choose_point(size, alignment, state)
        (mapped,) = self._held.map(scenario, self._device)
        unit = "Ginsn" if self._held.ready.host.accel == "exact" else "s"
        return MappedBar.of(mapped, unit)

    @contextmanager
    def mapped(self, size: str = "full", *, alignment: str = "1GiB") -> Iterator[HeldMapping]:
        """Keep the BAR mapped for DMA while the block runs."""
        scenario = self._choose_point(size, alignment, "cold")
        host = self._held.ready.host
        request = build_point_request(
            scenario.map, scenario.points(), 1, exact=host.accel == "exact", step=True
        )
        with host.staying_agent("map", self.address) as staying:
            agent = staying.dialogue(_ANSWER_SECONDS)
            agent.say(json.dumps(request))
            _expect(agent, "agent")
            for _ in _expect(agent, "point")["order"]:  # the warm-up
                _answer_questions(agent, _QUESTIONS)
                _expect(agent, "sample")
            _expect(agent, "point")
            _answer_questions(agent, 1)  # it maps, and asks before it unmaps
            _expect(agent, "next")
            mapping = HeldMapping(agent)
            yield mapping
            agent.say("")
            _answer_questions(agent, 1)
            mapping.unmapped_bytes = int(_expect(agent, "sample")["unmapped_bytes"])
        host.check()

    def _choose_point(self, size: str, alignment: str, state: str) -> Scenario:
        """Return the scenario with one point. Raises ScenarioError if the BAR has no such one."""
        return parse_scenario(self._text, "bar.map", overrides=[
            "workload=map", f'map.sizes=["{size}"]', f'map.alignment=["{alignment}"]',
            f'map.state=["{state}"]', "map.repeats=1", 'trace.passes=["plain", "counts"]',
            "expect={}",
        ])[0]  # fmt: skip


def _expect(agent: Dialogue, kind: str) -> Any:
    """Return the agent's next answer. Raises BenchError if it is of another kind, and
    EvidenceError if the kernel refused the map."""
    line = next(agent, None)
    if line is None:
        raise BenchError("the map agent ended before its time", reason=Reason.MAP_SILENT)
    answered, value = parse_answer(line)
    if answered != kind:
        raise BenchError(
            f"the map agent answered {answered} in place of {kind}", reason=Reason.ANSWER_GARBLED
        )
    return value


def _answer_questions(agent: Dialogue, number: int) -> None:
    """Let the agent go on at each of its next questions."""
    for _ in range(number):
        _expect(agent, "next")
        agent.say("")


class LiveGuest:
    """The guest that owns the device."""

    def __init__(self, held: HeldHost) -> None:
        self._held = held

    def boot(self) -> Timeline:
        """Boot the guest once, traced, and shut it down."""
        return self._held.boot_guest()
