"""Collect evidence of what this machine or one over SSH can do. Judge and change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.surveys.checkup_facts import CheckupFacts, parse_checkup
from orchestrator.formats.units import GIB
from orchestrator.machine.checkup.probe import count_map
from orchestrator.machine.host.machine import AnyMachine
from orchestrator.machine.host.pci import Function, Survey
from orchestrator.machine.metal.keeper import Keeper
from orchestrator.machine.metal.passthrough import choose_function, find_refusals, survey_devices
from orchestrator.machine.runner.accel import find_kvm_problem
from orchestrator.machine.runner.agents import sent_agent
from orchestrator.machine.tracing.probes import FAULT, counts_spec, timing_spec
from orchestrator.machine.transport.answers import parsing
from orchestrator.scenario.machines import HostDevice

_SECONDS = 60
_GUEST_SECONDS = 4.0
"""Seconds for the tiny guest that shows whether KVM works. It needs about one second, and the
doctor should not take many. A machine that is itself emulated may need more."""
_NOT_FOUND = 127


def examine(
    machine: AnyMachine,
    programs: Sequence[str],
    versions: Sequence[str],
    folders: Mapping[str, Sequence[str]],
    device: HostDevice | None = None,
    *,
    metal: bool = True,
    guests: bool = True,
    probe: bool = False,
) -> CheckupFacts:
    """Return the answer of guests/agents/checkup.py and what is learned by other means.

    `folders`: the paths that each use needs space in. `device`: the scenario's, which is chosen as
    a run would choose it. `metal`: examine the devices, the kernel's functions, the keeper's boot
    methods and leases. `guests`: try KVM with a guest. `probe`: make one map
    (orchestrator.machine.checkup.probe).

    Raises BenchError if the machine cannot be examined at all, EvidenceError if its answer has a
    flaw.
    """
    request = {
        "symbols": list_traced_functions() if metal else {}, "programs": [*programs, *versions],
        "versions": [*versions], "folders": [p for paths in folders.values() for p in paths],
    }  # fmt: skip
    parts: list[Callable[[], dict[str, object]]] = [lambda: _checkup(machine, request)]
    if metal:
        parts.append(lambda: _survey(machine, device, probe=probe))
        parts.append(lambda: _ask_keeper(machine))
    if guests:
        parts.append(lambda: _try_kvm(machine))
    with ThreadPoolExecutor(len(parts)) as pool:
        answers = [pool.submit(part) for part in parts]
        facts = {name: fact for answer in answers for name, fact in answer.result().items()}
    facts |= machine.known_facts()
    facts["folder_uses"] = {use: [*paths] for use, paths in folders.items()}
    return parse_checkup(json.dumps(facts), "the checkup of the machine")


def list_traced_functions() -> dict[str, str]:
    """Return every function that a pass may probe, and its module; "" for the kernel proper."""
    specs = (timing_spec([GIB], boot=True, faults=True), counts_spec([FAULT]))
    modules: dict[str, str] = {}
    for spec in specs:
        for definition in spec.definitions:
            module, colon, name = definition.split()[1].rpartition(":")
            modules[name] = module if colon else ""
    return modules


def _checkup(machine: AnyMachine, request: Mapping[str, object]) -> dict[str, object]:
    completed = machine.run(
        sent_agent("checkup"), json.dumps(request), timeout=_SECONDS, check=False,
        doing="asking the machine what it can do",
    )  # fmt: skip
    if completed.code:
        missing = completed.code == _NOT_FOUND
        raise BenchError(
            "there is no python3" if missing else "the machine cannot be asked what it can do",
            evidence=completed.stderr[-1500:],
            hint="install Python 3.9 or later there" if missing else "",
            reason=Reason.NO_PYTHON if missing else Reason.CHECKUP,
        )
    with parsing("what the machine says of itself", completed.stdout):
        return dict(json.loads(completed.stdout))


def _survey(machine: AnyMachine, device: HostDevice | None, *, probe: bool) -> dict[str, object]:
    survey = survey_devices(machine.shell)
    facts: dict[str, object] = {"bars": _list_bars(survey)}
    if probe:
        facts["probe"] = count_map(machine, survey).to_json()
    if device is None:
        return facts
    try:
        return facts | {"device": {"chosen": choose_function(device, survey).address}}
    except BenchError as exc:
        why = {"why": exc.message, "evidence": exc.evidence.splitlines(), "hint": exc.hint}
        return facts | {"device": why}


def _try_kvm(machine: AnyMachine) -> dict[str, object]:
    try:
        return {"kvm": find_kvm_problem(machine.shell, _GUEST_SECONDS)}
    except TimeoutError:
        return {"kvm_silent": _GUEST_SECONDS}


def _ask_keeper(machine: AnyMachine) -> dict[str, object]:
    keeper = Keeper(lambda: machine.shell)
    try:
        return {"means": keeper.detect(), "leases": keeper.status()["leases"]}
    except BenchError as exc:
        return {"means": {"why": exc.message}}


def _list_bars(survey: Survey) -> list[dict[str, object]]:
    return [
        {"address": function.address, "index": index, "size": bar.size, "placed": bar.placed,
         "driver": function.driver or "",
         "growable": _find_largest_size(function, index),
         "refused": [f"{r.reason}: {r.text}" for r in find_refusals(survey, function.address)]}
        for function in survey.functions.values() if not function.is_bridge
        for index, bar in function.bars.items()
    ]  # fmt: skip


def _find_largest_size(function: Function, index: int) -> int | None:
    """Return the largest size in bytes that a BAR can be given; None if the function sleeps."""
    if function.facts.resizable is None:
        return None
    return max(function.resizable.get(index, ()), default=0)
