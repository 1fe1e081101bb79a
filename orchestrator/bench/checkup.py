"""Collect evidence of what this machine or one over SSH can do. Judge and change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.bench.accel import kvm_problem
from orchestrator.bench.agents import agent_source, run_agent
from orchestrator.bench.answers import has_form
from orchestrator.bench.hypervisor import library_version
from orchestrator.bench.keeper import Keeper
from orchestrator.bench.local import LocalMachine
from orchestrator.bench.passthrough import chosen, refusals, surveyed
from orchestrator.bench.probe import counted_map
from orchestrator.bench.shell import Commands
from orchestrator.bench.tracer import FAULT, counts_spec, timing_spec
from orchestrator.errors import BenchError
from orchestrator.pci import Survey
from orchestrator.scenario import GIB, HostDevice

_SECONDS = 60
_GUEST_SECONDS = 4.0
"""Seconds for the tiny guest that shows whether KVM works. It needs about one second, and the
doctor should not take many. A machine that is itself emulated may need more."""
_NOT_FOUND = 127


def evidence(
    machine: Commands,
    programs: Sequence[str],
    versions: Sequence[str],
    folders: Mapping[str, Sequence[str]],
    device: HostDevice | None = None,
    *,
    metal: bool = True,
    guests: bool = True,
    probe: bool = False,
) -> dict[str, Any]:
    """Return the answer of guests/agents/checkup.py, with these keys added:

    probe         with `probe`: the result of orchestrator.bench.probe.counted_map
    kvm           why KVM runs no guest there, null if it does; absent without `guests`
    kvm_silent    in place of `kvm` if that is unknown: seconds for which a guest was silent
    libvirt       version of this machine's library, if `machine` is this one
    bars          memory BARs: address, index, size, placed, driver, refused, growable
    means         the result of Keeper.detect, or {"why"}: the reason why there is none
    leases        `leases` of Keeper.status
    device        for a hostdev `device`: {"chosen": ADDRESS} or {"why", "evidence", "hint"}
    folder_uses   `folders`: the paths that each use needs room in

    Without `metal` the machine's devices and its kernel's functions are left out.
    Raises BenchError if the machine cannot be examined at all.
    """
    request = {
        "symbols": traced_functions() if metal else {}, "programs": [*programs, *versions],
        "versions": [*versions], "folders": [p for paths in folders.values() for p in paths],
    }  # fmt: skip
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "checkup": lambda: _checkup(machine, request),
    }
    if metal:
        parts["survey"] = lambda: _devices(machine, device, probe=probe)
        parts["keeper"] = lambda: _keeper(machine)
    if guests:
        parts["kvm"] = lambda: _kvm(machine)
    with ThreadPoolExecutor(len(parts)) as pool:
        asked = [pool.submit(part) for part in parts.values()]
        said = {name: value for one in asked for name, value in one.result().items()}
    here = {"libvirt": library_version()} if isinstance(machine, LocalMachine) else {}
    return said | here | {"folder_uses": {use: [*paths] for use, paths in folders.items()}}


def traced_functions() -> dict[str, str]:
    """Return every function that a pass may probe, and its module; "" for the kernel proper."""
    specs = (timing_spec([GIB], boot=True, faults=True), counts_spec([FAULT]))
    found: dict[str, str] = {}
    for spec in specs:
        for definition in spec["definitions"]:
            module, colon, name = definition.split()[1].rpartition(":")
            found[name] = module if colon else ""
    return found


def _checkup(machine: Commands, request: Mapping[str, Any]) -> dict[str, Any]:
    done = run_agent(
        machine, agent_source("checkup"), json.dumps(request), timeout=_SECONDS, check=False,
        doing="asking the machine what it can do",
    )  # fmt: skip
    if done.code:
        missing = done.code == _NOT_FOUND
        raise BenchError(
            "there is no python3" if missing else "the machine cannot be asked what it can do",
            evidence=done.stderr[-1500:],
            hint="install Python 3.9 or later there" if missing else "",
            reason="no-python" if missing else "checkup",
        )
    with has_form("what the machine says of itself", done.stdout):
        return dict(json.loads(done.stdout))


def _devices(machine: Commands, device: HostDevice | None, *, probe: bool) -> dict[str, Any]:
    survey = surveyed(machine)
    found: dict[str, Any] = {"bars": _bars(survey)}
    if probe:
        found["probe"] = counted_map(machine, survey)
    if device is None:
        return found
    try:
        return found | {"device": {"chosen": chosen(device, survey).address}}
    except BenchError as exc:
        why = {"why": exc.message, "evidence": exc.evidence.splitlines(), "hint": exc.hint}
        return found | {"device": why}


def _kvm(machine: Commands) -> dict[str, Any]:
    try:
        return {"kvm": kvm_problem(machine, _GUEST_SECONDS)}
    except TimeoutError:
        return {"kvm_silent": _GUEST_SECONDS}


def _keeper(machine: Commands) -> dict[str, Any]:
    keeper = Keeper(lambda: machine)
    try:
        return {"means": keeper.detect(), "leases": keeper.status()["leases"]}
    except BenchError as exc:
        return {"means": {"why": exc.message}}


def _bars(survey: Survey) -> list[dict[str, Any]]:
    return [
        {"address": function.address, "index": index, "size": bar.size, "placed": bar.placed,
         "driver": function.driver or "",
         "growable": max(function.resizable.get(index, ()), default=0),
         "refused": [f"{r.reason}: {r.text}" for r in refusals(survey, function.address)]}
        for function in survey.functions.values() if not function.is_bridge
        for index, bar in function.bars.items()
    ]  # fmt: skip
