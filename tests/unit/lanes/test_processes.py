"""Processes of pytest: real ones, at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ci.lanes.processes import Process, Runner, in_background
from orchestrator.machine.runner.owner import process_start


def run(tmp_path: Path, texts: list[str], told: list[str] | None = None) -> Runner:
    for number, text in enumerate(texts):
        (tmp_path / f"test_{number}.py").write_text(text)
    return Runner(tmp_path, (told if told is not None else []).append)


def process(tmp_path: Path, number: int) -> Process:
    return Process(str(number), ("-p", "no:cacheprovider", str(tmp_path / f"test_{number}.py")), 0)


def test_each_has_folders_and_a_state_of_its_own_which_are_gone_afterwards(tmp_path: Path) -> None:
    text = """
import os, tempfile, pathlib
def test_it():
    seen = [tempfile.gettempdir(), os.environ["BAROMETER_STATE"]]
    pathlib.Path({here!r}, f"seen-{{os.getpid()}}").write_text("\\n".join(seen))
"""
    runner = run(tmp_path, [text.format(here=str(tmp_path))] * 2)
    finished = list(runner.run([process(tmp_path, 0), process(tmp_path, 1)], 2))
    assert [one.code for one in finished] == [0, 0]
    assert [one.left for one in finished] == ["", ""]
    seen = [line for path in tmp_path.glob("seen-*") for line in path.read_text().splitlines()]
    assert len({*seen}) == 4
    assert not [path for path in seen if Path(path).parent.exists()]


def test_no_more_run_at_once_than_may(tmp_path: Path) -> None:
    text = "import time\ndef test_it(): time.sleep(0.3)\n"
    told: list[str] = []
    runner = run(tmp_path, [text] * 3, told)
    ended = 0
    for _ in runner.run([process(tmp_path, number) for number in range(3)], 2):
        ended += 1
        assert len([line for line in told if "started" in line]) - ended <= 2 - (ended == 3)
    assert ended == 3


def test_one_that_boots_nothing_runs_beside_those_that_do(tmp_path: Path) -> None:
    """Two wait for each other, so they end only if they run at the same time; a third that boots
    nothing waits for its turn."""
    wait = """
import pathlib, time
def test_it():
    pathlib.Path({here!r}, "{mine}").touch()
    while not pathlib.Path({here!r}, "{other}").exists():
        time.sleep(0.02)
"""
    texts = [wait.format(here=str(tmp_path), mine=a, other=b) for a, b in ("xy", "yx", "zx")]
    told: list[str] = []
    runner = run(tmp_path, texts, told)
    queue = [process(tmp_path, 0), *(replace(process(tmp_path, n), boots=False) for n in (1, 2))]
    finished = [one.process.name for one in runner.run(queue, 1)]
    assert {*finished[:2]} == {"0", "1"}
    assert [line for line in told if "started" in line][-1] == "2: started"


def test_what_a_killed_run_left_is_ended_and_told(tmp_path: Path) -> None:
    text = """
import dataclasses, os, pathlib
from orchestrator.machine.runner.owner import Owner
from orchestrator.machine.runner.state import BenchRecord
def test_it():
    state = pathlib.Path(os.environ["BAROMETER_STATE"]); state.mkdir()
    gone = dataclasses.replace(Owner.here(), pid=2**22, started=1)
    record = BenchRecord(token="deaddead", owner=gone, folder="/nonexistent/barometer-deaddead")
    (state / "deaddead.json").write_text(record.model_dump_json())
"""
    [finished] = run(tmp_path, [text]).run([process(tmp_path, 0)], 1)
    assert "run deaddead: cleaned" in finished.left


def test_interrupt_reaches_the_fixtures_and_nothing_goes_on(tmp_path: Path) -> None:
    """Nor is anything left of a run that had a state of its own."""
    memory = Path(f"/dev/shm/barometer-deaddead-{os.getpid()}")
    text = f"""
import dataclasses, pathlib, subprocess, time, pytest
from orchestrator.machine.runner.owner import Owner
from orchestrator.machine.runner.state import BenchRecord
@pytest.fixture
def machine(tmp_path):
    gone = dataclasses.replace(Owner.here(), pid=2**22, started=1)
    record = BenchRecord(token="deaddead", owner=gone, folder="/nonexistent/barometer-deaddead",
                         shm=[{memory.name!r}])
    (tmp_path / "state").mkdir()
    (tmp_path / "state/deaddead.json").write_text(record.model_dump_json())
    pathlib.Path({str(memory)!r}).touch()
    child = subprocess.Popen(["sleep", "1000"])
    pathlib.Path({str(tmp_path)!r}, "child").write_text(str(child.pid))
    yield
    pathlib.Path({str(tmp_path)!r}, "ended").touch()
def test_it(machine): time.sleep(1000)
"""
    runner = run(tmp_path, [text])

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "child").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(runner.run([process(tmp_path, 0)], 1))
    assert (tmp_path / "ended").exists()
    child, deadline = int((tmp_path / "child").read_text()), time.monotonic() + 10
    while process_start(child) and time.monotonic() < deadline:
        time.sleep(0.02)  # the killed process takes a moment to be gone
    assert process_start(child) is None
    assert not memory.exists()


def test_background_is_waited_for_and_its_failure_told(tmp_path: Path) -> None:
    with in_background(
        {"a": ("echo", "fine  $HOME"), "b": ("false",), "c": ("echo", "never")}, tmp_path / "log"
    ) as wait:
        said = wait()
    assert said.splitlines() == ["a", "fine  $HOME", "b"]
    with in_background({"a": ("true",)}, tmp_path / "log") as wait:
        assert wait() == ""


def test_background_ends_with_its_block(tmp_path: Path) -> None:
    with in_background(
        {"a": (sys.executable, "-c", "import time; time.sleep(1000)")}, tmp_path / "log"
    ):
        pass
    done = subprocess.run(
        ["pgrep", "-f", "import time; time.sleep.1000.$"], check=False, capture_output=True
    )
    assert done.stdout == b""
