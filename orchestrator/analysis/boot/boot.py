"""Read the trace of a guest boot and make a timeline of it.

All times are on one clock, the host's trace clock. The kernel's probes use it. QEMU's own trace
events and the watch agent's lines are written to trace_marker, so they have it, too. If the guest
runs under KVM, kvm:kvm_pio stamps each line feed at the moment the guest sends it to its console.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from orchestrator.analysis.boot.account import Account, build_account
from orchestrator.analysis.boot.boottrace import BootTrace, read_boot
from orchestrator.analysis.boot.causes import Causes
from orchestrator.analysis.boot.phases import BootEvents, find_phases
from orchestrator.analysis.boot.qemu import BarPlace, parse_config_write
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Note, Phase, Timeline, Zap
from orchestrator.analysis.tracefs.completeness import (
    check_tracer_complete,
    read_needed,
    read_trace_clock,
)
from orchestrator.analysis.tracefs.trace import Operation
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialDir
from orchestrator.formats.abi import PAGE
from orchestrator.scenario.vocabulary import is_emulated

_UPTIME = re.compile(r"uptime (\d+\.\d+)")
_SYSTEMD = re.compile(r"(?m)^(Kernel|InitRD|Userspace|Finish)TimestampMonotonic=(\d+)$")
_DRIFT_SECONDS, _DRIFT_SHARE = 0.05, 0.001
"""A larger drift (seconds, plus a share of the boot) between two clocks of one host, from a boot's
beginning to its end, is a jump. The agent's lines reach the trace within milliseconds, on a busy
emulated host within tens of milliseconds."""
_FEWEST_READINGS = 4
"""Fewest readings of both clocks in a boot that can show a drift between them."""
_STEP_SECONDS = 1.0
"""Smallest jump of the host's wall clock that is reported. A smaller difference may come from
QEMU, which can be delayed between reading the clock and writing the event."""


@dataclass(frozen=True)
class Traced:
    """A traced guest boot whose trace is proven complete."""

    timeline: Timeline
    boot: BootTrace
    account: Account


def read_traced_boot(trial: TrialDir, index: int) -> Traced:
    """Return the traced boot of guest `index`. Raises EvidenceError if the tracer lost or missed
    something, or if the accounts of the maps disagree."""
    manifest, label = trial.manifest, f"guest-{index}"
    check_tracer_complete(trial, label, clock=read_trace_clock(trial))
    boot = read_boot_trace(trial, index)
    account = build_account(
        boot, manifest.bar, mmap=manifest.device_mmap is not False,
        viommu=manifest.guest_viommu not in (None, "none"),
        iommufd=manifest.guest_backend == "iommufd",
        qemu_log=read_needed(trial, f"{label}/qemu.log"),
    )  # fmt: skip
    return Traced(build_timeline(trial, index, boot, account.notes), boot, account)


def read_timelines(trial: TrialDir) -> list[Timeline]:
    """Return the timelines of a trial's traced guest boots. The timeline of a boot that makes the
    trial invalid has the reason in `invalid`. Raises EvidenceError if there is no traced boot, or
    if a trace cannot be read, has no boot mark or has clocks that drift apart."""
    traced = [g.index for g in trial.manifest.guests if g.in_pass == "timing"]
    if not traced:
        raise EvidenceError(
            f"{trial.path} has no traced guest boot; its passes:"
            f" {', '.join(trial.manifest.passes) or 'none'}",
            hint='a timeline is made of the pass "timing" of the workload guest-boot',
            reason=Reason.NO_TIMELINE,
        )
    return [_shown(trial, index) for index in traced]


def _shown(trial: TrialDir, index: int) -> Timeline:
    try:
        return read_traced_boot(trial, index).timeline
    except EvidenceError as exc:
        if exc.reason in (
            Reason.NO_MARK,
            Reason.CLOCK_JUMP,
            Reason.CLOCK_NOT_CHECKED,
            Reason.BAD_TRACE,
            Reason.UNPAIRED_TRACE,
        ):
            raise
        timeline = build_timeline(trial, index, read_boot_trace(trial, index))
        return replace(timeline, invalid=f"{exc.reason}: {exc.message}")


def read_boot_trace(trial: TrialDir, index: int) -> BootTrace:
    return read_boot(read_needed(trial, f"host/trace-guest-{index}.txt"))


def build_timeline(
    trial: TrialDir, index: int, boot: BootTrace, notes: Sequence[Note] = ()
) -> Timeline:
    """Return the timeline of one boot. Raises EvidenceError if it has no beginning or no boot
    mark, or if its clocks drift apart."""
    zero = boot.execs.get(boot.pid)
    mark_line = boot.mark_line
    if zero is None or mark_line is None:
        raise EvidenceError(
            f"the trace of guest-{index} has no exec of QEMU or no boot mark",
            reason=Reason.NO_MARK,
        )
    check_clock(boot)
    console, bound, source = _console(boot, mark_line)
    mark = console[mark_line][0]
    writes = [w for e in boot.qemu if (w := parse_config_write(e)) is not None]
    acts = [(o.start, o.end, o.pid) for o in boot.operations]
    acts += [(at, at + seconds, thread) for at, seconds, thread in boot.zaps]
    causes = Causes(boot.qemu, writes, acts)
    ends: dict[float, float] = {}
    for operation in boot.operations:
        if (write := causes.trigger(operation.pid, operation.start)) is not None:
            ends[write.time] = max(ends.get(write.time, 0.0), operation.end)
    systemd = _systemd(trial.text(f"guest-{index}/systemd.txt") or "")
    uptime = _UPTIME.search(console[mark_line][1])
    began = systemd.get("userspace") if uptime is not None else None
    times = BootEvents(
        exec=zero, qemu=boot.qemu, writes=writes, ends=ends,
        operation_ends=[o.end for o in boot.operations], console=console[: mark_line + 1],
        msrs=boot.msrs, mark=mark, ssh=boot.marks.get("ssh"),
        exit=boot.marks.get("exit", console[-1][0]),
        # The uptime that the guest prints at the mark relates its clock to the trace clock. It is
        # accurate to 10 ms, the resolution of /proc/uptime.
        systemd=None if began is None or uptime is None else mark - float(uptime[1]) + began,
    )  # fmt: skip
    phases = find_phases(times)
    where = _Phases(phases)
    accel, bar = trial.manifest.accel, trial.manifest.bar
    return Timeline(
        trial=trial.manifest.trial, guest=f"guest-{index}",
        release=trial.manifest.kernel.release,
        unit="Ginsn" if accel == "exact" else "emulated s" if is_emulated(accel) else "s",
        boot_seconds=round(mark - zero, 9),
        ssh_seconds=_since(boot.marks.get("ssh"), zero),
        end_seconds=round(times.exit - zero, 9),
        phases=tuple(Phase(p.name, round(p.start - zero, 9), p.seconds) for p in phases),
        steps=tuple(_step(placed, causes, where, zero) for placed in _placed(boot, causes, bar)),
        zaps=tuple(
            Zap(round(at - zero, 9), seconds, where.at(at), causes.at(thread, at, ""))
            for at, seconds, thread in boot.zaps
        ),
        console=tuple((round(at - zero, 9), line) for at, line in console),
        cpu_use=tuple((round(at - zero, 9), used) for at, used in boot.cpu_use),
        mark_bound=bound, mark_source=source, systemd=systemd,
        notes=(*notes, *_notes(trial, boot)),
    )  # fmt: skip


def _systemd(text: str) -> dict[str, float]:
    """Parse the timestamps of the guest's systemd: seconds of the guest's CLOCK_MONOTONIC."""
    seconds_by_name = {name.lower(): int(micro) / 1e6 for name, micro in _SYSTEMD.findall(text)}
    return {name: seconds for name, seconds in seconds_by_name.items() if seconds}


def _since(time: float | None, zero: float) -> float | None:
    return None if time is None else round(time - zero, 9)


def _console(boot: BootTrace, mark_line: int) -> tuple[list[tuple[float, str]], float | None, str]:
    """Return the console's lines with their most accurate times, the longest delay of these times
    (None if it is not known), and their source.

    Under KVM each line feed leaves a kvm:kvm_pio record at the moment the guest writes it to its
    serial port. If there are as many records as lines, they belong together, and a mark is as
    accurate as a reading of the trace clock. Otherwise a line has the time at which the watch
    agent had received it, through QEMU and a socket of the host. How late that is depends on what
    else the host does, and nothing here bounds it.
    """
    ours = boot.threads or {event.thread for event in boot.qemu}
    feeds = [at for at, thread in boot.feeds if thread in ours]
    # the last line may have no line feed; no line can be received before it is sent
    pairs = list(zip(feeds, boot.console, strict=False))
    if (
        len(boot.console) - 1 <= len(feeds) <= len(boot.console)
        and all(feed <= at for feed, (at, _) in pairs)
        and len(pairs) > mark_line
    ):
        late = max(at - feed for feed, (at, _) in pairs)
        lines = [(feed, text) for feed, (_, text) in pairs] + boot.console[len(pairs) :]
        return lines, 0.0, (
            "kvm:kvm_pio, when the guest sent the line feed"
            f" (the watch agent had the line up to {late * 1000:.1f} ms later)"
        )  # fmt: skip
    return boot.console, None, "the watch agent, when it had received the line from QEMU"


def check_clock(boot: BootTrace) -> None:
    """Check that the trace clock and CLOCK_MONOTONIC ran at the same rate during the boot. The
    agent writes its reading of CLOCK_MONOTONIC into the trace, which stamps it with the trace
    clock.

    Raises EvidenceError if they drifted apart: one clock jumped or has another rate; also if there
    are too few readings to tell.
    """
    if len(boot.agent_clock) < _FEWEST_READINGS:
        raise EvidenceError(
            f"the trace has {len(boot.agent_clock)} lines of the watch agent:"
            f" {_FEWEST_READINGS} are needed to compare its clock with CLOCK_MONOTONIC",
            reason=Reason.CLOCK_NOT_CHECKED,
        )
    lags = [trace - monotonic for trace, monotonic in boot.agent_clock]
    # A line may be late, because the host is busy, but never early. So the smallest lag is the
    # offset between the clocks. If one clock jumped, the smallest lag before the jump differs from
    # the smallest lag after it.
    before = list(accumulate(lags, min))
    after = list(accumulate(reversed(lags), min))[::-1]
    few = min(8, len(lags) // 2)
    drift = max(abs(after[k] - before[k - 1]) for k in range(few, len(lags) - few + 1))
    length = boot.agent_clock[-1][1] - boot.agent_clock[0][1]
    if drift > _DRIFT_SECONDS + _DRIFT_SHARE * length:
        raise EvidenceError(
            f"the trace clock and CLOCK_MONOTONIC drifted apart by {drift:.3f} s in a boot of"
            f" {length:.1f} s",
            hint="is the host's clock source stable (tsc, kvm-clock)? Was the machine suspended?",
            reason=Reason.CLOCK_JUMP,
        )


@dataclass(frozen=True)
class Placed:
    """An operation with the BAR or the RAM that it maps or unmaps."""

    operation: Operation
    bar: str
    large: bool
    """True for the BARs whose pins and walks are probed."""
    cold: bool
    """True for a map after the page tables were torn down: it faults them in again."""


def _placed(boot: BootTrace, causes: Causes, large: int) -> list[Placed]:
    """Return each operation with what it maps: the BAR that is at this guest address at the time,
    the range of the guest's IOMMU if the address is no memory region of QEMU's, or else RAM."""
    places = boot.bar_places
    regions = {(region.start, region.size) for region in boot.regions}
    current: dict[str, BarPlace] = {}
    mapped: dict[int, float] = {}
    zapped: dict[str, float] = {}
    """PCI function whose memory decoding was switched off -> time of its last zap. The key "" is a
    reset, before the guest runs."""
    placed, next_place, next_zap = [], 0, 0
    for operation in boot.operations:
        while next_place < len(places) and places[next_place][0] <= operation.start:
            place = places[next_place][1]
            current.pop(place.name, None)
            current[place.name] = place
            next_place += 1
        while next_zap < len(boot.zaps) and boot.zaps[next_zap][0] <= operation.start:
            at, _, thread = boot.zaps[next_zap]
            write = causes.trigger(thread, at)
            zapped[write.address if write is not None else ""] = at
            next_zap += 1
        # A BAR that moved away leaves its old place in the list, so the BAR placed last counts.
        bar = next((p.name for p in reversed(current.values()) if _within(operation, p)), RAM)
        if (operation.iova, operation.size) not in regions:
            bar = IOVA
        last_zap = max(zapped.get("", -math.inf), zapped.get(bar.split(" ")[0], -math.inf))
        cold = operation.iova not in mapped or mapped[operation.iova] <= last_zap
        if operation.kind == "map":
            mapped[operation.iova] = operation.start
        placed.append(Placed(operation, bar, operation.size == large, cold))
    return placed


def _within(operation: Operation, place: BarPlace) -> bool:
    # at least a page is mapped, even for a smaller BAR
    end = place.start + max(place.size, PAGE)
    return place.start <= operation.iova and operation.iova + operation.size <= end


class _Phases:
    """Lookup of a phase by time."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._names = [phase.name for phase in phases]
        self._starts = [phase.start for phase in phases]

    def at(self, time: float) -> str:
        index = bisect_right(self._starts, time)
        return self._names[index - 1] if index else "before QEMU"


def _step(placed: Placed, causes: Causes, phases: _Phases, zero: float) -> DmaStep:
    operation = placed.operation
    return DmaStep(
        kind="map" if operation.kind == "map" else "unmap", bar=placed.bar, size=operation.size,
        phase=phases.at(operation.start),
        cause="the guest's IOMMU" if placed.bar == IOVA else causes.of(operation, placed.bar),
        start=round(operation.start - zero, 9), seconds=operation.seconds,
        parts=parts_of(placed), result=operation.result, cpu=operation.cpu,
        faults=operation.faults if operation.fault_seconds is not None else None,
    )  # fmt: skip


def parts_of(placed: Placed) -> dict[str, float]:
    """Return the seconds of an operation's parts, by kernel function. They are recorded for the
    large BARs only: the probes filter by the number of pages in a run, and RAM is pinned in many
    short runs, one for each of its fragments."""
    operation = placed.operation
    parts: dict[str, float | None] = {}
    if operation.kind == "map":
        # a run of RAM that happens to have as many pages as a BAR is recorded by chance
        if placed.bar in (RAM, IOVA) or not placed.large:
            return {"pin and IOMMU map": operation.seconds}
        parts["bookkeeping"] = operation.around_seconds
        if operation.pin_seconds is not None and operation.fault_seconds is not None:
            parts["lookups"] = operation.pin_seconds - operation.fault_seconds
            parts["faults"] = operation.fault_seconds
        else:
            parts["lookups and faults" if placed.cold else "lookups"] = operation.pin_seconds
        parts["IOMMU map"] = operation.iommu_seconds
        return _known(parts)
    parts["bookkeeping"] = operation.around_seconds
    if placed.bar in (RAM, IOVA) or not placed.large:
        parts["walk, IOMMU unmap and unpin"] = operation.inside_seconds
    else:
        parts["iova-to-phys walk"] = operation.walk_seconds
        parts["IOMMU unmap"] = operation.iommu_seconds
        parts["IOTLB sync"] = operation.sync_seconds
        parts["unpin"] = operation.unpin_seconds
    return _known(parts)


def _known(parts: dict[str, float | None]) -> dict[str, float]:
    return {name: round(seconds, 9) for name, seconds in parts.items() if seconds is not None}


def _notes(trial: TrialDir, boot: BootTrace) -> list[Note]:
    notes = []
    walls = [event.wall - event.time for event in boot.qemu]
    if walls and max(walls) - min(walls) > _STEP_SECONDS:
        notes.append(
            Note("clock-step", f"the host's wall clock was stepped by"
                 f" {max(walls) - min(walls):.1f} s in the boot; nothing here is measured by it")
        )  # fmt: skip
    facts = trial.host_facts()
    source = facts.settings.get("clocksource") if facts is not None else None
    if source and source not in ("tsc", "kvm-clock", "arch_sys_counter"):
        notes.append(
            Note("clock-source", f"the host's clock source is {source}: each reading of the clock"
                 " costs microseconds, which slows the host and what is measured")
        )  # fmt: skip
    return notes
