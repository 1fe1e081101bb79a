"""Advice on a boot: what is wrong with it, and what each part of it costs, from its evidence.

Every second of the boot is in one item of the costs, or is not explained. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.analysis.boot.spent import Spent, split_boot
from orchestrator.analysis.boot.timeline import RAM, DmaStep, Timeline
from orchestrator.analysis.diagnosis.guest import GuestSetup
from orchestrator.analysis.maps.level import Level
from orchestrator.evidence.surveys.host_report import HostReport
from orchestrator.evidence.surveys.profile_facts import ProfileFacts

NO_REMEDY = "no remedy known to barometer"
LEAST_COST_SHARE = 0.01
"""Share of a boot. A smaller cost is not worth a change to a machine."""
_MOST_LISTED = 4
"""Most BARs that a sentence lists; an item's `bars` has all."""


@dataclass(frozen=True)
class Remedy:
    name: str
    """Short and stable: that of the cause which it ends."""
    text: str
    seconds: float = 0.0
    """Most that it can save of the boot; 0: not known."""
    short: str = ""
    """The same in a few words, as the subject of a sentence; empty: `text` is as short."""


@dataclass(frozen=True)
class Advice:
    """One cause: a cost of the boot, or something that is wrong whatever it costs."""

    name: str
    """Short and stable, for programs."""
    subject: str
    """What it is, in a few words: `maps of BARs`."""
    problem: str
    seconds: float = 0.0
    """Its cost within the boot. Costs do not overlap. 0 for what costs no time."""
    remedies: tuple[Remedy, ...] = ()
    bars: tuple[str, ...] = ()
    """Names of the BARs, or addresses of the devices, that it is about."""
    is_wrong: bool = False
    """True: it comes first, whatever it costs."""
    is_ordinary: bool = False
    """True for what every boot has: the guest's own work. It is told last in a sentence."""

    @property
    def help(self) -> str:
        return "; ".join(remedy.text for remedy in self.remedies) or NO_REMEDY


@dataclass(frozen=True)
class ProfiledBoot:
    """One boot, as far as its trace shows it."""

    timeline: Timeline
    levels: Mapping[str, Level]
    """Levels by the name of their BAR."""
    facts: ProfileFacts
    guest: GuestSetup = field(default_factory=GuestSetup)
    report: HostReport = field(default_factory=HostReport)
    before_exec: float = 0.0
    """Seconds from the request to start the domain to QEMU's exec."""

    @property
    def whole_seconds(self) -> float:
        return self.before_exec + self.timeline.boot_seconds

    @property
    def spent(self) -> Spent:
        return split_boot(self.timeline)

    def select_bar_steps(self, kind: str) -> list[DmaStep]:
        return [s for s in self.timeline.steps_before_mark() if s.kind == kind and s.bar != RAM]


def list_names(names: Iterable[str]) -> str:
    """Return the names as part of a sentence: all of a few, else the first and their number."""
    every = list(dict.fromkeys(names))
    shown = every if len(every) <= _MOST_LISTED else every[: _MOST_LISTED - 1]
    more = f" and {len(every) - len(shown)} more" if len(shown) < len(every) else ""
    return ", ".join(shown) + more


def tell_seconds(value: float) -> str:
    """Return seconds as part of a sentence."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def order_advice(advices: Sequence[Advice]) -> tuple[Advice, ...]:
    """Return what is wrong first, then the rest by its cost, the largest first."""
    return tuple(sorted(advices, key=lambda advice: (not advice.is_wrong, -advice.seconds)))
