"""Show the levels of each look of a run with `until`, and simulate what they come to.

    .venv/bin/python ci/bench/sequential.py [MAX_PAIRS [RUNS]]

The constants are derived by numerical integration (orchestrator/analysis/statistics/sequential.py,
which names its sources). The simulation draws the signed ranks of runs without a difference, which
need no distribution of times: every sign is + or -, every order of the sizes as likely as any
other. It prints how many of these runs cross a bound at any look: they should be no more than the
wanted error, and are fewer, since ranks are discrete.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from orchestrator.analysis.statistics.ranks import signed_rank_below
from orchestrator.analysis.statistics.sequential import (
    ALPHA_UNTIL,
    ERROR,
    bound_constant,
    choose_looks,
    levels_at,
)


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 200_000
    looks = choose_looks(most)
    for name, error, shape in (
        ("difference, Wang and Tsiatis 0.25", ALPHA_UNTIL, 0.25),
        ("interval, O'Brien and Fleming", 2 * ERROR, 0.0),
    ):
        print(f"{name}: error {error:g}, constant {bound_constant(looks, error, shape):.5f}")
    draw = np.random.default_rng(1)
    sizes, signs = draw.random((runs, most)), draw.random((runs, most)) < 0.5
    called, missed = np.zeros(runs, bool), np.zeros(runs, bool)
    print("pairs  difference p  interval, each side  called so far  missed so far")
    for pairs in looks:
        levels = levels_at(pairs, most)
        ranks = sizes[:, :pairs].argsort(axis=1).argsort(axis=1) + 1
        sums = (ranks * signs[:, :pairs]).sum(axis=1)
        below = signed_rank_below(pairs)
        p = np.minimum(below[sums], below[len(below) - 1 - sums])
        called |= 2 * p <= levels.difference
        missed |= p <= levels.error
        print(
            f"{pairs:5}  {levels.difference:12.6f}  {levels.error:19.6f}  {called.mean():13.4%}"
            f"  {missed.mean():13.4%}"
        )
    print(f"standard error {math.sqrt(ALPHA_UNTIL / runs):.4%}, {math.sqrt(2 * ERROR / runs):.4%}")


if __name__ == "__main__":
    main()
