"""Make one small map of a device that is already bound to vfio-pci, and have the kernel count the
lookups of this map.

Nobody else may use the device, and no run of barometer's may be at work on the machine. The probe
binds nothing and loads no module. It traces in a tracefs instance of its own, and removes that
afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.bench.agents import agent_source, run_agent
from orchestrator.bench.answers import has_form
from orchestrator.bench.mapagent import gathered
from orchestrator.bench.passthrough import refusals
from orchestrator.bench.shell import Commands, Completed
from orchestrator.bench.staging import STATE
from orchestrator.bench.tracer import counts_spec
from orchestrator.errors import BarometerError, BenchError
from orchestrator.pci import Function, Survey
from orchestrator.scenario import MIB

_NAME = "barodoctor"
"""Name of the tracefs instance, and of the group of its events."""
_SECONDS = 60


def counted_map(machine: Commands, survey: Survey) -> dict[str, Any]:
    """Make the map and return its results for the evidence: {"address", "bytes", "lookups",
    "faults"}. Lookups and faults are histograms as the kernel prints them. If no map could be
    made, return {"why"} with the reason."""
    try:
        function = _spare(machine, survey)
        with has_form("what the machine answered to the probe", ""):
            return _counted(machine, function)
    except BarometerError as exc:
        return {"why": str(exc)}


def _spare(machine: Commands, survey: Survey) -> Function:
    if machine.run(["test", "-e", STATE], check=False).code == 0:
        raise BenchError(f"an experiment is at work on the machine, or left {STATE}")
    bound = [f for f in survey.functions.values() if f.driver == "vfio-pci"]
    free = [f for f in bound if f.largest_bar >= MIB and not refusals(survey, f.address)]
    if not free:
        raise BenchError("no device that nobody uses is bound to vfio-pci, with a BAR of 1 MiB")
    return max(free, key=lambda function: function.largest_bar)


def _counted(machine: Commands, function: Function) -> dict[str, Any]:
    fault = "vfio_pci_mmap_huge_fault"
    present = _agent(machine, "tracer", ["symbols", fault]).stdout
    armed = json.loads(_agent(machine, "tracer", ["arm"], _own(counts_spec(json.loads(present))))
                       .stdout)  # fmt: skip
    if not armed["armed"]:
        raise BenchError(f"the kernel takes no probes: {armed['why']}")
    try:
        # Without points the agent makes only its warm-up map, of 1 GiB at most. setarch -R
        # switches off address randomization. Otherwise the agent would do that by starting itself
        # again, which fails for a program that came from standard input.
        mapped = _agent(
            machine, "map", [function.address], {"points": [], "repeats": 0},
            before=["setarch", "-R"],
        )  # fmt: skip
        found = gathered(mapped.stdout.splitlines(), mapped.stderr)
        said = json.loads(_agent(machine, "tracer", ["finish", _NAME, _NAME]).stdout)
    finally:
        _agent(machine, "tracer", ["clear", _NAME, _NAME])
    files = said.get("files", {})
    return {"address": function.address, "bytes": found["points"][0]["bytes"],
            "lookups": files.get("hist-lookup.txt", ""),
            "faults": files.get("hist-fault.txt", "")}  # fmt: skip


def _own(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the specification with the probe's own names, so that it touches nothing of another
    tracer."""
    own: dict[str, Any] = json.loads(json.dumps(spec).replace(f"{spec['group']}/", f"{_NAME}/"))
    return own | {"instance": _NAME, "group": _NAME}


def _agent(
    machine: Commands,
    name: str,
    arguments: list[str],
    request: Mapping[str, Any] | None = None,
    before: Sequence[str] = (),
) -> Completed:
    # the map agent reports its errors in its output, so its exit code is not checked
    return run_agent(
        machine, agent_source(name), *arguments, before=before, timeout=_SECONDS,
        request=b"" if request is None else json.dumps(request).encode() + b"\n",
        check=name != "map", doing=f"running {name}.py {' '.join(arguments)}",
    )  # fmt: skip
