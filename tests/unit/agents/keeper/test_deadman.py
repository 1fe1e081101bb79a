"""The switch that restarts a machine whose runner is gone."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import time
import zipapp
from collections.abc import Callable, Iterator

import pytest

from keeper import deadman
from keeper import machine as real
from tests.unit.agents.keeper.machines import Machine
from tests.unit.agents.loading import AGENTS

LINK = "/etc/systemd/system/sysinit.target.wants/barometer-deadman.service"


class RestartedError(Exception):
    pass


@pytest.fixture
def naps() -> list[Callable[[], None]]:
    """Functions that are called whenever the switch sleeps."""
    return []


@pytest.fixture
def watched(
    held: Machine, naps: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> Machine:
    """A machine under a kernel of barometer's. The switch raises RestartedError when it restarts
    the machine; waiting takes no time."""
    held.boots(release="7.3.4", token="77")
    now = [1000.0]
    monkeypatch.setattr(real, "boottime", lambda: now[0])
    monkeypatch.setattr(real, "realtime_ns", lambda: int(now[0] * 1e9))
    held.done("renew")

    def sleep(seconds: float) -> None:
        now[0] += seconds
        for call in naps:
            call()

    def restart(why: str) -> None:
        raise RestartedError(f"{now[0] - 1000:.0f} s: {why}")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(deadman, "restart", restart)
    return held


def test_machine_that_nobody_reaches_restarts(watched: Machine) -> None:
    with pytest.raises(RestartedError, match=r"^61 s: no runner came in time"):
        deadman.watch(60)


@pytest.mark.parametrize(("ttl", "seconds"), [(60, 130), (30, 70)])
def test_machine_whose_runner_is_lost_later_restarts(
    watched: Machine, ttl: float, seconds: int
) -> None:
    """It restarts after its lease has been over for as long as it had lived."""
    watched.acquire(ttl=ttl, takeover=watched.token)
    watched.done("confirm")
    expected = rf"^{seconds} s: the runner's lease has expired"
    with pytest.raises(RestartedError, match=expected):
        deadman.watch(5)


def test_machine_whose_lease_is_gone_restarts(watched: Machine) -> None:
    watched.done("confirm")
    (watched.root / f"var/lib/barometer/lease-{watched.token}.json").unlink()
    with pytest.raises(RestartedError, match=r"^20 s: "):
        deadman.watch(5)


def test_machine_whose_runner_is_there_goes_on(
    watched: Machine, naps: list[Callable[[], None]]
) -> None:
    watched.done("confirm")
    beats: list[int] = []

    def beat() -> None:
        beats.append(1)
        if len(beats) <= 30:  # ten seconds each
            watched.done("renew")

    naps.append(beat)
    with pytest.raises(RestartedError, match=r"^430 s: "):
        deadman.watch(5)


def test_own_kernel_is_never_left(held: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadman, "restart", pytest.fail)
    deadman.watch(0)


def test_keeper_that_hangs_does_not_keep_the_switch_from_looking(
    watched: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.done("confirm")
    monkeypatch.setattr(real, "LOCK_SECONDS", 0.05)
    with real.locked(), pytest.raises(RestartedError, match=r"^130 s: "):
        deadman.watch(5)


def test_lease_that_is_seen_again_is_not_lost(
    watched: Machine, naps: list[Callable[[], None]]
) -> None:
    """Looks 1, 3 and 5 read the lease while it is half-written."""
    watched.done("confirm")
    lease = watched.root / f"var/lib/barometer/lease-{watched.token}.json"
    whole = lease.read_bytes()
    looks: list[int] = []

    def torn() -> None:
        looks.append(1)
        lease.write_bytes(whole[:40] if len(looks) in (1, 3, 5) else whole)

    naps.append(torn)
    with pytest.raises(RestartedError, match=r"^130 s: "):
        deadman.watch(5)


def test_restart_says_why_and_becomes_less_and_less_polite(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nap = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: nap(min(seconds, 0.02)))
    monkeypatch.setattr(os, "sync", lambda: held.file("/synced", ""))
    kmsg, sysrq = held.file("/dev/kmsg", ""), held.file("/proc/sysrq-trigger", "")
    deadman.restart("no runner came in time")
    assert kmsg.read_text() == (
        "barometer: no runner came in time: restarting into the default kernel\n"
    )
    assert (held.root / "synced").exists()
    assert held.text("/log").splitlines() == [
        "systemctl reboot --force",
        "systemctl reboot --force --force",
    ]
    assert sysrq.read_text() == "b\n"


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Processes that the switch started. Those that still run are ended."""
    fork, started = os.fork, []

    def forked() -> int:
        child = fork()
        if child:
            started.append(child)
        return child

    monkeypatch.setattr(os, "fork", forked)
    yield started
    for child in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_restart_does_not_wait_for_a_disk_that_hangs(
    held: Machine, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadman, "_CLEAN_SECONDS", 0.1)
    monkeypatch.setattr(os, "sync", lambda: time.sleep(60))
    held.file("/fakes/systemctl", "#!/bin/sh\nexec /usr/bin/sleep 60\n").chmod(0o755)
    sysrq = held.file("/proc/sysrq-trigger", "")
    began = time.monotonic()
    deadman.restart("no runner came in time")
    assert time.monotonic() - began < 10
    assert sysrq.read_text() == "b\n"
    assert [os.waitpid(child, os.WNOHANG) for child in children] == [(0, 0)] * 3


@pytest.fixture
def archive(held: Machine, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The keeper as barometer sends it."""
    content = io.BytesIO()
    zipapp.create_archive(AGENTS, content, main="keeper.verbs:main",
                          filter=lambda p: p.suffix == ".py")  # fmt: skip
    monkeypatch.setattr(deadman, "_own_archive", content.getvalue)
    return content.getvalue()


def test_service_is_installed_and_removed(held: Machine, archive: bytes) -> None:
    before = held.all()
    held.done("deadman", seconds=120)
    unit = held.text("/etc/systemd/system/barometer-deadman.service")
    assert "ConditionKernelCommandLine=barometer.token\n" in unit
    assert "ExecStart=/usr/bin/env python3 -I /var/lib/barometer/keeper.pyz deadman 120\n" in unit
    assert (held.root / LINK[1:]).readlink() == held.root / deadman.UNIT[1:]
    assert (held.root / "var/lib/barometer/keeper.pyz").read_bytes() == archive
    held.done("putback", volatile=False)
    held.done("release")
    after = held.all()
    assert {k for k in before if k not in after} == {
        "var/lib/barometer", f"var/lib/barometer/lease-{held.token}.json", "run/barometer.lock",
    }  # fmt: skip
    assert after.keys() <= before.keys()


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("theirs", [False, True])
def test_folder_of_its_link_that_was_missing_is_removed_unless_it_is_used(
    held: Machine, theirs: bool
) -> None:
    wants = held.root / LINK[1:].rpartition("/")[0]
    wants.rmdir()
    held.done("deadman", seconds=120)
    if theirs:
        (wants / "theirs.service").symlink_to("/lib/systemd/system/theirs.service")
    assert held.done("putback", volatile=False)["failed"] == []
    assert [*wants.glob("*")] == ([wants / "theirs.service"] if theirs else [])
    assert wants.exists() is theirs


def state(machine: Machine) -> dict[str, tuple[int, bytes]]:
    """Return everything except barometer's own folder."""
    return {k: v for k, v in machine.all().items() if not k.startswith("var/lib/barometer")}


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("left", ["both", "unit", "link"])
def test_switch_whose_journal_is_lost_is_taken_over(held: Machine, left: str) -> None:
    before = state(held)
    held.done("deadman", seconds=120)
    shutil.rmtree(held.root / "var/lib/barometer")
    for path, what in ((deadman.UNIT, "link"), (LINK, "unit")):
        if left == what:
            (held.root / path[1:]).unlink()
    held.acquire()
    held.done("deadman", seconds=60)
    assert "deadman 60\n" in held.text(deadman.UNIT)
    assert (held.root / LINK[1:]).readlink() == held.root / deadman.UNIT[1:]
    assert held.done("putback", volatile=False)["failed"] == []
    assert state(held) == before


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("place", [deadman.UNIT, LINK])
def test_what_has_the_switchs_name_and_is_not_barometers_stays(held: Machine, place: str) -> None:
    held.done("deadman", seconds=120)
    shutil.rmtree(held.root / "var/lib/barometer")
    (held.root / place[1:]).unlink()
    held.file(place, "[Unit]\nDescription=the admin's own\n")
    held.acquire()
    assert held.refused("deadman", seconds=60) == (
        f"exists: {place} is there already, and not of barometer's"
    )
    assert held.text(place) == "[Unit]\nDescription=the admin's own\n"
    assert held.journal() == []


@pytest.mark.usefixtures("archive")
def test_switch_that_the_journal_names_is_not_taken_over(held: Machine) -> None:
    held.done("deadman", seconds=120)
    assert held.ask("deadman", seconds=60)["refused"] == "exists"
    assert "deadman 120\n" in held.text(deadman.UNIT)


def test_machine_without_systemd_has_no_switch(held: Machine) -> None:
    (held.root / "run/systemd/system").rmdir()
    assert held.ask("deadman", seconds=120)["refused"] == "no-systemd"


def test_confirmation_is_a_file_of_this_boot(held: Machine) -> None:
    held.done("confirm")
    held.done("confirm")
    assert held.journal() == ["claim"]
    assert (held.root / "run/barometer.confirmed").exists()
    held.done("putback", volatile=False)
    assert not (held.root / "run/barometer.confirmed").exists()
