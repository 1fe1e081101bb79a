"""Which groups' full tests a landing has to run, and whether that ends in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.lanes.content import LOCKS, digest_of
from ci.lanes.groups import ROOT, Group, Groups
from ci.lanes.proofs import Proof

LIMIT = 60 * 60
"""Seconds that a landing may take with the groups that have to be proven."""
STREAMS = 2
Fits = Callable[[int], bool]
"""Whether full tests of so many seconds end within LIMIT, with the rest of the landing."""
_UNKNOWN_SECONDS = 600


@dataclass(frozen=True)
class Work:
    """Full tests of groups that are to run, and why."""

    changed: tuple[Group, ...]
    """What they depend on is not what was proven."""
    drawn: tuple[Group, ...] = ()
    """Proven, and run all the same: a false proof is found out so."""
    moved: tuple[Group, ...] = ()
    """Proven with other versions of packages than there are today."""

    @property
    def groups(self) -> tuple[Group, ...]:
        return (*self.changed, *self.drawn, *self.moved)


def with_full_tests(groups: Groups, top: Path = ROOT) -> tuple[Group, ...]:
    """The groups that have tests marked `full`."""
    return tuple(
        group for group in groups.all
        if any("mark.full" in (top / test).read_text() for test in group.tests)
    )  # fmt: skip


def contents(groups: Groups, files: Mapping[str, str]) -> dict[str, str]:
    """Group -> digest of all files that it depends on, the locked requirements among them."""
    locks = {path: files[path] for path in LOCKS if path in files}
    return {group.name: digest_of(groups.files_of(group, files) | locks) for group in groups.all}


def changed_groups(
    candidates: Sequence[Group], content: Mapping[str, str], proofs: Mapping[str, Proof]
) -> tuple[Group, ...]:
    return tuple(
        group for group in candidates
        if group.name not in proofs or proofs[group.name].content != content[group.name]
    )  # fmt: skip


def draw(candidates: Sequence[Group], changed: Sequence[Group], commit: str) -> tuple[Group, ...]:
    """One of the groups that are proven, by the hash of the commit: it cannot be chosen, and the
    same commit draws the same."""
    proven = [group for group in candidates if group not in changed]
    return (proven[int(commit, 16) % len(proven)],) if proven else ()


def seconds_of(groups: Sequence[Group], proofs: Mapping[str, Proof]) -> int:
    """What their full tests took when they were proven."""
    return sum(
        proofs[group.name].seconds if group.name in proofs else _UNKNOWN_SECONDS
        for group in groups
    )


def landing_seconds(budget: Mapping[str, int], processes: Sequence[str], full: int) -> float:
    """Wall-clock seconds of a landing, at most: unit tests, then two streams."""
    return (
        budget.get("unit", 0) + (sum(budget.get(name, 0) for name in processes) + full) / STREAMS
    )


def to_prove_first(
    changed: Sequence[Group], proofs: Mapping[str, Proof], fits: Fits
) -> list[Group]:
    """The dearest of the changed groups, so many that the rest fits; empty when all fit."""
    rest = sorted(changed, key=lambda group: seconds_of([group], proofs))
    first = []
    while rest and not fits(seconds_of(rest, proofs)):
        first.append(rest.pop())
    return first


def moved_groups(
    candidates: Sequence[Group],
    versions: Mapping[str, str],
    proofs: Mapping[str, Proof],
    already: Sequence[Group],
    fits: Fits,
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Groups whose packages are not the proven ones: those for which there is time, the cheapest
    first, and the others."""
    moved = sorted(
        (group for group in candidates
         if group not in already and proofs[group.name].versions != versions[group.name]),
        key=lambda group: seconds_of([group], proofs),
    )  # fmt: skip
    fitting: list[Group] = []
    while moved and fits(seconds_of([*already, *fitting, moved[0]], proofs)):
        fitting.append(moved.pop(0))
    return tuple(fitting), tuple(moved)
