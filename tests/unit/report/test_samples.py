from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.words.samples import Dot, collect_dots, thin
from orchestrator.scenario.vocabulary import Role
from tests.unit.report.pages import bad, compared, trials

values = st.lists(st.floats(-1e9, 1e9), max_size=300)


def test_every_trial_is_a_dot_in_the_order_of_the_run() -> None:
    arms: dict[Role, list[float]] = {
        "baseline": [8.0, 8.1], "candidate": [1.0, 1.1], "control": [8.2],
    }  # fmt: skip
    comparison = compared([bad(), *trials(arms)])
    by_role = collect_dots(comparison, comparison.metrics[0])
    assert {dots.role: [(dot.at, dot.value) for dot in dots.dots] for dots in by_role} == {
        "baseline": [(2, 8.0), (5, 8.1)],
        "candidate": [(3, 1.0), (6, 1.1)],
        "control": [(4, 8.2)],
    }
    assert [dots.of for dots in by_role] == [2, 2, 1]


@given(values, st.integers(1, 40).map(lambda half: 2 * half))
def test_thinning_keeps_the_order_and_the_extremes(costs: list[float], most: int) -> None:
    dots = [Dot(at, f"{at}", value) for at, value in enumerate(costs, 1)]
    kept = thin(dots, most)
    assert len(kept) <= most
    assert list(kept) == sorted(kept, key=lambda dot: dot.at)
    if len(dots) <= most:
        assert list(kept) == dots
    assert {extreme(costs) for extreme in (min, max) if costs} <= {dot.value for dot in kept}
