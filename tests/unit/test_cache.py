from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.base.cache import ENTRY, Cache
from orchestrator.base.errors import BenchError
from orchestrator.base.hashing import digest_of, sha256_file

KEY = {"kind": "test", "schema": 1}


class Builder:
    """Writes a file and counts its calls."""

    def __init__(self, content: str = "hello") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "sub").mkdir()
        (folder / "sub/file").write_text(self.content)
        (folder / "link").symlink_to("sub/file")


def test_entry_is_built_once(tmp_path: Path) -> None:
    cache, build = Cache(tmp_path), Builder()
    first = cache.entry("things", KEY, build)
    assert cache.entry("things", KEY, build) == first
    assert build.calls == 1
    assert first == tmp_path / "things" / digest_of(KEY)
    assert (first / "link").read_text() == "hello"
    files = json.loads((first / ENTRY).read_text())["files"]
    assert files["sub/file"]["sha256"] == sha256_file(first / "sub/file")
    assert json.loads((first / ENTRY).read_text())["key"] == KEY


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.entry("things", KEY, Builder()) != cache.entry(
        "things", {**KEY, "schema": 2}, Builder()
    )


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})


def test_files_of_an_entry_are_read_only(tmp_path: Path) -> None:
    place = Cache(tmp_path).entry("things", KEY, Builder())
    assert (place / "sub/file").stat().st_mode & 0o222 == 0


def test_changed_file_makes_the_entry_be_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, build = Cache(tmp_path), Builder()
    place = cache.entry("things", KEY, build)
    (place / "sub/file").chmod(0o644)
    (place / "sub/file").write_text("hellO")
    assert cache.entry("things", KEY, build) == place
    assert build.calls == 2
    assert (place / "sub/file").read_text() == "hello"
    assert "sub/file" in caplog.text
    assert "sha256" in caplog.text


def test_missing_file_makes_the_entry_be_built_again(tmp_path: Path) -> None:
    cache, build = Cache(tmp_path), Builder()
    place = cache.entry("things", KEY, build)
    (place / "sub/file").unlink()
    cache.entry("things", KEY, build)
    assert build.calls == 2


def test_unreadable_record_makes_the_entry_be_built_again(tmp_path: Path) -> None:
    cache, build = Cache(tmp_path), Builder()
    place = cache.entry("things", KEY, build)
    (place / ENTRY).write_text("{")
    cache.entry("things", KEY, build)
    assert build.calls == 2


def test_touched_file_with_the_same_content_is_kept(tmp_path: Path) -> None:
    cache, build = Cache(tmp_path), Builder()
    place = cache.entry("things", KEY, build)
    os.utime(place / "sub/file", (1, 1))
    cache.entry("things", KEY, build)
    assert build.calls == 1


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fails(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.entry("things", KEY, fails)
    assert [p.name for p in (tmp_path / "things").iterdir() if p.suffix != ".lock"] == []
    build = Builder()
    cache.entry("things", KEY, build)
    assert build.calls == 1


def test_what_a_killed_build_left_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / "things" / f".{digest_of(KEY)}.killed"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    other = tmp_path / "things/.0123456789abcdef.other"
    other.mkdir()
    Cache(tmp_path).entry("things", KEY, Builder())
    assert not left.exists()
    assert other.exists()


def test_full_disk_is_said_as_such(tmp_path: Path) -> None:
    def full(_folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BenchError) as caught:
        Cache(tmp_path).entry("things", KEY, full)
    assert caught.value.reason == "disk-full"
    assert "BAROMETER_CACHE" in caught.value.hint


def test_two_runs_at_once_build_an_entry_once(tmp_path: Path) -> None:
    inside, calls = threading.Barrier(2), []

    def build(folder: Path) -> None:
        calls.append(threading.get_ident())
        (folder / "file").write_text("x")

    def ask() -> None:
        inside.wait(10)
        Cache(tmp_path).entry("things", KEY, build)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1


def test_two_processes_build_an_entry_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from orchestrator.base.cache import Cache\n"
        "def build(folder):\n"
        "    time.sleep(0.3); (folder / 'file').write_text('x'); print('built')\n"
        f"Cache(Path({str(tmp_path)!r})).entry('things', {{'a': 1}}, build)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    output = "".join(process.communicate(timeout=30)[0] for process in running)
    assert output == "built\n"
    assert [process.returncode for process in running] == [0, 0]


def test_place_of_the_cache_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAROMETER_CACHE", str(tmp_path / "here"))
    assert Cache().root == tmp_path / "here"
    monkeypatch.delenv("BAROMETER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().root == tmp_path / "xdg/barometer"


def test_full_disk_within_a_copied_tree_is_said_as_such(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        # copytree() reports it like this, without an errno
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    with pytest.raises(BenchError) as caught:
        Cache(tmp_path).entry("kernels", {}, build)
    assert caught.value.reason == "disk-full"


def test_another_run_at_work_is_said_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, order = Cache(tmp_path), []
    entered, end = threading.Event(), time.monotonic() + 30

    def first() -> None:
        with cache.held("worktrees/a"):
            entered.set()
            while str(tmp_path / "worktrees/a") not in caplog.text and time.monotonic() < end:
                time.sleep(0.01)
            order.append("first")

    other = threading.Thread(target=first)
    other.start()
    entered.wait()
    with Cache(tmp_path).held("worktrees/a"):
        order.append("second")
    other.join()
    assert order == ["first", "second"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path / "worktrees/a") in caplog.text
