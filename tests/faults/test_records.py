"""Files that are damaged, cut, empty, of a newer version, or of something else: plans, manifests,
evidence, and records of runs."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.machine.runner.owner import Owner
from orchestrator.machine.runner.state import token_prefix
from tests.faults.place import ROOT, Ended, Fault, Place
from tests.unit.recorded import MEASURED, TRACE, rewrite, sealed

Damage = Callable[[Path], object]


def edit(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rubbish(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def newer(path: Path) -> None:
    edit(path, schema=2)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    """Make a named pipe: whoever opens it waits for its writer, and nobody writes."""
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    """Make the file longer than the memory. It is sparse, and takes no disk space."""
    os.truncate(path, 1 << 40)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


RECORDS: dict[str, tuple[str, Damage]] = {
    "plan-missing": ("plan.json", Path.unlink),
    "plan-empty": ("plan.json", empty),
    "plan-cut": ("plan.json", cut),
    "plan-deep": ("plan.json", deep),
    "plan-newer": ("plan.json", newer),
    "plan-lacks-a-kernel": ("plan.json", lambda path: edit(path, kernels={})),
    "scenario-missing": ("scenario.toml", Path.unlink),
    "scenario-cut": ("scenario.toml", cut),
    "scenario-rubbish": ("scenario.toml", rubbish),
    "manifest-missing": (f"trials/{MEASURED}/manifest.json", Path.unlink),
    "manifest-empty": (f"trials/{MEASURED}/manifest.json", empty),
    "manifest-cut": (f"trials/{MEASURED}/manifest.json", cut),
    "manifest-rubbish": (f"trials/{MEASURED}/manifest.json", rubbish),
    "manifest-newer": (f"trials/{MEASURED}/manifest.json", newer),
    "manifest-is-a-folder": (f"trials/{MEASURED}/manifest.json", folder),
    "manifest-is-a-pipe": (f"trials/{MEASURED}/manifest.json", pipe),
    "manifest-is-endless": (f"trials/{MEASURED}/manifest.json", endless),
    "manifest-is-huge": (f"trials/{MEASURED}/manifest.json", huge),
    "scenario-is-a-pipe": ("scenario.toml", pipe),
    "outcome-is-none": (
        f"trials/{MEASURED}/manifest.json", lambda path: edit(path, outcome="well")
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), RECORDS.values(), ids=RECORDS)
def test_record_of_a_run(fault: Fault, name: str, damage: Damage) -> None:
    run = fault.place.recorded()
    damage(run / name)
    fault.ends("report", run)


EVIDENCE: dict[str, tuple[str, Damage]] = {
    "missing": ("guest-0/console.log", Path.unlink),
    "empty": ("guest-0/marks.txt", empty),
    "changed": ("host/hist-lookup.txt", lambda path: rewrite(path, lambda t: t + " ")),
    "is-a-folder": ("host/dmesg.txt", folder),
    "is-a-pipe": ("host/dmesg.txt", pipe),
}


@pytest.mark.parametrize(("name", "damage"), EVIDENCE.values(), ids=EVIDENCE)
def test_evidence_that_is_not_what_was_collected(fault: Fault, name: str, damage: Damage) -> None:
    run = fault.place.recorded()
    damage(run / "trials" / MEASURED / name)
    judged(fault, run)


COLLECTED: dict[str, tuple[str, Damage]] = {
    "marks-empty": ("guest-0/marks.txt", empty),
    "trace-cut": (TRACE, cut),
    "trace-rubbish": (TRACE, lambda path: path.write_bytes(gzip.compress(bytes(range(256))))),
    "histogram-empty": ("host/hist-lookup.txt", empty),
    "map-cut": ("map.json", cut),
}


@pytest.mark.parametrize(("name", "damage"), COLLECTED.values(), ids=COLLECTED)
def test_evidence_that_was_collected_so(fault: Fault, name: str, damage: Damage) -> None:
    """The files were collected damaged, so their checksums match: a disk was full, or the machine
    lies."""
    run = fault.place.recorded()
    trial = run / "trials" / MEASURED
    damage(trial / name)
    sealed(trial)
    judged(fault, run)


def judged(fault: Fault, run: Path) -> None:
    ended = fault.ends("report", run, "--table")
    assert f"invalid ({fault.row.reason}" in ended.out or fault.row.reason in ended.out


def test_trial_of_another_kind_is_asked_for(fault: Fault) -> None:
    run = shutil.copytree(ROOT / "fixtures/recorded/map-exact", fault.place.work / "maps")
    fault.ends("timeline", run)


def test_timeline_of_a_trial_that_changed(fault: Fault) -> None:
    trial = fault.place.recorded() / "trials" / MEASURED
    cut(trial / TRACE)
    fault.ends("timeline", trial)


def test_no_run(fault: Fault) -> None:
    fault.ends("report", fault.place.work)


def test_run_is_compared_with_one_that_is_damaged(fault: Fault) -> None:
    good = fault.place.recorded()
    bad = good.with_name("bad")
    shutil.copytree(good, bad)
    cut(bad / "plan.json")
    fault.ends("compare", good, bad)


def test_matrix_is_damaged(fault: Fault) -> None:
    run = fault.place.recorded()
    (run / "matrix.json").write_text('{"schema": 1, "scenario": "x", "cells": [{"name": 1}]}')
    fault.ends("report", run)


def test_run_of_another_scenario_is_taken_up(fault: Fault) -> None:
    place = fault.place
    scenario, run = place.scenario(), place.recorded()
    fault.ends("run", scenario, "--out", run)


def test_damaged_run_is_taken_up(fault: Fault) -> None:
    place = fault.place
    scenario, run = place.scenario(), place.recorded()
    shutil.copy(scenario, run / "scenario.toml")
    cut(run / "plan.json")
    fault.ends("run", scenario, "--out", run)


# records of the tests themselves -------------------------------------------------------------


@pytest.mark.parametrize("name", ["budget", "groups", "proofs"])
def test_record_of_the_tests(fault: Fault, name: str) -> None:
    """The lanes run no test if a file of theirs cannot be read."""
    place = fault.place
    for path in (ROOT / "ci").rglob("*"):
        if path.suffix in (".py", ".toml") and "bench" not in path.parts:
            copy = place.work / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    with (place.work / f"ci/{name}.toml").open("a") as file:
        file.write("\nmain-job = 4 = 00\n")
    program = [sys.executable, "-m", "ci.lanes", "--prove", "faults"]
    ran = subprocess.run(
        program, cwd=place.work, env=place.environment | {"PYTHONPATH": f"{place.work}:{ROOT}"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    fault.ended(Ended(ran.returncode, ran.stdout, ran.stderr, 0.0))


# records of runs -----------------------------------------------------------------------------


def record(place: Place, **facts: Any) -> Path:
    """Write the record of a run whose process has ended. Return its path."""
    token = f"{token_prefix(place.state)}abcdef"
    owner = vars(Owner.here()) | {"pid": 1 << 22, "started": 1}
    path = place.state / f"{token}.json"
    made = {
        "version": 2, "token": token, "owner": owner,
        "folder": str(place.tmp / f"barometer-{token}"), "domains": [], "shm": [],
        "partial": [], "hosts": [],
    }  # fmt: skip
    path.write_text(json.dumps(made | facts))
    return path


STATES: dict[str, Damage] = {
    "empty": empty,
    "cut": cut,
    "rubbish": rubbish,
    "newer": lambda path: edit(path, version=3),
    "names-a-folder-of-others": lambda path: edit(path, folder="/"),
    "names-shared-memory-of-others": lambda path: edit(path, shm=["../../etc/passwd"]),
    "names-a-trial-of-others": lambda path: edit(path, partial=["/etc"]),
    "has-no-process": lambda path: edit(path, owner={}),
}


@pytest.mark.parametrize("damage", STATES.values(), ids=STATES)
def test_record_of_a_killed_run(fault: Fault, damage: Damage) -> None:
    """The record is set aside and named. Nobody's files are removed because of it."""
    path = record(fault.place)
    damage(path)
    ended = fault.ends("clean", left=["record"])
    assert path.name in ended.out
    assert [p.suffix for p in fault.place.state.iterdir()] == [".unreadable"]


def test_record_is_a_folder(fault: Fault) -> None:
    path = record(fault.place)
    folder(path)
    fault.ends("clean", left=["record"])


def test_record_is_a_pipe(fault: Fault) -> None:
    pipe(record(fault.place))
    fault.ends("clean", left=["record"])


def test_record_of_somebody_else(fault: Fault) -> None:
    """The record is from a boot of another machine, which shares the home folder."""
    owner = vars(Owner.here()) | {"boot": "another", "machine": "f" * 32, "host": "elsewhere"}
    record(fault.place, owner=owner)
    fault.ends("clean", left=["record"])


def test_private_folder_of_a_killed_run_is_a_link(fault: Fault) -> None:
    """The link's target stays."""
    place = fault.place
    path = record(place)
    precious = place.work / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    Path(json.loads(path.read_text())["folder"]).symlink_to(precious)
    fault.ends("clean", left=["temporary file"])
    assert (precious / "file").exists()
    assert not any(place.state.iterdir())
