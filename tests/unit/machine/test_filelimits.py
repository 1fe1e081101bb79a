"""Files that another program writes; here a real one."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from orchestrator.machine.runner.filelimits import limited_files
from tests.unit.machine.metals import SECONDS

MIB = 1 << 20


def test_program_that_writes_too_much_is_ended(tmp_path: Path) -> None:
    path, ended = tmp_path / "console.log", threading.Event()
    with path.open("wb") as file:
        program = subprocess.Popen(["yes"], stdout=file)

    def end() -> None:
        program.kill()
        ended.set()

    with limited_files({tmp_path / "absent": 0, path: MIB}, end):
        assert ended.wait(SECONDS)
        program.wait()
    assert path.stat().st_size > MIB


def test_file_as_long_as_it_may_be_ends_nothing(tmp_path: Path) -> None:
    path, calls = tmp_path / "console.log", list[int]()
    path.write_bytes(b"x" * MIB)
    with limited_files({path: MIB}, lambda: calls.append(1)):
        threading.Event().wait(0.5)
    assert calls == []
