from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan import make_plan
from tests.unit.scenarios import map_scenario, scenario


def test_one_pair_is_one_trial_of_each_arm() -> None:
    assert [t.name for t in make_plan(scenario())] == ["0001-baseline", "0002-candidate"]


def test_order_flips_from_pair_to_pair() -> None:
    assert [t.arm[0] for t in make_plan(scenario("trials.pairs=3"))] == list("bccbbc")


def test_odd_seed_starts_with_the_candidate() -> None:
    assert [t.arm[0] for t in make_plan(scenario("trials.pairs=2", "trials.seed=7"))] == list(
        "cbbc"
    )


def test_trial_has_every_pass_of_its_scenario() -> None:
    assert {t.passes for t in make_plan(scenario("trials.pairs=2"))} == {
        ("plain", "timing", "counts")
    }
    chosen = map_scenario('trace.passes=["counts", "profile"]')
    assert {t.passes for t in make_plan(chosen)} == {("counts", "profile")}


def test_exact_host_boots_one_guest_a_trial() -> None:
    plan = make_plan(scenario("host.accel=exact", "trials.pairs=2"))
    assert [(t.pair, t.arm[0], t.passes) for t in plan[:6]] == [
        (1, "b", ("plain",)), (1, "c", ("plain",)),
        (1, "b", ("timing",)), (1, "c", ("timing",)),
        (1, "b", ("counts",)), (1, "c", ("counts",)),
    ]  # fmt: skip
    assert [(t.pair, t.arm[0], t.passes) for t in plan[6:8]] == [
        (2, "c", ("plain",)), (2, "b", ("plain",)),
    ]  # fmt: skip
    assert [t.number for t in plan] == list(range(1, 13))
    assert len({t.name for t in plan}) == 12


@given(st.integers(1, 50), st.integers(0, 10))
def test_every_pair_has_both_arms_and_names_sort_in_order(pairs: int, seed: int) -> None:
    plan = make_plan(scenario(f"trials.pairs={pairs}", f"trials.seed={seed}"))
    assert [t.number for t in plan] == list(range(1, 2 * pairs + 1))
    assert sorted(t.name for t in plan) == [t.name for t in plan]
    for pair in range(1, pairs + 1):
        assert {t.arm for t in plan if t.pair == pair} == {"baseline", "candidate"}
    # never the same arm three times in a row, so a drift falls on both alike
    arms = "".join(t.arm[0] for t in plan)
    assert "bbb" not in arms
    assert "ccc" not in arms
