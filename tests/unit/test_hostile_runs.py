"""Runs that somebody else made: judging them reads and writes nothing outside of their folder, and
does not wait."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.base.errors import BarometerError
from orchestrator.run.judging.judgefolder import judge_folder

RECORDED = Path(__file__).parents[2] / "fixtures/recorded/levels"
TESTER = "A Tester <tester@example.org>"
SECRET = "the runner's own secret"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RECORDED, tmp_path / "run")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    path = tmp_path / "home/secret"
    path.write_text(SECRET)
    return path


def first_trial(run: Path) -> Path:
    return min((run / "trials").iterdir())


def become_link(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def listen(path: Path) -> None:
    # by its folder's descriptor: the path of a socket has 107 characters at most
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def within(seconds: float, call: Callable[[], object]) -> None:
    """Call; fail if it has not returned in time. A BarometerError is an answer."""
    done = threading.Event()

    def run_call() -> None:
        try:
            call()
        except BarometerError:
            pass
        finally:
            done.set()

    threading.Thread(target=run_call, daemon=True).start()
    assert done.wait(seconds)


OUTPUTS = ("report.txt", "report.html", "comparison.json", "junit.xml", "results.ktap",
           "kcidb.json", "results.csv")  # fmt: skip


@pytest.mark.parametrize("name", [*OUTPUTS, ".comparison.json.new", ".report.txt.new"])
def test_no_output_is_written_through_a_link(run: Path, secret: Path, name: str) -> None:
    become_link(run / name, secret)
    judge_folder(run, TESTER)
    assert secret.read_text() == SECRET
    if name in OUTPUTS:
        assert not (run / name).is_symlink()
        assert (run / name).stat().st_size > 0
    assert not [*run.glob(".*.new")] or name.startswith(".")


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("make", [os.mkfifo, listen], ids=["pipe", "socket"])
def test_an_output_that_is_a_pipe_is_replaced(
    run: Path, name: str, make: Callable[[Path], object]
) -> None:
    (run / name).unlink(missing_ok=True)
    make(run / name)
    within(30, lambda: judge_folder(run, TESTER))
    assert (run / name).is_file()


def test_timelines_are_not_written_into_a_linked_folder(tmp_path: Path, secret: Path) -> None:
    run = shutil.copytree(RECORDED.parent / "debian-6.12-vs-7", tmp_path / "run")
    (run / "timelines").symlink_to(secret.parent)
    judge_folder(run, TESTER)
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def everything(run: Path) -> str:
    return "".join(
        path.read_text("utf-8", "replace")
        for path in run.rglob("*") if path.is_file() and not path.is_symlink()
    )  # fmt: skip


@pytest.mark.parametrize("place", ["plan.json", "scenario.toml", "kernels/baseline.config"])
def test_a_runs_own_file_is_not_read_through_a_link(run: Path, secret: Path, place: str) -> None:
    (run / place).parent.mkdir(exist_ok=True)
    become_link(run / place, secret)
    with pytest.raises(BarometerError) as caught:
        judge_folder(run, TESTER)
    assert SECRET not in str(caught.value)
    assert SECRET not in everything(run)


@pytest.mark.parametrize("name", ["host/console.log", "map.json", "host"])
def test_evidence_is_not_read_through_a_link(run: Path, secret: Path, name: str) -> None:
    place = first_trial(run) / name
    become_link(place, secret.parent if name == "host" else secret)
    judged = judge_folder(run, TESTER)
    assert judged.exit_code == 4
    assert SECRET not in everything(run)


def test_a_linked_trial_is_refused(run: Path, tmp_path: Path) -> None:
    trial = first_trial(run)
    other = shutil.copytree(trial, tmp_path / "elsewhere")
    become_link(trial, other)
    with pytest.raises(BarometerError, match="symbolic link"):
        judge_folder(run, TESTER)


@pytest.mark.parametrize("place", [
    "plan.json", "scenario.toml", "trials/TRIAL/manifest.json", "trials/TRIAL/map.json",
    "trials/TRIAL/host/console.log",
])  # fmt: skip
def test_a_pipe_among_the_evidence_is_not_waited_for(run: Path, place: str) -> None:
    path = run / place.replace("TRIAL", first_trial(run).name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    within(30, lambda: judge_folder(run, TESTER))


@pytest.mark.parametrize("name", ["../../home/secret", "/etc/passwd", "host/../../../home/secret"])
def test_a_manifest_names_no_file_outside_of_its_trial(run: Path, secret: Path, name: str) -> None:
    manifest = first_trial(run) / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"map.json":', f'"{name}":', 1))
    told = ""
    try:
        judge_folder(run, TESTER)
    except BarometerError as exc:
        told = str(exc)
    assert SECRET not in told + everything(run)
