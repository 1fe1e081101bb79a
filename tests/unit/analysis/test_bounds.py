"""Bounds of the candidate's own number: which metrics they fit, and when they are kept."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.statistics.ranks import find_median_interval
from orchestrator.analysis.verdict.comparison import compare_trials
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.base.errors import ScenarioError
from orchestrator.formats.units import PREFIXES
from orchestrator.report.words.quantities import format_quantity
from orchestrator.scenario.fields import parse_bound
from orchestrator.scenario.metrics import METRIC_WORDS, MetricWords
from tests.unit.analysis.test_comparison import KERNELS, LOOKUPS, MAPS, both, compared, of_night
from tests.unit.analysis.test_comparison import night as make_night
from tests.unit.scenarios import MAPS as MAP_TEXT
from tests.unit.scenarios import map_scenario, scenario

WALKS = "iova_lookups_per_unmap"
EVERY_PREFIX = [(unit, name) for unit, prefixes in PREFIXES.items() for name in prefixes]


@pytest.mark.parametrize(("unit", "prefix"), EVERY_PREFIX)
@given(number=st.floats(1e-3, 1e6), space=st.booleans())
def test_a_bound_has_every_unit_that_a_report_prints(
    unit: str, prefix: str, number: float, space: bool
) -> None:
    spelled = f"{number:.4g}{' ' * space}{prefix}"
    bound = parse_bound(f"<= {spelled}")
    assert bound is not None
    assert (bound.unit, str(bound)) == (unit, f"<= {spelled}")
    assert bound.limit == pytest.approx(number * PREFIXES[unit][prefix], rel=1e-3)
    printed = parse_bound(f"<= {format_quantity(bound.limit, unit)}")
    assert printed is not None
    assert printed.limit == pytest.approx(bound.limit, rel=1e-3)


@pytest.mark.parametrize("words", METRIC_WORDS, ids=lambda words: words.name)
@pytest.mark.parametrize(
    ("text", "bounded"),
    [("<= 32", {"count": "count", "cost": "ratio", "s": "ratio"}),
     ("<= 1.02", {"count": "ratio", "cost": "ratio", "s": "ratio"}),
     ("<= 2x", {"count": "ratio", "cost": "ratio", "s": "ratio"}),
     ("<= 1ms", {"count": None, "cost": "s", "s": "s"}),
     ("<= 50 kinsn", {"count": None, "cost": "Ginsn", "s": None})],
)  # fmt: skip
def test_what_a_bound_limits_depends_on_the_metric(
    words: MetricWords, text: str, bounded: dict[str, str | None]
) -> None:
    bound = parse_bound(text)
    assert bound is not None
    assert bound.bounded(words.kind) == bounded[words.kind]


@pytest.mark.parametrize(
    ("override", "text"),
    [(f'expect.{MAPS}="<= 1ms"', MAP_TEXT), (f'expect.{LOOKUPS}="<= 1ms"', MAP_TEXT),
     (f'expect.{LOOKUPS}="<= 1 insn"', MAP_TEXT)],
)  # fmt: skip
def test_a_bound_in_another_unit_is_refused_with_an_example(override: str, text: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(override, text=text)
    assert override.partition("=")[0] in caught.value.message
    assert "such as" in caught.value.message


def test_instructions_bound_only_exact_hosts() -> None:
    with pytest.raises(ScenarioError, match="such as"):
        scenario('expect.guest_boot_cost="<= 50 kinsn"')
    assert scenario('expect.guest_boot_cost="<= 5 s"').expect


@given(limit=st.integers(0, 100), value=st.integers(0, 100), sign=st.sampled_from(["<=", "<"]))
def test_a_count_is_held_to_the_candidates_own_number(limit: int, value: int, sign: str) -> None:
    kept = value <= limit if sign == "<=" else value < limit
    _, code = compared(both(7, value, LOOKUPS), f'expect.{LOOKUPS}="{sign} {limit}"')
    assert code == (0 if kept else 1)


def test_one_count_that_breaks_the_bound_breaks_it() -> None:
    results = [replace(r, pair=pair) for pair, value in enumerate((32, 32, 40), 1)
               for r in both(8388608, value, WALKS)]  # fmt: skip
    chosen = scenario(f'expect.{WALKS}="<= 32"')
    comparison = compare_trials(chosen, KERNELS, results, len(results), "tcg")
    assert choose_exit_code(comparison) == 1


@pytest.mark.parametrize(("limit", "code"), [("433 kinsn", 1), ("435 kinsn", 0), ("1.1x", 1)])
def test_exact_instructions_are_one_number(limit: str, code: int) -> None:
    results = [replace(r, pair=pair) for pair, value in enumerate((434e-6, 434.9e-6), 1)
               for r in both(300e-6, value)]  # fmt: skip
    chosen = map_scenario(f'expect.{MAPS}="<= {limit}"')
    comparison = compare_trials(chosen, KERNELS, results, len(results), "exact")
    assert choose_exit_code(comparison) == code


@pytest.mark.parametrize(("factor", "code"), [(1.5, 0), (1.0, 4), (0.5, 1)])
def test_times_keep_a_bound_with_the_interval_of_their_median(factor: float, code: int) -> None:
    draws = make_night(1.0, cv=0.03)
    usual = median(of_night(draws)[0].candidate)
    assert of_night(draws, f'expect.{MAPS}="<= {usual * factor:.6f} s"')[2] == code


@given(n=st.integers(1, 60))
def test_the_interval_of_a_median_covers_it_as_often_as_it_says(n: int) -> None:
    """Coverage is that of the sign test, which the binomial distribution gives exactly."""
    ends = find_median_interval([*map(float, range(n))])
    assert (ends is None) == (n < 6)
    if ends is None:
        return
    first = int(ends[0])
    assert ends[1] == n - 1 - first

    def coverage(index: int) -> float:
        return 1 - 2 * sum(math.comb(n, k) for k in range(index + 1)) / float(2**n)

    assert coverage(first) >= 0.95 > coverage(first + 1)


def test_the_interval_covers_the_median_of_a_skewed_distribution() -> None:
    draw, covered = random.Random(1), 0
    for _ in range(400):
        ends = find_median_interval([draw.expovariate(math.log(2)) for _ in range(12)])
        assert ends is not None
        covered += ends[0] <= 1 <= ends[1]
    assert covered >= 0.93 * 400
