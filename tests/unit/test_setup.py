"""The packages that ci/setup.sh installs: both locked requirements agree with pyproject.toml and
with each other, and the programs that barometer names are included."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from orchestrator.analysis.doctor.checks_runner import FOR_BUILDS, FOR_USERS, PROGRAMS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUNNING = [*PROJECT["dependencies"], *EXTRAS["bench"], *EXTRAS["history"],
           *EXTRAS["report"], *EXTRAS["build"]]  # fmt: skip
TESTS = EXTRAS["dev"]
_LOCKED = re.compile(r"(?m)^([a-z0-9-]+)(?:\[\w+\])?(==.*(?:\n    --hash=.*)+)")


def locked(name: str) -> dict[tuple[str, str], set[str]]:
    """Return name and version of each requirement -> its hashes. Its marker may differ: what one
    list needs on some systems only, another may need on all."""
    found = {}
    for project, pin in _LOCKED.findall((ROOT / "ci" / name).read_text()):
        version, *hashes = pin.replace("\\", "").split("\n")
        found[project, version.partition(";")[0].strip()] = {line.strip() for line in hashes}
    return found


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize(
    ("lock", "asked"),
    [("requirements.lock", RUNNING), ("requirements-tests.lock", [*RUNNING, *TESTS])],
)
def test_all_that_is_asked_is_locked(lock: str, asked: list[str]) -> None:
    assert names(asked) - {name for name, _ in locked(lock)} == set()


def test_tests_have_what_running_has_and_running_has_nothing_of_theirs() -> None:
    running, tests = locked("requirements.lock"), locked("requirements-tests.lock")
    assert running.items() <= tests.items()
    dear = {"hypothesis", "mypy", "playwright", "pytest", "ruff"}
    assert dear <= names(TESTS)
    assert dear.isdisjoint(name for name, _ in running)


def test_every_requirement_has_hashes() -> None:
    for lock in ("requirements.lock", "requirements-tests.lock"):
        pinned = re.findall(r"(?m)^\S.*==", (ROOT / "ci" / lock).read_text())
        assert len(pinned) == len(locked(lock)) > 40


def test_every_program_that_running_needs_is_installed() -> None:
    text = (ROOT / "ci/setup.sh").read_text()
    packages = re.search(r"(?m)^running=\(([^)]*)\)", text)
    assert packages is not None
    essential = {"apt", "dpkg", "tar", "util-linux"}
    wanted = {*PROGRAMS.values(), *FOR_USERS.values(), *FOR_BUILDS.values()}
    assert wanted - essential - {*packages[1].split()} == set()
