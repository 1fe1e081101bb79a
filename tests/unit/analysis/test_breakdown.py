from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.maps.breakdown import (
    WALK,
    Breakdown,
    check_sums,
    measured_whole,
    read_breakdowns,
)
from orchestrator.base.errors import EvidenceError
from tests.unit.answers import by_1gib, by_2mib, map_pass
from tests.unit.manifests import trial_of

IOCTL = "vfio_iommu_type1_ioctl"
MIB = 2**20
PAGE = 4096
BAR = 1024 * MIB
STACKS = st.dictionaries(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=4).map(tuple), st.integers(1, 10**9),
    max_size=8,
)  # fmt: skip


def stacks(**counts: int) -> dict[tuple[str, ...], float]:
    """Count stacks: own=7, pin=3, pin__look=5 are the ioctl, its callee, and that one's callee."""
    return {(IOCTL, *(name.split("__") if name != "own" else ())): n for name, n in counts.items()}


class Profile:
    """host/profile.json and the files that it names."""

    def __init__(self, folder: Path, bar: int = BAR) -> None:
        self._folder, self.host = folder, folder / "host"
        self._facts: dict[str, Any] = {"bar": bar, "logged": []}
        self.host.mkdir(exist_ok=True)

    def log(
        self,
        operation: str,
        size: int,
        state: str = "warm",
        *,
        window: bool = False,
        calls: int | None = None,
        under: dict[str, int] | None = None,
        **counts: int,
    ) -> None:
        """Log an operation. `under` adds counts of stacks whose names are computed. `calls` is the
        number of walks of the IOMMU's tables, by default one for each page of an unmap."""
        if calls is None:
            calls = size // PAGE if operation == "unmap" else 0
        counts |= under or {}
        file = f"profile-{len(self._facts['logged'])}.folded"
        lines = [f"{';'.join(stack)} {n}\n" for stack, n in stacks(**counts).items()]
        (self.host / file).write_text("".join(lines))
        self._facts["logged"].append({
            "operation": operation, "bytes": size, "state": state, "window": window,
            "file": file, "calls": {WALK: calls} if calls else {},
            "instructions": sum(counts.values()),
        })  # fmt: skip

    def read(self) -> list[Breakdown]:
        (self.host / "profile.json").write_text(json.dumps(self._facts))
        return read_breakdowns(trial_of(self._folder))


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return Profile(tmp_path)


def test_trial_without_a_profile_pass_has_no_breakdown(tmp_path: Path) -> None:
    assert read_breakdowns(trial_of(tmp_path)) == []


def test_whole_bar_that_was_logged_is_taken_as_it_is(profile: Profile) -> None:
    profile.log("map", BAR, "cold", own=10, pin=5, pin__fault=100)
    profile.log("map", BAR, "warm", own=10, pin=5)
    cold, warm = profile.read()
    assert (cold.operation, cold.state, cold.logged) == ("map", "cold", True)
    assert cold.stacks == stacks(own=10, pin=5, pin__fault=100)
    assert (warm.state, warm.total) == ("warm", 15)


def test_large_map_is_linear_in_pages_of_two_small_ones(profile: Profile) -> None:
    # 7 for each map, 3 for each page, and 2 for each page in its callee; one function costs the
    # same in both, and only the larger map reaches another
    for mib, only in ((2, 0), (4, 512)):
        pages = mib * MIB // PAGE
        more = {"late": only} if only else {}
        profile.log("map", mib * MIB, own=7 + 3 * pages, pin__look=2 * pages, once=11, under=more)
    [parts] = profile.read()
    pages = BAR // PAGE
    assert (parts.operation, parts.state, parts.logged) == ("map", "warm", False)
    assert parts.stacks == stacks(
        own=7 + 3 * pages, pin__look=2 * pages, once=11, late=pages - 512
    )
    assert parts.total == 7 + 5 * pages + 11 + pages - 512


def test_walks_of_a_large_unmap_are_those_of_its_window(profile: Profile) -> None:
    small, large = 2 * MIB // PAGE, 4 * MIB // PAGE
    for pages in (small, large):
        profile.log(
            "unmap", pages * PAGE, own=9 * pages,
            under={f"remove__{WALK}": 50 * pages, f"remove__{WALK}__level": 40 * pages},
        )  # fmt: skip
    profile.log(
        "unmap", BAR, window=True, calls=1000, own=123456,
        under={f"remove__{WALK}": 30_000, f"remove__{WALK}__level": 5_000},
    )  # fmt: skip
    [parts] = profile.read()
    pages = BAR // PAGE
    assert parts.stacks == stacks(
        own=9 * pages, **{f"remove__{WALK}": 30 * pages, f"remove__{WALK}__level": 5 * pages}
    )
    assert parts.within(WALK) == 35 * pages


def test_walks_that_a_large_unmap_does_not_take_are_left_out(profile: Profile) -> None:
    for mib in (2, 4):
        profile.log("unmap", mib * MIB, own=mib, under={f"{WALK}__lowest_level": 256 * mib})
    profile.log("unmap", BAR, window=True, calls=10, under={WALK: 50})
    [parts] = profile.read()
    assert parts.stacks == stacks(own=1024, **{WALK: 5 * BAR // PAGE})


@pytest.mark.parametrize("walks", [0, 1, 2 * MIB // PAGE - 1])
def test_window_is_of_no_use_where_not_each_page_is_walked(profile: Profile, walks: int) -> None:
    for mib in (2, 4):
        profile.log("unmap", mib * MIB, own=256 * mib, calls=walks, under={WALK: 33})
    profile.log("unmap", BAR, window=True, calls=1, under={WALK: 50})
    [parts] = profile.read()
    assert parts.stacks == stacks(own=BAR // PAGE, **{WALK: 33})


def test_walks_without_a_window_are_linear_like_all_else(profile: Profile) -> None:
    for mib in (2, 4):
        profile.log("map", mib * MIB, own=1, under={WALK: 256 * mib})
    [parts] = profile.read()
    assert parts.stacks == stacks(own=1, **{WALK: BAR // PAGE})


def test_order_of_the_logs_of_other_operations_does_not_matter(profile: Profile) -> None:
    profile.log("map", BAR, "cold", own=10)
    profile.log("map", BAR, "warm", own=9)
    profile.log("unmap", 2 * MIB, own=512)
    profile.log("unmap", 4 * MIB, own=1024)
    profile.log("unmap", BAR, window=True, calls=10, own=1, under={WALK: 100})
    assert [(b.operation, b.state, b.total) for b in profile.read()] == [
        ("map", "cold", 10), ("map", "warm", 9), ("unmap", "warm", BAR // PAGE * 11),
    ]  # fmt: skip


@pytest.mark.parametrize("entry", ["asm_sysvec_apic_timer_interrupt", "asm_common_interrupt"])
def test_interrupts_are_no_cost_of_a_page(profile: Profile, entry: str) -> None:
    profile.log("unmap", 2 * MIB, own=512)
    profile.log("unmap", 4 * MIB, own=1024, under={f"{entry}__tick": 5000})
    profile.log("unmap", BAR, window=True, calls=10, under={WALK: 100, f"{WALK}__{entry}": 7777})
    [parts] = profile.read()
    pages = BAR // PAGE
    assert parts.stacks == stacks(own=pages, **{WALK: 10 * pages})


def test_file_that_is_missing_is_an_evidence_error(profile: Profile) -> None:
    profile.log("map", BAR, "cold", own=10)
    (profile.host / "profile-0.folded").unlink()
    with pytest.raises(EvidenceError, match=r"profile-0\.folded") as caught:
        profile.read()
    assert caught.value.reason == "missing-evidence"


def test_file_that_does_not_add_up_is_an_evidence_error(profile: Profile) -> None:
    profile.log("map", BAR, "cold", own=10)
    with (profile.host / "profile-0.folded").open("a") as file:
        file.write(f"{IOCTL};more 3\n")
    with pytest.raises(EvidenceError, match=r"\b13 .*profile\.json\b.* 10\b") as caught:
        profile.read()
    assert caught.value.reason == "bad-evidence"


@given(STACKS)
def test_functions_add_up_to_the_whole_and_each_is_within_itself(
    counts: dict[tuple[str, ...], float],
) -> None:
    parts = Breakdown("map", "warm", counts, logged=True)
    rows = parts.by_function()
    assert sum(n for _, n in rows) == parts.total
    assert [n for _, n in rows] == sorted((n for _, n in rows), reverse=True)
    for name, own in rows:
        assert own <= parts.within(name) <= parts.total


def test_recursion_is_counted_once() -> None:
    parts = Breakdown("map", "warm", {("a",): 1, ("a", "b"): 2, ("a", "b", "a"): 4}, logged=True)
    assert parts.within("a") == 7
    assert parts.within("b") == 6
    assert parts.by_function() == [("a", 5), ("b", 2)]


def test_function_that_only_the_small_log_met_by_chance_costs_no_less_than_nothing(
    profile: Profile,
) -> None:
    profile.log("map", 2 * MIB, own=512, resched=40)
    profile.log("map", 4 * MIB, own=1024)
    [parts] = profile.read()
    assert min(n for _, n in parts.by_function()) >= 0


def breakdown(operation: str, total: float, state: str = "warm") -> Breakdown:
    return Breakdown(operation, state, {("f",): total - 1, ("f", "g"): 1.0}, logged=True)


def test_measured_whole_is_the_same_operation_without_an_empty_ioctl() -> None:
    plain = map_pass(by_1gib(map_ns=30_000, unmap_ns=700_000), counted=False)
    assert measured_whole(breakdown("map", 1), plain) == pytest.approx(29_000)
    assert measured_whole(breakdown("unmap", 1), plain) == pytest.approx(699_000)
    assert measured_whole(breakdown("map", 1, "prime"), plain) is None
    # a BAR that is not mapped at its best level has other costs
    assert measured_whole(breakdown("map", 1), map_pass(by_2mib(), counted=False)) is None


@pytest.mark.parametrize(
    ("operation", "whole", "may_miss"), [("map", 29_000, 500), ("unmap", 699_000, 6990)]
)
def test_functions_that_do_not_add_up_to_what_was_measured_are_refused(
    operation: str, whole: int, may_miss: int
) -> None:
    plain = map_pass(by_1gib(map_ns=30_000, unmap_ns=700_000), counted=False)
    for sign in (-1, 1):
        check_sums([breakdown(operation, whole + sign * (may_miss - 1))], plain)
        wrong = [breakdown(operation, whole), breakdown(operation, whole + sign * (may_miss + 1))]
        with pytest.raises(EvidenceError, match=rf"\b{operation}\b.*\b{whole}\b") as caught:
            check_sums(wrong, plain)
        assert caught.value.reason == "sums-disagree"


def test_sum_that_nothing_was_measured_for_is_not_checked() -> None:
    check_sums([breakdown("map", 1e9)], map_pass(by_2mib(), counted=False))
    check_sums([breakdown("map", 1e9)], map_pass(by_1gib(states=["cold"]), counted=False))
