"""Decide which groups' full tests a landing has to run, and whether it ends in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.lanes.content import LOCKS, digest_of
from ci.lanes.groups import ROOT, Group, Groups
from ci.lanes.proofs import Proof

LIMIT = 60 * 60
"""Most seconds that a landing may take, with the groups that it has to prove."""
STREAMS = 2
Fits = Callable[[int], bool]
"""True if full tests of so many seconds end within LIMIT, with the rest of the landing."""
_UNKNOWN_SECONDS = 600


@dataclass(frozen=True)
class Work:
    """Groups whose full tests have to run, by reason."""

    changed: tuple[Group, ...]
    """Groups whose dependencies differ from the proven ones."""
    drawn: tuple[Group, ...] = ()
    """Proven groups that run all the same, to expose a false proof."""
    moved: tuple[Group, ...] = ()
    """Groups that were proven with other versions of packages than today's."""

    @property
    def groups(self) -> tuple[Group, ...]:
        return (*self.changed, *self.drawn, *self.moved)


def find_groups_with_full_tests(groups: Groups, top: Path = ROOT) -> tuple[Group, ...]:
    """Return the groups that have tests marked `full`."""
    return tuple(
        group for group in groups.all
        if any("mark.full" in (top / test).read_text() for test in group.tests)
    )  # fmt: skip


def digest_contents(groups: Groups, files: Mapping[str, str]) -> dict[str, str]:
    """Return group -> digest of all files that it depends on, the locked requirements included."""
    locks = {path: files[path] for path in LOCKS if path in files}
    return {group.name: digest_of(groups.files_of(group, files) | locks) for group in groups.all}


def find_changed_groups(
    candidates: Sequence[Group], content: Mapping[str, str], proofs: Mapping[str, Proof]
) -> tuple[Group, ...]:
    return tuple(
        group for group in candidates
        if group.name not in proofs or proofs[group.name].content != content[group.name]
    )  # fmt: skip


def draw(candidates: Sequence[Group], changed: Sequence[Group], commit: str) -> tuple[Group, ...]:
    """Draw one of the proven groups by the hash of the commit: nobody can choose it, and the same
    commit draws the same group."""
    proven = [group for group in candidates if group not in changed]
    return (proven[int(commit, 16) % len(proven)],) if proven else ()


def sum_seconds(groups: Sequence[Group], proofs: Mapping[str, Proof]) -> int:
    """Return how long the groups' full tests took when they were proven."""
    return sum(
        proofs[group.name].seconds if group.name in proofs else _UNKNOWN_SECONDS
        for group in groups
    )


def sum_landing_seconds(budget: Mapping[str, int], processes: Sequence[str], full: int) -> float:
    """Return the most wall-clock seconds that a landing takes: unit tests, then two streams."""
    return (
        budget.get("unit", 0) + (sum(budget.get(name, 0) for name in processes) + full) / STREAMS
    )


def choose_first_to_prove(
    changed: Sequence[Group], proofs: Mapping[str, Proof], fits: Fits
) -> list[Group]:
    """Return the most expensive changed groups, as many as it takes for the rest to fit; empty if
    all fit."""
    rest = sorted(changed, key=lambda group: sum_seconds([group], proofs))
    first = []
    while rest and not fits(sum_seconds(rest, proofs)):
        first.append(rest.pop())
    return first


def find_moved_groups(
    candidates: Sequence[Group],
    versions: Mapping[str, str],
    proofs: Mapping[str, Proof],
    already: Sequence[Group],
    fits: Fits,
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Return the groups whose packages differ from the proven ones: first those that fit into the
    landing, the cheapest first, then the others."""
    moved = sorted(
        (group for group in candidates
         if group not in already and proofs[group.name].versions != versions[group.name]),
        key=lambda group: sum_seconds([group], proofs),
    )  # fmt: skip
    fitting: list[Group] = []
    while moved and fits(sum_seconds([*already, *fitting, moved[0]], proofs)):
        fitting.append(moved.pop(0))
    return tuple(fitting), tuple(moved)
