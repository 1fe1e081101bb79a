"""The timing pass of an existing domain: the probes for its boot, on a host that has nothing but a
POSIX shell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.formats.units import MIB
from orchestrator.machine.tracing import armer
from orchestrator.machine.tracing.armer import ProbeSpec
from orchestrator.machine.tracing.probes import timing_spec
from orchestrator.machine.transport.shell import Commands

INSTANCE, GROUP = "barometer-profile", "baroprofile"
_PARTS = {
    "pin": "vfio_pin_pages_remote", "imap": "iommu_map", "iun": "iommu_unmap_fast",
    "unpin": "vfio_unpin_pages_remote",
}  # fmt: skip
"""Probes that must be filtered on entry and return, and their functions."""
_SMALL_BAR = 64 * MIB
"""Smallest BAR whose maps are recorded in parts. RAM is mapped in many smaller runs, and a filter
by such a small size would record their parts, too."""
_BUFFER_KB = 1024


def make_profile_spec(bars: Sequence[int], emulator: str, *, kvm: bool) -> ProbeSpec:
    """Return the probes of `timing_spec` for a boot of the domain whose QEMU is `emulator`.
    `bars`: sizes of its BARs in bytes. The parts of a map are probed for large BARs or, if there
    are none, for the largest BAR. The modules that a start of the domain would load are loaded
    first, for their functions."""
    large = sorted({bar for bar in bars if bar >= _SMALL_BAR} or {max(bars)})
    spec = timing_spec(
        large, boot=True, kvm=kvm, emulator=emulator, instance=INSTANCE, group=GROUP
    )
    return replace(spec, buffer_kb=_BUFFER_KB, modules=("vfio-pci", "vfio_iommu_type1"))


def can_take_return_arguments(shell: Commands) -> bool:
    """True if return probes know the arguments of their function (Linux v6.9)."""
    events, tried = f"{armer.TRACEFS}/kprobe_events", f"{GROUP}/tried"
    return not shell.run(
        f"echo 'r:{tried} iommu_map size=$arg4:x64' >> {events} && echo '-:{tried}' >> {events}",
        check=False, doing="trying a return probe",
    ).code  # fmt: skip


def leave_out_parts(spec: ProbeSpec) -> ProbeSpec:
    """Return the specification for older kernels. It records how long maps and unmaps take, but
    not their parts: a return probe without arguments cannot tell the parts of a BAR's map from
    those of a map of RAM."""
    lost = {f"{spec.group}/{base}_{side}" for base in _PARTS for side in ("in", "out")}
    definitions = []
    for line in spec.definitions:
        head, place, *values = line.split(" ")
        if head.partition(":")[2] in lost:
            continue
        if head.startswith("r:"):
            values = [value for value in values if "$retval" in value]
        definitions.append(" ".join([head, place, *values]))
    lost_filters = lost | {f"{spec.group}/ioctl_out"}
    return replace(
        spec,
        symbols=tuple(name for name in spec.symbols if name not in _PARTS.values()),
        definitions=tuple(definitions),
        filters={e: text for e, text in spec.filters.items() if e not in lost_filters},
        enable=tuple(event for event in spec.enable if event not in lost),
    )
