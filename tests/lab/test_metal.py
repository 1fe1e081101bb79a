"""Runs on a machine that barometer did not make: a VM that is known by its SSH address alone."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.evidence.layout import RunDir
from tests.lab.machine.standin import StandIn
from tests.lab.metal_runs import GUEST_BOOT, SCENARIO, barometer, done, scenario_for, state_of

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]
COUNTS = ("--set", 'trace.passes=["counts"]')
OLD, NEW = (f'{{deb="linux-image-cloud-amd64", suite="{suite}"}}'
            for suite in ("trixie", "trixie-backports"))  # fmt: skip
TEXTS = {"map": SCENARIO, "guest-boot": GUEST_BOOT}


def outcome(out: Path, trial: str) -> dict[str, Any]:
    found = json.loads((out / "trials" / trial / "manifest.json").read_text())["outcome"]
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True)
class Killed:
    """A run that was killed, on a machine that has since rebooted by itself."""

    out: Path
    process: int
    refused: str
    """Output of a second runner while the first one lived."""
    before: str
    """State of the machine before the run."""


@pytest.fixture(scope="module")
def killed(metal: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Boot with one-shot entries of GRUB: first a kernel with too little memory (an older kernel
    boots with as much), then a working one. Kill the run under the latter."""
    folder = tmp_path_factory.mktemp("killed")
    before, out = state_of(metal), folder / "run"
    scenario = scenario_for(metal, folder)
    with barometer("run", scenario, "--out", out, *COUNTS, "--set", "host.boot=grub",
                   "--set", f"arms.baseline.kernel={NEW}", "--set", f"arms.candidate.kernel={OLD}",
                   "--set", "arms.baseline.cmdline=mem=96M") as run:  # fmt: skip
        assert run.wait_until("maps, counts pass ...", 1, within=900), run.text()
        left = metal.boot_id()
        refused = done("run", scenario, "--out", folder / "second", "--set", "host.wait=0",
                       accept=(3,))  # fmt: skip
        os.killpg(run.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 400
    while metal.boot_id() in (None, left):
        assert time.monotonic() < deadline, "it did not restart when the lease had expired"
        time.sleep(2)
    return Killed(out, run.process.pid, refused, before)


def test_kernel_without_memory_fails_and_the_run_goes_on(killed: Killed) -> None:
    """The one-shot entry of the failed kernel has expired when the machine restarts."""
    failed = outcome(killed.out, "0001-baseline")
    assert (failed["kind"], failed["reason"]) == ("failed", "host-panic")
    said = (killed.out / "trials/0001-baseline/host/console.log").read_text()
    assert "Kernel panic" in said


def test_second_runner_is_told_who_holds_the_machine(killed: Killed) -> None:
    assert f"process {killed.process}" in killed.refused
    assert str(killed.out) in killed.refused


def test_machine_whose_runner_is_killed_is_put_back_by_the_next_run(
    metal: StandIn, killed: Killed, tmp_path: Path
) -> None:
    """The next run asks for a device that it cannot have. It puts the machine back before it
    checks that."""
    assert metal.ssh("uname -r") in killed.before
    disk = 'device={kind="hostdev", address="0000:02:00.0", bar="1MiB"}'
    said = done("run", scenario_for(metal, tmp_path), "--out", tmp_path / "run", "--set", disk,
                accept=(3,))  # fmt: skip
    assert "an earlier run left" in said
    assert "0000:02:00.0" in said
    assert "own-disk: " in said
    assert state_of(metal) == killed.before
    assert "barometer recover metal" in done("clean")
    assert "nothing to recover" in done("recover", "metal", "--ssh-config", metal.ssh_config)


@pytest.mark.parametrize("text", ["map", pytest.param("guest-boot", marks=pytest.mark.full)])
def test_two_kernels_by_kexec_are_compared_and_all_is_put_back(
    metal: StandIn, tmp_path: Path, text: str
) -> None:
    before, out = state_of(metal), tmp_path / "run"
    done("run", scenario_for(metal, tmp_path, TEXTS[text]), "--out", out)
    assert state_of(metal) == before
    said = json.loads((out / "comparison.json").read_text())
    lookups = [said["arms"][arm]["metrics"]["pfn_lookups_per_map"]["median"]
               for arm in ("baseline", "candidate")]  # fmt: skip
    assert lookups == [2**30 / 4096, 1]
    trials = [trial.manifest for trial in RunDir.open(out).trials()]
    assert [t.host_kind for t in trials] == ["metal"] * 2
    assert len({t.boot_id for t in trials}) == 2


@pytest.mark.full
@pytest.mark.parametrize(
    ("address", "reasons"),
    [
        ("0000:05:01.0", ["group-shared"]),
        ("0000:02:00.0", ["own-disk"]),
        ("0000:03:00.0", ["own-network"]),
    ],
)
def test_device_that_cannot_be_spared_is_refused(
    metal: StandIn, tmp_path: Path, address: str, reasons: list[str]
) -> None:
    device = f'device={{kind="hostdev", address="{address}", bar="1MiB"}}'
    said = done("run", scenario_for(metal, tmp_path), "--out", tmp_path / "run", "--set", device,
                accept=(3,))  # fmt: skip
    assert f"{address}" in said
    assert [reason for reason in reasons if f"{reason}: " not in said] == []
    assert "nothing to recover" in done("recover", "metal", "--ssh-config", metal.ssh_config)


def test_doctor_says_what_the_machine_can_do(metal: StandIn) -> None:
    said = json.loads(
        done("doctor", "--host", "metal", "--ssh-config", metal.ssh_config, "--json")
    )
    found = {finding["name"]: finding["status"] for finding in said["findings"]}
    assert said["uses"]["metal"]["possible"]
    assert (found["series"], found["large-bar"], found["watchdog"]) == ("warning", "ok", "ok")


@pytest.mark.full
def test_kernels_without_network_or_memory_fail_and_the_run_goes_on(
    metal: StandIn, tmp_path: Path
) -> None:
    """A one-shot entry of GRUB boots them. It has expired when the machine restarts."""
    before, out = state_of(metal), tmp_path / "run"
    done("run", scenario_for(metal, tmp_path), "--out", out, *COUNTS, "--set", "host.boot=grub",
         "--set", "arms.baseline.cmdline=module_blacklist=virtio_net",
         "--set", "arms.candidate.cmdline=mem=96M",
         accept=(1, 4))  # fmt: skip
    said = {}
    for trial, reason in (("0001-baseline", "host-no-boot"), ("0002-candidate", "host-panic")):
        failed = outcome(out, trial)
        assert (failed["kind"], failed["reason"]) == ("failed", reason)
        said[trial] = (out / f"trials/{trial}/host/console.log").read_text()
    assert "barometer: no runner came in time" in said["0001-baseline"]
    assert "Kernel panic" in said["0002-candidate"]
    assert state_of(metal) == before


@pytest.mark.full
def test_kernel_that_hangs_is_ended_by_the_watchdog(metal: StandIn, tmp_path: Path) -> None:
    before, out = state_of(metal), tmp_path / "run"
    text = SCENARIO.replace("deadline = 300", "deadline = 450")  # the watchdog bites after 240 s
    # the shell waits for input: nothing loads the watchdog's driver, which would stop it
    with barometer("run", scenario_for(metal, tmp_path, text), "--out", out, *COUNTS,
                   "--set", "host.cmdline=rdinit=/bin/sh") as running:  # fmt: skip
        assert running.wait_until("host: boot ...", 2, within=1200), running.text()
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.process.wait(1200) == 130, running.text()
    failed = outcome(out, "0001-baseline")
    assert (failed["kind"], failed["reason"]) == ("failed", "host-no-boot")
    assert state_of(metal) == before
