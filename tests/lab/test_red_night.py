"""A night that regressed finds its commit unattended: nights on exact hosts, of a branch that
moved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ci.bench.speed import BASE, SUITE, make_repository
from tests.lab.conftest import leftovers

pytestmark = [
    pytest.mark.nested, pytest.mark.build, pytest.mark.full, pytest.mark.timeout(3600),
]  # fmt: skip
BAROMETER = str(Path(sys.executable).with_name("barometer"))
SCENARIO = """
name = "nightly"
workload = "map"
[host]
accel = "exact"
[device]
bar = "256MiB"
[map]
sizes = ["full"]
[arms.baseline]
kernel = {{ deb = "{base}", suite = "{suite}" }}
[arms.candidate]
kernel = {{ deb = "{base}", suite = "{suite}", module = "{tree}", ref = "tonight" }}
[trials]
pairs = 1
[trace]
passes = ["plain"]
[expect]
bar_map_cost = "not-regressed"
bar_unmap_cost = "not-regressed"
"""


def test_a_red_night_names_its_commit(tmp_path: Path, means: None) -> None:
    """Twelve commits came in since the last night; the eighth makes unmaps slower."""
    before = leftovers()
    tree, nights = make_repository(tmp_path / "tree", 13, 9), tmp_path / "nights"
    scenario = tmp_path / "lab.toml"
    scenario.write_text(SCENARIO.format(base=BASE, suite=SUITE, tree=tree))

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=tree, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def night(commit: str) -> int:
        git("branch", "--force", "tonight", commit)
        done = subprocess.run(
            [BAROMETER, "nightly", str(scenario), "--dir", str(nights), "--budget", "30m"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        print(done.stdout, done.stderr)
        return done.returncode

    assert night("bad~12") == 0
    assert not (nights / "lab/published/red.txt").exists()
    assert night("bad") == 1
    answer = (nights / "lab/published/red.txt").read_text()
    print(answer)
    assert git("rev-parse", "bad~4") in answer
    [state] = nights.glob("lab/runs/*/red/red.json")
    assert json.loads(state.read_text())["culprit"] == "kernel"
    assert leftovers() == before
