"""One boot of somebody's own domain: where its time goes, how its BARs are mapped, what helps.

There is no watch agent, no trace of QEMU's and no console. Phases are recognized by the thread
that maps (QEMU's main thread before the guest runs, a CPU of the guest after that) and, under KVM,
by the guest kernel's first write of EFER.SCE. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field, replace

from orchestrator.analysis.boot.boot import Placed, parts_of
from orchestrator.analysis.boot.boottrace import BootTrace, read_boot
from orchestrator.analysis.boot.spent import split_boot
from orchestrator.analysis.boot.timeline import RAM, DmaStep, Phase, Timeline, Zap
from orchestrator.analysis.diagnosis.advice import Advice, ProfiledBoot, Remedy, order_advice
from orchestrator.analysis.diagnosis.bar_costs import SLOW_PAGE
from orchestrator.analysis.diagnosis.costs import list_costs
from orchestrator.analysis.diagnosis.guest import read_guest
from orchestrator.analysis.diagnosis.places import list_unreached
from orchestrator.analysis.diagnosis.refusals import describe_failure, list_refusals
from orchestrator.analysis.maps.level import (
    NO_HUGE_PFNMAP,
    Level,
    LevelReason,
    find_guest_level,
    policy_reason,
)
from orchestrator.analysis.maps.theory import Mapping, count_pages
from orchestrator.analysis.tracefs.completeness import check_complete
from orchestrator.analysis.tracefs.trace import Operation
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.surveys.host_report import HostReport, parse_host_report
from orchestrator.evidence.surveys.profile_facts import (
    AFTER_FILE,
    HOST_FILE,
    ProfileBar,
    ProfileFacts,
)
from orchestrator.formats.abi import LEAVES, PAGE
from orchestrator.formats.units import format_size

_EFER, _SCE = 0xC0000080, 0x1
"""Register and bit of SYSCALL. No firmware enables it; a 64-bit kernel does, early (Linux:
arch/x86/kernel/head_64.S)."""
_RESET_SECONDS = 10.0
"""Longest time from the reset of the devices, which zaps their BARs, to QEMU's report of the
machine's reset."""
_WHOLE = [[f"{base}_{side}"] for base in ("ioctl", "unmap", "zap") for side in ("in", "out")]
_DISABLED = LevelReason(
    "disable-hugepages",
    "vfio_iommu_type1.disable_hugepages is set: each page is pinned and mapped by itself, on every"
    " kernel",
)
# /proc/PID/maps (proc_pid_maps(5))
_VMA = re.compile(r"(?m)^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ")
_REGION_SHIFT = 40
"""VFIO_PCI_OFFSET_SHIFT (include/linux/vfio_pci_core.h): an offset's upper bits are the region,
VFIO_PCI_BAR0_REGION_INDEX and so on."""


@dataclass(frozen=True)
class Profile:
    """Profile of one boot. Times are seconds since QEMU's exec or, for a reboot, since the
    machine's reset."""

    facts: ProfileFacts
    timeline: Timeline
    """Its boot ends when the guest agent connects or, if that does not happen, with the last sign
    of the guest."""
    ended_by: str
    """agent, or the last sign of the guest: map, line (a line feed to the serial port)."""
    levels: tuple[Level, ...]
    """Levels of those BARs that QEMU had mapped at the end and that have 1 GiB or more; without
    such a BAR, of the largest. `place` is ProfileBar.name."""
    advice: tuple[Advice, ...]
    """What is wrong first; then every cost of the boot, the largest first."""
    before_exec: float = 0.0
    """Seconds from the request to start the domain to QEMU's exec; they are not in the
    timeline."""
    report: HostReport = field(default_factory=HostReport)

    @property
    def whole_seconds(self) -> float:
        """Seconds that the costs of the advice add up to, with `unexplained`."""
        return self.before_exec + self.timeline.boot_seconds

    @property
    def unexplained(self) -> float:
        """Seconds of the boot that have no name."""
        return split_boot(self.timeline).unexplained


def analyse_profile(facts: ProfileFacts, files: MappingType[str, str], xml: str = "") -> Profile:
    """Return the profile of a boot, or of a start that failed. `files`: the text of each of
    TRACER_FILES, and of HOST_FILE and AFTER_FILE if they were recorded. `xml`: the domain's
    definition; empty for a QEMU that no libvirt started.

    Raises EvidenceError for a trace that is not complete and, unless the start failed, for one
    that lacks the beginning of the boot or has no maps.
    """
    check_complete(
        "the profile", stats=files["stats.txt"], profile=_select_whole(files["profile.txt"]),
        found_clock=files["clock.txt"], clock="mono",
    )  # fmt: skip
    process = facts.process
    report = parse_host_report(files.get(HOST_FILE, ""), files.get(AFTER_FILE, ""))
    boot = read_boot(files["trace.txt"], {*process.threads} if process else None)
    if facts.has_failed and boot.execs:
        # QEMU's main thread makes all maps before the guest runs; other guests are left out
        refused = [operation.pid for operation in boot.operations if operation.result]
        latest = max(boot.execs, key=lambda pid: boot.execs[pid])
        boot = read_boot(files["trace.txt"], {refused[-1] if refused else latest})
    mapped = find_mappings(process.maps if process else "", facts.bars)
    placed = _place(boot, facts.bars, mapped)
    timeline, ended_by = _make_timeline(facts, boot, placed)
    least = min(LEAVES["1GiB"], max((bar.size for bar in mapped), default=0))
    levels = tuple(
        _find_level(bar, mapped[bar], placed, facts)
        for bar in facts.bars if bar in mapped and bar.size >= least
    )  # fmt: skip
    requested = boot.marks.get("start")
    zero = _find_zero(facts, boot)
    profiled = ProfiledBoot(
        timeline, {level.place: level for level in levels}, facts, read_guest(xml, report), report,
        before_exec=max(0.0, round(zero - requested, 9)) if requested is not None else 0.0,
    )  # fmt: skip
    advice = _give_advice(profiled)
    return Profile(facts, timeline, ended_by, levels, advice, profiled.before_exec, report)


def _give_advice(boot: ProfiledBoot) -> tuple[Advice, ...]:
    wrong = list(list_refusals(boot))
    if not boot.facts.has_failed:
        return order_advice([*wrong, *list_unreached(boot), *_clock_source(boot),
                             *list_costs(boot)])  # fmt: skip
    return order_advice([*wrong, *describe_failure(boot, wrong)])


def _clock_source(boot: ProfiledBoot) -> Iterator[Advice]:
    source = boot.facts.settings.clocksource
    if source and source.strip() not in ("tsc", "kvm-clock"):
        log = [line for line in boot.report.text("dmesg").splitlines() if "clocksource" in line]
        yield Advice(
            "clock-source", "the host's clock",
            f"the host's clock source is {source.strip()}: each reading of the clock costs"
            " microseconds" + (f" ({log[-1].strip()})" if log else ""),
            remedies=(Remedy("clock-source", "the kernel's log says why not tsc; tsc=reliable"
                             " where it is known to be"),), is_wrong=True,
        )  # fmt: skip


def _select_whole(profile: str) -> str:
    """Return the lines of kprobe_profile for those probes without which a map would be lost.
    Probes of a map's parts may miss hits: on a busy host other code maps by the IOMMU at any time,
    even in interrupts, and a probe that is hit while another one is being handled is missed."""
    return "\n".join(line for line in profile.splitlines() if line.split()[:1] in _WHOLE)


def find_mappings(maps: str, bars: Sequence[ProfileBar]) -> dict[ProfileBar, Mapping]:
    """Return where QEMU has each BAR: the largest mapping of it, from the lines of /proc/PID/maps.

    Devices that cannot be told apart there (same BAR, same size) are taken in order: their
    alignment allows the same leaves, whichever mapping is whose.
    """
    mappings: dict[ProfileBar, Mapping] = {}
    for start, end, offset in _VMA.findall(maps):
        address, size = int(start, 16), int(end, 16) - int(start, 16)
        if size <= 0 or size % PAGE:
            continue  # no mapping is like that: the text is not the kernel's
        for bar, inside in _find_bars(int(offset, 16), bars):
            known = mappings.get(bar)
            if inside + size > bar.size:
                continue
            if known is None or (known.physical - bar.start != inside and known.size < size):
                mappings[bar] = Mapping(address, bar.start + inside, size)
                break
    return mappings


def _find_bars(offset: int, bars: Sequence[ProfileBar]) -> list[tuple[ProfileBar, int]]:
    """Return the BARs that an offset in a VFIO device's file may belong to, and the offset within
    each. Before v6.10 the kernel shows the physical address in place of the offset
    (vfio_pci_core_mmap)."""
    number, inside = divmod(offset, 1 << _REGION_SHIFT)
    by_address = [(b, offset - b.start) for b in bars if 0 <= offset - b.start < b.size]
    return by_address or [(b, inside) for b in bars if b.number == number]


def _place(
    boot: BootTrace, bars: Sequence[ProfileBar], mapped: MappingType[ProfileBar, Mapping]
) -> list[Placed]:
    """Return each operation with its BAR, by the place of the BAR in QEMU's memory or, if that is
    not known, by its size."""
    sizes = {bar.size: bar.name for bar in reversed(bars)}
    names: dict[tuple[int, int], str] = {}
    last: dict[int, float] = {}
    placed = []
    for operation in boot.operations:
        place = (operation.iova, operation.size)
        if operation.kind == "map":
            known = (bar.name for bar, m in mapped.items() if _is_within(operation, m))
            names[place] = next(known, RAM if mapped else sizes.get(operation.size, RAM))
        zapped = max((at for at, _, _ in boot.zaps if at <= operation.start), default=0.0)
        cold = last.get(operation.iova, -1.0) <= zapped
        if operation.kind == "map":
            last[operation.iova] = operation.start
        # what was mapped before a reboot is known by its size only
        bar = names.get(place) or sizes.get(operation.size, RAM)
        in_parts = operation.pages is not None or operation.walk_seconds is not None
        placed.append(Placed(operation, bar, in_parts, cold))
    return placed


def _is_within(operation: Operation, mapping: Mapping) -> bool:
    address = operation.address
    return address is not None and mapping.address <= address < mapping.address + mapping.size


# the timeline ----------------------------------------------------------------------------------


def _make_timeline(
    facts: ProfileFacts, boot: BootTrace, placed: Sequence[Placed]
) -> tuple[Timeline, str]:
    zero = _find_zero(facts, boot)
    acts = sorted(
        [(p.operation.start, p.operation.end, p.operation.pid) for p in placed]
        + [(at, at + seconds, thread) for at, seconds, thread in boot.zaps]
    )
    acts = [act for act in acts if act[0] >= zero]
    if not acts and not facts.has_failed:
        raise EvidenceError(
            f"nothing was mapped or unmapped by VFIO's type 1 container while {facts.domain}"
            " booted",
            hint="does it map by iommufd? Then there is nothing here to profile",
            reason=Reason.NO_MAPS,
        )
    signs = {"map": max((end for _, end, _ in acts), default=zero),
             "line": max((t for t, _ in boot.feeds), default=0.0)}  # fmt: skip
    ended_by = max(signs, key=lambda name: signs[name])
    end = signs[ended_by]
    if "agent" in boot.marks:
        ended_by, end = "agent", boot.marks["agent"]
    stop = max(end, *signs.values())
    phases = _find_phases(zero, facts.pid, boot, acts, stop)

    def phase_at(time: float) -> str:
        return next((p.name for p in reversed(phases) if p.start <= time), "")

    steps = [
        DmaStep(
            kind="map" if p.operation.kind == "map" else "unmap", bar=p.bar, size=p.operation.size,
            phase=phase_at(p.operation.start), cause="", start=round(p.operation.start - zero, 9),
            seconds=p.operation.seconds, parts=parts_of(p), result=p.operation.result,
            cpu=p.operation.cpu, iova=p.operation.iova,
        )
        for p in placed if p.operation.start >= zero
    ]  # fmt: skip
    zaps = [
        Zap(round(at - zero, 9), seconds, phase_at(at), "memory decoding switched off")
        for at, seconds, _ in boot.zaps if at >= zero
    ]  # fmt: skip
    timeline = Timeline(
        trial=facts.domain, guest="", release=facts.release, unit="s",
        boot_seconds=round(end - zero, 9), ssh_seconds=None, end_seconds=round(stop - zero, 9),
        phases=tuple(replace(p, start=round(p.start - zero, 9)) for p in phases),
        steps=tuple(steps), zaps=tuple(zaps), console=(),
    )  # fmt: skip
    return timeline, ended_by


def _find_zero(facts: ProfileFacts, boot: BootTrace) -> float:
    """Return the time at which the boot begins. Raises EvidenceError if the trace lacks it."""
    reset = boot.marks.get("reset")
    if facts.boot == "reboot" and reset is not None:
        earliest = reset - _RESET_SECONDS
        return min((at for at, _, _ in boot.zaps if earliest <= at < reset), default=reset)
    started = boot.execs.get(facts.pid, _find_other_exec(facts, boot))
    if started is None:
        if facts.has_failed:
            return min((operation.start for operation in boot.operations), default=0.0)
        raise EvidenceError(
            f"the trace does not have the beginning of {facts.domain}'s boot",
            reason=Reason.NO_EXEC,
        )
    return started


def _find_other_exec(facts: ProfileFacts, boot: BootTrace) -> float | None:
    """Return the exec of a QEMU whose own process has none: one that failed, so that nobody read
    its pid, or one that left its caller by a fork (-daemonize). It is the last one before its
    first map."""
    if not facts.has_failed and facts.boot != "wait":
        return None
    first = min((operation.start for operation in boot.operations), default=float("inf"))
    return max((at for at in boot.execs.values() if at <= first), default=None)


def _find_phases(
    zero: float,
    pid: int,
    boot: BootTrace,
    acts: Sequence[tuple[float, float, int]],
    stop: float,
) -> list[Phase]:
    """Return the phases. QEMU, the firmware and the kernel (or just the guest, if these cannot be
    told apart) have up to three phases each: until their first map, unmap or zap, from that to the
    last, and after it."""
    by_guest = [at for at, _, thread in acts if thread != pid]
    by_guest += [at for at, *_ in (*boot.msrs, *boot.feeds)]
    by_guest += [at for name, at in boot.marks.items() if name == "run"]
    run = min((at for at in by_guest if at >= zero), default=stop)
    kernel = next(
        (at for at, _, register, value in boot.msrs
         if at >= zero and register == _EFER and value & _SCE),
        None,
    )  # fmt: skip
    actors = [(zero, "QEMU")] if "reset" not in boot.marks else []
    if kernel is None:
        actors.append((run, "guest"))
    else:
        actors += [(run, "firmware"), (kernel, "kernel")]
    if "reset" in boot.marks:
        actors[0] = (zero, actors[0][1])
    starts: list[tuple[float, str]] = []
    ends = [at for at, _ in actors[1:]] + [stop]
    for (start, actor), end in zip(actors, ends, strict=True):
        own = [act for act in acts if start <= act[0] < end]
        if not own:
            starts.append((start, actor))
            continue
        first, last = own[0][0], max(done for _, done, _ in own)
        starts += [(start, f"{actor}: to its first map"), (first, f"{actor}: first map to last"),
                   (last, f"{actor}: after its last map")]  # fmt: skip
    until = [at for at, _ in starts[1:]] + [stop]
    return [
        Phase(name, at, round(end - at, 9))
        for (at, name), end in zip(starts, until, strict=True)
        if end > at
    ]


# levels ----------------------------------------------------------------------------------------


def _find_level(
    bar: ProfileBar, mapping: Mapping, placed: Sequence[Placed], facts: ProfileFacts
) -> Level:
    """Return the leaves that map the BAR, and why they are not 1 GiB. A map that takes as long as
    a lookup for each page shows that the kernel makes one for each page."""
    thp = facts.settings.transparent_hugepage or ""
    level = find_guest_level(
        bar.name, mapping, facts.process.page_table_bytes if facts.process else None,
        facts.memory, facts.qemu, {"transparent_hugepage": thp},
    )  # fmt: skip
    if not facts.huge_fault:
        own = [r for r in level.reasons if r.name not in ("unexplained", "thp-sysfs")]
        level = replace(level, leaf="4KiB", reasons=(NO_HUGE_PFNMAP, *own))
    page_seconds = _find_page_seconds(bar, mapping, placed)
    disabled = (facts.settings.vfio_disable_hugepages or "").strip() in ("Y", "1")
    if disabled and page_seconds is not None and page_seconds >= SLOW_PAGE:
        return replace(level, stride="4KiB", reasons=(*level.reasons, _DISABLED))
    if level.leaf == "4KiB" or page_seconds is None or page_seconds < SLOW_PAGE:
        return level
    # a kernel that does not apply this policy to BARs also has the series, and would be fast
    policy = policy_reason(thp, advised=False)
    if policy is not None:
        return replace(level, leaf="4KiB", reasons=(*level.reasons, policy))
    reason = LevelReason(
        "no-series",
        f"a map takes {page_seconds * 1e9:.0f} ns for each page of {format_size(mapping.size)}:"
        f' the kernel looks each up, over leaves of {level.leaf}, as without "vfio/type1: Use'
        ' mapping page mask for pfnmaps" (v6.15)',
    )
    return replace(level, stride="4KiB", reasons=(*level.reasons, reason))


def _find_page_seconds(
    bar: ProfileBar, mapping: Mapping, placed: Sequence[Placed]
) -> float | None:
    """Return the seconds for a page in the cheapest map of the whole mapping; page faults slow the
    others down. None if there was no such map."""
    pins = [
        p.operation.pin_seconds or p.operation.seconds
        for p in placed
        if p.bar == bar.name and p.operation.kind == "map" and p.operation.result == 0
        and p.operation.size == mapping.size
    ]  # fmt: skip
    return min(pins) / count_pages(mapping.size) if pins else None
