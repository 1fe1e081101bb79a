"""Can exact hosts be restored here instead of booted? Findings, from evidence alone."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.doctor.abilities import ExaminedMachine
from orchestrator.analysis.doctor.checks_runner import QEMU
from orchestrator.analysis.doctor.finding import NESTED, Finding, Needs
from orchestrator.formats.units import format_size

_TO_FILE = (8, 2)
"""First QEMU that migrates to a file by itself (migration/file.c)."""


def check_restore(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on hosts that are saved and restored. That they boot instead is no problem:
    it takes longer."""
    if needs.boots_because:
        yield Finding(
            "restore", "note", f"hosts are booted, not restored: {needs.boots_because}",
            (f"the scenario: {needs.boots_because}",),
            'host.restore = "auto" restores those of workload = "map" with host.accel = "exact"',
            NESTED,
        )  # fmt: skip
        return
    version = machine.version(*QEMU)
    if version is None or version[0] < _TO_FILE:
        evidence = "QEMU's version: not known" if version is None else version[1]
        yield Finding(
            "restore", "note", "exact hosts cannot be restored: QEMU cannot write a host's state",
            (evidence,), "QEMU 8.2 or later", NESTED,
        )  # fmt: skip
        return
    for path in machine.facts.folder_uses.get("nested", ()):
        place = machine.facts.folders.get(path)
        if place is None or place.free < needs.host_memory:
            free = "not known" if place is None else f"{format_size(place.free >> 20 << 20)} free"
            yield Finding(
                "restore", "note",
                f"exact hosts are not saved, so none can be restored: {path} needs"
                f" {format_size(needs.host_memory)} free",
                (f"statvfs(3) of {path}: {free}",),
                "make room there, or set BAROMETER_CACHE to a folder on a larger disk", NESTED,
            )  # fmt: skip
            return
    yield Finding("restore", "ok", "exact hosts can be saved and restored", uses=NESTED)
