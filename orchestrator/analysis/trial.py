"""Judge one trial's evidence and return a TrialResult. A trial is bad until its evidence proves
that it is good."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median, median_low
from typing import Literal

from orchestrator.analysis.boot.boot import Traced, read_traced_boot
from orchestrator.analysis.boot.boottrace import BootTrace
from orchestrator.analysis.boot.marks import WatchedBoot, parse_marks
from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.conditions.conditions import collect_conditions
from orchestrator.analysis.maps.breakdown import Breakdown, check_sums, read_breakdowns
from orchestrator.analysis.maps.level import Level, find_guest_level, find_level
from orchestrator.analysis.maps.maps import EVENTS, MapPass, check_alike, check_counts, read_pass
from orchestrator.analysis.maps.theory import Mapping
from orchestrator.analysis.tracefs.completeness import (
    check_tracer_complete,
    read_needed,
    read_needed_facts,
    read_trace_clock,
)
from orchestrator.analysis.tracefs.hist import parse_hist
from orchestrator.analysis.tracefs.trace import (
    Operation,
    pair_operations,
    parse_probe_hits,
    parse_trace,
)
from orchestrator.base.bounded import cut_line, cut_message, quoted
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import Attempt, Charge
from orchestrator.evidence.layout import MANIFEST, TrialDir
from orchestrator.evidence.manifest import Ended, GuestRecord, Manifest, RestoredRecord
from orchestrator.evidence.maps import MapRecord
from orchestrator.formats.abi import IORESOURCE_UNSET, PAGE
from orchestrator.scenario.vocabulary import ArmName, Metric, Role, metric_at

# a line of /sys/bus/pci/devices/*/resource: `0xSTART 0xEND 0xFLAGS`
_RESOURCE = re.compile(r"(?m)^0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)$")


@dataclass(frozen=True)
class Findings:
    """Results of a trial other than its metrics."""

    passes: dict[str, MapPass] = field(default_factory=dict)
    """The maps from the host's user space, by pass."""
    levels: tuple[Level, ...] = ()
    """Level of each size and alignment that has counts, and level of the guest's QEMU."""
    traced: tuple[Operation, ...] = ()
    """Maps and unmaps of the `timing` pass of the map workload, with their parts."""
    breakdowns: tuple[Breakdown, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    """Timelines of the guest boots in the `timing` pass."""


@dataclass(frozen=True)
class TrialResult:
    name: str
    arm: Role
    kind: Literal["measured", "failed", "invalid"]
    reason: str = ""
    """Short stable name of the problem: guest-panic, lost-events, ..."""
    stage: str = ""
    message: str = ""
    evidence: str = ""
    guest_accel: str = ""
    """kvm or tcg. Trials are compared only if their guests ran under the same one."""
    by_bench: bool = False
    """True if the trial is invalid because the bench failed, not because of its evidence."""
    charge: Charge | None = None
    """Party that the failure is charged to. None, as of older runs, means nobody if the trial
    failed, else the bench."""
    samples: dict[Metric, tuple[float, ...]] = field(default_factory=dict)
    exact: bool = False
    """True if its seconds are instruction counts."""
    findings: Findings = Findings()
    repeated: tuple[Attempt, ...] = ()
    """Earlier attempts at this trial, and the attempts of the other arm that were repeated with
    them."""
    pair: int = 0
    """Number of the trial's pair in the plan."""
    boot_id: str = ""
    """Boot of the host's kernel, if it was proven."""
    restored: RestoredRecord | None = None
    """Saved host that the trial's host was restored from; None if it was booted."""
    conditions: dict[str, str] = field(default_factory=dict)
    """Conditions under which the trial ran, as far as the evidence has them."""
    started: str = ""
    """Time at which collecting began, as ISO 8601 in UTC; "" if the evidence has no such time."""
    seconds: float | None = None
    """Wall-clock seconds on the runner spent collecting evidence, whatever the host's
    accelerator."""
    stages: tuple[tuple[str, float], ...] = ()
    """Stages of the trial and their seconds of the runner's clock; none within another."""
    host_left: tuple[str, ...] = ()
    """What differed on a shared host after the trial, so that the host was ended."""
    digest: str = ""
    """Digest of the manifest, which has the hashes of all files. It is equal for equal
    evidence."""

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        reason = "" if self.kind == "measured" else self.reason or self.kind
        charge = self.charge or ("undecided" if self.kind == "failed" else "bench")
        arm: ArmName = "candidate" if self.arm == "candidate" else "baseline"
        return (*self.repeated, Attempt(arm, reason, charge, self.stage))

    def value(self, metric: Metric) -> float | None:
        """Return the trial's one value. The unit of comparison is a trial, so its samples are
        reduced to one value."""
        values = self.samples.get(metric)
        if not values:
            return None
        # Chance only adds to an instruction count, so of an even number the lower middle one is
        # taken.
        return median_low(values) if self.exact else median(values)


def read_result(trial: TrialDir) -> TrialResult:
    """Judge a trial. Bad evidence makes the result invalid; it raises nothing."""
    manifest = trial.manifest
    result = _judged(trial)
    conditions: dict[str, str] = {}
    try:
        conditions = collect_conditions(manifest, trial.host_facts(), trial.guest_facts(0))
    except EvidenceError as exc:
        if result.kind != "invalid":  # conditions that are not known cannot be compared
            result = _invalid(trial, exc)
    return replace(
        result,
        repeated=manifest.repeated_attempts(),
        pair=manifest.pair,
        boot_id=manifest.boot_id or "",
        restored=manifest.host_restored,
        conditions=conditions,
        started=datetime.fromisoformat(manifest.started)
        .astimezone(UTC)
        .isoformat(timespec="seconds"),
        seconds=manifest.seconds,
        stages=tuple(_list_stages(manifest)),
        host_left=tuple(map(cut_line, manifest.host_left or ())),
        digest=trial.digest,
    )


def _list_stages(manifest: Manifest) -> Iterator[tuple[str, float]]:
    """Yield the stages that ended, and their seconds. What is within another one is left out."""
    end = 0.0
    for stage in sorted(manifest.stages, key=lambda stage: stage.start):
        if stage.seconds is not None and stage.start >= end:
            end = stage.start + stage.seconds
            yield stage.name, stage.seconds


def _judged(trial: TrialDir) -> TrialResult:
    manifest, outcome = trial.manifest, trial.manifest.outcome
    name, arm = manifest.trial, manifest.arm
    if isinstance(outcome, Ended):
        return TrialResult(
            name, arm, outcome.kind, outcome.reason, outcome.stage,
            cut_message(outcome.message), quoted(outcome.evidence),
            by_bench=outcome.by_bench, charge=outcome.charged_to,
        )  # fmt: skip
    if outcome.kind != "collected":
        return TrialResult(name, arm, "invalid", "unfinished", message="collecting was cut short")
    try:
        if (changed := trial.verify()) is not None:
            raise EvidenceError(changed, reason=Reason.EVIDENCE_CHANGED)
        _check_recorded(trial)
        samples, findings = _measure(trial)
    except EvidenceError as exc:
        return _invalid(trial, exc)
    return TrialResult(
        name, arm, "measured", samples=samples, guest_accel=manifest.guest_accel or "",
        exact=manifest.accel == "exact", findings=findings,
    )  # fmt: skip


def _invalid(trial: TrialDir, exc: EvidenceError) -> TrialResult:
    return TrialResult(
        trial.manifest.trial, trial.manifest.arm, "invalid", exc.reason, message=exc.message,
        evidence=exc.evidence,
    )  # fmt: skip


def _check_recorded(trial: TrialDir) -> None:
    """Raise EvidenceError unless the trial recorded what its conditions are compared by. What is
    not recorded would be taken for no difference."""
    manifest = trial.manifest
    lacks = [
        name
        for name, is_recorded in (
            ("host/facts.json", trial.host_facts()),
            ("guest-0/facts.json", not manifest.guests or trial.guest_facts(0)),
            ("the guest's accelerator", manifest.workload == "map" or manifest.guest_accel),
        )
        if not is_recorded
    ]
    if lacks:
        raise EvidenceError(
            f"not recorded, so not comparable: {', '.join(lacks)}",
            reason=Reason.CONDITIONS_NOT_RECORDED,
        )


def _measure(trial: TrialDir) -> tuple[dict[Metric, tuple[float, ...]], Findings]:
    manifest = trial.manifest
    if manifest.release != manifest.kernel.release:
        raise EvidenceError(
            f"ran {manifest.release}, planned {manifest.kernel.release}",
            reason=Reason.WRONG_KERNEL,
        )
    samples: dict[Metric, list[float]] = {}
    levels: list[Level] = []
    timelines: list[Timeline] = []
    # A host's boot is no sample in four cases. On an exact host it is the time of a busy runner,
    # on a metal host the time of a kexec, a boot that trials share belongs to no single trial, and
    # a restored host did not boot.
    has_own = manifest.host_session_seconds is None and manifest.host_restored is None
    is_own = manifest.is_nested and has_own
    if is_own and manifest.accel != "exact":
        if manifest.host_boot_seconds is None:
            raise EvidenceError(
                f"{MANIFEST}: host_boot_seconds is missing", reason=Reason.MISSING_EVIDENCE
            )
        _add(samples, "host_boot_seconds", manifest.host_boot_seconds)
    for guest in manifest.guests:
        _check_bars_placed(trial, guest.index)
        if guest.in_pass == "plain":
            _plain(trial, guest.index, samples)
        else:
            traced = _timing(trial, guest.index, samples)
            timelines.append(traced.timeline)
            levels += _guest_level(trial, guest, traced.boot)
    answers = trial.maps()
    passes = _map_passes(trial, answers)
    _map_metrics(trial, passes, samples)
    if "counts" in passes:
        counted = passes["counts"]
        settings = read_needed_facts(trial).settings
        levels += [find_level(place, counted, settings) for place in counted.places]
    logged = read_breakdowns(trial)
    if "profile" in manifest.passes and not logged:
        raise EvidenceError("host/profile.json is missing", reason=Reason.MISSING_EVIDENCE)
    if "plain" in passes:
        check_sums(logged, passes["plain"])
    findings = Findings(
        passes, tuple(levels), _traced_maps(trial, passes), tuple(logged), tuple(timelines)
    )
    return {metric: tuple(values) for metric, values in samples.items() if values}, findings


def _add(samples: dict[Metric, list[float]], metric: Metric, *values: float) -> None:
    samples.setdefault(metric, []).extend(values)


def _boot(trial: TrialDir, index: int) -> WatchedBoot:
    boot = parse_marks(read_needed(trial, f"guest-{index}/marks.txt"))
    if boot.boot_seconds is None or boot.ssh_seconds is None:
        raise EvidenceError(
            f"guest-{index} has no boot mark or no SSH mark", reason=Reason.NO_MARK
        )
    if min(boot.boot_seconds, boot.ssh_seconds) <= 0:
        raise EvidenceError(f"guest-{index} has a mark before its start", reason=Reason.NO_MARK)
    return boot


def _plain(trial: TrialDir, index: int, samples: dict[Metric, list[float]]) -> None:
    boot = _boot(trial, index)
    _add(samples, "guest_boot_cost", boot.boot_seconds or 0.0)
    _add(samples, "guest_ssh_cost", boot.ssh_seconds or 0.0)


def _timing(trial: TrialDir, index: int, samples: dict[Metric, list[float]]) -> Traced:
    traced = read_traced_boot(trial, index)
    maps, unmaps = traced.account.maps, traced.account.unmaps
    _add(samples, "bar_map_cost", *(o.seconds for o in maps))
    _add(samples, "bar_unmap_cost", *(o.seconds for o in unmaps if o.kind == "unmap"))
    iommu = [o.iommu_seconds for o in maps if o.iommu_seconds is not None]
    _add(samples, "iommu_map_cost", *iommu)
    _add(samples, "bar_maps_per_boot", len(maps))
    _add(samples, "bar_unmaps_per_boot", len(unmaps))
    _add(samples, "bar_map_cost_per_boot", round(sum(o.seconds for o in maps), 9))
    _add(samples, "bar_unmap_cost_per_boot", round(sum(o.seconds for o in unmaps), 9))
    return traced


def _check_bars_placed(trial: TrialDir, index: int) -> None:
    """Raise EvidenceError unless the guest's kernel found the BAR of every device at an address. A
    boot in which a BAR has none is fast, but broken."""
    bar, facts = trial.manifest.bar, read_needed_facts(trial)
    listed = read_needed(trial, f"guest-{index}/pci.txt")
    # Look at the device's own lines only: the bridge above it has a window of the same size.
    head = rf"(?m)^device (\S+) {facts.device.vendor} {facts.device.device} *$"
    parts = re.split(head, listed)[1:]
    placed = {
        address: _has_placed_bar(block.split("device ")[0], bar)
        for address, block in zip(parts[::2], parts[1::2], strict=True)
    }
    count = max(1, len(facts.devices), trial.manifest.device_count or 1)
    if sum(placed.values()) < count:
        lost = [address for address, is_placed in placed.items() if not is_placed]
        raise EvidenceError(
            f"guest-{index} booted with {sum(placed.values())} of {count} BARs placed"
            + (f"; without: {', '.join(lost)}" if lost else "; the others are not in the guest"),
            reason=Reason.BAR_NOT_PLACED,
        )


def _has_placed_bar(block: str, bar: int) -> bool:
    """True if one of a device's BARs has this size and an address."""
    for words in _RESOURCE.findall(block)[:6]:
        start, end, flags = (int(word, 16) for word in words)
        if end - start + 1 == bar and start and not flags & IORESOURCE_UNSET:
            return True
    return False


def _guest_level(trial: TrialDir, guest: GuestRecord, boot: BootTrace) -> list[Level]:
    """Return the level at which the guest's QEMU can map the BAR, from the virtual address that
    QEMU chose for it."""
    bar, facts = trial.manifest.bar, read_needed_facts(trial)
    physical = next(
        (
            int(start, 16)
            for start, end, _ in _RESOURCE.findall("\n".join(facts.device.resource))
            if int(end, 16) - int(start, 16) + 1 == bar
        ),
        None,
    )
    if physical is None:
        raise EvidenceError(
            f"host/facts.json: the device has no BAR of {bar} bytes", reason=Reason.WRONG_BAR
        )
    for region in boot.regions:
        if region.address is not None and region.size == bar:
            if (region.address | physical) % PAGE:
                raise EvidenceError(
                    f"guest-{guest.index}: QEMU mapped the BAR at {region.address:#x}, for"
                    f" {physical:#x}: no page begins there",
                    reason=Reason.BAD_TRACE,
                )
            qemu = (trial.manifest.host_versions or {}).get("qemu", "")
            tables = _boot(trial, guest.index).page_table_bytes
            mapping = Mapping(region.address, physical, bar)
            label = f"guest-{guest.index}"
            return [find_guest_level(label, mapping, tables, guest.memory, qemu, facts.settings)]
    return []


def _map_passes(trial: TrialDir, answers: MapRecord | None) -> dict[str, MapPass]:
    """Return the passes of map.json after checking that no event was lost and that independent
    counts agree."""
    names: list[str] = [p for p in trial.manifest.passes if p in _map_pass_names(trial)]
    if not names:
        return {}
    if answers is None:
        raise EvidenceError("map.json is missing", reason=Reason.MISSING_EVIDENCE)
    for which in names:
        if which not in answers.passes:
            raise EvidenceError(f"map.json: passes.{which} is missing", reason=Reason.BAD_EVIDENCE)
    passes: dict[str, MapPass] = {which: read_pass(answers.passes[which]) for which in names}
    bar = trial.manifest.bar
    for which, map_pass in passes.items():
        if map_pass.bar_bytes != bar:
            raise EvidenceError(
                f"the largest BAR found was {map_pass.bar_bytes} bytes, planned were {bar}",
                reason=Reason.WRONG_BAR,
            )
        if not any(place.samples for place in map_pass.places):
            raise EvidenceError(f"map.json has no samples of the {which} pass",
                                reason=Reason.MISSING_EVIDENCE)  # fmt: skip
    if "counts" in passes:
        check_tracer_complete(trial, "counts", clock="mono")
        check_counts(passes["counts"])
        hits = parse_probe_hits(read_needed(trial, "host/profile-counts.txt"))
        samples = [s for point in answers.passes["counts"].points for s in point.samples]
        last = samples[-1].snapshots or {}
        for event in EVENTS:
            _histogram_whole(trial, event, hits, last.get(event, ""))
        for map_pass in passes.values():
            check_alike(map_pass, passes["counts"])
    return passes


def _map_pass_names(trial: TrialDir) -> tuple[str, ...]:
    on_map = trial.manifest.workload == "map"
    return ("plain", "timing", "counts") if on_map else ("counts",)


def _map_metrics(
    trial: TrialDir, passes: dict[str, MapPass], samples: dict[Metric, list[float]]
) -> None:
    """Add the metrics of each point: seconds from the plain pass, counts from the counts pass."""
    for which in ("plain", "counts"):
        for place in passes[which].places if which in passes else ():
            for sample in place.samples:
                if sample.state == "prime":
                    continue

                def add(base: Metric, value: float, name: str = f"{place.name}/{sample.state}",
                        size: int = place.mapping.size) -> None:  # fmt: skip
                    _add(samples, _metric(trial, base, name, size), value)

                if which == "plain":
                    add("bar_map_cost", sample.map_seconds)
                    add("bar_unmap_cost", sample.unmap_seconds)
                elif sample.counts is not None:
                    add("pfn_lookups_per_map", sum(sample.counts.lookups.values()))
                    add("pfn_faults_per_map", sample.counts.installed)
                    add("iova_lookups_per_unmap", sample.counts.iova_walks)


def _metric(trial: TrialDir, base: Metric, point: str, size: int) -> Metric:
    """Return the metric's name, as scenario.Point.metric does. A guest boot has only one point, so
    its metrics have plain names."""
    if trial.manifest.workload != "map":
        return base
    return metric_at(base, point, whole=size == trial.manifest.bar)


def _traced_maps(trial: TrialDir, passes: dict[str, MapPass]) -> tuple[Operation, ...]:
    """Return the maps and unmaps of the map workload's timing pass, in order: one of each per
    sample."""
    if "timing" not in passes:
        return ()
    check_tracer_complete(trial, "map", clock=read_trace_clock(trial))
    if len(passes["timing"].places) != 1:
        raise EvidenceError(
            f"map.json: passes.timing.points has {len(passes['timing'].places)} points besides the"
            " warm-up, not one",
            reason=Reason.BAD_EVIDENCE,
        )
    [place] = passes["timing"].places
    operations = pair_operations(
        list(parse_trace(read_needed(trial, "host/trace-map.txt"))), place.mapping.size
    )
    expected = 2 * len(place.samples)
    if len(operations) < expected or any(o.result for o in operations):
        raise EvidenceError(
            f"{len(place.samples)} maps and as many unmaps were made, the trace has"
            f" {len(operations)}, with results {sorted({o.result for o in operations})}",
            reason=Reason.MAPS_DISAGREE,
        )
    return tuple(operations[-expected:])


def _histogram_whole(trial: TrialDir, event: str, hits: dict[str, int], last: str) -> None:
    """Raise EvidenceError if hits were dropped, if the histogram and the probe have different
    numbers of hits, or if something was counted after the last sample."""
    hex_keys = ("ret",) * (event == "fault")
    table = parse_hist(read_needed(trial, f"host/hist-{event}.txt"), hex_keys)
    if table.dropped:
        raise EvidenceError(
            f"hist-{event}.txt dropped {table.dropped} hits", reason=Reason.LOST_EVENTS
        )
    if hits.get(event) != table.hits:
        raise EvidenceError(
            f"{event}: the histogram has {table.hits} hits, the probe {hits.get(event)}",
            reason=Reason.COUNTS_DISAGREE,
        )
    after = parse_hist(last, hex_keys).hits
    if after != table.hits:
        raise EvidenceError(
            f"{event}: the histogram has {table.hits} hits, {after} after the last sample",
            reason=Reason.COUNTS_DISAGREE,
        )
