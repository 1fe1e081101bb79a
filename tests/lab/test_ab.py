"""`barometer ab` and `bisect` from the command line: a series on a kernel that is built, a broken
series, a bisection."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ci.bench.speed import make_repository
from tests.lab.conftest import leftovers

pytestmark = [pytest.mark.nested, pytest.mark.build, pytest.mark.timeout(3600)]

BAROMETER = str(Path(sys.executable).with_name("barometer"))
SERIES = Path(__file__).parents[2] / "fixtures/series"
SOURCE = "source:linux-source-7.3@trixie-backports"
PACKAGE = "deb:linux-image-cloud-amd64@trixie-backports"
TYPE1 = "drivers/vfio/vfio_iommu_type1.c"
STEPS = 9
"""Instructions that fixtures/series/slower-unmap spends on each page."""


def ab(out: Path, base: str, series: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [BAROMETER, "ab", "--base", base, "--series", str(SERIES / series), "--bar", "1GiB",
         "--accel", "exact", "--out", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    found = json.loads((out / "comparison.json").read_text())
    return done.returncode, found, (out / "report.txt").read_text()


@pytest.mark.parametrize("base", [pytest.param(SOURCE, marks=pytest.mark.full), PACKAGE])
def test_a_change_of_the_unmap_is_found_and_sized(tmp_path: Path, means: None, base: str) -> None:
    before = leftovers()
    code, found, report = ab(tmp_path / "run", base, "slower-unmap")
    assert code == 1
    assert found["verdict"] == "regressed"
    metrics = found["metrics"]
    assert metrics["bar_map_cost"]["verdict"] == "equivalent"
    medians = {
        arm: found["arms"][arm]["metrics"]["bar_unmap_cost"]["median"] * 1e9
        for arm in ("baseline", "candidate")
    }
    pages = 2**30 // 4096
    more = (medians["candidate"] - medians["baseline"]) / pages
    assert more == pytest.approx(STEPS, abs=0.3)
    assert "nothing else" in " ".join(report.split())
    console = (tmp_path / "run/trials/0001-baseline/host/console.log").read_text()
    assert ("Run /usr/lib/barometer/first as init" in console) == (base == SOURCE)
    assert leftovers() == before


@pytest.mark.full
def test_a_bar_is_unmapped_as_a_whole(tmp_path: Path, means: None) -> None:
    """fixtures/series/unmap-contiguous does what it says, and nothing to the map."""
    _, found, _ = ab(tmp_path / "run", PACKAGE, "unmap-contiguous")

    def median(arm: str, metric: str) -> float:
        return float(found["arms"][arm]["metrics"][metric]["median"])

    walks = [median(arm, "iova_lookups_per_unmap") for arm in ("baseline", "candidate")]
    assert walks == [2**30 // 4096, 1]
    assert found["metrics"]["bar_unmap_cost"]["ratio"] < 1 / 1000
    more = median("candidate", "bar_map_cost") - median("baseline", "bar_map_cost")
    assert abs(more) * 1e9 < 400  # instructions: not more than two boots of one kernel differ by


@pytest.mark.full
def test_a_placebo_is_equivalent(tmp_path: Path, means: None) -> None:
    code, found, _ = ab(tmp_path / "run", PACKAGE, "placebo")
    assert code == 0
    assert found["verdict"] == "equivalent"


@pytest.mark.full
def test_a_series_that_panics_is_charged_to_its_arm(tmp_path: Path, means: None) -> None:
    code, found, report = ab(tmp_path / "run", PACKAGE, "bad/panics.patch")
    assert code == 1
    assert found["verdict"] == "regressed"
    assert found["arms"]["candidate"]["trials"] == {"measured": 0, "failed": 1, "invalid": 0}
    assert "0002-candidate: failed at host-boot: host-panic" in " ".join(report.split())
    assert (
        "this module panics on purpose"
        in (tmp_path / "run/trials/0002-candidate/host/console.log").read_text()
    )


def files_of_git(tree: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in (tree / ".git").rglob("*") if p.is_file()}


def bisect(tree: Path, out: Path) -> list[str]:
    return [
        BAROMETER, "bisect", "--tree", str(tree), "--good", "good", "--bad", "bad",
        "--on", PACKAGE, "--metric", "bar_unmap_cost", "--bar", "1GiB", "--accel", "exact",
        "--out", str(out),
    ]  # fmt: skip


def test_a_bisection_finds_its_commit_by_measuring(tmp_path: Path, means: None) -> None:
    """The commit is neither of the two that the bisection starts from."""
    before = leftovers()
    tree, out = make_repository(tmp_path / "tree", 2, 1), tmp_path / "out"
    state = files_of_git(tree)
    done = subprocess.run(bisect(tree, out), capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    found = json.loads((out / "bisect.json").read_text())
    assert found["first_bad"]["subject"] == "step 1"
    assert sorted(step["role"] for step in found["steps"]) == ["bad", "good", "step"]
    assert files_of_git(tree) == state
    assert leftovers() == before


@pytest.mark.full
def test_a_bisection_goes_on_after_an_interrupt(tmp_path: Path, means: None) -> None:
    before = leftovers()
    tree, out = make_repository(tmp_path / "tree", 8, 6), tmp_path / "out"
    state, command = files_of_git(tree), bisect(tree, out)

    def steps() -> list[dict[str, Any]]:
        record = out / "bisect.json"
        return list(json.loads(record.read_text())["steps"]) if record.exists() else []

    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 600
    while len(steps()) < 3:
        assert running.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(120) == 130
    assert leftovers() == before
    first = steps()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert steps()[: len(first)] == first  # finished measurements are not repeated
    assert json.loads((out / "bisect.json").read_text())["first_bad"]["subject"] == "step 6"
    assert len([step for step in steps() if step["role"] not in ("good", "bad")]) == 3
    assert files_of_git(tree) == state
    assert leftovers() == before
