"""The looks of a run with `until`: their levels by numerical integration, against published tables
and against simulation."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.statistics.ranks import signed_rank_below
from orchestrator.analysis.statistics.sequential import (
    ALPHA,
    ALPHA_UNTIL,
    ERROR,
    LEAST_FOR_P,
    bound_constant,
    choose_looks,
    crossing_probability,
    levels_at,
)


@pytest.mark.parametrize(
    ("shape", "constants"),
    [
        # Jennison and Turnbull 2000, tables 2.1, 2.3, 2.9: two-sided 0.05, 2 to 5 looks
        (0.5, (2.178, 2.289, 2.361, 2.413)),
        (0.0, (1.977, 2.004, 2.024, 2.040)),
        (0.25, (2.038, 2.083, 2.113, 2.136)),
    ],
)
def test_constants_of_equal_steps_are_the_published_ones(
    shape: float, constants: tuple[float, ...]
) -> None:
    for looks, constant in enumerate(constants, 2):
        derived = bound_constant(tuple(range(1, looks + 1)), 0.05, shape)
        assert derived == pytest.approx(constant, abs=6e-4)


def test_single_look_is_the_normal_quantile() -> None:
    for error in (0.05, 0.002):
        quantile = NormalDist().inv_cdf(1 - error / 2)
        assert bound_constant((30,), error, 0.25) == pytest.approx(quantile, abs=1e-5)


@pytest.mark.parametrize(("shape", "error"), [(0.25, ALPHA_UNTIL), (0.0, 2 * ERROR)])
def test_signed_rank_crosses_the_bounds_as_seldom_as_the_normal_sum(
    shape: float, error: float
) -> None:
    """40000 runs of 30 pairs without a difference: heavy noise, so that only ranks are right."""
    most, runs = 30, 40_000
    draw = np.random.default_rng(1)
    d = draw.standard_t(2, (runs, most))
    crossed = np.zeros(runs, bool)
    for pairs in choose_looks(most):
        level = levels_at(pairs, most)
        one_sided = level.difference / 2 if shape else level.error
        ranks = np.abs(d[:, :pairs]).argsort(axis=1).argsort(axis=1) + 1
        sums = (ranks * (d[:, :pairs] > 0)).sum(axis=1)
        below = signed_rank_below(pairs)
        crossed |= np.minimum(below[sums], below[len(below) - 1 - sums]) <= one_sided
    share, deviation = crossed.mean(), np.sqrt(error / runs)
    # discrete, so rather less than the error
    assert 0.6 * error < share < error + 3 * deviation


@given(st.integers(1, 500).map(lambda blocks: 2 * blocks))
def test_looks_are_whole_blocks_few_and_end_with_the_run(most: int) -> None:
    looks = choose_looks(most)
    assert looks[-1] == most
    assert len(looks) <= 8
    assert all(look % 2 == 0 for look in looks)
    assert [*looks] == sorted(set(looks))
    assert most < LEAST_FOR_P or looks[0] == LEAST_FOR_P


@given(st.integers(5, 200).map(lambda blocks: 2 * blocks))
def test_looks_get_less_strict_and_together_err_as_wanted(most: int) -> None:
    looks = choose_looks(most)
    levels = [levels_at(pairs, most) for pairs in looks]
    assert [v.difference for v in levels] == sorted(v.difference for v in levels)
    assert [v.error for v in levels] == sorted(v.error for v in levels)
    assert levels[-1].difference <= ALPHA_UNTIL + 1e-6
    assert levels[-1].error <= ERROR + 1e-6
    for error, shape in ((ALPHA_UNTIL, 0.25), (2 * ERROR, 0.0)):
        constant = bound_constant(looks, error, shape)
        assert crossing_probability(looks, constant, shape) == pytest.approx(error, rel=1e-3)


def test_between_looks_the_last_one_counts() -> None:
    assert levels_at(12, 30) == levels_at(10, 30)
    assert levels_at(4, 30) == levels_at(10, 30)
    assert levels_at(14, 30) != levels_at(10, 30)
    assert levels_at(30, 30).difference > ALPHA
