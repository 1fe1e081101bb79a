"""Locks with real processes, links, mounts and namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.base.errors import ScenarioError
from orchestrator.base.folderlock import LOCK, only_writer
from orchestrator.evidence.layout import RunDir
from tests.unit.manifests import plan_of

_HOLDER = """
import sys
from pathlib import Path
from orchestrator.base.folderlock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
UNSHARE = ["unshare", *["--map-root-user"] * (os.geteuid() != 0), "--mount"]


@contextmanager
def holder(folder: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the folder."""
    with subprocess.Popen(
        [*before, sys.executable, "-c", _HOLDER, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child


def busy(folder: Path) -> bool:
    with contextlib.suppress(ScenarioError), only_writer(folder):
        return False
    return True


def test_one_process_at_a_time_writes_in_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with holder(out) as child:
        with pytest.raises(ScenarioError) as caught, only_writer(out):
            pass
        assert caught.value.reason == "run-exists"
        assert str(out) in caught.value.message
        child.communicate("")
    assert not busy(out)


def test_folder_is_the_same_by_whatever_path(tmp_path: Path) -> None:
    out, link = tmp_path / "run", tmp_path / "link"
    out.mkdir()
    link.symlink_to(out)
    with holder(link):
        assert busy(out)
        assert busy(link)
        assert busy(tmp_path / "x/../run")


def test_folder_that_was_renamed_is_still_locked(tmp_path: Path) -> None:
    with holder(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        assert busy(tmp_path / "elsewhere")
        assert not busy(tmp_path / "run")


def test_folder_is_locked_across_mounts_and_pid_namespaces(tmp_path: Path) -> None:
    out, link = tmp_path / "run", tmp_path / "there"
    out.mkdir()
    link.mkdir()
    mounted = ["sh", "-c", f'mount --bind {out} {link} && exec "$0" "$@"']
    with holder(link, *UNSHARE, "--pid", "--fork", "--kill-child", *mounted):
        assert busy(out)


def test_what_a_killed_process_left_locks_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as child:
        child.kill()
        child.wait()
    assert (tmp_path / "run" / LOCK).exists()
    assert not busy(tmp_path / "run")


def test_program_that_is_started_does_not_hold_it(tmp_path: Path) -> None:
    with only_writer(tmp_path / "run"):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert not busy(tmp_path / "run")
    child.communicate()


def test_folder_that_stayed_empty_is_gone_with_those_that_were_made_for_it(
    tmp_path: Path,
) -> None:
    with only_writer(tmp_path / "runs/a"):
        assert (tmp_path / "runs/a" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with only_writer(tmp_path / "mine"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_folder_with_something_in_it_stays_when_the_block_raises(tmp_path: Path) -> None:
    def interrupted(plan: Path) -> None:
        plan.write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), only_writer(tmp_path / "runs/a"):
        interrupted(tmp_path / "runs/a/plan.json")
    assert [p.name for p in (tmp_path / "runs/a").iterdir()] == ["plan.json"]


def test_lock_of_the_next_one_is_left_alone(tmp_path: Path) -> None:
    """Somebody moved the folder away, and another run began under its name."""
    out = tmp_path / "run"
    with only_writer(out):
        out.rename(tmp_path / "elsewhere")
        with only_writer(out):
            assert busy(out)
            (out / "plan.json").write_text("{}")
            (out / LOCK).unlink()
            (out / LOCK).write_text("another's")
        assert (out / LOCK).read_text() == "another's"
    assert (out / LOCK).read_text() == "another's"


def test_file_system_that_is_read_only_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from orchestrator.base.errors import ScenarioError
from orchestrator.base.folderlock import only_writer
for folder in ("run", "new/run"):
    try:
        with only_writer(Path({str(tmp_path)!r}) / folder): pass
    except ScenarioError as exc:
        print(exc.reason, exc.hint != "")
"""
    (tmp_path / "run").mkdir()
    script = f'mount --bind -o ro {tmp_path} {tmp_path} && exec "$0" "$@"'
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", script, sys.executable, "-c", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("out-unwritable True\n" * 2, "")


def test_path_that_can_be_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(ScenarioError) as caught, only_writer(path):
            pass
        assert caught.value.reason == "out-unwritable"


def test_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=LOCK) as caught, only_writer(tmp_path):
        pass
    assert caught.value.errno == errno.ELOOP
    assert not (tmp_path / "elsewhere").exists()


def test_lock_is_readable_and_no_evidence(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with only_writer(out):
        assert stat.S_IMODE((out / LOCK).stat().st_mode) & 0o444 == 0o444
        run = RunDir.create(out, "text", plan_of())
        assert run.trials() == []
