"""Names of metrics, and descriptions of a run, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import MetricComparison
from orchestrator.analysis.verdict.effect import (
    OF_BOOTS,
    OF_MAPS,
    OF_MAPS_IN_BOOTS,
    OF_UNMAPS_IN_BOOTS,
    Resolution,
)
from orchestrator.evidence.plan import Plan
from orchestrator.formats.units import format_size
from orchestrator.report.words.quantities import format_quantity, plural
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.machines import Device, Guest, HostSpec
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import Metric, is_emulated

TITLES: dict[Metric, str] = {
    "host_boot_seconds": "host boot to SSH",
    "guest_boot_cost": "guest boot to userspace",
    "guest_ssh_cost": "guest boot to SSH",
    "bar_maps_per_boot": "BAR maps until exit",
    "bar_unmaps_per_boot": "BAR unmaps until exit",
    "bar_map_cost": "one DMA map",
    "bar_unmap_cost": "one DMA unmap",
    "iommu_map_cost": "iommu_map in a map",
    "bar_map_cost_per_boot": "all maps until exit",
    "bar_unmap_cost_per_boot": "all unmaps until exit",
    "pfn_lookups_per_map": "page lookups in a map",
    "pfn_faults_per_map": "page faults in a map",
    "iova_lookups_per_unmap": "IOMMU walks in an unmap",
}
"""Title of every metric, in the order of a table."""
SOURCES: dict[Metric, str] = {
    "host_boot_seconds": "host",
    "guest_boot_cost": "plain",
    "guest_ssh_cost": "plain",
    "pfn_lookups_per_map": "counts",
    "pfn_faults_per_map": "counts",
    "iova_lookups_per_unmap": "counts",
}
"""The pass that a metric comes from, if that is not `timing`."""

_MOST_LEFT = 5
"""Trials whose changes of a shared host are listed."""


def describe_attempts(result: TrialResult) -> list[str]:
    """Return a text for each attempt that was repeated: why, and how the other arm's attempts
    beside it went: `guest-hang (undecided)`, `baseline beside it: succeeded`."""
    *_, last = result.attempts
    texts = []
    for attempt in result.repeated:
        how = attempt.reason or "succeeded"
        if attempt.charge == "undecided" and attempt.reason:
            how += " (undecided)"
        texts.append(how if attempt.arm == last.arm else f"{attempt.arm} beside it: {how}")
    return texts


def describe_left(results: Sequence[TrialResult]) -> Iterator[str]:
    """Yield a text for each trial that left its shared host changed, up to a limit."""
    leaving = [result for result in results if result.host_left]
    for result in leaving[:_MOST_LEFT]:
        first, *others = result.host_left
        more = f" (and {len(others)} more, in its manifest)" * bool(others)
        yield f"{result.name} left its host changed, so that the host was ended: {first}{more}"
    if (rest := len(leaving) - _MOST_LEFT) > 0:
        yield f"{plural(rest, 'other trial')} left the host changed, too."


def metric_title(metric: Metric) -> str:
    """Return the title of a metric with its point: `one DMA map (4GiB/2MiB/cold)`."""
    base, _, point = metric.partition("@")
    return TITLES[base] + f" ({point})" * bool(point)


def describe_device(device: Device, host: HostSpec) -> str:
    """Describe the device: `ivshmem, BAR 32GiB, intel vIOMMU`."""
    number = f"{device.count} x " * (device.count > 1)
    mapped = "" if device.mmap else ", no mmap"
    viommu = f", {host.viommu} vIOMMU" if host.viommu else ""
    return f"{number}{device.kind}, BAR {format_size(device.bar)}{mapped}{viommu}"


def describe_host(host: HostSpec, accel: str, reason: str) -> str:
    """Describe the host: `nested VM, 2 CPUs, accel kvm, ...`."""
    cpus = f", {plural(host.cpus, 'CPU')}" if host.cpus else ""
    return f"{host.name}{cpus}, accel {accel}, {reason}"


@dataclass(frozen=True)
class Setup:
    """What a run was made on, in words."""

    device: str
    host: str
    workload: tuple[str, str]
    """Kind of workload and its details: `guest`, `6.12.107+deb13, 512MiB`."""


def describe_setup(scenario: Scenario, plan: Plan) -> Setup:
    """Describe what a run was made on. `plan` is plan.json."""
    guest = None if scenario.workload == "map" else scenario.guest
    if guest is None or plan.guest_kernel is None:
        backend = {"type1": "type1 container", "iommufd": "iommufd"}[scenario.map.backend]
        workload = ("workload", f"map from the host's user space, {backend}")
    else:
        memory = format_size(guest.memory)
        workload = ("guest", f"{plan.guest_kernel.release}, {memory}{describe_guest(guest)}")
    return Setup(
        describe_device(scenario.device, scenario.host),
        describe_host(scenario.host, plan.accel, plan.accel_reason),
        workload,
    )


def explain_resolution(workload: Workload) -> str:
    """Explain when two instruction counts are the same number."""

    def within(resolution: Resolution) -> str:
        return (
            f"{100 * (resolution.ratio - 1):.2g}% or {format_quantity(resolution.ginsn, 'Ginsn')}"
        )

    if workload == "map":
        which = within(OF_MAPS)
    else:
        which = (
            f"{within(OF_BOOTS)} for a boot, {within(OF_MAPS_IN_BOOTS)} for its maps,"
            f" {within(OF_UNMAPS_IN_BOOTS)} for its unmaps"
        )
    return f"Instruction counts are the same if they differ by at most {which}, whichever is more."


def describe_guest(guest: Guest) -> str:
    """Return the guest's settings that are not the defaults."""
    texts = {
        "firmware": f", {guest.firmware}",
        "boot": f", booted from a {guest.boot}",
        "backing": f", memory {guest.backing}",
        "viommu": f", {guest.viommu} vIOMMU",
        "backend": f", by {guest.backend}",
        "phys_bits": f", {guest.phys_bits} address bits",
    }
    usual = Guest.model_fields
    return "".join(
        text for key, text in texts.items() if getattr(guest, key) != usual[key].default
    )


def cost_label(metric: MetricComparison, accel: str, guest_accels: Set[str]) -> str:
    """Return what follows a metric's values: ` (instructions)`, ` (emulated)`, or nothing if the
    time is real hardware's."""
    if metric.unit == "Ginsn":
        return " (instructions)"
    by_guest = metric.name.startswith("guest_") and "tcg" in guest_accels
    return " (emulated)" * (metric.unit == "s" and (is_emulated(accel) or by_guest))
