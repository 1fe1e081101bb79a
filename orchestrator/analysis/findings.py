"""Findings on what a machine can do, and on what is in the way, from evidence. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.analysis import booting, measuring, passing, running
from orchestrator.analysis.finding import STATUSES, Finding, Needs, Use
from orchestrator.analysis.machine import Machine

Check = Callable[[Machine, Needs], Iterator[Finding]]
CHECKS: dict[Use, tuple[Check, ...]] = {
    "nested": (
        running.kvm, running.nested_virtualisation, running.qemu, running.libvirt,
        running.programs, running.user_namespaces, running.shared_memory, running.memory,
        running.disk, measuring.clock, measuring.governor,
    ),
    "metal": (
        booting.root, booting.python, booting.lockdown, booting.ways, booting.watchdog,
        booting.others, running.kvm, running.qemu, running.firmware, running.libvirt,
        passing.iommu, passing.superpages, passing.interrupt_remapping, passing.groups,
        passing.device, passing.large_bars, passing.address_bits, passing.limits, passing.vfio,
        measuring.series, measuring.huge_pages, measuring.gigantic_pages, measuring.tracing,
        measuring.symbols, measuring.clock, measuring.governor, running.memory, running.disk,
    ),
}  # fmt: skip


def findings(raw: Mapping[str, Any], needs: Needs) -> tuple[Finding, ...]:
    """Return the findings, the worst first. `raw`: the evidence of orchestrator.bench.checkup."""
    machine = Machine(raw)
    checks = dict.fromkeys(check for use in needs.uses for check in CHECKS[use])
    found = [
        finding
        for check in checks
        for finding in check(machine, needs)
        if set(finding.uses) & set(needs.uses)
    ]
    return tuple(sorted(found, key=lambda finding: STATUSES.index(finding.status)))


def in_the_way(found: tuple[Finding, ...], use: Use) -> tuple[Finding, ...]:
    """Return the problems that keep the machine from that use."""
    return tuple(f for f in found if f.status == "problem" and use in f.uses)


def usable(found: tuple[Finding, ...], needs: Needs) -> bool:
    """True if one of the required uses has nothing in its way."""
    return any(not in_the_way(found, use) for use in needs.uses)
