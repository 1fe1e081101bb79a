"""Advice on what would make a boot faster, from the evidence of that boot. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from errno import errorcode

from orchestrator.analysis.boot.timeline import RAM, DmaStep, Timeline
from orchestrator.analysis.maps.level import Level
from orchestrator.evidence.profile_facts import ProfileFacts
from orchestrator.formats.abi import parse_selected
from orchestrator.formats.units import format_size

_LEAST_SHARE = 0.01
"""Share of a boot. A smaller gain is not worth a change to a machine."""
_KERNEL = ("kernel", "guest")
"""First words of the names of the phases in which the guest's kernel may run."""
_BATCHED_MAPS = 2
"""Number of times that a BAR is mapped by a guest kernel that sizes all BARs of a device at once:
once by the kernel itself, and perhaps once more by the device's driver."""
_HELP = {
    "qemu-unaligned": "QEMU 9.2 or later puts BARs where leaves of 1 GiB fit; a host kernel v6.15"
    " or later then looks up leaf by leaf, too",
    "no-huge-pfnmap": "a host kernel v6.12 or later maps BARs by large leaves, v6.15 or later also"
    " looks up leaf by leaf",
    "no-series": "a host kernel v6.15 or later looks up leaf by leaf",
    "thp-sysfs": "on the host: echo always > /sys/kernel/mm/transparent_hugepage/enabled (v7.2 and"
    " later do not apply it to BARs); a host kernel v6.15 or later also looks up leaf by leaf",
}
"""Remedies by the name of a level's reason."""
_REFUSED = {
    "ENOSPC": "vfio_iommu_type1.dma_entry_limit is how many maps a container may have: raise it",
    "ENOMEM": "the process may not lock more memory: <memtune><hard_limit> in the domain's XML",
    "EINVAL": "is the guest's address of the BAR beyond the IOMMU's address width?",
}


@dataclass(frozen=True)
class Advice:
    name: str
    """Short stable name: that of a level's reason, or unmaps, many-maps, guest-memory,
    map-refused, not-mapped, clock-source."""
    problem: str
    help: str
    """Empty if no remedy is known."""
    seconds: float
    """Cost of the problem within the boot, which is the most that can be gained."""


@dataclass(frozen=True)
class ProfiledBoot:
    """One boot, as far as its trace shows it."""

    timeline: Timeline
    levels: Mapping[str, Level]
    """Levels by the name of their BAR."""
    facts: ProfileFacts

    def select_bar_steps(self, kind: str) -> list[DmaStep]:
        return [s for s in self.timeline.steps_before_mark() if s.kind == kind and s.bar != RAM]


def give_advice(boot: ProfiledBoot) -> tuple[Advice, ...]:
    """Return the advice for a boot: first what is wrong, then the rest by its cost, the largest
    first."""
    rules: tuple[Callable[[ProfiledBoot], Iterator[Advice]], ...] = (
        _levels, _unmaps, _many_maps, _guest_memory, _refused, _not_mapped, _clock_source,
    )  # fmt: skip
    advices = [advice for rule in rules for advice in rule(boot)]
    least = _LEAST_SHARE * boot.timeline.boot_seconds
    worth = [advice for advice in advices if advice.seconds >= least or advice.name in _ALWAYS]
    return tuple(sorted(worth, key=lambda advice: (advice.name not in _ALWAYS, -advice.seconds)))


_ALWAYS = {"map-refused", "not-mapped", "clock-source"}


def _levels(boot: ProfiledBoot) -> Iterator[Advice]:
    costs: defaultdict[str, float] = defaultdict(float)
    for step in boot.select_bar_steps("map"):
        costs[step.bar] += step.seconds
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    texts: dict[str, str] = {}
    for bar, level in boot.levels.items():
        for reason in level.reasons:
            if reason.name in _HELP:
                reasons[reason.name].append(bar)
                texts.setdefault(reason.name, reason.text)
    for name, bars in reasons.items():
        yield Advice(name, texts[name], _HELP[name], sum(costs[bar] for bar in bars))


def _unmaps(boot: ProfiledBoot) -> Iterator[Advice]:
    steps = boot.select_bar_steps("unmap")
    if steps:
        yield Advice(
            "unmaps",
            f"{len(steps)} unmaps of BARs: each walks its BAR page by page, on every kernel up to"
            " v7.3",
            "only fewer maps: a firmware and a guest kernel that switch decoding off less often",
            sum(step.seconds for step in steps),
        )


def _many_maps(boot: ProfiledBoot) -> Iterator[Advice]:
    by_kernel = [s for s in boot.select_bar_steps("map") if s.phase.startswith(_KERNEL)]
    maps: defaultdict[str, int] = defaultdict(int)
    for step in by_kernel:
        maps[step.bar] += 1
    for bar, count in maps.items():
        if count > _BATCHED_MAPS:
            known = any(s.phase.startswith("kernel") for s in by_kernel)
            who = "kernel" if known else "firmware and kernel"
            spent = sum(
                s.seconds
                for s in (*boot.select_bar_steps("map"), *boot.select_bar_steps("unmap"))
                if s.bar == bar and s.phase.startswith(_KERNEL)
            )
            yield Advice(
                "many-maps",
                f"{bar} was mapped {count} times for the guest's {who}: it switches the decoding"
                " off and on for each BAR that it sizes",
                'a guest kernel v6.14 or later ("PCI: Batch BAR sizing operations") does so once'
                " for each device",
                spent * (1 - 1 / count),
            )


def _guest_memory(boot: ProfiledBoot) -> Iterator[Advice]:
    steps = [
        s for s in boot.timeline.steps_before_mark() if s.kind == "map" and s.bar == RAM
    ]  # fmt: skip
    policy = parse_selected(boot.facts.settings.transparent_hugepage or "")
    # QEMU sets MADV_HUGEPAGE for the guest's memory (ram_block_add() of system/physmem.c), so
    # `madvise` is as good as `always`
    if steps and policy == "never" and not boot.facts.huge_pages:
        yield Advice(
            "guest-memory",
            f"{format_size(boot.facts.memory)} of the guest's memory are allocated and pinned"
            " by 4 KiB pages: transparent huge pages are off (never)",
            "on the host: always or madvise in /sys/kernel/mm/transparent_hugepage/enabled, or"
            " huge pages set aside: <memoryBacking><hugepages/> in the domain's XML; to clear the"
            " memory takes as long either way",
            sum(step.seconds for step in steps),
        )


def _refused(boot: ProfiledBoot) -> Iterator[Advice]:
    refused = [step for step in boot.timeline.steps if step.result]
    for result in dict.fromkeys(step.result for step in refused):
        name = errorcode.get(-result, str(result))
        steps = [step for step in refused if step.result == result]
        yield Advice(
            "map-refused",
            f"{len(steps)} maps or unmaps were refused ({name}), the first of {steps[0].bar}"
            f" ({format_size(steps[0].size)}): the device cannot reach what is not mapped",
            _REFUSED.get(name, ""),
            sum(step.seconds for step in steps),
        )


def _not_mapped(boot: ProfiledBoot) -> Iterator[Advice]:
    if not boot.select_bar_steps("map"):
        names = ", ".join(bar.name for bar in boot.facts.bars)
        yield Advice(
            "not-mapped",
            f"no BAR was mapped for DMA in this boot (of {names})",
            "nothing is wrong if the guest did not switch the device on. Otherwise: is x-no-mmap"
            " set? Does the guest have an IOMMU of its own? Does QEMU use iommufd?",
            0.0,
        )


def _clock_source(boot: ProfiledBoot) -> Iterator[Advice]:
    source = boot.facts.settings.clocksource
    if source and source not in ("tsc", "kvm-clock"):
        yield Advice(
            "clock-source",
            f"the host's clock source is {source}: each reading of the clock costs microseconds",
            "why not tsc? dmesg | grep -i -e tsc -e clocksource",
            0.0,
        )
