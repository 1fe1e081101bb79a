"""Exact hosts that are restored instead of booted: the counts are the same, and nothing is left of
a run that is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ci.bench.restored import MEASURED, MOST, SCENARIO, Hosts, Row
from orchestrator.base.cache import Cache
from orchestrator.machine.nested.saved import SavedHosts
from orchestrator.machine.nested.sharing import HostPool
from orchestrator.machine.runner.state import BenchState, clean_killed_runs, token_prefix
from orchestrator.machine.vm.hypervisor import Connection
from tests.lab.conftest import leftovers

pytestmark = [pytest.mark.nested, pytest.mark.timeout(3600)]

BAROMETER = str(Path(sys.executable).with_name("barometer"))
SERIES = Path(__file__).parents[2] / "fixtures/series/placebo"
PACKAGE = "deb:linux-image-cloud-amd64@trixie-backports"
SMALL = "device.bar=1GiB"


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of saved hosts, of which there are none yet, in a cache that has all else."""
    root = tmp_path / "cache"
    (root / "hosts").mkdir(parents=True)
    for kind in Cache().root.iterdir():
        if kind.is_dir() and kind.name != "hosts":
            (root / kind.name).symlink_to(kind)
    monkeypatch.setenv("BAROMETER_CACHE", str(root))
    return root / "hosts"


def saved_in(hosts: Path) -> set[str]:
    """Return the names of the saved hosts, without those that are being saved."""
    return {path.name for path in hosts.glob("[!.]*/")}


def test_restored_host_counts_the_same_as_one_that_booted(
    tmp_path: Path, hosts: Path, shared: tuple[BenchState, Connection]
) -> None:
    before = leftovers()
    cache, (state, libvirt) = Cache(), shared
    rows: list[Row] = []
    with contextlib.closing(
        HostPool(state, libvirt, SavedHosts(cache, libvirt))
    ) as pool:  # fmt: skip
        more = ([SMALL], tmp_path, state, libvirt, pool, cache)
        booted, restored = Hosts("never", *more), Hosts("auto", *more)
        for kind in (booted, restored, restored):
            rows.append(kind.measure("baseline"))
            assert len(saved_in(hosts)) == (kind is restored)
    print(rows)
    assert [row.restored for row in rows] == [False, False, True]
    for name, count in rows[0].counts.items():
        assert [row.counts[name] for row in rows] == pytest.approx([count] * 3, rel=MOST)
    [saved] = hosts.glob("*/state")
    assert saved.stat().st_mode & 0o077 == 0
    assert leftovers() == before


def ab(out: Path) -> list[dict[str, Any]]:
    """Run the series of the placebo as modules; return its trials' manifests."""
    done = subprocess.run(
        [BAROMETER, "ab", "--base", PACKAGE, "--series", str(SERIES), "--bar", "1GiB",
         "--accel", "exact", "--out", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return [json.loads(path.read_text()) for path in sorted(out.glob("trials/*/manifest.json"))]


@pytest.mark.full
@pytest.mark.build
def test_both_arms_of_a_module_series_are_restored_from_one_host(
    tmp_path: Path, hosts: Path, means: None
) -> None:
    """Which module is loaded is proven in each trial, so a measured one has its own."""
    ab(tmp_path / "first")
    [digest] = saved_in(hosts)
    manifests = ab(tmp_path / "second")
    assert [m["arm"] for m in manifests] == ["baseline", "candidate"]
    assert {m["host_restored"]["digest"] for m in manifests} == {digest}
    assert len({m["boot_id"] for m in manifests}) == 1
    versions = {
        json.loads(path.read_text())["settings"]["vfio_iommu_type1_srcversion"]
        for path in tmp_path.glob("second/trials/*/host/facts.json")
    }
    assert len(versions) == 2
    assert digest in (tmp_path / "second/report.txt").read_text()


def restoring(_: Path) -> bool:
    prefix = f"guest=barometer-{token_prefix()}"
    # ww: whole lines
    listed = subprocess.run(["ps", "-ewwo", "args="], capture_output=True, text=True, check=True)
    return any(prefix in line and "-incoming" in line for line in listed.stdout.splitlines())


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "saving": lambda hosts: bool([*hosts.glob(".*/state")]),
    "saved": lambda hosts: bool(saved_in(hosts)),
    "restoring": restoring,
}


@contextlib.contextmanager
def running(out: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = [word for override in (*MEASURED, SMALL) for word in ("--set", override)]
    log = out.with_suffix(".log")
    with log.open("wb") as file, subprocess.Popen(
        [BAROMETER, "run", str(SCENARIO), "--out", str(out), *words],
        stdout=subprocess.DEVNULL, stderr=file,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            print(log.read_text())


@pytest.mark.full
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_run_that_is_killed_at_any_moment_leaves_nothing_and_a_usable_cache(
    tmp_path: Path, hosts: Path, means: None, how: signal.Signals
) -> None:
    before = leftovers()
    for moment, has_come in MOMENTS.items():
        with running(tmp_path / moment) as process:
            while not has_come(hosts):
                assert process.poll() is None, f"it ended before {moment}"
                time.sleep(0.01)
            process.send_signal(how)
            process.wait(60)
        if how == signal.SIGKILL:
            print(moment, *clean_killed_runs(), *Cache().sweep())
        assert leftovers() == before, moment
        assert not [*hosts.glob(".*")], moment
    with running(tmp_path / "last") as process:
        assert process.wait() == 0
    manifests = [json.loads(p.read_text()) for p in tmp_path.glob("last/trials/*/manifest.json")]
    assert {m["outcome"]["kind"] for m in manifests} == {"collected"}
    assert any("host_restored" in m for m in manifests)
    assert leftovers() == before
