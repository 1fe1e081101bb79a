"""Folders that are full, cannot be written, are something else, vanish, or are in use by another
run."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.mirrors import hangs, serving
from tests.faults.place import Fault, Place, disk, namespace, powerless, read_only

Prepare = Callable[[Place], list[str]]
"""Function that makes the fault. It returns the command that runs barometer and makes what exists
only for it, such as a mount; empty if there is nothing of that kind."""
DEB = """
name = "debs"
workload = "map"
[arms.baseline]
kernel = { deb = "linux-image-cloud-amd64", suite = "trixie" }
[arms.candidate]
kernel = { dir = "new" }
"""


# full disks ----------------------------------------------------------------------------------


def test_cache_is_full(fault: Fault) -> None:
    full = namespace(disk(fault.place.cache, full=True))
    fault.ends("plan", fault.place.scenario(DEB), under=full)


def test_run_has_no_room_for_images(fault: Fault) -> None:
    full = namespace(disk(fault.place.cache, full=True))
    fault.ends("run", fault.place.scenario(), "--out", "out", under=full)


def test_state_is_full(fault: Fault) -> None:
    full = namespace(disk(fault.place.state, full=True))
    fault.ends("run", fault.place.scenario(), "--out", "out", under=full)


def test_new_run_is_on_a_full_disk(fault: Fault) -> None:
    fault.place.scenario()
    out = fault.place.work / "out"
    out.mkdir()
    fault.ends(
        "ab", "--base", "dir:old", "--candidate", "dir:new", "--accel", "exact",
        "--out", out / "run", under=namespace(disk(out, full=True)),
    )  # fmt: skip


def test_report_of_a_run_on_a_full_disk(fault: Fault) -> None:
    run = fault.place.recorded()
    small_disk = run.parent / "disk"
    small_disk.mkdir()
    mount = f"mount -t tmpfs -o size=8m none {small_disk}"
    script = f"{mount}; cp -r {run} {small_disk}; {fill(small_disk)}"
    fault.ends("report", small_disk / "run", under=namespace(script))


def fill(folder: Path) -> str:
    return f"head -c 16m /dev/zero > {shlex.quote(str(folder))}/fill 2> /dev/null || :"


def test_written_scenario_is_on_a_full_disk(fault: Fault) -> None:
    fault.place.scenario()
    out = fault.place.work / "out"
    out.mkdir()
    fault.ends(
        "ab", "--base", "dir:old", "--candidate", "dir:new", "--accel", "exact",
        "--write", out / "new.toml", under=namespace(disk(out, full=True)),
    )  # fmt: skip


def test_perfetto_trace_is_on_a_full_disk(fault: Fault) -> None:
    trial = fault.place.recorded() / "trials/0002-candidate"
    out = fault.place.work / "out"
    out.mkdir()
    full = namespace(disk(out, full=True))
    fault.ends("timeline", trial, "--perfetto", out / "x.pftrace", under=full)


def test_output_is_full(fault: Fault) -> None:
    with Path("/dev/full").open("wb") as output:
        fault.ends("plan", fault.place.scenario(), stdout=output)


# folders in which nothing can be written -----------------------------------------------------


def denied(folder: Path) -> list[str]:
    folder.chmod(0o555)
    return powerless()


def as_a_file(folder: Path) -> list[str]:
    folder.rmdir()
    folder.write_text("")
    return []


RUN, PLAN = ("run", "scenario.toml", "--out", "out"), ("plan", "scenario.toml")
FOLDERS: dict[str, tuple[tuple[str, ...], Prepare]] = {
    "out-read-only": (RUN, lambda place: namespace(read_only(place.work))),
    "out-denied": (RUN, lambda place: denied(place.work)),
    "cache-read-only": (PLAN, lambda place: namespace(read_only(place.cache))),
    "cache-denied": (PLAN, lambda place: denied(place.cache)),
    "cache-is-a-file": (PLAN, lambda place: as_a_file(place.cache)),
    "state-read-only": (RUN, lambda place: namespace(read_only(place.state))),
    "state-denied": (RUN, lambda place: denied(place.state)),
    "state-is-a-file": (RUN, lambda place: as_a_file(place.state)),
    "shm-full": (RUN, lambda _: namespace(disk(Path("/dev/shm"), full=True))),
    "shm-read-only": (RUN, lambda _: namespace(read_only(Path("/dev/shm")))),
}


@pytest.mark.parametrize(("command", "prepare"), FOLDERS.values(), ids=FOLDERS)
def test_nothing_can_be_written(fault: Fault, command: tuple[str, ...], prepare: Prepare) -> None:
    place = fault.place
    place.scenario(DEB if command is PLAN else place.scenario().read_text())
    fault.ends(*command, under=prepare(place))


@pytest.mark.parametrize("how", ["read-only", "denied"])
def test_report_of_somebody_elses_run(fault: Fault, how: str) -> None:
    run = fault.place.recorded()
    before = sorted(run.rglob("*"))
    ended = fault.ends(
        "report", run, under=namespace(read_only(run)) if how == "read-only" else denied(run)
    )
    assert {"report", "page"} <= {*ended.err.split()}
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("how", ["full", "read-only", "is-a-file"])
def test_temporary_files_have_no_room(fault: Fault, how: str) -> None:
    place = fault.place
    under = {
        "full": lambda: namespace(disk(place.tmp, full=True)),
        "read-only": lambda: namespace(read_only(place.tmp)),
        "is-a-file": lambda: as_a_file(place.tmp),
    }[how]()
    fault.ends("run", place.scenario(), "--out", "out", under=under)


# folders that are something else -------------------------------------------------------------


def file(place: Path) -> None:
    place.write_text("a file\n")


def below_a_file(place: Path) -> None:
    file(place.parent)


def dangling(place: Path) -> None:
    place.symlink_to("nowhere/at/all")


def somebody_elses(place: Path) -> None:
    place.mkdir()
    file(place / "thesis.tex")


def planted_lock(place: Path) -> None:
    place.mkdir()
    (place / ".lock").symlink_to(place.parent / "victim")


OUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "file": ("out", file),
    "below-a-file": ("out/run", below_a_file),
    "dangling-link": ("out", dangling),
    "somebody-elses": ("out", somebody_elses),
    "planted-lock": ("out", planted_lock),
    "long-name": ("x" * 300, lambda _: None),
}


@pytest.mark.parametrize(("name", "make"), OUTS.values(), ids=OUTS)
def test_out_is_something_else(fault: Fault, name: str, make: Callable[[Path], None]) -> None:
    scenario = fault.place.scenario()
    make(fault.place.work / name)
    before = sorted(fault.place.work.rglob("*"))
    fault.ends("run", scenario, "--out", name)
    assert sorted(fault.place.work.rglob("*")) == before


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rubbish(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def empty(path: Path) -> None:
    path.write_text("")


SCENARIOS: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink, "directory": directory, "rubbish": rubbish, "endless": endless,
    "empty": empty,
}  # fmt: skip


@pytest.mark.parametrize("make", SCENARIOS.values(), ids=SCENARIOS)
def test_scenario_is_none(fault: Fault, make: Callable[[Path], None]) -> None:
    scenario = fault.place.scenario()
    make(scenario)
    fault.ends("plan", scenario)


def test_current_folder_was_removed(fault: Fault) -> None:
    scenario = fault.place.scenario()
    gone = fault.place.work / "gone"
    gone.mkdir()
    under = ["sh", "-c", f'cd {gone} && rmdir {gone} && exec "$@"', "sh"]
    fault.ends("plan", scenario, under=under)


# folders that vanish -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["out", "cache", "state", "tmp"])
def test_folder_vanishes_during_a_run(fault: Fault, which: str) -> None:
    place = fault.place
    scenario = place.scenario()
    with (
        serving(place.work, hangs) as mirror,
        place.started("run", scenario, "--out", "out", BAROMETER_MIRROR=mirror.url) as running,
    ):
        mirror.until_asked()
        folder = place.work / "out" if which == "out" else getattr(place, which)
        shutil.rmtree(folder)
        mirror.released.set()
        ended = running.ended()
    fault.ended(ended)


# two at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["path", "link", "container"])
def test_two_runs_in_one_folder(fault: Fault, how: str) -> None:
    """The second run names the same path or a link, or is in a container with its own state."""
    place = fault.place
    scenario = place.scenario()
    (place.work / "link").symlink_to("out")
    under = namespace("", "--pid", "--fork", "--mount-proc") if how == "container" else []
    state = place.root / "other" if how == "container" else place.state
    with (
        serving(place.work, hangs) as mirror,
        place.started("run", scenario, "--out", "out", BAROMETER_MIRROR=mirror.url) as first,
    ):
        mirror.until_asked()
        second = place.run(
            "run", scenario, "--out", "link" if how == "link" else "out", under=under,
            BAROMETER_MIRROR=mirror.url, BAROMETER_STATE=str(state),
        )  # fmt: skip
        assert first.process.poll() is None
        first.signal(signal.SIGINT)
        assert first.ended().code == 130
    fault.ended(second)
    assert not any(state.iterdir())


def test_clean_beside_a_run_in_another_container(fault: Fault) -> None:
    place = fault.place
    container = namespace("", "--pid", "--fork", "--kill-child", "--mount-proc")
    with (
        serving(place.work, hangs) as mirror,
        place.started(
            "run", place.scenario(), "--out", "out", under=container, BAROMETER_MIRROR=mirror.url
        ) as running,
    ):
        mirror.until_asked()
        fault.ends("clean", left=("process", "record", "temporary file", "build", "socket"))
        assert [*place.state.glob("*.json")]
        assert running.process.poll() is None


def test_clean_after_a_run_that_was_killed_in_another_container(fault: Fault) -> None:
    """Another container's processes cannot be seen, so nothing proves that the run has ended."""
    place = fault.place
    container = namespace("", "--pid", "--fork", "--kill-child", "--mount-proc")
    with (
        serving(place.work, hangs) as mirror,
        place.started(
            "run", place.scenario(), "--out", "out", under=container, BAROMETER_MIRROR=mirror.url
        ) as running,
    ):
        mirror.until_asked()
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
    fault.ends("clean", left=("record", "temporary file", "build"))
    assert [*place.state.glob("*.json")]


def test_run_that_was_killed(fault: Fault) -> None:
    """The lock file that is left locks nobody out, and `barometer clean` removes all the rest."""
    place = fault.place
    scenario = place.scenario()
    with serving(place.work, hangs) as mirror:
        url = mirror.url
        with place.started("run", scenario, "--out", "out", BAROMETER_MIRROR=url) as running:
            mirror.until_asked()
            running.signal(signal.SIGKILL)
            running.process.wait()
    assert (place.work / "out/.lock").exists()
    assert place.run("run", scenario, "--out", "out").reason == "mirror-unreachable"
    fault.ends("clean")
