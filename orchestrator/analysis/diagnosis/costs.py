"""What each part of a boot costs, why, and what would help. Pure.

The costs of a boot do not overlap and add up to it. A cost has one item, for all devices that
share its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.boot.spent import Spent
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep
from orchestrator.analysis.diagnosis.advice import (
    Advice,
    ProfiledBoot,
    Remedy,
    list_names,
    tell_seconds,
)
from orchestrator.analysis.diagnosis.bar_costs import list_bar_costs
from orchestrator.formats.abi import parse_selected
from orchestrator.formats.units import GIB, MIB, format_size

_SMALL_MAP = 2 * MIB
_MANY_SMALL = 1000
"""A guest that maps its memory in more and smaller pieces than this does so by an IOMMU of its
own: QEMU maps memory in a few runs."""
_RESET = re.compile(
    r"([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): (not )?ready (\d{1,9})ms after ([^;]+)"
)
"""pci_dev_wait() of drivers/pci/pci.c: how long a device did not answer after a reset."""
_THREADS = (
    "let several threads clear it: <memoryBacking><allocation mode='immediate' threads='8'/> in"
    " the domain's XML (libvirt 8.2), QEMU: prealloc=on,prealloc-threads=8 of the memory backend"
)


_MAY_CLEAR = (
    "; it may also clear the guest's memory here: whether it preallocates that is not recorded"
)


def list_costs(boot: ProfiledBoot) -> list[Advice]:
    """Return an item for each cost of the boot."""
    spent = boot.spent
    costs = [
        *list_bar_costs(boot, spent), *_memory(boot, spent), *_qemu(boot, spent),
        *_others(spent), *_before_exec(boot),
    ]  # fmt: skip
    return [cost for cost in costs if cost.seconds > 0]


# memory ----------------------------------------------------------------------------------------


def _is_small_map(step: DmaStep) -> bool:
    """True for what a guest maps and unmaps by an IOMMU of its own, if it does so often."""
    return step.bar == IOVA or (
        step.bar == RAM and step.size <= _SMALL_MAP and not step.phase.startswith("QEMU")
    )


def _memory(boot: ProfiledBoot, spent: Spent) -> Iterator[Advice]:
    steps = [(step, seconds) for step, seconds in spent.steps if step.bar in (RAM, IOVA)]
    small = [(step, seconds) for step, seconds in steps if _is_small_map(step)]
    maps = sum(step.kind == "map" for step, _ in small)
    if maps >= _MANY_SMALL or any(step.bar == IOVA for step, _ in small):
        yield _guest_iommu(boot, maps, len(small) - maps, sum(seconds for _, seconds in small))
        steps = [(step, seconds) for step, seconds in steps if not _is_small_map(step)]
    pinned = [(step, seconds) for step, seconds in steps if step.kind == "map"]
    if pinned:
        yield _pinning(boot, pinned)
    yield Advice(
        "ram-unmaps", "unmaps of RAM",
        "the guest's memory is unmapped, and mapped again, each time that its firmware changes"
        " how its first MiB is laid out",
        sum(seconds for step, seconds in steps if step.kind != "map"),
    )  # fmt: skip


def _guest_iommu(boot: ProfiledBoot, maps: int, unmaps: int, seconds: float) -> Advice:
    iommu = f"an IOMMU ({boot.guest.iommu})" if boot.guest.iommu else "an IOMMU of its own"
    return Advice(
        "guest-iommu", "maps for the guest's own IOMMU",
        f"the guest has {iommu}, and translates with it: {maps} small maps and {unmaps} unmaps,"
        " each an ioctl of QEMU's",
        seconds,
        (Remedy("guest-iommu", "iommu=pt on the guest kernel's command line, so that it maps its"
                " memory once; or leave <iommu> out of the domain", seconds,
                "iommu=pt in the guest"),),
    )  # fmt: skip


def _pinning(boot: ProfiledBoot, maps: Sequence[tuple[DmaStep, float]]) -> Advice:
    facts, seconds = boot.facts, sum(seconds for _, seconds in maps)
    largest = max((step for step, _ in maps), key=lambda step: step.seconds)
    rate = largest.size / GIB / largest.seconds if largest.seconds else 0.0
    policy = parse_selected(facts.settings.transparent_hugepage or "")
    huge = facts.huge_pages or boot.guest.has_huge_pages
    # QEMU sets MADV_HUGEPAGE for the guest's memory (ram_block_add() of system/physmem.c), so
    # `madvise` is as good as `always`
    small = policy == "never" and not huge
    if huge:
        backing = "huge pages that were set aside"
    elif small:
        backing = "4 KiB pages (transparent huge pages are off: never)"
    else:
        backing = f"transparent huge pages{f' ({policy})' if policy else ''}"
    cleared = "pinned" if boot.guest.is_preallocated else "allocated, cleared and pinned"
    problem = (
        f"pinning of RAM: {format_size(facts.memory)} in {backing} are {cleared}"
        f" before the device can reach them, {rate:.2g} GiB/s by one thread"
    )
    if facts.boot == "reboot":
        problem = f"the guest's {format_size(facts.memory)}, in {backing}, are pinned again"
        return Advice("ram-pinning", "pinning of RAM", problem, seconds)
    remedies = []
    if small:
        remedies.append(
            Remedy("guest-memory", "on the host: always or madvise in"
                   " /sys/kernel/mm/transparent_hugepage/enabled", seconds,
                   "transparent huge pages on the host")
        )  # fmt: skip
    if not huge:
        remedies.append(
            Remedy("huge-pages", "huge pages that the host sets aside at its boot, best of 1 GiB"
                   " (hugepagesz=1G hugepages=N): <memoryBacking><hugepages/> in the domain's XML",
                   seconds, "huge pages set aside on the host")
        )  # fmt: skip
    if not boot.guest.is_preallocated or boot.guest.allocation_threads in (None, 1):
        remedies.append(
            Remedy("allocation-threads", _THREADS, seconds, "several threads that clear it")
        )
    remedies.append(Remedy("less-memory", "less memory for the guest"))
    return Advice("ram-pinning", "pinning of RAM", problem, seconds, tuple(remedies))


# QEMU, firmware, kernel ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reset:
    """A reset after which a device of the guest did not answer at once."""

    device: str
    kind: str
    """In the kernel's words: FLR, bus reset, resume."""
    seconds: float
    has_ended: bool = True
    """False: the kernel gave up."""


def _find_resets(boot: ProfiledBoot) -> list[_Reset]:
    """Return the slow resets of the guest's devices in this boot. A wait has a line each time that
    it is twice as long, and one at its end."""
    devices = {bar.device for bar in boot.facts.bars}
    resets: list[_Reset] = []
    waiting: dict[tuple[str, str], float] = {}
    for line in boot.report.new_kernel_log:
        match = _RESET.search(line)
        if match is None or match[1] not in devices:
            continue
        key, seconds = (match[1], match[4].strip()), int(match[3]) / 1000
        if match[2] and not line.rstrip().endswith("giving up"):
            waiting[key] = seconds
            continue
        waiting.pop(key, None)
        resets.append(_Reset(*key, seconds, has_ended=not match[2]))
    return [*resets, *(_Reset(*key, seconds) for key, seconds in waiting.items())]


def _qemu(boot: ProfiledBoot, spent: Spent) -> Iterator[Advice]:
    own = {name: s for name, s in spent.own.items() if name.startswith("QEMU")}
    start = sum(s for name, s in own.items() if name in ("QEMU", "QEMU: to its first map"))
    rest = sum(own.values()) - start
    resets = _find_resets(boot)
    waited = min(sum(reset.seconds for reset in resets), start + rest)
    if waited:
        # the devices are opened, and reset, after the first map of RAM: with type1, QEMU's
        # container is filled before it gets the device (vfio_attach_device())
        from_rest = min(waited, rest)
        rest -= from_rest
        start -= waited - from_rest
        yield _name_resets(resets, waited)
    if boot.guest.is_preallocated or boot.facts.huge_pages:
        yield _preallocation(boot, start)
    else:
        yield Advice(
            "qemu-start", "QEMU before its first map",
            "QEMU builds the machine, and opens its disks and devices, before its first map"
            + _MAY_CLEAR * (not boot.guest.is_known),
            start,
        )  # fmt: skip
    yield Advice(
        "qemu", "QEMU itself",
        "QEMU opens and resets the devices, builds the rest of the machine and waits to be"
        " started" + ("" if resets else _silent_log(boot)),
        rest,
    )  # fmt: skip


def _silent_log(boot: ProfiledBoot) -> str:
    """Return what the kernel's log says of resets, if it was read and says nothing."""
    if "after/dmesg" in boot.report.sections:
        return "; the host's kernel reports no device that was slow after a reset"
    return "; whether a reset was slow is not known: the host's kernel log was not recorded"


def _name_resets(resets: Sequence[_Reset], seconds: float) -> Advice:
    parts = [
        f"{reset.device} did not answer for {tell_seconds(reset.seconds)} after {reset.kind}"
        + ("" if reset.has_ended else ", and the kernel gave up")
        for reset in resets
    ]
    devices = tuple(dict.fromkeys(reset.device for reset in resets))
    return Advice(
        "device-reset", "waiting for a device after its reset",
        f"resets: {list_names(parts)} (the host's kernel log)", seconds,
        (Remedy("device-reset", "another way to reset it: /sys/bus/pci/devices/"
                f"{devices[0]}/reset_method lists them, and takes one; newer firmware of the"
                " device; a power cycle of the host, if the device never answers again",
                seconds, "another reset_method, or newer firmware of the device"),),
        devices,
    )  # fmt: skip


def _preallocation(boot: ProfiledBoot, seconds: float) -> Advice:
    threads = boot.guest.allocation_threads
    by = f"by {threads} threads" if threads and threads > 1 else "by few threads"
    remedies = [Remedy("less-memory", "less memory for the guest")]
    if not threads or threads == 1:
        remedies.insert(
            0, Remedy("allocation-threads", _THREADS, seconds, "several threads that clear it")
        )
    return Advice(
        "preallocation", "clearing memory before QEMU's first map",
        f"QEMU allocates and clears {format_size(boot.facts.memory)} of"
        f" {'huge pages' if boot.facts.huge_pages else 'memory'} before its first map, {by}",
        seconds, tuple(remedies),
    )  # fmt: skip


_ACTORS = {
    "firmware": ("firmware", "the firmware itself",
                 "the guest's firmware ran, apart from maps and unmaps"),
    "boot loader": ("boot-loader", "the boot loader", "the guest's boot loader ran"),
    "kernel": ("guest-kernel", "the guest itself",
               "the guest's kernel and its userspace ran, apart from maps and unmaps"),
    "userspace": ("guest-userspace", "the guest's userspace", "the guest's userspace ran"),
    "guest": ("guest", "the guest itself",
              "the guest's firmware, kernel and userspace ran, apart from maps and unmaps"),
}  # fmt: skip


def _others(spent: Spent) -> Iterator[Advice]:
    for actor, (name, subject, problem) in _ACTORS.items():
        seconds = sum(s for phase, s in spent.own.items() if phase.partition(":")[0] == actor)
        yield Advice(
            name, subject, problem, seconds,
            is_ordinary=actor in ("kernel", "userspace", "guest", "boot loader"),
        )  # fmt: skip


def _before_exec(boot: ProfiledBoot) -> Iterator[Advice]:
    remedies: tuple[Remedy, ...] = ()
    if boot.guest.is_managed:
        remedies = (
            Remedy("managed", "bind the devices to vfio-pci when the host boots (driverctl, or"
                   " vfio-pci.ids=), and managed='no' in the domain's XML", boot.before_exec,
                   "devices that are bound when the host boots"),
        )  # fmt: skip
    how = " (managed='yes': it takes the devices from their drivers, and resets them)"
    yield Advice(
        "before-exec", "libvirt before QEMU's exec",
        f"libvirt prepares the domain before it starts QEMU{how * boot.guest.is_managed}",
        boot.before_exec, remedies,
    )  # fmt: skip
