from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.bench.host import PANIC, Console, Host, explained_by_the_host
from orchestrator.bench.shell import ConnectionLostError
from orchestrator.errors import ArmFailedError, BenchError
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


def host(tmp_path: Path, said: str = "", *, alive: bool = False, crash: str = "") -> Host:
    """A host of which its console and its end are known."""
    path = tmp_path / "console.log"
    path.write_text(said)
    known = SimpleNamespace(
        console=Console(path), release="7.3", alive=lambda: alive, crash=lambda: crash
    )
    return cast(Host, known)


def test_host_whose_emulator_crashed_is_the_benchs_failure(tmp_path: Path) -> None:
    words = "qemu: tcg/region.c:456: assertion failed\nshutting down, reason=crashed"
    with pytest.raises(BenchError, match="no kernel's fault") as caught:
        Host.check(host(tmp_path, "[ 1.0] fine\n", crash=words))
    assert (caught.value.reason, caught.value.evidence) == ("host-crash", words)


def test_host_that_ended_by_itself_is_the_arms_failure(tmp_path: Path) -> None:
    with pytest.raises(ArmFailedError) as caught:
        Host.check(host(tmp_path, "[ 1.0] reboot: Power down\n"))
    assert (caught.value.reason, caught.value.evidence) == (
        "host-ended", "[ 1.0] reboot: Power down",
    )  # fmt: skip


def test_panic_is_the_arms_failure_however_the_machine_ended(tmp_path: Path) -> None:
    with pytest.raises(ArmFailedError) as caught:
        Host.check(host(tmp_path, "Kernel panic - not syncing: x\n", crash="reason=crashed"))
    assert caught.value.reason == "host-panic"


class Dying:
    """A VM whose connections are gone at once, and its process at the third look."""

    ours = True
    shell = SimpleNamespace(alive=lambda: False)

    def __init__(self, ends: BenchError | None) -> None:
        self.looks, self._ends = 0, ends

    def check(self) -> None:
        self.looks += 1
        if self.looks == 3 and self._ends is not None:
            raise self._ends


def charged(dying: Dying) -> BenchError:
    with pytest.raises(BenchError) as caught, explained_by_the_host(cast(Host, dying)):
        raise ConnectionLostError("EOF", reason="host-ssh-lost")
    return caught.value


def test_lost_connection_of_a_crashed_emulator_is_a_crash() -> None:
    assert charged(Dying(BenchError("it crashed", reason="host-crash"))).reason == "host-crash"


def test_lost_connection_of_a_host_that_goes_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.bench.host._DYING_SECONDS", 0.05)
    assert charged(Dying(None)).reason == "host-ssh-lost"


def test_host_that_lives_is_not_asked_how_it_ended(tmp_path: Path) -> None:
    Host.check(host(tmp_path, "[ 1.0] fine\n", alive=True, crash="reason=crashed"))
