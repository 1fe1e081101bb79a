from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bench.host import PANIC, Console
from tests.unit.recorded import FAILED, MEASURED, RUN


@pytest.mark.parametrize(
    "line",
    [
        "[    4.123456] Kernel panic - not syncing: VFS: Unable to mount root fs",
        "[    1.000000] BUG: unable to handle page fault for address: 0000000000001234",
        "[    1.000000] Oops: 0000 [#1] PREEMPT SMP NOPTI",
        "[   12.000000][  T123] BUG: kernel NULL pointer dereference, address: 0",
    ],
)
def test_broken_kernel_is_known_by_its_console(line: str) -> None:
    assert PANIC.search(f"[    0.0] fine\n{line}\n[    5.0] more")


@pytest.mark.parametrize("trial", [FAILED, MEASURED])
def test_ordinary_console_is_no_panic(trial: str) -> None:
    for path in (RUN / "trials" / trial).rglob("console.log"):
        assert not PANIC.search(path.read_text())


def test_command_line_that_mentions_panics_is_none() -> None:
    assert not PANIC.search("[    0.000000] Command line: console=ttyS0 panic=-1 oops=panic")


def test_console_grows_and_is_read_once(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    assert (console.text(), console.size(), console.last_line()) == ("", 0, "")
    with (tmp_path / "console.log").open("ab") as file:
        file.write(b"one\r\ntwo")
        file.flush()
        assert console.text() == "one\ntwo"
        file.write(b" more\r\n" + b"x" * 300)
        file.flush()
        assert console.text().startswith("one\ntwo more\n")
        assert len(console.last_line()) == 100
        assert console.size() == 315
    assert console.tail().startswith("one\n")
