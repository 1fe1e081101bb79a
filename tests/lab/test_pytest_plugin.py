"""The pytest plugin and `barometer shell` on real hosts: what boots, and that nothing is left."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.lab.conftest import SCENARIOS, leftovers

ROOT = Path(__file__).parents[2]
BAROMETER = str(Path(sys.executable).with_name("barometer"))
SMALL = SCENARIOS / "map-small.toml"


@pytest.mark.full
@pytest.mark.nested
def test_the_live_examples_pass_and_each_machine_boots_once(tmp_path: Path, means: None) -> None:
    before = leftovers()
    junit = tmp_path / "junit.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "orchestrator.pytest_plugin", "-q",
         "tests/examples/test_live_hosts.py", "--barometer-host=exact",
         f"--barometer-out={tmp_path / 'out'}", f"--junitxml={junit}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    suite = ElementTree.parse(junit).getroot()[0]
    assert int(suite.attrib["tests"]) >= 20
    assert (suite.attrib["errors"], suite.attrib["failures"]) == ("0", "0")
    # a held host of each arm, and the two trials of the run that `ab` measures
    held = [*(tmp_path / "out/hosts").glob("*/*/held/*/manifest.json")]
    trials = [*(tmp_path / "out/runs").glob("*/trials/*/manifest.json")]
    assert (len(held), len(trials)) == (2, 2)
    boots = {json.loads(path.read_text())["token"] for path in (*held, *trials)}
    assert len(boots) == 4
    assert leftovers() == before


@pytest.mark.full
@pytest.mark.nested
def test_a_measured_session_is_judged_again_without_a_machine(tmp_path: Path, means: None) -> None:
    options = ["-p", "orchestrator.pytest_plugin", "-q", "tests/examples/test_live_hosts.py",
               "-k", "cheaper"]  # fmt: skip
    out = tmp_path / "out"
    for more in (
        ("--barometer-host=exact", f"--barometer-out={out}"),
        (f"--barometer-replay={out}",),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *more],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert re.search(r"\b1 passed\b", done.stdout)


def visit(*arguments: str, script: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [BAROMETER, "shell", *arguments], input=script, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done


@pytest.mark.full
@pytest.mark.nested
@pytest.mark.parametrize("arm", ["baseline", "candidate"])
def test_a_command_runs_on_the_arms_host(arm: str, means: None) -> None:
    before = leftovers()
    done = visit(str(SMALL), "--arm", arm, "--", "sh", "-c", "uname -r; exit 7")
    assert done.returncode == 7
    release = {"baseline": "6.12.", "candidate": "7."}[arm]
    assert done.stdout.startswith(release)
    assert leftovers() == before


@pytest.mark.nested
def test_a_login_shell_reads_what_is_typed(means: None) -> None:
    before = leftovers()
    done = visit(str(SMALL), script="ls /dev/vfio; exit\n")
    assert done.returncode == 0
    assert "vfio" in done.stdout
    assert leftovers() == before


@pytest.mark.full
@pytest.mark.nested
def test_gdb_is_told_how_to_debug_the_kernel(means: None) -> None:
    done = visit(str(SMALL), "--gdb", "--", "true")
    assert done.returncode == 0
    assert re.search(
        r"gdb -ex 'target remote \S+/gdb' -ex 'symbol-file -o 0x[0-9a-f]+", done.stderr
    )


@pytest.mark.full
@pytest.mark.nested
def test_the_guests_shell_is_reached_through_the_host(means: None) -> None:
    before = leftovers()
    small = str(SCENARIOS / "small.toml")
    done = visit(small, "--guest", "--", "cat /proc/cmdline; ls /sys/bus/pci/devices")
    assert done.returncode == 0
    assert "0000:00:" in done.stdout
    assert leftovers() == before
