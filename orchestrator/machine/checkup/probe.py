"""Make one small map of a device that is already bound to vfio-pci, and have the kernel count the
lookups of this map.

Nobody else may use the device, and no run of barometer's may be at work on the machine. The probe
binds nothing and loads no module. It traces in a tracefs instance of its own, and removes that
afterwards.
"""

from __future__ import annotations

import json

from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.surveys.checkup_facts import CountedMap, NoCountedMap
from orchestrator.formats.units import MIB
from orchestrator.machine.host.changes import VFIO
from orchestrator.machine.host.machine import AnyMachine
from orchestrator.machine.host.pci import Function, Survey
from orchestrator.machine.metal.passthrough import find_refusals
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.runner.agents import sent_agent
from orchestrator.machine.tracing.armer import armed_probes, find_functions
from orchestrator.machine.tracing.mapagent import collect_answers
from orchestrator.machine.tracing.probes import FAULT, FAULT_BEFORE, counts_spec
from orchestrator.machine.transport.answers import parsing

_NAME = "barodoctor"
"""Name of the tracefs instance, and of the group of its events."""
_SECONDS = 60


def count_map(machine: AnyMachine, survey: Survey) -> CountedMap | NoCountedMap:
    """Make the map and have the kernel count its lookups."""
    try:
        function = _find_spare(machine, survey)
        with parsing("what the machine answered to the probe", ""):
            return _count(machine, function)
    except BarometerError as exc:
        return NoCountedMap(why=str(exc))


def _find_spare(machine: AnyMachine, survey: Survey) -> Function:
    if machine.shell.run(["test", "-e", STATE], check=False).code == 0:
        raise BenchError(
            f"an experiment is at work on the machine, or left {STATE}", reason=Reason.UNFINISHED
        )
    bound = [f for f in survey.functions.values() if f.driver == VFIO]
    free = [f for f in bound if f.largest_bar >= MIB and not find_refusals(survey, f.address)]
    if not free:
        raise BenchError(
            "no device that nobody uses is bound to vfio-pci, with a BAR of 1 MiB",
            reason=Reason.DEVICE_MISSING,
        )
    return max(free, key=lambda function: function.largest_bar)


def _count(machine: AnyMachine, function: Function) -> CountedMap:
    present = find_functions(machine.shell, [FAULT, FAULT_BEFORE])
    spec = counts_spec(present, instance=_NAME, group=_NAME)
    with armed_probes(machine.shell, spec) as armed:
        # Without points the agent makes only its warm-up map, of 1 GiB at most. setarch -R
        # switches off address randomization. Otherwise the agent would do that by starting itself
        # again, which fails for a program that came from standard input. It reports its errors in
        # its output.
        request = json.dumps({"points": [], "repeats": 0}).encode() + b"\n"
        mapped = machine.run(
            sent_agent("map").under("setarch", "-R"), function.address, request=request,
            timeout=_SECONDS, check=False, doing="making a map",
        )  # fmt: skip
        points = collect_answers(mapped.stdout.splitlines(), mapped.stderr)["points"]
        files = armed.files()
    return CountedMap(
        address=function.address, bytes=points[0]["bytes"], lookups=files["hist-lookup.txt"],
        faults=files["hist-fault.txt"],
    )  # fmt: skip
