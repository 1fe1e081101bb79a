"""Exact hosts on real kernels, with a small BAR: the numbers are the same every time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ci.bench.load import busy
from orchestrator.analysis.maps.theory import count_pages, predict_lookups
from tests.lab.conftest import SCENARIOS, leftovers

BAROMETER = str(Path(sys.executable).with_name("barometer"))
SMALL = SCENARIOS / "map-small.toml"
BAR = 2**32
PATCHED = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="trixie-backports"}'


def run(folder: Path, *overrides: str) -> tuple[int, dict[str, Any], str]:
    options = [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(
        [BAROMETER, "run", str(SMALL), "--out", str(folder), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    found = json.loads((folder / "comparison.json").read_text())
    return done.returncode, found, (folder / "report.txt").read_text()


@pytest.mark.nested
def test_two_kernels_differ_by_what_they_do(tmp_path: Path, means: None) -> None:
    before = leftovers()
    every = 'trace.passes=["plain", "timing", "counts", "profile"]'
    code, quiet, report = run(tmp_path / "a-b", every)
    assert code == 0
    assert quiet["verdict"] == "improved"
    metrics = {arm: quiet["arms"][arm]["metrics"] for arm in quiet["arms"]}
    assert metrics["baseline"]["bar_map_cost"]["unit"] == "Ginsn"
    assert metrics["baseline"]["pfn_lookups_per_map"]["samples"] == [count_pages(BAR)]
    assert metrics["candidate"]["pfn_lookups_per_map"]["samples"] == [predict_lookups(BAR)["1GiB"]]
    assert metrics["candidate"]["pfn_lookups_per_map@2GiB/1GiB/cold"]["samples"] == [2]
    for arm in metrics.values():
        assert arm["iova_lookups_per_unmap"]["samples"] == [count_pages(BAR)]
        assert arm["pfn_faults_per_map@full/1GiB/cold"]["samples"] == [4]
        assert arm["pfn_faults_per_map"]["samples"] == [0]
    scaling = {arm: quiet["arms"][arm]["scaling"] for arm in metrics}
    by_pages = scaling["baseline"]["map/1GiB/warm"]
    assert (by_pages["kind"], by_pages["unit"]) == ("linear", "4KiB")
    # what a page costs depends on the shape of the maple tree, so the sizes differ a little
    assert by_pages["exponent"] == pytest.approx(1, abs=0.05)
    # 512 MiB have no leaf of 1 GiB, and the others span a factor of four
    assert "map/1GiB/warm" not in scaling["candidate"]
    for arm in ("baseline", "candidate"):
        plain = {m: metrics[arm][f"bar_{m}_cost"]["median"] for m in ("map", "unmap")}
        found = {(b["operation"], b["state"]): b for b in quiet["arms"][arm]["instructions"]}
        for operation, whole in plain.items():
            total = found[operation, "warm"]["total"] / 1e9
            # an ioctl's way into the kernel and back, and interrupts, are not logged
            assert total == pytest.approx(whole, rel=0.01, abs=3e-6)
    assert "INSTRUCTIONS" in report
    assert leftovers() == before


@pytest.mark.nested
@pytest.mark.full
def test_one_kernel_is_equal_to_itself_whatever_the_load(tmp_path: Path, means: None) -> None:
    before = leftovers()
    _, quiet, _ = run(tmp_path / "quiet", PATCHED, 'trace.passes=["plain"]',
                      "expect={bar_map_cost='equivalent'}")  # fmt: skip
    with busy(len(os.sched_getaffinity(0))):
        code, loaded, _ = run(tmp_path / "a-a", PATCHED, 'trace.passes=["plain","counts"]',
                              "expect={bar_map_cost='equivalent'}",
                              "trials={until={max_pairs=4}, control=true}")  # fmt: skip
    assert code == 0
    # for counts, one block of two pairs is enough
    assert [loaded["arms"][arm]["trials"]["measured"] for arm in loaded["arms"]] == [2, 2]
    assert {m["control"]["verdict"] for m in loaded["metrics"].values()} == {"equivalent"}
    assert {m["verdict"] for m in loaded["metrics"].values()} == {"equivalent"}
    for name in ("bar_map_cost", "bar_map_cost@full/1GiB/cold", "bar_unmap_cost"):
        idle, full = (r["arms"]["candidate"]["metrics"][name]["median"] for r in (quiet, loaded))
        assert full == pytest.approx(idle, rel=5e-4, abs=400e-9)
    assert leftovers() == before


@pytest.mark.nested
@pytest.mark.full
def test_trials_that_share_a_host_count_the_same_as_those_that_do_not(
    tmp_path: Path, means: None
) -> None:
    """The order is AB BA: the candidate's trials follow one another, the baseline's do not."""
    before = leftovers()
    two = ('trace.passes=["plain", "counts"]', PATCHED, "trials={pairs = 2, warm_up = false}",
           "expect={bar_map_cost='equivalent'}")  # fmt: skip
    code, found, report = run(tmp_path / "shared", *two, "host.fresh_boots=false")
    assert code == 0
    trials = sorted((tmp_path / "shared/trials").iterdir())
    manifests = [json.loads((trial / "manifest.json").read_text()) for trial in trials]
    assert len({manifest["boot_id"] for manifest in manifests}) == 3
    assert manifests[1]["boot_id"] == manifests[2]["boot_id"]
    assert not any("host_left" in manifest for manifest in manifests)
    samples = {arm: found["arms"][arm]["metrics"] for arm in found["arms"]}
    for metric in ("bar_map_cost", "bar_map_cost@full/1GiB/cold", "bar_unmap_cost"):
        every = [n for arm in samples.values() for n in arm[metric]["samples"]]
        assert every == pytest.approx([every[0]] * 4, rel=5e-4, abs=400e-9)
    assert "host.fresh_boots = true" in " ".join(report.split())
    assert leftovers() == before


@pytest.mark.vm
def test_interrupted_trials_that_run_at_once_leave_nothing(
    tmp_path: Path, means: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAROMETER_STATE", str(tmp_path / "state"))
    before = leftovers()
    with subprocess.Popen(
        [BAROMETER, "run", str(SMALL), "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "candidate: host: device" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait(120)
    assert code == 130, rest
    assert leftovers() == before
    assert not list((tmp_path / "run/trials").iterdir())
    assert not list((tmp_path / "state").glob("*"))
