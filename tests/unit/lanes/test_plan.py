"""The full tests that a landing runs, and those that have to be proven first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ci.lanes import plan
from ci.lanes.groups import Group
from ci.lanes.proofs import Proof

GROUPS = [Group(name, (), (), (), name) for name in "abcdef"]
PROOFS = {
    group.name: Proof(f"content-{group.name}", "v1", seconds, "2026-01-01")
    for group, seconds in zip(GROUPS, (10, 20, 30, 40, 50, 60), strict=True)
}
CONTENT = {group.name: f"content-{group.name}" for group in GROUPS}
groups = st.lists(st.sampled_from(GROUPS), unique=True)


def names(found: object) -> list[str]:
    assert isinstance(found, list | tuple)
    return [group.name for group in found]


def test_changed_is_what_has_another_proof_or_none() -> None:
    content = CONTENT | {"b": "other"}
    proofs = {name: proof for name, proof in PROOFS.items() if name != "d"}
    assert names(plan.find_changed_groups(GROUPS, content, proofs)) == ["b", "d"]
    assert plan.find_changed_groups(GROUPS, CONTENT, PROOFS) == ()


@given(groups, st.integers(min_value=0, max_value=2**160 - 1))
def test_one_that_is_proven_is_drawn_by_the_commit(changed: list[Group], commit: int) -> None:
    drawn = plan.draw(GROUPS, changed, f"{commit:040x}")
    assert drawn == plan.draw(GROUPS, changed, f"{commit:040x}")
    assert len(drawn) == (len(changed) < len(GROUPS))
    assert not {*drawn} & {*changed}


def test_each_group_is_drawn_by_some_commit() -> None:
    drawn = {plan.draw(GROUPS, [], f"{commit:040x}") for commit in range(len(GROUPS))}
    assert len(drawn) == len(GROUPS)


@given(groups, st.integers(min_value=0, max_value=250))
def test_rest_fits_once_the_dearest_are_proven(changed: list[Group], room: int) -> None:
    def fits(seconds: int) -> bool:
        return seconds <= room

    first = plan.choose_first_to_prove(changed, PROOFS, fits)
    rest = [group for group in changed if group not in first]
    assert plan.sum_seconds(rest, PROOFS) <= room
    # and no shorter list would do
    if first:
        assert plan.sum_seconds([*rest, first[-1]], PROOFS) > room


@given(groups, groups, st.integers(min_value=0, max_value=250))
def test_groups_whose_packages_moved_run_as_far_as_there_is_time(
    moved: list[Group], already: list[Group], room: int
) -> None:
    versions = {group.name: "v2" if group in moved else "v1" for group in GROUPS}
    fitting, unproven = plan.find_moved_groups(
        GROUPS, versions, PROOFS, already, lambda seconds: seconds <= room
    )
    assert {*names(fitting), *names(unproven)} == {*names(moved)} - {*names(already)}
    assert not {*names(fitting)} & {*names(unproven)}
    if fitting:
        assert plan.sum_seconds([*already, *fitting], PROOFS) <= room


def test_two_streams_share_what_comes_after_the_unit_tests() -> None:
    assert plan.sum_landing_seconds({"unit": 100, "a": 300, "b": 100}, ["a", "b"], 200) == 400
