"""Against real processes; `clean` is given a root of its own, and may end nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.bench.state import (
    SHM,
    bench_state,
    clean,
    default_root,
    process_start,
    token_prefix,
)


@contextmanager
def process(*argv: str, name: str = "qemu-system-x86_64") -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps, under a name and with arguments of its own."""
    script = """exec -a "$0" sh -c 'echo 1; read -r _' sh "$@" """
    child = subprocess.Popen(
        ["bash", "-c", script, name, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"1\n"
        try:
            yield child
        finally:
            child.stdin.close()
            child.kill()


def dead_pid() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def record(root: Path, folder: Path, *, pid: int, started: int = 1, **lists: list[str]) -> Path:
    """The record of a run, as a killed one leaves it."""
    path = root / "abcd1234.json"
    root.mkdir(exist_ok=True)
    path.write_text(json.dumps({
        "token": "abcd1234", "pid": pid, "started": started, "folder": str(folder),
        "domains": [], "shm": [], "partial": [],
    } | lists))  # fmt: skip
    return path


def test_state_is_recorded_while_the_block_runs_and_gone_after_it(tmp_path: Path) -> None:
    with bench_state(tmp_path) as state:
        [path] = tmp_path.glob("*.json")
        facts = json.loads(path.read_text())
        assert facts["pid"] == os.getpid()
        assert facts["started"] == process_start(os.getpid())
        assert state.folder.stat().st_mode & 0o777 == 0o700
        assert len(str(state.folder)) < 60
        state.add(domains="u-1")
        state.add(partial="/p")
        facts = json.loads(path.read_text())
        assert (facts["domains"], facts["partial"]) == (["u-1"], ["/p"])
        state.add(hosts="root@gpu1.lab")
        assert json.loads(path.read_text())["hosts"] == ["root@gpu1.lab"]
        assert not any(name.startswith("_") for name in facts)
        (state.folder / "key").write_text("x")
    assert list(tmp_path.iterdir()) == []
    assert not state.folder.exists()


def test_tokens_of_one_state_folder_begin_alike(tmp_path: Path) -> None:
    with bench_state(tmp_path / "a") as one, bench_state(tmp_path / "a") as two:
        assert one.token != two.token
        assert one.token[:4] == two.token[:4] == token_prefix(tmp_path / "a")
    assert token_prefix(tmp_path / "b") != token_prefix(tmp_path / "a")


def test_state_is_gone_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), bench_state(tmp_path) as state:
        raise KeyboardInterrupt
    assert not state.folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_folder_is_kept_when_asked(tmp_path: Path) -> None:
    with bench_state(tmp_path, keep=True) as state:
        pass
    assert state.folder.is_dir()
    state.folder.rmdir()


def test_shared_memory_is_removed_and_forgotten(tmp_path: Path) -> None:
    name = f"barometer-test-{uuid.uuid4()}"
    with bench_state(tmp_path) as state:
        state.add(shm=name)
        (SHM / name).write_bytes(b"x")
        state.remove_shm(name)
        assert not (SHM / name).exists()
        [path] = tmp_path.glob("*.json")
        assert json.loads(path.read_text())["shm"] == []


def test_shared_memory_that_was_recorded_is_removed_at_the_end(tmp_path: Path) -> None:
    name = f"barometer-test-{uuid.uuid4()}"
    with bench_state(tmp_path) as state:
        state.add(shm=name)
        (SHM / name).write_bytes(b"x")
    assert not (SHM / name).exists()


def test_running_run_is_left_alone(tmp_path: Path) -> None:
    with bench_state(tmp_path) as state:
        [line] = clean(tmp_path)
        assert line == f"run {state.token}: still running as process {os.getpid()}; left alone"
        assert state.folder.exists()
        assert list(tmp_path.glob("*.json"))


def test_clean_ends_only_what_was_recorded(tmp_path: Path) -> None:
    ours, foreign = str(uuid.uuid4()), str(uuid.uuid4())
    folder = tmp_path / "barometer-abcd1234"
    folder.mkdir()
    partial = tmp_path / ".0001-baseline.partial"
    partial.mkdir()
    shm, other_shm = f"barometer-test-{ours}", f"barometer-test-{foreign}"
    (SHM / shm).write_bytes(b"x")
    (SHM / other_shm).write_bytes(b"x")
    root = tmp_path / "state"
    path = record(root, folder, pid=dead_pid(), domains=[ours], shm=[shm, "barometer-gone"],
                  partial=[str(partial)])  # fmt: skip
    try:
        with (
            process("-uuid", ours) as qemu,
            process("-uuid", foreign) as of_another_run,
            process("-uuid", ours, name="less") as no_qemu,
            process("-append", f"root={ours}") as mentions_it,
        ):
            lines = list(clean(root))
            assert qemu.wait(5) == -signal.SIGKILL
            for bystander in (of_another_run, no_qemu, mentions_it):
                assert bystander.poll() is None
        assert (SHM / other_shm).exists()
    finally:
        (SHM / other_shm).unlink()
        (SHM / shm).unlink(missing_ok=True)
    assert lines == [
        f"run abcd1234: ended QEMU {qemu.pid}",
        f"run abcd1234: removed {SHM / shm}",
        f"run abcd1234: removed {folder}",
        f"run abcd1234: removed {partial}",
        "run abcd1234: cleaned",
    ]
    assert not path.exists()
    assert not folder.exists()
    assert not partial.exists()


def test_process_id_that_was_given_away_is_no_running_run(tmp_path: Path) -> None:
    started = process_start(os.getpid())
    assert started is not None
    path = record(tmp_path, tmp_path / "none", pid=os.getpid(), started=started - 1)
    assert list(clean(tmp_path)) == ["run abcd1234: cleaned"]
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "x"}', '{"token": "x", "pid": "y"}'])
def test_record_that_cannot_be_read_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    [line] = clean(tmp_path)
    assert "cannot be read" in line
    assert "left alone" in line
    assert (tmp_path / "x.json").exists()


def test_record_without_its_lists_is_left_alone(tmp_path: Path) -> None:
    path = record(tmp_path, tmp_path / "none", pid=dead_pid())
    facts = json.loads(path.read_text())
    del facts["domains"]
    path.write_text(json.dumps(facts))
    [line] = clean(tmp_path)
    assert "left alone" in line
    assert path.exists()


def test_nothing_to_clean_says_nothing(tmp_path: Path) -> None:
    assert list(clean(tmp_path)) == []
    assert list(clean(tmp_path / "none")) == []


def test_killed_run_is_cleaned(tmp_path: Path) -> None:
    """A real process, killed in the middle of its block."""
    program = (
        "import sys; from pathlib import Path; from orchestrator.bench.state import bench_state\n"
        f"with bench_state(Path({str(tmp_path)!r})) as state:\n"
        "    print(state.folder, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        child.kill()
    assert folder.is_dir()
    lines = list(clean(tmp_path))
    assert lines[-1].endswith(": cleaned")
    assert f"removed {folder}" in lines[0]
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_process_that_has_ended_has_no_start() -> None:
    assert process_start(dead_pid()) is None
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None  # a zombie
    child.wait()


def test_place_of_the_records_is_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAROMETER_STATE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("BAROMETER_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg/barometer"


def test_metal_hosts_of_a_run_that_was_killed_are_named_once_with_what_to_do(
    tmp_path: Path,
) -> None:
    hosts = ["gpu1 --ssh-config '/my lab/ssh'", "gpu2", "gpu2"]
    path = record(tmp_path / "state", tmp_path / "none", pid=dead_pid(), hosts=hosts)
    assert list(clean(tmp_path / "state")) == [
        "run abcd1234: a metal host may be changed: barometer recover"
        " gpu1 --ssh-config '/my lab/ssh'",
        "run abcd1234: a metal host may be changed: barometer recover gpu2",
        "run abcd1234: cleaned",
    ]
    assert not path.exists()


def test_record_of_a_release_that_knew_no_metal_hosts_is_cleaned(tmp_path: Path) -> None:
    path = record(tmp_path / "state", tmp_path / "none", pid=dead_pid())
    assert list(clean(tmp_path / "state")) == ["run abcd1234: cleaned"]
    assert not path.exists()
