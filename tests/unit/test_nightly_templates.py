"""The templates in ci/nightly/ that a lab copies, checked by the schemas of GitHub and GitLab and
by systemd. Each has to call the verb with options that exist, run one night at a time for a
machine, put the machine back whatever happened, and leave the time for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from orchestrator.cli.nightly import nightly

ROOT = Path(__file__).parents[2]
NIGHTLY = ROOT / "ci/nightly"
UNITS = ("barometer-nightly@.service", "barometer-nightly@.timer")
HOURS = {"h": 1.0, "min": 1 / 60, "m": 1 / 60}


def template(name: str) -> Any:
    return YAML(typ="safe").load(NIGHTLY / name)


def hours(text: str) -> float:
    match = re.fullmatch(r"([0-9]+)(h|min|m)", text)
    assert match, text
    return int(match[1]) * HOURS[match[2]]


def limit(command: str) -> float:
    match = re.search(r"--limit (\S+)", command)
    assert match, command
    return hours(match[1])


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("github-actions.yml", "vendor.github-workflows"),
        ("gitlab-ci.yml", "vendor.gitlab-ci"),
        ("buildkite.yml", "vendor.buildkite"),
    ],
)
def test_what_a_lab_copies_has_its_form(name: str, schema: str) -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run(
        [program, "--builtin-schema", schema, NIGHTLY / name],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_units_are_what_systemd_knows(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here: systemd is not what barometer needs")
    for name in UNITS:
        text = (NIGHTLY / name).read_text()
        # systemd looks for the program
        program_there = text.replace("/opt/barometer/.venv/bin/barometer", sys.executable)
        (tmp_path / name.replace("@", "@gpu1")).write_text(program_there)
    done = subprocess.run(
        [program, "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stderr, done.stderr


def settings(name: str) -> dict[str, str]:
    lines = (NIGHTLY / name).read_text().splitlines()
    return {
        key: value for key, found, value in (line.partition("=") for line in lines)
        if found and not key.startswith("#")
    }  # fmt: skip


def test_github_restores_in_a_job_of_its_own_whatever_became_of_the_night() -> None:
    flow = template("github-actions.yml")
    assert flow["concurrency"] == {"group": "barometer-gpu1", "cancel-in-progress": False}
    assert set(flow["on"]) == {"schedule", "workflow_dispatch"}
    measure, restore = flow["jobs"]["measure"], flow["jobs"]["restore"]
    assert (restore["needs"], restore["if"]) == ("measure", "always()")
    assert restore["runs-on"] == measure["runs-on"]
    [night] = [step for step in measure["steps"] if "--limit" in step.get("run", "")]
    assert measure["timeout-minutes"] / 60 >= limit(night["run"]) + 1
    assert "--recover" in restore["steps"][-1]["run"]
    after = measure["steps"][measure["steps"].index(night) + 1 :]
    assert after
    assert all(step["if"] == "always()" for step in after)


def test_gitlab_restores_after_the_script_within_the_timeout() -> None:
    job = template("gitlab-ci.yml")["barometer-gpu1"]
    assert job["resource_group"] == "barometer-gpu1"
    assert all("merge_request" not in rule["if"] for rule in job["rules"])
    variables = job["variables"]
    script, after = (
        hours(variables[f"RUNNER_{name}_TIMEOUT"]) for name in ("SCRIPT", "AFTER_SCRIPT")
    )
    assert script >= limit(job["script"][0]) + 1
    assert hours(job["timeout"]) > script + after
    assert "--recover" in job["after_script"][-1]
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"] == {"junit": "published/junit.xml"}
    assert job["allow_failure"] == {"exit_codes": [4]}


def test_systemd_restores_after_the_service_within_its_time() -> None:
    service = settings("barometer-nightly@.service")
    assert hours(service["TimeoutStartSec"]) >= limit(service["ExecStart"]) + 1
    assert hours(service["TimeoutStopSec"]) >= 0.5
    assert " --recover " in service["ExecStopPost"]
    for key in ("ExecStart", "ExecStopPost"):
        assert service[key].endswith("/etc/barometer/%i.toml")
        assert "--dir %S/barometer-nightly " in service[key]
    # /var/lib/barometer holds barometer's files on a machine under test, and is removed as a whole
    assert "barometer" not in service["StateDirectory"].split()


def test_buildkite_restores_in_a_step_of_its_own_whatever_became_of_the_night() -> None:
    measure, wait, restore = template("buildkite.yml")["steps"]
    assert wait["continue_on_failure"] is True
    assert measure["concurrency"] == restore["concurrency"] == 1
    assert measure["concurrency_group"] == restore["concurrency_group"]
    assert measure["timeout_in_minutes"] / 60 >= limit(measure["command"][0]) + 1
    assert "--recover" in restore["command"][-1]


def test_jenkins_restores_after_every_build() -> None:
    text = (NIGHTLY / "Jenkinsfile").read_text()
    timeout = re.search(r"timeout\(time: (\d+), unit: 'HOURS'\)", text)
    assert timeout is not None
    assert int(timeout[1]) >= limit(text) + 1
    assert "disableConcurrentBuilds()" in text
    assert "--recover" in text.partition("always {")[2]


@pytest.mark.parametrize(
    "name", ["github-actions.yml", "gitlab-ci.yml", "buildkite.yml", "Jenkinsfile", UNITS[0]]
)
def test_templates_use_options_that_the_verb_has(name: str) -> None:
    calls = re.findall(r"barometer\"? nightly( .*)", (NIGHTLY / name).read_text())
    known = {f"--{parameter.replace('_', '-')}" for parameter in signature(nightly).parameters}
    assert len(calls) == 2
    for call in calls:
        assert {*re.findall(r"--[a-z-]+", call)} <= known | {"--dir"}
