"""Two profiles of one domain: what became cheaper, and what dearer. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from orchestrator.analysis.diagnosis.diagnosis import Profile

_TOKEN = re.compile(r" ?\bbarometer\.token=\S+")
"""The word by which a boot of barometer's own is known; another one each time."""


@dataclass(frozen=True)
class CostChange:
    """Seconds of one kind of cost before and after; 0 if a boot has none of it."""

    subject: str
    before: float
    after: float
    is_ordinary: bool = False
    """True for the guest's own work, which differs from boot to boot."""

    @property
    def saved(self) -> float:
        return self.before - self.after


@dataclass(frozen=True)
class ProfileChange:
    before: Profile
    after: Profile
    costs: tuple[CostChange, ...]
    """The largest change first. They add up to the difference of the boots, with what is not
    explained in either."""
    differing: tuple[tuple[str, str, str], ...]
    """Name of what else differs between the boots, with its value in each."""


def compare_profiles(before: Profile, after: Profile) -> ProfileChange:
    """Return what changed between two profiles."""
    costs = (_sum_costs(before), _sum_costs(after))
    subjects = dict.fromkeys((*costs[0], *costs[1]))
    ordinary = {a.subject for a in (*before.advice, *after.advice) if a.is_ordinary}
    changes = [
        CostChange(name, costs[0].get(name, 0.0), costs[1].get(name, 0.0), name in ordinary)
        for name in subjects
    ]
    changes.sort(key=lambda change: -abs(change.saved))
    return ProfileChange(before, after, tuple(changes), tuple(_find_differing(before, after)))


def _sum_costs(profile: Profile) -> dict[str, float]:
    """Return subject -> seconds of a profile's costs."""
    costs: defaultdict[str, float] = defaultdict(float)
    for advice in profile.advice:
        if advice.seconds:
            costs[advice.subject] += advice.seconds
    return dict(costs)


def _find_differing(before: Profile, after: Profile) -> list[tuple[str, str, str]]:
    values = [
        (
            ("domain", profile.facts.domain),
            ("host kernel", profile.facts.release),
            ("QEMU", profile.facts.qemu),
            ("libvirt", profile.facts.libvirt),
            ("memory", str(profile.facts.memory)),
            ("huge pages", str(profile.facts.huge_pages)),
            ("boot", profile.facts.boot),
            ("ends with", profile.ended_by),
            ("transparent huge pages", profile.facts.settings.transparent_hugepage or ""),
            ("command line", _TOKEN.sub("", profile.facts.settings.cmdline or "")),
            ("BARs", ", ".join(str(bar.size) for bar in profile.facts.bars)),
        )
        for profile in (before, after)
    ]
    return [
        (name, first, second)
        for (name, first), (_, second) in zip(*values, strict=True)
        if first != second
    ]
