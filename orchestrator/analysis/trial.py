"""One trial's evidence to a TrialResult: bad until proven good."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from orchestrator.analysis.hist import Histogram, parse_hist
from orchestrator.analysis.marks import parse_marks
from orchestrator.analysis.theory import pages
from orchestrator.analysis.trace import (
    Event,
    Operation,
    lost_events,
    missed_probes,
    operations,
    parse_trace,
    probe_hits,
)
from orchestrator.errors import EvidenceError
from orchestrator.evidence import TrialDir
from orchestrator.scenario import ArmName, Metric

UNITS: dict[Metric, str] = {
    "guest_boot_seconds": "s", "guest_ssh_seconds": "s", "host_boot_seconds": "s",
    "bar_map_seconds": "s", "bar_unmap_seconds": "s",
    "bar_maps_per_boot": "count", "bar_unmaps_per_boot": "count",
    "bar_map_seconds_per_boot": "s", "bar_unmap_seconds_per_boot": "s",
    "pfn_lookups_per_map": "count", "pfn_faults_per_map": "count", "iommu_map_seconds": "s",
}  # fmt: skip

# QEMU's trace event vfio_listener_region_add_ram: `region_add [ram] 0xSTART - 0xEND [HVA]`
_REGION_ADD = re.compile(r"region_add \[ram\] 0x([0-9a-f]+) - 0x([0-9a-f]+)")
# a line of /sys/bus/pci/devices/*/resource: `0xSTART 0xEND 0xFLAGS`
_RESOURCE = re.compile(r"(?m)^0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)$")
_VM_FAULT_NOPAGE = 0x100  # include/linux/mm_types.h: the fault installed a mapping
_IORESOURCE_UNSET = 0x20000000  # include/linux/ioport.h


@dataclass(frozen=True)
class TrialResult:
    name: str
    arm: ArmName
    kind: Literal["measured", "failed", "invalid"]
    reason: str = ""
    """Short stable name of what is wrong: guest-panic, lost-events, ..."""
    stage: str = ""
    message: str = ""
    evidence: str = ""
    guest_accel: str = ""
    """kvm or tcg; trials whose guests ran differently are not compared."""
    by_bench: bool = False
    """Invalid because the bench failed, not because of what the evidence says."""
    samples: dict[Metric, tuple[float, ...]] = field(default_factory=dict)

    def value(self, metric: Metric) -> float | None:
        """The trial's one value: a host boot is the unit, what repeats within it is reduced."""
        values = self.samples.get(metric)
        return median(values) if values else None


def read_result(trial: TrialDir) -> TrialResult:
    """Judge a trial. Never raises for what the evidence says: that is the result."""
    manifest = trial.manifest
    name, arm = manifest["trial"], manifest["arm"]
    outcome = manifest["outcome"]
    if outcome["kind"] in ("failed", "invalid"):
        return TrialResult(
            name, arm, outcome["kind"], outcome["reason"], outcome["stage"], outcome["message"],
            outcome["evidence"], by_bench=bool(outcome.get("by_bench")),
        )  # fmt: skip
    if outcome["kind"] != "collected":
        return TrialResult(name, arm, "invalid", "unfinished", message="collecting was cut short")
    try:
        if (changed := trial.verify()) is not None:
            raise EvidenceError(changed, reason="evidence-changed")
        samples = _measure(trial)
    except EvidenceError as exc:
        return TrialResult(name, arm, "invalid", exc.reason, message=exc.message,
                           evidence=exc.evidence)  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as exc:
        # evidence is data from outside: what does not have its form is bad evidence, not a bug
        message = f"the evidence does not have its form: {type(exc).__name__}: {exc}"
        return TrialResult(name, arm, "invalid", "bad-evidence", message=message)
    return TrialResult(
        name, arm, "measured", samples=samples, guest_accel=str(manifest.get("guest_accel"))
    )


def _measure(trial: TrialDir) -> dict[Metric, tuple[float, ...]]:
    manifest = trial.manifest
    if manifest.get("release") != manifest["kernel"]["release"]:
        raise EvidenceError(
            f"ran {manifest.get('release')}, planned {manifest['kernel']['release']}",
            reason="wrong-kernel",
        )
    samples: dict[Metric, list[float]] = {"host_boot_seconds": [manifest["host_boot_seconds"]]}
    for guest in manifest["guests"]:
        if guest["pass"] == "plain":
            _plain(trial, guest["index"], samples)
        else:
            _timing(trial, guest["index"], samples)
        _bar_placed(trial, guest["index"])
    if "counts" in manifest["passes"]:
        _counts(trial, samples)
    return {metric: tuple(values) for metric, values in samples.items() if values}


def _add(samples: dict[Metric, list[float]], metric: Metric, *values: float) -> None:
    samples.setdefault(metric, []).extend(values)


def _need(trial: TrialDir, name: str) -> str:
    text = trial.text(name)
    if text is None:
        raise EvidenceError(f"{name} is missing", reason="missing-evidence")
    return text


def _plain(trial: TrialDir, index: int, samples: dict[Metric, list[float]]) -> None:
    boot = parse_marks(_need(trial, f"guest-{index}/marks.txt"))
    if boot.boot_seconds is None or boot.ssh_seconds is None:
        raise EvidenceError(f"guest-{index} has no boot mark or no SSH mark", reason="no-mark")
    _add(samples, "guest_boot_seconds", boot.boot_seconds)
    _add(samples, "guest_ssh_seconds", boot.ssh_seconds)


def _timing(trial: TrialDir, index: int, samples: dict[Metric, list[float]]) -> None:
    bar, label = trial.manifest["bar"], f"guest-{index}"
    _tracer_complete(trial, label, clock="mono")
    events = list(parse_trace(_need(trial, f"host/trace-{label}.txt")))
    found = operations(events, bar)
    maps = [o for o in found if o.kind == "map"]
    unmaps = [o for o in found if o.kind in ("unmap", "release")]
    if not maps:
        raise EvidenceError(
            f"the BAR was never mapped while {label} booted",
            evidence=f"{len(events)} events in the trace", reason="bar-not-mapped",
        )  # fmt: skip
    _maps_agree(trial, label, maps, events, bar)
    if len(unmaps) != len(maps) or any(o.result != 0 for o in unmaps):
        raise EvidenceError(
            f"{len(maps)} maps of the BAR, {len(unmaps)} unmaps (with the release at exit), "
            f"results {sorted({o.result for o in unmaps})}",
            reason="unmaps-disagree",
        )
    _add(samples, "bar_map_seconds", *(o.seconds for o in maps))
    _add(samples, "bar_unmap_seconds", *(o.seconds for o in unmaps if o.kind == "unmap"))
    _add(
        samples,
        "iommu_map_seconds",
        *(o.iommu_seconds for o in maps if o.iommu_seconds is not None),
    )
    _add(samples, "bar_maps_per_boot", len(maps))
    _add(samples, "bar_unmaps_per_boot", len(unmaps))
    _add(samples, "bar_map_seconds_per_boot", round(sum(o.seconds for o in maps), 6))
    _add(samples, "bar_unmap_seconds_per_boot", round(sum(o.seconds for o in unmaps), 6))


def _tracer_complete(trial: TrialDir, label: str, clock: str) -> None:
    """Nothing lost, nothing missed, the clock that was asked for."""
    stats = _need(trial, f"host/stats-{label}.txt")
    profile = _need(trial, f"host/profile-{label}.txt")
    if "overrun:" not in stats or not probe_hits(profile):
        raise EvidenceError(f"the tracer's own account of {label} is empty",
                            reason="missing-evidence")  # fmt: skip
    lost = lost_events(stats)
    if lost:
        raise EvidenceError(f"the trace of {label} lost {lost} events", reason="lost-events")
    missed = missed_probes(profile)
    if missed:
        raise EvidenceError(
            f"probes missed hits in {label}: {', '.join(f'{n} {c}' for n, c in missed.items())}",
            reason="missed-probes",
        )
    if f"[{clock}]" not in _need(trial, f"host/clock-{label}.txt"):
        raise EvidenceError(f"the trace clock of {label} is not {clock}", reason="wrong-clock")


def _maps_agree(
    trial: TrialDir, label: str, maps: list[Operation], events: list[Event], bar: int
) -> None:
    """Every map succeeded and mapped the whole BAR; QEMU and the kernel's own tracepoint saw as
    many. A refused map does not fail the boot: QEMU warns once, and the boot is fast."""
    refused = [o for o in maps if o.result != 0]
    if refused:
        raise EvidenceError(
            f"{len(refused)} of {len(maps)} maps of the BAR were refused"
            f" (VFIO_IOMMU_MAP_DMA returned {refused[0].result})",
            reason="map-refused",
        )
    short = [o.pages for o in maps if o.pages not in (None, pages(bar))]
    if short:
        raise EvidenceError(
            f"vfio_pin_pages_remote returned {short[0]} pages for a BAR of {pages(bar)}",
            reason="partial-map",
        )
    by_iommu = sum(e.name == "map" and e.fields.get("size") == bar for e in events)
    regions = _REGION_ADD.findall(_need(trial, f"{label}/qemu.log"))
    by_qemu = sum(int(end, 16) - int(start, 16) + 1 == bar for start, end in regions)
    if not len(maps) == by_qemu == by_iommu:
        raise EvidenceError(
            f"the BAR was mapped {len(maps)} times by ioctl, {by_qemu} times by QEMU's account, "
            f"{by_iommu} times by the iommu:map tracepoint",
            reason="maps-disagree",
        )


def _bar_placed(trial: TrialDir, index: int) -> None:
    """The guest's kernel found the BAR in its place: without it a boot is fast, and broken."""
    bar = trial.manifest["bar"]
    for words in _RESOURCE.findall(_need(trial, f"guest-{index}/pci.txt")):
        start, end, flags = (int(word, 16) for word in words)
        if end - start + 1 == bar and start and not flags & _IORESOURCE_UNSET:
            return
    raise EvidenceError(f"guest-{index} booted without its BAR placed", reason="bar-not-placed")


def _counts(trial: TrialDir, samples: dict[Metric, list[float]]) -> None:
    _tracer_complete(trial, "counts", clock="mono")
    answer: Any = trial.json("map.json")
    if answer is None:
        raise EvidenceError("map.json is missing", reason="missing-evidence")
    bar, count = trial.manifest["bar"], len(answer["samples"])
    if not count:
        raise EvidenceError("map.json has no samples", reason="missing-evidence")
    if answer["bytes"] != bar:
        raise EvidenceError(
            f"the largest BAR found was {answer['bytes']} bytes, planned were {bar}",
            reason="wrong-bar",
        )
    hits = probe_hits(_need(trial, "host/profile-counts.txt"))
    tables = {
        "lookup": _histogram(trial, "lookup", hits),
        "fault": _histogram(trial, "fault", hits, ("ret",)),
        "pin": _histogram(trial, "pin", hits),
        "walk": _histogram(trial, "walk", hits),
    }
    looked_up = sum(keys[0] * n for keys, n in tables["lookup"].rows)
    pinned = sum(keys[0] * n for keys, n in tables["pin"].rows)
    if not looked_up == pinned == count * pages(bar):
        raise EvidenceError(
            f"{count} maps of {pages(bar)} pages: lookups covered {looked_up} pages, "
            f"vfio_pin_pages_remote returned {pinned}",
            reason="counts-disagree",
        )
    if any(s["unmapped_bytes"] != bar for s in answer["samples"]):
        raise EvidenceError("an unmap did not unmap the whole BAR", reason="partial-unmap")
    faults = sum(n for (_, result), n in tables["fault"].rows if result == _VM_FAULT_NOPAGE)
    _add(samples, "pfn_lookups_per_map", tables["lookup"].hits / count)
    _add(samples, "pfn_faults_per_map", faults / count)


def _histogram(
    trial: TrialDir, event: str, hits: dict[str, int], hex_keys: tuple[str, ...] = ()
) -> Histogram:
    table = parse_hist(_need(trial, f"host/hist-{event}.txt"), hex_keys)
    if table.dropped:
        raise EvidenceError(f"hist-{event}.txt dropped {table.dropped} hits", reason="lost-events")
    if hits.get(event) != table.hits:
        raise EvidenceError(
            f"{event}: the histogram has {table.hits} hits, the probe {hits.get(event)}",
            reason="counts-disagree",
        )
    return table
