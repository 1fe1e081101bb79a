"""Findings on what a machine can do, and on what is in the way, from evidence. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.analysis.doctor import checks_boot as boot
from orchestrator.analysis.doctor import checks_measurement as measurement
from orchestrator.analysis.doctor import checks_passthrough as passthrough
from orchestrator.analysis.doctor import checks_runner as runner
from orchestrator.analysis.doctor.abilities import ExaminedMachine
from orchestrator.analysis.doctor.finding import STATUSES, Finding, Needs, Use
from orchestrator.evidence.checkup_facts import CheckupFacts

Check = Callable[[ExaminedMachine, Needs], Iterator[Finding]]
CHECKS: dict[Use, tuple[Check, ...]] = {
    "nested": (
        runner.kvm, runner.nested_virtualisation, runner.qemu, runner.libvirt, runner.programs,
        runner.user_namespaces, runner.shared_memory, runner.memory, runner.disk,
        measurement.clock, measurement.governor,
    ),
    "metal": (
        boot.root, boot.python, boot.lockdown, boot.ways, boot.watchdog, boot.others,
        runner.kvm, runner.qemu, runner.firmware, runner.libvirt,
        passthrough.iommu, passthrough.superpages, passthrough.interrupt_remapping,
        passthrough.groups, passthrough.device, passthrough.large_bars, passthrough.address_bits,
        passthrough.limits, passthrough.vfio,
        measurement.series, measurement.huge_pages, measurement.gigantic_pages,
        measurement.tracing, measurement.symbols, measurement.clock, measurement.governor,
        runner.memory, runner.disk,
    ),
}  # fmt: skip


def judge_machine(facts: CheckupFacts, needs: Needs) -> tuple[Finding, ...]:
    """Return the findings, the worst first."""
    machine = ExaminedMachine(facts)
    checks = dict.fromkeys(check for use in needs.uses for check in CHECKS[use])
    found = [
        finding
        for check in checks
        for finding in check(machine, needs)
        if set(finding.uses) & set(needs.uses)
    ]
    return tuple(sorted(found, key=lambda finding: STATUSES.index(finding.status)))


def select_problems(found: tuple[Finding, ...], use: Use) -> tuple[Finding, ...]:
    """Return the problems that keep the machine from that use."""
    return tuple(f for f in found if f.status == "problem" and use in f.uses)


def is_usable(found: tuple[Finding, ...], needs: Needs) -> bool:
    """True if one of the required uses has nothing in its way."""
    return any(not select_problems(found, use) for use in needs.uses)
