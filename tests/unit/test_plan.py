from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scenario.plan import make_plan
from tests.unit.scenarios import map_scenario, scenario


def test_one_pair_is_one_trial_of_each_arm() -> None:
    assert [t.name for t in make_plan(scenario())] == ["0001-baseline", "0002-candidate"]


def arms_of(*overrides: str) -> str:
    """Return the plan's roles by their first letters; "x" is the control."""
    letters = {"control": "x", "warm-up": "w"}
    return "".join(letters.get(t.arm, t.arm[0]) for t in make_plan(scenario(*overrides)))


def test_order_flips_within_a_block() -> None:
    assert arms_of("trials.pairs=2", "trials.warm_up=false") == "bccb"


def test_odd_seed_starts_with_the_candidate() -> None:
    assert arms_of("trials.pairs=2", "trials.seed=7", "trials.warm_up=false") == "cbbc"


def test_which_arm_starts_a_later_block_is_drawn_by_the_seed() -> None:
    orders = {
        arms_of("trials.pairs=8", f"trials.seed={seed}", "trials.warm_up=false")
        for seed in range(0, 100, 2)
    }
    assert len(orders) == 8
    assert {order[i : i + 4] for order in orders for i in range(4, 16, 4)} == {"bccb", "cbbc"}


def test_same_seed_gives_the_same_order() -> None:
    assert arms_of("trials.pairs=30", "trials.seed=4") == arms_of(
        "trials.pairs=30", "trials.seed=4"
    )


def test_more_pairs_go_on_where_fewer_ended() -> None:
    fewer, more = (arms_of(f"trials.pairs={n}", "trials.control=true") for n in (12, 30))
    assert more.startswith(fewer)


def test_several_pairs_are_warmed_up_and_many_have_a_control() -> None:
    assert arms_of("trials.pairs=1") == "bc"
    assert arms_of("trials.pairs=2") == "wbccb"
    ten = arms_of("trials.pairs=10")
    assert (ten[0], ten.count("x"), len(ten)) == ("w", 5, 26)
    assert arms_of("trials.pairs=1", "trials.control=true").count("x") == 1


def test_place_of_the_control_in_its_block_is_drawn() -> None:
    plan = arms_of("trials.pairs=60", "trials.warm_up=false")
    assert {plan[i : i + 5].index("x") for i in range(0, len(plan), 5)} == {0, 2, 4}


def test_warm_up_and_control_boot_the_baselines_kernel() -> None:
    plan = make_plan(scenario("trials.pairs=10"))
    assert {(t.arm, t.boots) for t in plan} == {
        ("baseline", "baseline"), ("candidate", "candidate"),
        ("control", "baseline"), ("warm-up", "baseline"),
    }  # fmt: skip
    assert [t.pair for t in plan if t.arm == "warm-up"] == [0]
    assert [t.pair for t in plan if t.arm == "control"] == [2, 4, 6, 8, 10]


def test_until_plans_an_even_number_of_pairs() -> None:
    plan = make_plan(scenario("trials.until={max_pairs=14}"))
    assert max(t.pair for t in plan) == 14


def test_exact_runs_need_no_warm_up() -> None:
    plan = make_plan(map_scenario("trials.pairs=4"))
    assert {t.arm for t in plan} == {"baseline", "candidate"}


def test_trial_has_every_pass_of_its_scenario() -> None:
    assert {t.passes for t in make_plan(scenario("trials.pairs=2"))} == {
        ("plain", "timing", "counts")
    }
    chosen = map_scenario('trace.passes=["counts", "profile"]')
    assert {t.passes for t in make_plan(chosen)} == {("counts", "profile")}


def test_exact_host_boots_one_guest_a_trial() -> None:
    plan = make_plan(scenario("host.accel=exact", "trials.pairs=2"))
    order = [(1, "b"), (1, "c"), (2, "c"), (2, "b")]
    assert [(t.pair, t.arm[0], t.passes) for t in plan] == [
        (pair, arm, (which,)) for which in ("plain", "timing", "counts") for pair, arm in order
    ]
    assert [t.number for t in plan] == list(range(1, 13))
    assert len({t.name for t in plan}) == 12


@given(st.integers(1, 50), st.integers(0, 10))
def test_every_pair_has_both_arms_and_names_sort_in_order(pairs: int, seed: int) -> None:
    plan = make_plan(scenario(f"trials.pairs={pairs}", f"trials.seed={seed}"))
    assert [t.number for t in plan] == list(range(1, len(plan) + 1))
    assert sorted(t.name for t in plan) == [t.name for t in plan]
    for pair in range(1, pairs + 1):
        arms = [t.arm for t in plan if t.pair == pair and t.arm != "control"]
        assert sorted(arms) == ["baseline", "candidate"]
    # both arms have the same mean position in a block, so a drift falls on both alike
    for first in range(1, pairs, 2):
        block = [t.arm for t in plan if t.pair in (first, first + 1) and t.arm != "control"]
        at = {arm: sum(i for i, a in enumerate(block) if a == arm) for arm in block}
        assert at["baseline"] == at["candidate"]
