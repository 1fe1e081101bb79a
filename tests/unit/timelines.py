"""Made-up timelines of guest boots, with a 32 GiB BAR and costs of the size measured in a lab."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from orchestrator.analysis.boot.timeline import RAM, DmaStep, Note, Phase, Timeline, Zap
from orchestrator.scenario.vocabulary import ArmName

BAR = "01:00.0 BAR 2"
GIB = 1 << 30
FIRMWARE, SIZING, INIT, EXIT = (
    "firmware: PCI enumeration", "kernel: BAR sizing, 01:00.0", "kernel: init", "shutdown",
)  # fmt: skip
WINDOW = "setting the window of bridge 00:01.0"
MAP_SECONDS: dict[ArmName, float] = {"baseline": 8.4, "candidate": 0.0005}


def phases(*lengths: tuple[str, float]) -> tuple[Phase, ...]:
    """Make phases, one after the other from QEMU's exec on."""
    found, start = [], 0.0
    for name, seconds in lengths:
        found.append(Phase(name, start, seconds))
        start += seconds
    return tuple(found)


def step(start: float, seconds: float, **changes: Any) -> DmaStep:
    """Make a map of the BAR while the kernel sizes it."""
    usual = DmaStep("map", BAR, 32 * GIB, SIZING, "sizing BAR 2", start, seconds)
    return replace(usual, **changes)


def booted(arm: ArmName = "baseline", **changes: Any) -> Timeline:
    """Make a boot: four maps and unmaps while the BAR is sized, one of each that the firmware
    causes, the last unmap at exit, and a map of RAM at the start. The candidate's maps take half a
    millisecond."""
    one = MAP_SECONDS[arm]
    unmap = {"baseline": 1.1, "candidate": 1.3}[arm]
    sizing, steps = 6.0, [
        step(0.2, 0.01, bar=RAM, size=GIB // 2, phase=FIRMWARE, cause="device attached"),
        step(1.0, one, phase=FIRMWARE, cause=WINDOW, faults=32, cpu=1,
             parts={"lookups": one * 0.75, "faults": one * 0.25}),
        step(1.0 + one, unmap, kind="unmap", phase=FIRMWARE, cause=WINDOW),
    ]  # fmt: skip
    firmware = 2.0 + one + unmap
    for number in range(4):
        at = firmware + 1 + number * (one + unmap + 0.1)
        steps += [
            step(at, one, parts={"lookups": one * 0.7, "IOMMU map": one * 0.2}),
            step(at + one, unmap, kind="unmap"),
        ]
        sizing += one + unmap
    init = {"baseline": 7.0, "candidate": 7.5}[arm]
    mark = firmware + sizing + init
    steps.append(step(mark + 10, unmap, kind="unmap", phase=EXIT, cause="exit"))
    made = Timeline(
        trial={"baseline": "0001-baseline", "candidate": "0002-candidate"}[arm],
        guest="guest-1",
        release={"baseline": "6.12.107+deb13", "candidate": "7.3.4+deb13"}[arm],
        unit="emulated s",
        boot_seconds=mark + 0.05,
        ssh_seconds=mark + 6,
        end_seconds=mark + 12,
        phases=(
            *phases((FIRMWARE, firmware), (SIZING, sizing), (INIT, init)),
            Phase(EXIT, mark + 10, 2.0),
        ),
        steps=tuple(steps),
        zaps=(Zap(firmware + 0.5, 40e-6, SIZING, "sizing BAR 2"),),
        console=((firmware + 0.1, "Linux version 6.12"), (mark, "barometer: booted")),
        cpu_use=((0.0, 0.0), (1.0, 0.5), (3.0, 2.5), (3.0, 2.5), (5.0, 5.5)),
        mark_bound=0.01,
        mark_source="the watch agent, every 10 ms",
        systemd={"kernel": 4.5, "userspace": 2.25},
        notes=(Note("cpus-kept", "the guest's CPUs were kept in place"),),
    )
    return replace(made, **changes)


def in_ginsn(timeline: Timeline) -> Timeline:
    return replace(timeline, unit="Ginsn")


def arms(count: int = 1) -> dict[ArmName, list[Timeline]]:
    return {arm: [booted(arm)] * count for arm in MAP_SECONDS}


def with_steps(timeline: Timeline, steps: Iterable[DmaStep]) -> Timeline:
    return replace(timeline, steps=tuple(steps))
