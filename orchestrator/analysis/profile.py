"""One boot of somebody's own domain: where its time goes, how its BARs are mapped, what helps.

There is no watch agent, no trace of QEMU's and no console. Phases are recognized by the thread
that maps (QEMU's main thread before the guest runs, a CPU of the guest after that) and, under KVM,
by the guest kernel's first write of EFER.SCE. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.abi import LEAVES
from orchestrator.analysis.advice import Advice, Seen, advice
from orchestrator.analysis.boot import Placed, parts_of
from orchestrator.analysis.boottrace import BootTrace, read_boot
from orchestrator.analysis.level import NO_HUGE_PFNMAP, Level, Reason, guest_level, policy_reason
from orchestrator.analysis.theory import Mapping, pages
from orchestrator.analysis.timeline import RAM, Phase, Step, Timeline, Zap
from orchestrator.analysis.trace import Operation
from orchestrator.analysis.tracer import complete
from orchestrator.errors import EvidenceError
from orchestrator.scenario import format_size

_EFER, _SCE = 0xC0000080, 0x1
"""Register and bit of SYSCALL. No firmware enables it; a 64-bit kernel does, early (Linux:
arch/x86/kernel/head_64.S)."""
_RESET_SECONDS = 10.0
"""Longest time from the reset of the devices, which zaps their BARs, to QEMU's report of the
machine's reset."""
_WHOLE = [[f"{base}_{side}"] for base in ("ioctl", "unmap", "zap") for side in ("in", "out")]
_SLOW_PAGE = 10e-9
"""Limit of the seconds for each page of a map. With one lookup for each page a map takes longer on
any machine; with one for each 2 MiB it is faster by a factor of ten or more."""
# /proc/PID/maps (proc_pid_maps(5))
_VMA = re.compile(r"(?m)^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ")
_REGION_SHIFT = 40
"""VFIO_PCI_OFFSET_SHIFT (include/linux/vfio_pci_core.h): an offset's upper bits are the region,
VFIO_PCI_BAR0_REGION_INDEX and so on."""


@dataclass(frozen=True)
class Bar:
    """A BAR of a device of the host."""

    device: str
    """0000:3b:00.0"""
    number: int
    start: int
    """Physical address."""
    size: int
    """Bytes."""

    @property
    def name(self) -> str:
        return f"{self.device} BAR {self.number}"


@dataclass(frozen=True)
class Profile:
    """Profile of one boot. Times are seconds since QEMU's exec or, for a reboot, since the
    machine's reset."""

    facts: MappingType[str, Any]
    """The argument of `profile_of`."""
    timeline: Timeline
    """Its boot ends when the guest agent connects or, if that does not happen, with the last sign
    of the guest."""
    ended_by: str
    """agent, or the last sign of the guest: map, line (a line feed to the serial port)."""
    levels: tuple[Level, ...]
    """Levels of the BARs that QEMU had mapped at the end: of those with 1 GiB or more, else of the
    largest. `place` is Bar.name."""
    advice: tuple[Advice, ...]
    """Problems first, then the most costly."""


def profile_of(facts: MappingType[str, Any], files: MappingType[str, str]) -> Profile:
    """Return the profile of a boot. `facts`: facts.json of a profile (orchestrator.profile);
    `files`: those of its tracer.

    Raises EvidenceError for a trace that is not complete, lacks the beginning of the boot or has
    no maps.
    """
    complete(
        "the profile", stats=files["stats.txt"], profile=_of_whole(files["profile.txt"]),
        found_clock=files["clock.txt"], clock="mono",
    )  # fmt: skip
    process = facts["process"] or {"pid": facts["pid"], "threads": [facts["pid"]], "maps": ""}
    boot = read_boot(files["trace.txt"], {*process["threads"]} if facts["process"] else None)
    bars = [Bar(**bar) for bar in facts["bars"]]
    mapped = mappings(process["maps"], bars)
    placed = _placed(boot, bars, mapped)
    timeline, ended_by = _timeline(facts, boot, placed)
    least = min(LEAVES["1GiB"], max((bar.size for bar in mapped), default=0))
    levels = tuple(
        _level(bar, mapped[bar], placed, facts)
        for bar in bars if bar in mapped and bar.size >= least
    )  # fmt: skip
    seen = Seen(timeline, {level.place: level for level in levels}, [b.name for b in bars], facts)
    return Profile(facts, timeline, ended_by, levels, advice(seen))


def _of_whole(profile: str) -> str:
    """Return the lines of kprobe_profile for those probes without which a map would be lost.
    Probes of a map's parts may miss hits: on a busy host other code maps by the IOMMU at any time,
    even in interrupts, and a probe that is hit while another one is being handled is missed."""
    return "\n".join(line for line in profile.splitlines() if line.split()[:1] in _WHOLE)


def mappings(maps: str, bars: Sequence[Bar]) -> dict[Bar, Mapping]:
    """Return where QEMU has each BAR: the largest mapping of it, from the lines of /proc/PID/maps.

    Devices that cannot be told apart there (same BAR, same size) are taken in order: their
    alignment allows the same leaves, whichever mapping is whose.
    """
    found: dict[Bar, Mapping] = {}
    for start, end, offset in _VMA.findall(maps):
        address, size = int(start, 16), int(end, 16) - int(start, 16)
        for bar, inside in _at(int(offset, 16), bars):
            there = found.get(bar)
            if not inside < inside + size <= bar.size:
                continue
            if there is None or (there.physical - bar.start != inside and there.size < size):
                found[bar] = Mapping(address, bar.start + inside, size)
                break
    return found


def _at(offset: int, bars: Sequence[Bar]) -> list[tuple[Bar, int]]:
    """Return the BARs that an offset in a VFIO device's file may belong to, and the offset within
    each. Before v6.10 the kernel shows the physical address in place of the offset
    (vfio_pci_core_mmap)."""
    number, inside = divmod(offset, 1 << _REGION_SHIFT)
    by_address = [(b, offset - b.start) for b in bars if 0 <= offset - b.start < b.size]
    return by_address or [(b, inside) for b in bars if b.number == number]


def _placed(
    boot: BootTrace, bars: Sequence[Bar], mapped: MappingType[Bar, Mapping]
) -> list[Placed]:
    """Return each operation with its BAR, by the place of the BAR in QEMU's memory or, if that is
    not known, by its size."""
    sizes = {bar.size: bar.name for bar in reversed(bars)}
    names: dict[tuple[int, int], str] = {}
    last: dict[int, float] = {}
    found = []
    for operation in boot.operations:
        place = (operation.iova, operation.size)
        if operation.kind == "map":
            known = (bar.name for bar, m in mapped.items() if _within(operation, m))
            names[place] = next(known, RAM if mapped else sizes.get(operation.size, RAM))
        zapped = max((at for at, _, _ in boot.zaps if at <= operation.start), default=0.0)
        cold = last.get(operation.iova, -1.0) <= zapped
        if operation.kind == "map":
            last[operation.iova] = operation.start
        # what was mapped before a reboot is known by its size only
        bar = names.get(place) or sizes.get(operation.size, RAM)
        in_parts = operation.pages is not None or operation.walk_seconds is not None
        found.append(Placed(operation, bar, in_parts, cold))
    return found


def _within(operation: Operation, mapping: Mapping) -> bool:
    address = operation.address
    return address is not None and mapping.address <= address < mapping.address + mapping.size


# the timeline ----------------------------------------------------------------------------------


def _timeline(
    facts: MappingType[str, Any], boot: BootTrace, placed: Sequence[Placed]
) -> tuple[Timeline, str]:
    zero = _zero(facts, boot)
    acts = sorted(
        [(p.operation.start, p.operation.end, p.operation.pid) for p in placed]
        + [(at, at + seconds, thread) for at, seconds, thread in boot.zaps]
    )
    acts = [act for act in acts if act[0] >= zero]
    if not acts:
        raise EvidenceError(
            f"nothing was mapped or unmapped by VFIO's type 1 container while {facts['domain']}"
            " booted",
            hint="does it map by iommufd? Then there is nothing here to profile",
            reason="no-maps",
        )
    seen = {"map": max(end for _, end, _ in acts), "line": max((t for t, _ in boot.feeds),
            default=0.0)}  # fmt: skip
    ended_by = max(seen, key=lambda name: seen[name])
    end = seen[ended_by]
    if "agent" in boot.marks:
        ended_by, end = "agent", boot.marks["agent"]
    stop = max(end, *seen.values())
    phases = _phases(zero, facts["pid"], boot, acts, stop)

    def phase_at(time: float) -> str:
        return next((p.name for p in reversed(phases) if p.start <= time), "")

    steps = [
        Step(
            kind="map" if p.operation.kind == "map" else "unmap", bar=p.bar, size=p.operation.size,
            phase=phase_at(p.operation.start), cause="", start=round(p.operation.start - zero, 9),
            seconds=p.operation.seconds, parts=parts_of(p), result=p.operation.result,
            cpu=p.operation.cpu,
        )
        for p in placed if p.operation.start >= zero
    ]  # fmt: skip
    zaps = [
        Zap(round(at - zero, 9), seconds, phase_at(at), "memory decoding switched off")
        for at, seconds, _ in boot.zaps if at >= zero
    ]  # fmt: skip
    timeline = Timeline(
        trial=facts["domain"], guest="", release=facts["release"], unit="s",
        boot_seconds=round(end - zero, 9), ssh_seconds=None, end_seconds=round(stop - zero, 9),
        phases=tuple(replace(p, start=round(p.start - zero, 9)) for p in phases),
        steps=tuple(steps), zaps=tuple(zaps), console=(),
    )  # fmt: skip
    return timeline, ended_by


def _zero(facts: MappingType[str, Any], boot: BootTrace) -> float:
    """Return the time at which the boot begins. Raises EvidenceError if the trace lacks it."""
    reset = boot.marks.get("reset")
    if facts["boot"] == "reboot" and reset is not None:
        earliest = reset - _RESET_SECONDS
        return min((at for at, _, _ in boot.zaps if earliest <= at < reset), default=reset)
    started = boot.execs.get(facts["pid"])
    if started is None:
        raise EvidenceError(
            f"the trace does not have the beginning of {facts['domain']}'s boot", reason="no-exec"
        )
    return started


def _phases(
    zero: float,
    pid: int,
    boot: BootTrace,
    acts: Sequence[tuple[float, float, int]],
    stop: float,
) -> list[Phase]:
    """Return the phases by who runs (QEMU, the firmware, the kernel; or the guest, if it is not
    known which), and for each of them before, between and after its maps, unmaps and zaps."""
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


def _level(
    bar: Bar, mapping: Mapping, placed: Sequence[Placed], facts: MappingType[str, Any]
) -> Level:
    """Return the leaves that map the BAR, and why they are not 1 GiB. A map that takes as long as
    a lookup for each page shows that the kernel makes one for each page."""
    process = facts["process"]
    level = guest_level(
        bar.name,
        mapping,
        process["page_table_bytes"],
        facts["memory"],
        facts["qemu"],
        facts["settings"],
    )
    if not facts["huge_fault"]:
        own = [r for r in level.reasons if r.name not in ("unexplained", "thp-sysfs")]
        level = replace(level, leaf="4KiB", reasons=(NO_HUGE_PFNMAP, *own))
    one = _seconds_of_a_page(bar, mapping, placed)
    if level.leaf == "4KiB" or one is None or one < _SLOW_PAGE:
        return level
    # a kernel that does not apply this policy to BARs also has the series, and would be fast
    policy = policy_reason(facts["settings"].get("transparent_hugepage", ""), advised=False)
    if policy is not None:
        return replace(level, leaf="4KiB", reasons=(*level.reasons, policy))
    reason = Reason(
        "no-series",
        f"a map takes {one * 1e9:.0f} ns for each page of {format_size(mapping.size)}: the kernel"
        f' looks each up, over leaves of {level.leaf}, as without "vfio/type1: Use mapping page'
        ' mask for pfnmaps" (v6.15)',
    )
    return replace(level, stride="4KiB", reasons=(*level.reasons, reason))


def _seconds_of_a_page(bar: Bar, mapping: Mapping, placed: Sequence[Placed]) -> float | None:
    """Return the seconds for a page in the cheapest map of the whole mapping; page faults slow the
    others down. None if there was no such map."""
    pins = [
        p.operation.pin_seconds or p.operation.seconds
        for p in placed
        if p.bar == bar.name and p.operation.kind == "map" and p.operation.result == 0
        and p.operation.size == mapping.size
    ]  # fmt: skip
    return min(pins) / pages(mapping.size) if pins else None
