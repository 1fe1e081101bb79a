"""What the maps and unmaps of BARs cost in a boot, why, and what would help. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from orchestrator.analysis.boot.spent import IOMMU_MAP, Spent
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep
from orchestrator.analysis.diagnosis.advice import (
    LEAST_COST_SHARE,
    Advice,
    ProfiledBoot,
    Remedy,
    list_names,
    tell_seconds,
)
from orchestrator.formats.abi import PAGE
from orchestrator.formats.units import format_size

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
_LEAST_SHARED = 2
SLOW_PAGE = 10e-9
"""Limit of the seconds for each page of a map. With one lookup for each page a map takes longer on
any machine; with one for each 2 MiB it is faster by a factor of ten or more."""
_SP_OFF = re.compile(r"\b((?:intel_iommu|amd_iommu)=(?:\S*,)?(?:sp_off|nohugepages))\b")


def list_bar_costs(boot: ProfiledBoot, spent: Spent) -> Iterator[Advice]:
    yield from _bar_maps(boot, spent)
    yield from _bar_unmaps(spent)
    yield from _zaps(spent)


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
    causes = _group_causes(boot, maps)
    texts = [f"{cause.text}{_only(cause.bars, maps)}" for cause in causes]
    bars = tuple(dict.fromkeys(step.bar for step, _ in maps))
    most = max(causes, key=lambda cause: cause.seconds, default=None)
    yield Advice(
        most.name if most else "bar-maps", "maps of BARs",
        ": ".join(filter(None, [_count_maps([step for step, _ in maps]), "; ".join(texts)])),
        seconds, (*_cause_remedies(causes, seconds), *_many_maps(boot)), bars,
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
        return f"{some} of {next(iter(bars))} ({size}), {tell_seconds(each)} each"
    return f"{some} of {len(bars)} BARs of {size}, {tell_seconds(each)} each ({list_names(bars)})"


@dataclass(frozen=True)
class _Cause:
    """Why maps of some BARs are slow."""

    name: str
    """Name of a level's reason."""
    text: str
    bars: tuple[str, ...]
    seconds: float
    """Seconds of all maps of these BARs."""


def _group_causes(boot: ProfiledBoot, maps: Sequence[tuple[DmaStep, float]]) -> list[_Cause]:
    """Return the causes in the order of `_HELP`, each with all BARs that have it."""
    costs: defaultdict[str, float] = defaultdict(float)
    for step, seconds in maps:
        costs[step.bar] += seconds
    causes = []
    for name in _HELP:
        texts = {
            bar: reason.text
            for bar, level in boot.levels.items()
            for reason in level.reasons
            if reason.name == name and bar in costs
        }
        if texts:
            bars = tuple(texts)
            causes.append(_Cause(name, texts[bars[0]], bars, sum(costs[bar] for bar in bars)))
    if not boot.levels and (page_seconds := _find_page_seconds(maps)) >= SLOW_PAGE:
        causes.append(
            _Cause(
                "no-series",
                f"a map takes {page_seconds * 1e9:.0f} ns for each page: the kernel looks each up."
                " How QEMU had the BARs mapped is not known, because it has ended",
                tuple(costs), sum(costs.values()),
            )
        )  # fmt: skip
    return causes


def _find_page_seconds(maps: Sequence[tuple[DmaStep, float]]) -> float:
    """Return the seconds for a page in the cheapest map of the largest size."""
    largest = max(step.size for step, _ in maps)
    alike = [step.seconds for step, _ in maps if step.size == largest and not step.result]
    return min(alike, default=0.0) / (largest // PAGE)


def _only(bars: Sequence[str], maps: Sequence[tuple[DmaStep, float]]) -> str:
    """Return the BARs that a cause is about, if it is not about all."""
    every = {step.bar for step, _ in maps}
    return "" if set(bars) == every else f" (of {list_names(bars)})"


def _cause_remedies(causes: Sequence[_Cause], seconds: float) -> tuple[Remedy, ...]:
    """Return the remedies of the causes. Those of causes that one BAR has are one remedy: one of
    them alone leaves its maps as slow as they are."""
    remedies = [
        Remedy(cause.name, _HELP[cause.name], min(cause.seconds, seconds), _SHORT[cause.name])
        for cause in causes
    ]
    shared = set.intersection(*(set(cause.bars) for cause in causes)) if causes else set()
    if len(remedies) < _LEAST_SHARED or not shared:
        return tuple(remedies)
    number = "both are needed" if len(remedies) == _LEAST_SHARED else "all are needed"
    texts = "; and ".join(remedy.text for remedy in remedies)
    short = " and ".join(remedy.short.partition(",")[0] for remedy in remedies)
    return (
        Remedy(
            "+".join(remedy.name for remedy in remedies), f"{number}: {texts}",
            max(remedy.seconds for remedy in remedies), f"{short} together",
        ),
    )  # fmt: skip


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
