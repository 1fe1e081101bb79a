"""What each part of a boot costs, why, and what would help. Pure.

The costs of a boot do not overlap and add up to it. A cost has one item, for all devices that
share its cause.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from orchestrator.analysis.boot.spent import IOMMU_MAP, Spent
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep
from orchestrator.analysis.diagnosis.advice import (
    LEAST_COST_SHARE,
    Advice,
    ProfiledBoot,
    Remedy,
    list_names,
)
from orchestrator.formats.abi import parse_selected
from orchestrator.formats.units import GIB, MIB, format_size

_KERNEL = ("kernel", "guest")
"""First words of the names of the phases in which the guest's kernel may run."""
_BATCHED_MAPS = 2
"""Number of times that a BAR is mapped by a guest kernel that sizes all BARs of a device at once:
once by the kernel itself, and perhaps once more by the device's driver."""
_NEW_KERNEL = "a host kernel v6.15 or later"
_KERNEL_REMEDY = f"{_NEW_KERNEL} looks up leaf by leaf"
_HELP = {
    "disable-hugepages": "take vfio_iommu_type1.disable_hugepages out of the host's command line"
    " and of /etc/modprobe.d, and load the module again",
    "no-huge-pfnmap": "a host kernel v6.12 or later maps BARs by large leaves, v6.15 or later also"
    " looks up leaf by leaf",
    "no-series": _KERNEL_REMEDY,
    "thp-sysfs": "on the host: echo always > /sys/kernel/mm/transparent_hugepage/enabled (v7.2 and"
    " later do not apply it to BARs); a host kernel v6.15 or later also looks up leaf by leaf",
    "qemu-unaligned": "QEMU 9.2 or later puts BARs where leaves of 1 GiB fit; a host kernel v6.15"
    " or later then looks up leaf by leaf, too",
}
"""Remedies by the name of a level's reason, in the order in which a cause keeps the next one's
remedy from having an effect."""
_SHORT = {
    "disable-hugepages": "no disable_hugepages",
    "no-huge-pfnmap": _NEW_KERNEL,
    "no-series": _NEW_KERNEL,
    "thp-sysfs": "transparent huge pages on the host (always)",
    "qemu-unaligned": f"QEMU 9.2 or later, on {_NEW_KERNEL}",
}
_SMALL_MAP = 2 * MIB
_MANY_SMALL = 1000
"""A guest that maps its memory in more and smaller pieces than this does so by an IOMMU of its
own: QEMU maps memory in a few runs."""
_RESET = re.compile(
    r"([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): (not )?ready (\d{1,9})ms after ([^;]+)"
)
"""pci_dev_wait() of drivers/pci/pci.c: how long a device did not answer after a reset."""
_SP_OFF = re.compile(r"\b((?:intel_iommu|amd_iommu)=(?:\S*,)?(?:sp_off|nohugepages))\b")
_THREADS = (
    "let several threads clear it: <memoryBacking><allocation mode='immediate' threads='8'/> in"
    " the domain's XML (libvirt 8.2), QEMU: prealloc=on,prealloc-threads=8 of the memory backend"
)


def list_costs(boot: ProfiledBoot) -> list[Advice]:
    """Return an item for each cost of the boot."""
    spent = boot.spent
    resets = _find_resets(boot)
    costs = [
        *_bar_maps(boot, spent), *_bar_unmaps(spent), *_zaps(spent), *_memory(boot, spent),
        *_guest_iommu(boot, spent), *_qemu(boot, spent, resets), *_others(spent),
        *_before_exec(boot),
    ]  # fmt: skip
    return [cost for cost in costs if cost.seconds > 0]


# BARs ------------------------------------------------------------------------------------------


def _bar_maps(boot: ProfiledBoot, spent: Spent) -> Iterator[Advice]:
    maps = [(s, t) for s, t in spent.steps if s.kind == "map" and s.bar not in (RAM, IOVA)]
    if not maps:
        return
    in_iommu = sum(_iommu_seconds(step, seconds) for step, seconds in maps)
    whole = sum(seconds for _, seconds in maps)
    has_own_item = in_iommu >= max(LEAST_COST_SHARE * boot.whole_seconds, whole / 10)
    if has_own_item:
        yield _iommu_maps(boot, [step for step, _ in maps], in_iommu)
    seconds = whole - in_iommu if has_own_item else whole
    by_reason = _group_reasons(boot, maps)
    texts = [
        f"{text}{_only(bars, maps)}"
        for name, (text, bars, _) in by_reason.items()
        if name != "many-maps"
    ]
    bars = tuple(dict.fromkeys(step.bar for step, _ in maps))
    first = max(by_reason, key=lambda name: by_reason[name][2], default="bar-maps")
    yield Advice(
        first, "maps of BARs",
        f"{_count_maps([step for step, _ in maps])}{': ' if texts else ''}{'; '.join(texts)}",
        seconds, (*_level_remedies(by_reason, seconds), *_many_maps(boot)), bars,
    )  # fmt: skip


def _iommu_seconds(step: DmaStep, seconds: float) -> float:
    """Return the IOMMU's part of the seconds of a map that no other step has."""
    if not step.seconds:
        return 0.0
    return min(seconds, step.parts.get(IOMMU_MAP, 0.0) * seconds / step.seconds)


def _count_maps(steps: Sequence[DmaStep]) -> str:
    bars = dict.fromkeys(step.bar for step in steps)
    sizes = Counter(step.size for step in steps)
    size = format_size(sizes.most_common(1)[0][0])
    each = median(step.seconds for step in steps)
    some = "1 map" if len(steps) == 1 else f"{len(steps)} maps"
    if len(bars) == 1:
        return f"{some} of {next(iter(bars))} ({size}), {_seconds(each)} each"
    return f"{some} of {len(bars)} BARs of {size}, {_seconds(each)} each ({list_names(bars)})"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _group_reasons(
    boot: ProfiledBoot, maps: Sequence[tuple[DmaStep, float]]
) -> dict[str, tuple[str, tuple[str, ...], float]]:
    """Return name of a level's reason -> its text, the BARs that it is about, their seconds."""
    costs: defaultdict[str, float] = defaultdict(float)
    for step, seconds in maps:
        costs[step.bar] += seconds
    reasons: dict[str, tuple[str, tuple[str, ...], float]] = {}
    for name in _HELP:
        bars, text = [], ""
        for bar, level in boot.levels.items():
            matching = [reason.text for reason in level.reasons if reason.name == name]
            if matching and bar in costs:
                bars.append(bar)
                text = text or matching[0]
        if bars:
            reasons[name] = text, tuple(bars), sum(costs[bar] for bar in bars)
    return reasons


def _only(bars: Sequence[str], maps: Sequence[tuple[DmaStep, float]]) -> str:
    """Return the BARs that a reason is about, if it is not about all."""
    every = {step.bar for step, _ in maps}
    return "" if set(bars) == every else f" (of {list_names(bars)})"


def _level_remedies(
    reasons: dict[str, tuple[str, tuple[str, ...], float]], seconds: float
) -> tuple[Remedy, ...]:
    remedies = [
        Remedy(name, _HELP[name], min(of, seconds), _SHORT[name])
        for name, (_, _, of) in reasons.items()
    ]
    if len(remedies) > 1:
        # one alone leaves the maps as slow as they are
        first, *others = remedies
        texts = "; and ".join(remedy.text for remedy in remedies)
        name = "+".join(remedy.name for remedy in remedies)
        most = max(remedy.seconds for remedy in (first, *others))
        number = "both are needed" if len(remedies) == 2 else "all are needed"
        short = " and ".join(remedy.short.partition(",")[0] for remedy in remedies)
        return (Remedy(name, f"{number}: {texts}", most, f"{short} together"),)
    return tuple(remedies)


def _many_maps(boot: ProfiledBoot) -> Iterator[Remedy]:
    by_kernel = [s for s in boot.select_bar_steps("map") if s.phase.startswith(_KERNEL)]
    maps = Counter(step.bar for step in by_kernel)
    often = {bar: count for bar, count in maps.items() if count > _BATCHED_MAPS}
    if not often:
        return
    both = (*boot.select_bar_steps("map"), *boot.select_bar_steps("unmap"))
    saved = sum(
        step.seconds * (1 - 1 / often[step.bar])
        for step in both
        if step.bar in often and step.phase.startswith(_KERNEL)
    )
    most = max(often.values())
    known = any(step.phase.startswith("kernel") for step in by_kernel)
    who = "kernel" if known else "firmware and kernel"
    each = f"{most} times" if len(often) == 1 else f"{most} times each"
    yield Remedy(
        "many-maps",
        f"{list_names(often)} {'was' if len(often) == 1 else 'were'} mapped {each} for the"
        f" guest's {who}, which switches the decoding off and on for each BAR that it sizes: a"
        ' guest kernel v6.14 or later ("PCI: Batch BAR sizing operations") does so once for each'
        " device",
        min(saved, boot.timeline.boot_seconds),
        "a guest kernel v6.14 or later",
    )


def _iommu_maps(boot: ProfiledBoot, steps: Sequence[DmaStep], seconds: float) -> Advice:
    bars = tuple(dict.fromkeys(step.bar for step in steps))
    cmdline = boot.facts.settings.cmdline or boot.report.text("cmdline")
    words = _SP_OFF.search(cmdline)
    problem = f"the IOMMU's page tables are written in {_count_maps(steps)}"
    if words is None:
        return Advice("iommu-map", "the IOMMU's page tables", problem, seconds, (), bars)
    return Advice(
        "iommu-map", "the IOMMU's page tables",
        f"{problem}: {words[1]} leaves the IOMMU with pages of 4 KiB, on every kernel", seconds,
        (Remedy("iommu-no-superpages", f"take {words[1].rpartition('=')[2].split(',')[-1]} out of"
                " the host's command line, and reboot the host", seconds,
                "large pages in the IOMMU"),), bars,
    )  # fmt: skip


def _bar_unmaps(spent: Spent) -> Iterator[Advice]:
    steps = [(s, t) for s, t in spent.steps if s.kind == "unmap" and s.bar not in (RAM, IOVA)]
    if steps:
        count = len(steps)
        yield Advice(
            "unmaps", "unmaps of BARs",
            f"{count} unmap{'s' * (count > 1)} of BARs: each walks its BAR page by page, on every"
            " kernel up to v7.3",
            sum(seconds for _, seconds in steps),
            (Remedy("unmaps", "only fewer maps: a firmware and a guest kernel that switch decoding"
                    " off less often"),),
            tuple(dict.fromkeys(step.bar for step, _ in steps)),
        )  # fmt: skip


def _zaps(spent: Spent) -> Iterator[Advice]:
    yield Advice(
        "zaps", "zaps of page tables",
        "the page tables of BARs are torn down each time that memory decoding is switched off",
        spent.zaps,
    )  # fmt: skip


# memory ----------------------------------------------------------------------------------------


def _has_guest_iommu(boot: ProfiledBoot) -> bool:
    """True if the guest maps its memory by an IOMMU of its own: small pieces, very many."""
    small = sum(
        step.kind == "map" and step.bar == RAM and step.size <= _SMALL_MAP
        and not step.phase.startswith("QEMU")
        for step in boot.timeline.steps_before_mark()
    )  # fmt: skip
    return small >= _MANY_SMALL


def _guest_iommu(boot: ProfiledBoot, spent: Spent) -> Iterator[Advice]:
    has = _has_guest_iommu(boot)
    steps = [
        (step, seconds) for step, seconds in spent.steps
        if step.bar == IOVA
        or (has and step.bar == RAM and step.size <= _SMALL_MAP
            and not step.phase.startswith("QEMU"))
    ]  # fmt: skip
    if not steps:
        return
    maps = sum(step.kind == "map" for step, _ in steps)
    what = f"an IOMMU ({boot.guest.iommu})" if boot.guest.iommu else "an IOMMU of its own"
    yield Advice(
        "guest-iommu", "maps for the guest's own IOMMU",
        f"the guest has {what}, and translates with it: {maps} small maps and"
        f" {len(steps) - maps} unmaps, each an ioctl of QEMU's",
        sum(seconds for _, seconds in steps),
        (Remedy("guest-iommu", "iommu=pt on the guest kernel's command line, so that it maps its"
                " memory once; or leave <iommu> out of the domain",
                sum(seconds for _, seconds in steps), "iommu=pt in the guest"),),
    )  # fmt: skip


def _memory(boot: ProfiledBoot, spent: Spent) -> Iterator[Advice]:
    has = _has_guest_iommu(boot)
    steps = [
        (step, seconds) for step, seconds in spent.steps
        if step.bar == RAM
        and not (has and step.size <= _SMALL_MAP and not step.phase.startswith("QEMU"))
    ]  # fmt: skip
    maps = [(step, seconds) for step, seconds in steps if step.kind == "map"]
    if maps:
        yield _pinning(boot, maps)
    seconds = sum(seconds for step, seconds in steps if step.kind != "map")
    yield Advice(
        "ram-unmaps", "unmaps of RAM",
        "the guest's memory is unmapped, and mapped again, each time that its firmware changes"
        " how its first MiB is laid out",
        seconds,
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


def _find_resets(boot: ProfiledBoot) -> dict[tuple[str, str], tuple[float, bool]]:
    """Return (device, kind of reset) -> seconds for which it did not answer, and whether the
    kernel gave up, of the guest's devices in this boot."""
    devices = {bar.device for bar in boot.facts.bars}
    resets: dict[tuple[str, str], tuple[float, bool]] = {}
    for line in boot.report.new_kernel_log:
        match = _RESET.search(line)
        if match is None or match[1] not in devices:
            continue
        key = match[1], match[4].strip()
        seconds, gave_up = resets.get(key, (0.0, False))
        resets[key] = (
            max(seconds, int(match[3]) / 1000), gave_up or line.rstrip().endswith("giving up")
        )  # fmt: skip
    return resets


def _qemu(
    boot: ProfiledBoot, spent: Spent, resets: dict[tuple[str, str], tuple[float, bool]]
) -> Iterator[Advice]:
    own = {name: s for name, s in spent.own.items() if name.startswith("QEMU")}
    start = sum(s for name, s in own.items() if name in ("QEMU", "QEMU: to its first map"))
    rest = sum(own.values()) - start
    waited = min(sum(seconds for seconds, _ in resets.values()), start + rest)
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
            "QEMU builds the machine, and opens its disks and devices, before its first map",
            start,
        )  # fmt: skip
    yield Advice(
        "qemu", "QEMU itself",
        "QEMU opens and resets the devices, builds the rest of the machine and waits to be"
        " started" + _silent_log(boot),
        rest,
    )  # fmt: skip


def _silent_log(boot: ProfiledBoot) -> str:
    """Return what the kernel's log says of resets, if it was read and says nothing."""
    if "after/dmesg" in boot.report.sections:
        return "; the host's kernel reports no device that was slow after a reset"
    return "; whether a reset was slow is not known: the host's kernel log was not recorded"


def _name_resets(resets: dict[tuple[str, str], tuple[float, bool]], seconds: float) -> Advice:
    parts = [
        f"{device} did not answer for {_seconds(waited)} after {kind}"
        + (", and the kernel gave up" if gave_up else "")
        for (device, kind), (waited, gave_up) in resets.items()
    ]
    devices = tuple(dict.fromkeys(device for device, _ in resets))
    return Advice(
        "device-reset", "waiting for a device after its reset",
        f"resets: {'; '.join(parts)} (the host's kernel log)", seconds,
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
