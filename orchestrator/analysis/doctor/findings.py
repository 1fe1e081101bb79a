"""Findings on what a machine can do, and on what is in the way, from evidence. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.analysis.doctor import checks_boot as boot
from orchestrator.analysis.doctor import checks_measurement as measurement
from orchestrator.analysis.doctor import checks_passthrough as passthrough
from orchestrator.analysis.doctor import checks_restore as restore
from orchestrator.analysis.doctor import checks_runner as runner
from orchestrator.analysis.doctor.abilities import ExaminedMachine
from orchestrator.analysis.doctor.finding import STATUSES, Finding, Needs, Use
from orchestrator.evidence.surveys.checkup_facts import CheckupFacts

Check = Callable[[ExaminedMachine, Needs], Iterator[Finding]]
CHECKS: dict[Use, tuple[Check, ...]] = {
    "nested": (
        runner.check_kvm, runner.check_nested_virtualisation, runner.check_qemu,
        runner.check_libvirt, runner.check_programs, runner.check_user_namespaces,
        runner.check_shared_memory, runner.check_memory, runner.check_disk,
        restore.check_restore, measurement.check_trace_clock, measurement.check_governor,
    ),
    "metal": (
        boot.check_root, boot.check_python, boot.check_lockdown, boot.check_boot_ways,
        boot.check_watchdog, boot.check_others, runner.check_kvm, runner.check_qemu,
        runner.check_firmware, runner.check_libvirt, passthrough.check_iommu,
        passthrough.check_superpages, passthrough.check_interrupt_remapping,
        passthrough.check_groups, passthrough.check_device, passthrough.check_large_bars,
        passthrough.check_address_bits, passthrough.check_limits, passthrough.check_vfio,
        measurement.check_series, measurement.check_huge_pages, measurement.check_gigantic_pages,
        measurement.check_tracing, measurement.check_profiling, measurement.check_symbols,
        measurement.check_trace_clock, measurement.check_governor, runner.check_memory,
        runner.check_disk,
    ),
}  # fmt: skip


def judge_machine(facts: CheckupFacts, needs: Needs) -> tuple[Finding, ...]:
    """Return the findings, the worst first."""
    machine = ExaminedMachine(facts)
    checks = dict.fromkeys(check for use in needs.uses for check in CHECKS[use])
    findings = [
        finding
        for check in checks
        for finding in check(machine, needs)
        if set(finding.uses) & set(needs.uses)
    ]
    return tuple(sorted(findings, key=lambda finding: STATUSES.index(finding.status)))


def select_problems(findings: tuple[Finding, ...], use: Use) -> tuple[Finding, ...]:
    """Return the problems that keep the machine from that use."""
    return tuple(f for f in findings if f.status == "problem" and use in f.uses)


def is_usable(findings: tuple[Finding, ...], needs: Needs) -> bool:
    """True if one of the required uses has nothing in its way."""
    return any(not select_problems(findings, use) for use in needs.uses)
