"""The main job on real kernels, with a small BAR."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from orchestrator.analysis.maps.theory import count_pages, predict_lookups
from tests.lab.conftest import SMALL, leftovers

BAROMETER = str(Path(sys.executable).with_name("barometer"))
BAR = 256 * 2**20


@pytest.mark.nested
def test_an_a_b_of_two_debian_kernels_finds_the_series(tmp_path: Path, means: None) -> None:
    before = leftovers()
    run = tmp_path / "run"
    done = subprocess.run(
        [BAROMETER, "run", str(SMALL), "--out", str(run)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert done.stdout.rstrip().splitlines()[-1] == f"run: {run}"
    comparison = json.loads((run / "comparison.json").read_text())
    baseline, candidate = comparison["arms"]["baseline"], comparison["arms"]["candidate"]
    assert comparison["verdict"] == "improved"
    for arm in (baseline, candidate):
        assert arm["trials"] == {"measured": 1, "failed": 0, "invalid": 0}
    # one page per lookup against one leaf per lookup: 256 MiB has no 1 GiB leaf
    assert baseline["metrics"]["pfn_lookups_per_map"]["samples"] == [count_pages(BAR)]
    assert candidate["metrics"]["pfn_lookups_per_map"]["samples"] == [predict_lookups(BAR)["2MiB"]]
    maps = [arm["metrics"]["bar_maps_per_boot"]["samples"] for arm in (baseline, candidate)]
    assert maps[0] == maps[1] != [0]
    assert comparison["metrics"]["bar_map_cost"]["ratio"] < 1 / 10
    # the machine was the same for both, as far as the conditions show; only the kernels differ
    conditions = comparison["conditions"]
    assert all(difference["planned"] for difference in conditions["differences"])
    assert {"runner.qemu", "host.qemu", "host.clocksource", "guest.kernel.release"} <= {
        *conditions["common"]
    }
    assert len(conditions["config"]) > 10
    for name in ("report.html", "junit.xml", "results.ktap", "kcidb.json", "results.csv"):
        assert (run / name).stat().st_size > 100
    assert leftovers() == before

    for trial, metrics in (("0001-baseline", baseline), ("0002-candidate", candidate)):
        _is_explained(run, trial, metrics["metrics"]["bar_maps_per_boot"]["samples"][0])

    again = subprocess.run(
        [BAROMETER, "report", str(run)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert json.loads((run / "comparison.json").read_text()) == comparison


def _is_explained(run: Path, trial: str, maps: float) -> None:
    """Assert that phases cover the whole boot, and parts all that takes time in a map or an
    unmap."""
    said = subprocess.run(
        [BAROMETER, "timeline", str(run / "trials" / trial), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    [timeline] = json.loads(said.stdout)["boots"]
    assert timeline["attributed_share"] >= 0.98
    operations = timeline["operations"]
    # on a busy machine, time without the processor is in no part of an operation
    assert median(o["attributed_share"] for o in operations if o["seconds"] > 0.1) >= 0.95
    of_bar = [o for o in operations if o["bytes"] == BAR and o["kind"] == "map"]
    assert len(of_bar) == maps
    assert "not known" not in {o["cause"] for o in of_bar}
    assert {o["phase"].partition(":")[0] for o in of_bar} == {"firmware", "kernel"}
    assert timeline["marks"]["bound_seconds"] == 0
    assert (run / f"timelines/{trial}-guest-1.pftrace").stat().st_size > 10_000


@pytest.mark.vm
@pytest.mark.parametrize(
    ("stage", "number", "fresh"),
    [
        ("guest-0: boot ...", signal.SIGKILL, "true"),
        pytest.param("host: boot ...", signal.SIGKILL, "true", marks=pytest.mark.full),
        pytest.param("guest-0: boot ...", signal.SIGINT, "true", marks=pytest.mark.full),
        pytest.param("host: boot ...", signal.SIGINT, "true", marks=pytest.mark.full),
        pytest.param("guest-0: boot ...", signal.SIGKILL, "false", marks=pytest.mark.full),
        pytest.param("guest-0: boot ...", signal.SIGINT, "false", marks=pytest.mark.full),
    ],
)
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, means: None, monkeypatch: pytest.MonkeyPatch, stage: str,
    number: signal.Signals, fresh: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("BAROMETER_STATE", str(tmp_path / "state"))
    before = leftovers()
    with subprocess.Popen(
        [BAROMETER, "run", str(SMALL), "--out", str(tmp_path / "run"),
         "--set", f"host.fresh_boots={fresh}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if stage in line:
                break
        time.sleep(2)
        process.send_signal(number)
        process.stderr.read()
        code = process.wait(120)
    if number == signal.SIGKILL:
        assert leftovers() > before
        cleaned = subprocess.run([BAROMETER, "clean"], capture_output=True, text=True, check=True)
        assert "ended QEMU" in cleaned.stdout
    else:
        assert code == 130
    assert leftovers() == before
    assert not list((tmp_path / "run/trials").glob(".*"))
    assert not list((tmp_path / "state").glob("*"))


@pytest.mark.vm
@pytest.mark.parametrize(
    ("size", "has_plan"),
    [("64k", False), pytest.param("352k", True, marks=pytest.mark.full)],
    ids=["before-anything-boots", "in-a-trial"],
)
def test_a_full_disk_is_said_as_such(
    tmp_path: Path, means: None, size: str, has_plan: bool
) -> None:
    small = tmp_path / "small-disk"
    small.mkdir()
    short = """--set 'trace.passes=["counts"]' --set 'expect={}'"""
    script = (
        f"mount -t tmpfs -o size={size} none {small} || exit 1;"
        f" {BAROMETER} run {SMALL} {short} --out {small}/run; code=$?; ls {small}/run; exit $code"
    )
    inside = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root"]
    done = subprocess.run(
        [*inside, "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "no space left" in done.stderr
    assert ("plan.json" in done.stdout.split()) == has_plan
