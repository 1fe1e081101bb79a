"""Runs with real processes. `clean_killed_runs` gets its own root, and may end nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.folderlock import only_writer
from orchestrator.machine.runner import state as state_module
from orchestrator.machine.runner.owner import Owner, process_start
from orchestrator.machine.runner.state import (
    SHM,
    BenchRecord,
    bench_state,
    clean_killed_runs,
    default_state_folder,
    remove_folder,
    token_prefix,
)

TOKEN = "abcd1234"
_RUN = """
import sys
from pathlib import Path
from orchestrator.machine.runner.state import bench_state
with bench_state(Path("{root}")) as state:
    print(state.folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def mock_here(here: Owner) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Owner, "here", lambda: here)
        yield


@contextmanager
def process(*argv: str, name: str = "qemu-system-x86_64") -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps, with a name and arguments of its own."""
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


def ended() -> Owner:
    """Return the owner of a process of this machine that has ended."""
    return replace(Owner.here(), pid=dead_pid())


def record(root: Path, owner: Owner, folder: Path | None = None, **lists: list[str]) -> Path:
    """Write the record of a run, as a killed run leaves it."""
    path = root / f"{TOKEN}.json"
    root.mkdir(exist_ok=True)
    folder = folder or root.parent / f"barometer-{TOKEN}"
    found = BenchRecord(token=TOKEN, owner=owner, folder=str(folder), **cast(Any, lists))
    path.write_text(found.model_dump_json())
    return path


def test_state_is_recorded_while_the_block_runs_and_gone_after_it(tmp_path: Path) -> None:
    with bench_state(tmp_path) as state:
        [path] = tmp_path.glob("*.json")
        facts = json.loads(path.read_text())
        assert facts["owner"]["pid"] == os.getpid()
        assert facts["owner"]["started"] == process_start(os.getpid())
        assert state.folder.stat().st_mode & 0o777 == 0o700
        assert len(str(state.folder)) < 60
        domain, partial = str(uuid.uuid4()), "/run/trials/.0001-baseline.partial"
        state.add(domains=domain)
        state.add(partial=partial)
        facts = json.loads(path.read_text())
        assert (facts["domains"], facts["partial"]) == ([domain], [partial])
        state.add(hosts="root@gpu1.lab")
        assert json.loads(path.read_text())["hosts"] == ["root@gpu1.lab"]
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
    with bench_state(tmp_path) as state:
        name = f"barometer-{state.token}-test"
        state.add(shm=name)
        (SHM / name).write_bytes(b"x")
        state.remove_shm(name)
        assert not (SHM / name).exists()
        [path] = tmp_path.glob("*.json")
        assert json.loads(path.read_text())["shm"] == []


def test_shared_memory_that_was_recorded_is_removed_at_the_end(tmp_path: Path) -> None:
    with bench_state(tmp_path) as state:
        name = f"barometer-{state.token}-test"
        state.add(shm=name)
        (SHM / name).write_bytes(b"x")
    assert not (SHM / name).exists()


def test_running_run_is_left_alone(tmp_path: Path) -> None:
    with bench_state(tmp_path) as state:
        [line] = clean_killed_runs(tmp_path)
        assert f"run {state.token}: still running as process {os.getpid()}" in line
        assert state.folder.exists()
        assert list(tmp_path.glob("*.json"))


def test_clean_ends_only_what_was_recorded(tmp_path: Path) -> None:
    ours, foreign = str(uuid.uuid4()), str(uuid.uuid4())
    folder = tmp_path / f"barometer-{TOKEN}"
    folder.mkdir()
    partial = tmp_path / "run/trials/.0001-baseline.partial"
    partial.mkdir(parents=True)
    shm, other_shm = f"barometer-{TOKEN}-{ours}", f"barometer-test-{foreign}"
    (SHM / shm).write_bytes(b"x")
    (SHM / other_shm).write_bytes(b"x")
    root = tmp_path / "state"
    path = record(root, ended(), folder, domains=[ours], shm=[shm, f"barometer-{TOKEN}-gone"],
                  partial=[str(partial)])  # fmt: skip
    try:
        with (
            process("-uuid", ours) as qemu,
            process("-uuid", foreign) as of_another_run,
            process("-uuid", ours, name="less") as no_qemu,
            process("-append", f"root={ours}") as mentions_it,
        ):
            lines = list(clean_killed_runs(root))
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
    here = Owner.here()
    path = record(tmp_path, replace(here, started=here.started - 1))
    assert list(clean_killed_runs(tmp_path)) == ["run abcd1234: cleaned"]
    assert not path.exists()


@pytest.mark.parametrize(
    ("owner", "state"),
    [
        ({}, "alive"),
        ({"started": 1}, "ended"),
        ({"pid": 2**22 + 1}, "ended"),  # larger than any pid (proc(5), pid_max)
        ({"boot": "another"}, "ended"),
        ({"boot": "another", "pid_namespace": "pid:[1]"}, "ended"),
        ({"boot": "another", "host": "another"}, "unknown"),
        ({"boot": "another", "machine": "another"}, "unknown"),
        ({"boot": "another", "machine": ""}, "unknown"),
        ({"boot": ""}, "unknown"),
        ({"pid_namespace": ""}, "unknown"),
        ({"pid_namespace": "pid:[1]"}, "unknown"),
        ({"pid_namespace": "pid:[1]", "started": 1}, "unknown"),
        # one kernel has one boot id, whatever name a container has
        ({"host": "another", "machine": ""}, "alive"),
        ({"host": "another", "machine": "", "started": 1}, "ended"),
    ],
)
def test_run_has_ended_where_that_is_proven(
    tmp_path: Path, owner: dict[str, Any], state: str
) -> None:
    machine = replace(Owner.here(), machine="3d1219c7", host="lab")
    changed = replace(machine, **owner)
    folder = tmp_path / f"barometer-{TOKEN}"
    folder.mkdir()
    with mock_here(machine):
        assert changed.fate().state == state
        path = record(tmp_path, changed, folder)
        lines = list(clean_killed_runs(tmp_path))
    assert path.exists() == folder.exists() == (state != "ended")
    assert (str(path) in lines[0]) == (state == "unknown")  # names the file to remove


def test_record_that_is_locked_is_a_living_runs(tmp_path: Path) -> None:
    """This is so even if its process does not exist here."""
    path = record(tmp_path, replace(Owner.here(), pid_namespace="pid:[1]"))
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [line] = clean_killed_runs(tmp_path)
        assert "still running" in line
    [line] = clean_killed_runs(tmp_path)
    assert "may be running" in line
    path.write_text(path.read_text().replace("pid:[1]", Owner.here().pid_namespace))
    path.write_text(path.read_text().replace(str(os.getpid()), str(dead_pid())))
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [line] = clean_killed_runs(tmp_path)
        assert "still running" in line
    assert path.exists()


def test_record_is_locked_however_often_it_is_written(tmp_path: Path) -> None:
    with bench_state(tmp_path) as state:
        [path] = tmp_path.iterdir()
        for number in range(3):
            state.add(hosts=str(number))
            with path.open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert list(tmp_path.iterdir()) == [path]


def elsewhere(program: str) -> list[str]:
    """Return the command of a Python program in a PID namespace of its own, as in a container."""
    as_root = ["--map-root-user"] * (os.geteuid() != 0)
    return ["unshare", *as_root, "--pid", "--fork", "--kill-child", "--mount-proc",
            sys.executable, "-c", program]  # fmt: skip


def test_run_in_another_pid_namespace_is_left_alone_alive_and_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        elsewhere(_RUN.format(root=tmp_path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        [line] = clean_killed_runs(tmp_path)
        assert "still running" in line
        assert folder.is_dir()
        child.kill()
        child.stdout.read()  # ends when its children, which die with it, have ended
    deadline = time.monotonic() + 5
    while (
        "still running" in (line := next(clean_killed_runs(tmp_path)))
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert "may be running" in line
    assert "another PID namespace" in line
    assert folder.is_dir()
    folder.rmdir()


def test_clean_in_another_pid_namespace_leaves_what_runs_here(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from orchestrator.machine.runner.state import clean_killed_runs\n"
        f"print(*clean_killed_runs(Path({str(tmp_path)!r})), sep='\\n')\n"
    )

    def cleaned() -> str:
        done = subprocess.run(elsewhere(program), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    with bench_state(tmp_path) as state:
        assert "still running" in cleaned()
        assert state.folder.is_dir()
    path = record(tmp_path, ended())
    assert "may be running" in cleaned()
    assert path.exists()


def test_proc_of_another_pid_namespace_proves_nothing(tmp_path: Path) -> None:
    """unshare without --mount-proc: process ids and /proc belong to different namespaces."""
    program = (
        "from dataclasses import replace; from orchestrator.machine.runner.owner import Owner\n"
        "print(replace(Owner.here(), pid=7).fate().state)"
    )
    argv = [word for word in elsewhere(program) if word != "--mount-proc"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("unknown\n", "")


def test_trial_of_a_run_that_was_taken_up_again_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    partial = out / "trials/.0001-baseline.partial"
    partial.mkdir(parents=True)
    root = tmp_path / "state"
    record(root, ended(), partial=[str(partial)])
    with only_writer(out):
        left, last = clean_killed_runs(root)
    assert str(partial) in left
    assert "at work" in left
    assert last == "run abcd1234: cleaned"
    assert partial.exists()


_WHOLE = BenchRecord(
    token=TOKEN, owner=Owner(7, 1, "pid:[1]", "boot", "machine", "host"),
    folder=f"/tmp/barometer-{TOKEN}",
    domains=["8a0ae4a5-3a5c-4c4e-9f4c-0d7c7a1a0001"], shm=[f"barometer-{TOKEN}-1"],
    partial=["/run/trials/.1.partial"], hosts=["gpu1"],
).model_dump(mode="json")  # fmt: skip
DAMAGED: list[dict[str, Any]] = [
    {"token": "../x"}, {"owner": None}, {"owner": {"pid": 1}}, {"version": 3}, {"other": 1},
    {"folder": "/"}, {"folder": "/home"}, {"folder": f"barometer-{TOKEN}"},
    {"domains": [""]}, {"domains": ["x"]}, {"domains": "x"}, {"domains": None},
    {"shm": ["../x"]}, {"shm": [""]}, {"shm": ["another"]}, {"shm": [f"barometer-{TOKEN}/../x"]},
    {"partial": ["/"]}, {"partial": ["/home"]}, {"partial": ["/.x.partial"]},
    {"partial": ["run/trials/.x.partial"]}, {"hosts": [1]},
    {"owner": {**_WHOLE["owner"], "pid": 0}}, {"owner": {**_WHOLE["owner"], "pid": "7"}},
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"token": "x"}', '{"token": "x", "pid": "y"}', "\udcff",
     *(json.dumps(_WHOLE | changes) for changes in DAMAGED),
     *(json.dumps({k: v for k, v in _WHOLE.items() if k != key}) for key in ("token", "owner"))],
)  # fmt: skip
def test_record_that_cannot_be_read_is_set_aside_and_named_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "abcd1234.json"
    path.write_text(text, errors="surrogateescape")
    [line] = clean_killed_runs(tmp_path)
    assert str(path) in line
    assert "barometer-abcd1234*" in line
    [aside] = tmp_path.iterdir()
    assert str(aside) in line
    assert aside.read_text(errors="surrogateescape") == text
    assert list(clean_killed_runs(tmp_path)) == []


@given(st.data())
def test_record_that_is_cut_or_changed_anywhere_is_whole_or_refused(data: st.DataObject) -> None:
    text = json.dumps(_WHOLE, indent=1)
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.sampled_from(["", "0", '"', "\0", "/", "..", "-"]))
    changed += text[at + data.draw(st.integers(0, 3)) :]
    try:
        found = BenchRecord.read(changed)
    except ValueError:
        return
    name = f"barometer-{found.token}"
    assert Path(found.folder).name == name
    assert all(file.startswith(name) and "/" not in file for file in found.shm)
    assert all(len(domain) == 36 for domain in found.domains)
    assert all(Path(partial).name.endswith(".partial") for partial in found.partial)


def test_unreadable_record_that_is_locked_is_a_living_runs(tmp_path: Path) -> None:
    path = tmp_path / "abcd1234.json"
    path.write_text('{"version": 3}')
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [line] = clean_killed_runs(tmp_path)
    assert "left alone" in line
    assert path.exists()


def test_folder_that_somebody_else_made_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    root = tmp_path / "state"
    folder = tmp_path / f"tmp/barometer-{token_prefix(root)}000000"
    folder.mkdir(parents=True)
    with pytest.raises(FileExistsError), bench_state(root):
        pass
    assert folder.exists()
    assert list(root.iterdir()) == []


def test_what_is_no_runs_is_not_recorded(tmp_path: Path) -> None:
    with bench_state(tmp_path) as state:
        for more in ({"domains": ""}, {"shm": "another"}, {"partial": "/home"}):
            with pytest.raises(ValueError, match=r"pattern|token"):
                state.add(**more)
        state.add(hosts="gpu1")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_clean_says_nothing(tmp_path: Path) -> None:
    assert list(clean_killed_runs(tmp_path)) == []
    assert list(clean_killed_runs(tmp_path / "none")) == []


def test_killed_run_is_cleaned(tmp_path: Path) -> None:
    """A real process is killed within its block."""
    with subprocess.Popen(
        [sys.executable, "-c", _RUN.format(root=tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        child.kill()
    assert folder.is_dir()
    lines = list(clean_killed_runs(tmp_path))
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
    assert default_state_folder() == tmp_path
    monkeypatch.delenv("BAROMETER_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_state_folder() == tmp_path / "xdg/barometer"


def test_metal_hosts_of_a_run_that_was_killed_are_named_once_with_what_to_do(
    tmp_path: Path,
) -> None:
    hosts = ["gpu1 --ssh-config '/my lab/ssh'", "gpu2", "gpu2"]
    path = record(tmp_path / "state", ended(), hosts=hosts)
    assert list(clean_killed_runs(tmp_path / "state")) == [
        "run abcd1234: a metal host may be changed: barometer recover"
        " gpu1 --ssh-config '/my lab/ssh'",
        "run abcd1234: a metal host may be changed: barometer recover gpu2",
        "run abcd1234: cleaned",
    ]
    assert not path.exists()


def test_folder_that_is_still_written_to_is_removed_in_the_end(tmp_path: Path) -> None:
    """As libvirt's log of a machine that somebody else ended."""
    ends = time.monotonic() + 0.5

    def write() -> None:
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                (folder / "log").mkdir(parents=True, exist_ok=True)
                (folder / "log/line").write_text("x")

    folder = tmp_path / "barometer-x"
    folder.mkdir()
    writer = threading.Thread(target=write)
    writer.start()
    remove_folder(folder)
    writer.join()
    remove_folder(folder)
    assert not folder.exists()


def test_record_of_a_folder_that_cannot_be_removed_is_kept_for_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "_WRITERS_SECONDS", 0.1)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_arguments, **_more: None)
        with bench_state(tmp_path / "state") as state:
            folder = state.folder
    assert folder.exists()
    folder.rmdir()
    assert [*(tmp_path / "state").glob("*.json")]
