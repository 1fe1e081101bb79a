"""Diagnosis of this runner or of another machine: what it can do, and what is in the way."""

from __future__ import annotations

from pathlib import Path

from orchestrator.analysis.doctor.checks_runner import (
    DAEMONS,
    FOR_BUILDS,
    FOR_USERS,
    PROGRAMS,
    QEMU,
)
from orchestrator.analysis.doctor.finding import METAL, USES, Finding, Needs, derive_needs
from orchestrator.analysis.doctor.findings import judge_machine, select_problems
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, EvidenceError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason, find_reason
from orchestrator.evidence.surveys.checkup_facts import CheckupFacts
from orchestrator.machine.checkup.checkup import examine
from orchestrator.machine.host.machine import AnyMachine, FoundMachine, ThisMachine
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.transport import remote
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.report.text.doctor_text import Diagnosis
from orchestrator.scenario.machines import Device
from orchestrator.scenario.model import Scenario

HERE = "this machine"
_EXAMINED_AS = {
    Reason.NO_PYTHON: "python", Reason.CHECKUP: "checkup", Reason.BAD_EVIDENCE: "checkup"
}  # fmt: skip
"""Reason of an error while a machine is examined -> name of the finding."""


def diagnose(
    scenario: Scenario | None,
    address: str | None,
    ssh_config: Path | None,
    cache: Cache,
    *,
    probe: bool = False,
) -> Diagnosis:
    """Diagnose the machine at `address`, else the scenario's metal host, else this machine.

    `probe`: make one small map if a device is free for it. If the machine cannot be reached or
    examined, that is a finding. Raises ScenarioError if ssh does not accept the address or the
    configuration.
    """
    host = scenario.host if scenario else None
    if address is None and host is not None:
        address, ssh_config = host.address, host.ssh_config
    needs = derive_needs(scenario) if scenario else Needs(USES if address is None else METAL)
    name, device = (scenario.name, scenario.device) if scenario else ("", None)
    if address is None:
        return _diagnose(
            HERE, ThisMachine(LocalMachine()), name, device, needs, cache, probe=probe
        )
    endpoint = remote.resolve_address(address, ssh_config)
    try:
        with remote.logged_in(endpoint) as shell:
            machine = FoundMachine(shell)
            return _diagnose(address, machine, name, device, needs, cache, probe=probe)
    except (BenchError, EvidenceError) as exc:
        fix = exc.hint or f"ssh {address} must work without a question"
        lost = Finding(
            _EXAMINED_AS.get(exc.reason, "ssh"), "problem", exc.message,
            tuple(exc.evidence.splitlines()), fix,
        )  # fmt: skip
        return Diagnosis(address, "", name, needs, (lost,))


def preflight(
    scenario: Scenario, cache: Cache, progress: Progress, machine: AnyMachine | None = None
) -> None:
    """Diagnose, before a run, this machine, or the metal host `machine`. Warnings are reported
    through `progress`. KVM is not examined: the choice of the accelerator does that.

    Raises BenchError with everything that is in the way.
    """
    needs = derive_needs(scenario)
    facts = _examine(
        machine or ThisMachine(LocalMachine()), scenario.device, needs, cache, guests=False
    )
    # a metal host is examined under this run's own lease, which "experiment" would report
    findings = tuple(
        finding for finding in judge_machine(facts, needs)
        if machine is None or finding.name != "experiment"
    )  # fmt: skip
    for finding in findings:
        if finding.status == "warning":
            progress.note(f"{finding.name}: {finding.what}")
    bad = select_problems(findings, needs.uses[0])
    if bad:
        raise BenchError(
            f"the scenario {scenario.name} cannot run here: "
            + "; ".join(finding.what for finding in bad),
            evidence="\n".join(line for finding in bad for line in finding.evidence),
            hint="; ".join(dict.fromkeys(finding.fix for finding in bad))
            + ". `barometer doctor --scenario` says more",
            reason=find_reason(bad[0].name),
        )


def _diagnose(
    machine_name: str,
    machine: AnyMachine,
    scenario_name: str,
    device: Device | None,
    needs: Needs,
    cache: Cache,
    *,
    probe: bool,
) -> Diagnosis:
    """Diagnose a machine that can be reached. `scenario_name`: empty without a scenario."""
    facts = _examine(machine, device, needs, cache, probe=probe)
    system = f"Linux {facts.release}, {facts.architecture}"
    return Diagnosis(machine_name, system, scenario_name, needs, judge_machine(facts, needs))


def _examine(
    machine: AnyMachine, device: Device | None, needs: Needs, cache: Cache, **how: bool
) -> CheckupFacts:
    """Examine a machine for these needs. `device`: the scenario's, if it has one. `how`: arguments
    of `examine`."""
    folders: dict[str, list[str]] = {}
    if "nested" in needs.uses:
        folders["nested"] = [str(cache.root)]
    if metal := "metal" in needs.uses:
        folders["metal"] = [STATE]
    function = device if device is not None and device.kind == "hostdev" else None
    programs = [*PROGRAMS, *FOR_USERS, *FOR_BUILDS]
    return examine(machine, programs, (*QEMU, *DAEMONS), folders, function, metal=metal, **how)
