"""The watch agent's output is checked, whatever it prints."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.bounded import CONSOLE_BYTES, MARKS_BYTES
from orchestrator.base.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.base.progress import Progress
from orchestrator.machine.guest.watching import Limits, Watched, wait_for_ssh
from orchestrator.machine.host.host import Host
from tests.unit.machine.metals import SECONDS


def watched(lines: Iterator[str], folder: Path) -> Watched:
    taken = Watched(lines, folder)
    taken._thread.join(SECONDS)
    assert taken.ended
    taken.close()
    return taken


def limits(taken: Watched) -> Limits:
    host = SimpleNamespace(check=lambda: None, slow=False)
    return Limits(cast(Host, host), taken, 1 << 30)


def console(*texts: str) -> Iterator[str]:
    return (f"C {at} {json.dumps(text)}" for at, text in enumerate(texts))


def flood_of(lines: Iterator[str], folder: Path) -> str:
    taken = watched(lines, folder)
    with pytest.raises(ArmFailedError) as caught:
        limits(taken).check("the mark")
    assert caught.value.reason == "console-flood"
    assert (folder / "console.log").stat().st_size <= CONSOLE_BYTES + (1 << 17)
    assert (folder / "marks.txt").stat().st_size <= MARKS_BYTES + (1 << 17)
    return caught.value.message


@pytest.mark.parametrize(
    "line",
    ["C 1 " + json.dumps("x" * 1000), 'C 1 ""', "C 1 " + json.dumps("\0" * 10_000),
     "E 1 " + "y" * 1000, "P 1 5 5", "\ufffd"],
)  # fmt: skip
def test_agent_that_never_stops_is_a_flood(tmp_path: Path, line: str) -> None:
    flood_of(itertools.repeat(line), tmp_path)


def test_events_without_end_are_a_flood(tmp_path: Path) -> None:
    flood_of((f"E 1 event-{number} x" for number in itertools.count()), tmp_path)


def test_flood_that_the_agent_saw_is_said_with_its_rate(tmp_path: Path) -> None:
    told = ['E 1 flood {"bytes": 9000000, "lines": 7, "seconds": 2.0}']
    message = flood_of(iter([*console("one"), *told, *console("never read")]), tmp_path)
    assert "9000000 bytes, 7 lines in 2.0 s, 4.50 MB/s" in message
    assert (tmp_path / "console.log").read_text() == "one\n"


def test_panic_is_found_in_a_line_as_it_comes(tmp_path: Path) -> None:
    taken = watched(console("fine", "Kernel panic - not syncing: x", "more"), tmp_path)
    with pytest.raises(ArmFailedError) as caught:
        limits(taken).check("the mark")
    assert caught.value.reason == "guest-panic"
    assert caught.value.evidence.splitlines() == [
        "fine", "Kernel panic - not syncing: x", "more",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["C 1 no json", "C 1 " + "[" * 100_000, "C", "P 1", "P x 1", "E 1 flood", "E 1 flood {}",
     "E 1 flood []",
     'E 1 flood {"bytes": null, "lines": 1, "seconds": 1}'],
)  # fmt: skip
def test_garbled_line_ends_the_boot_and_not_barometer(tmp_path: Path, line: str) -> None:
    taken = watched(iter([line]), tmp_path)
    with pytest.raises(BarometerError) as caught:
        limits(taken).check("the mark")
    assert caught.value.reason == "answer-garbled"


def test_daemon_of_libvirt_that_is_stopped_ends_the_boot(tmp_path: Path) -> None:
    taken = watched(iter(["P 1 5 5", "E 2 libvirt-stopped"]), tmp_path)
    with pytest.raises(BenchError) as caught:
        limits(taken).check("the mark")
    assert caught.value.reason == "libvirt-silent"


@pytest.mark.parametrize("text", ["\ud800", "a\nb", 5, None, ["x"]])
def test_words_that_are_no_text_are_kept_as_such(tmp_path: Path, text: Any) -> None:
    taken = watched(iter([f"C 1 {json.dumps(text)}", *console("next")]), tmp_path)
    assert taken.error is None
    assert re.search("(?m)^next$", (tmp_path / "console.log").read_text())


@pytest.mark.parametrize("used", [0.0, 0.9])
def test_guest_that_stands_still_before_its_ssh_is_given_up(tmp_path: Path, used: float) -> None:
    """It need not be waited for until the deadline. `used`: CPU seconds in a second."""
    lines = (f"P {at * 10**9} {int(at * used * 1e9)} 0" for at in range(50))
    taken = watched(lines, tmp_path)
    taken.ended = False
    host = SimpleNamespace(check=lambda: None, slow=False, accel="tcg")
    if used:
        assert not taken.idle(45)
        return
    started = time.monotonic()
    with pytest.raises(ArmFailedError) as caught:
        wait_for_ssh(cast(Host, host), Limits(cast(Host, host), taken, 1 << 30), Progress())
    assert (caught.value.reason, time.monotonic() - started < SECONDS) == ("guest-no-ssh", True)


def test_host_whose_timers_no_longer_fire_is_given_up(tmp_path: Path) -> None:
    """Its SSH server and the guest's console go on: both wait for interrupts, not for timers."""
    samples = [f"P {at * 10**9} {at * 10**9} 0" for at in range(2)]
    taken = watched(iter([*samples, *console("it goes on")]), tmp_path)
    taken.ended = False
    shell = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout="cpu: 0\n"))
    host = cast(Host, SimpleNamespace(check=lambda: None, slow=True, accel="tcg", shell=shell))
    assert taken.sampled is not None
    taken.sampled -= 40
    Limits(host, taken, 1 << 30).check("the mark")
    taken.sampled -= 10
    with pytest.raises(ArmFailedError) as caught:
        Limits(host, taken, 1 << 30).check("the mark")
    assert (caught.value.reason, caught.value.evidence) == ("host-timers", "cpu: 0\n")
