"""Make one small map of a device that is already bound to vfio-pci, and have the kernel count the
lookups of this map.

Nobody else may use the device, and no run of barometer's may be at work on the machine. The probe
binds nothing and loads no module. It traces in a tracefs instance of its own, and removes that
afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.checkup_facts import CountedMap, NoCountedMap
from orchestrator.formats.units import MIB
from orchestrator.machine.host.pci import Function, Survey
from orchestrator.machine.metal.passthrough import find_refusals
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.runner.agents import agent_source, run_agent
from orchestrator.machine.tracing.mapagent import collect_answers
from orchestrator.machine.tracing.probes import FAULT, FAULT_BEFORE, counts_spec
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.shell import Commands, Completed

_NAME = "barodoctor"
"""Name of the tracefs instance, and of the group of its events."""
_SECONDS = 60


def count_map(machine: Commands, survey: Survey) -> CountedMap | NoCountedMap:
    """Make the map and have the kernel count its lookups."""
    try:
        function = _find_spare(machine, survey)
        with parsing("what the machine answered to the probe", ""):
            return _count(machine, function)
    except BarometerError as exc:
        return NoCountedMap(why=str(exc))


def _find_spare(machine: Commands, survey: Survey) -> Function:
    if machine.run(["test", "-e", STATE], check=False).code == 0:
        raise BenchError(
            f"an experiment is at work on the machine, or left {STATE}", reason=Reason.UNFINISHED
        )
    bound = [f for f in survey.functions.values() if f.driver == "vfio-pci"]
    free = [f for f in bound if f.largest_bar >= MIB and not find_refusals(survey, f.address)]
    if not free:
        raise BenchError(
            "no device that nobody uses is bound to vfio-pci, with a BAR of 1 MiB",
            reason=Reason.DEVICE_MISSING,
        )
    return max(free, key=lambda function: function.largest_bar)


def _count(machine: Commands, function: Function) -> CountedMap:
    present = _agent(machine, "tracer", ["symbols", FAULT, FAULT_BEFORE]).stdout
    spec = _rename(counts_spec(json.loads(present)))
    armed = json.loads(_agent(machine, "tracer", ["arm"], spec).stdout)
    if not armed["armed"]:
        raise BenchError(
            f"the kernel takes no probes: {armed['why']}", reason=Reason.TRACER_REFUSED
        )
    try:
        # Without points the agent makes only its warm-up map, of 1 GiB at most. setarch -R
        # switches off address randomization. Otherwise the agent would do that by starting itself
        # again, which fails for a program that came from standard input.
        mapped = _agent(
            machine, "map", [function.address], {"points": [], "repeats": 0},
            before=["setarch", "-R"],
        )  # fmt: skip
        mapped_bytes = collect_answers(mapped.stdout.splitlines(), mapped.stderr)["points"][0][
            "bytes"
        ]
        tracer = json.loads(_agent(machine, "tracer", ["finish", _NAME, _NAME]).stdout)
    finally:
        _agent(machine, "tracer", ["clear", _NAME, _NAME])
    files = tracer.get("files", {})
    return CountedMap(
        address=function.address, bytes=mapped_bytes, lookups=files.get("hist-lookup.txt", ""),
        faults=files.get("hist-fault.txt", ""),
    )  # fmt: skip


def _rename(spec: Mapping[str, object]) -> dict[str, object]:
    """Return the specification with the probe's own names, so that it touches nothing of another
    tracer."""
    own: dict[str, object] = json.loads(json.dumps(spec).replace(f"{spec['group']}/", f"{_NAME}/"))
    return own | {"instance": _NAME, "group": _NAME}


def _agent(
    machine: Commands,
    name: str,
    arguments: list[str],
    request: Mapping[str, object] | None = None,
    before: Sequence[str] = (),
) -> Completed:
    # the map agent reports its errors in its output, so its exit code is not checked
    return run_agent(
        machine, agent_source(name), *arguments, before=before, timeout=_SECONDS,
        request=b"" if request is None else json.dumps(request).encode() + b"\n",
        check=name != "map", doing=f"running {name}.py {' '.join(arguments)}",
    )  # fmt: skip
