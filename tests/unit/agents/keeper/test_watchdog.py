"""A watchdog that keeps running over a boot."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from keeper.changes import leaving, watchdog
from keeper.machine import RefusedError
from tests.unit.agents.keeper.machines import Machine

CLASS = "/sys/class/watchdog"


def has_watchdog(machine: Machine, number: int, identity: str, **facts: str) -> None:
    told = {"identity": identity, "state": "inactive", "nowayout": "0", **facts}
    for name, text in told.items():
        machine.file(f"{CLASS}/watchdog{number}/{name}", f"{text}\n")
    machine.file(f"/dev/watchdog{number}", "")


def has_driver(machine: Machine, *names: str) -> None:
    """Load modules that use the watchdog core; some have no watchdog device that names them."""
    for name in names:
        machine.file(f"/sys/module/watchdog/holders/{name}/initstate", "live\n")


class Hardware:
    """A watchdog's answers to WDIOC_SETTIMEOUT and WDIOC_GETTIMELEFT."""

    def __init__(self, machine: Machine) -> None:
        self.longest, self.rounds_down = 600, False
        self.counts: int | None = None
        """Seconds that it has left; None if its driver does not report them."""
        self.has_not = errno.EOPNOTSUPP
        self.asked: list[int] = []
        has_watchdog(machine, 0, "i6300ESB timer")
        has_driver(machine, "i6300esb")

    def ioctl(self, _file: int, request: int, value: bytes) -> bytes:
        if request == watchdog.GETTIMELEFT:
            if self.counts is None:
                raise OSError(self.has_not, os.strerror(self.has_not))
            return struct.pack("i", self.counts)
        assert request == watchdog.SETTIMEOUT
        self.asked.append(*struct.unpack("i", value))
        if self.asked[-1] > self.longest and not self.rounds_down:
            raise OSError(22, "Invalid argument")
        return struct.pack("i", min(self.asked[-1], self.longest))


@pytest.fixture
def hardware(held: Machine, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    made = Hardware(held)
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    return made


def written(machine: Machine, number: int = 0) -> str:
    return machine.text(f"/dev/watchdog{number}")


def what(machine: Machine, seconds: int = 300) -> dict[str, Any]:
    return watchdog.plan("watchdog0", seconds)


def test_it_does_not_bite_while_the_machine_is_taken_down(
    held: Machine, hardware: Hardware
) -> None:
    assert watchdog.LEAST_SECONDS >= leaving.CLEAN_SECONDS + 60
    watchdog.arm(what(held, 30))
    assert hardware.asked == [watchdog.LEAST_SECONDS]
    assert written(held) == "\0"  # and no V, which would stop it


def test_time_that_the_hardware_does_not_have_is_the_shortest_that_will_do(
    held: Machine, hardware: Hardware
) -> None:
    hardware.longest = 250
    watchdog.arm(what(held, 300))
    assert hardware.asked == [300, 240]
    assert written(held) == "\0"


@pytest.mark.parametrize("rounds_down", [True, False])
def test_hardware_with_less_time_is_done_without(
    held: Machine, hardware: Hardware, rounds_down: bool
) -> None:
    hardware.longest, hardware.rounds_down = 239, rounds_down
    with pytest.raises(RefusedError, match="watchdog0 takes no time of 240 s or more"):
        watchdog.arm(what(held))
    assert written(held) == "V"
    held.done("original")
    answer = held.done("boot", how="reboot", extend=600.0, watchdog="watchdog0",
                       watchdog_seconds=300)  # fmt: skip
    assert answer["notes"] == ["no watchdog: watchdog0 takes no time of 240 s or more"]
    assert held.journal() == ["kernel", "leaving"]


@pytest.mark.parametrize("counts", [300, 239, 235])
def test_hardware_that_counts_the_time_it_was_given_is_armed(
    held: Machine, hardware: Hardware, counts: int
) -> None:
    hardware.counts = counts
    watchdog.arm(what(held))
    assert written(held) == "\0"


@pytest.mark.parametrize("has_not", [errno.EOPNOTSUPP, errno.ENOTTY])
def test_driver_that_does_not_tell_what_is_left_is_taken_at_its_word(
    held: Machine, hardware: Hardware, has_not: int
) -> None:
    hardware.has_not = has_not
    watchdog.arm(what(held))
    assert written(held) == "\0"


@pytest.mark.parametrize("counts", [0, 128, 234])
def test_hardware_that_only_its_kernel_keeps_from_biting_is_stopped(
    held: Machine, hardware: Hardware, counts: int
) -> None:
    hardware.counts = counts
    held.done("original")
    answer = held.done("boot", how="reboot", extend=600.0, watchdog="watchdog0",
                       watchdog_seconds=300)  # fmt: skip
    assert answer["notes"] == [
        f"no watchdog: watchdog0 itself counts {counts} s, and 240 s or more are needed: its"
        " kernel makes up for that, and is gone by then"
    ]
    assert written(held).endswith("V")
    assert held.journal() == ["kernel", "leaving"]


def test_watchdog_that_does_not_answer_is_stopped(held: Machine, hardware: Hardware) -> None:
    hardware.has_not = errno.EIO
    held.done("original")
    answer = held.done("boot", how="reboot", extend=600.0, watchdog="watchdog0",
                       watchdog_seconds=300)  # fmt: skip
    assert answer["notes"] == ["no watchdog: [Errno 5] Input/output error: '/dev/watchdog0'"]
    assert written(held).endswith("V")


@pytest.mark.parametrize(
    ("facts", "why"),
    [({"state": "active"}, "watchdog0 is active, so it is left alone"),
     ({"nowayout": "1"}, "watchdog0 could not be stopped: nowayout is not 0")],
)  # fmt: skip
def test_watchdog_that_is_not_free_is_left_alone(
    held: Machine, hardware: Hardware, facts: dict[str, str], why: str
) -> None:
    has_watchdog(held, 0, "i6300ESB timer", **facts)
    with pytest.raises(RefusedError, match=why):
        what(held)
    with pytest.raises(RefusedError, match="watchdog1 is not there"):
        watchdog.plan("watchdog1", 300)


def test_watchdog_of_no_known_driver_is_left_alone(held: Machine, hardware: Hardware) -> None:
    assert watchdog.watchdogs()[0]["driver"] == "i6300esb"
    has_driver(held, "softdog")
    with pytest.raises(RefusedError, match="which driver watchdog0 has is not known"):
        what(held)


def test_software_watches_over_no_boot(held: Machine) -> None:
    has_watchdog(held, 0, "Software Watchdog")
    has_driver(held, "softdog")
    with pytest.raises(RefusedError, match="watchdog0 is software, and ends with its kernel"):
        what(held)


def test_boot_that_is_called_off_stops_it(held: Machine, hardware: Hardware) -> None:
    held.done("original")
    held.done("boot", how="reboot", extend=600.0, watchdog="watchdog0", watchdog_seconds=300)
    assert held.journal() == ["kernel", "watchdog", "leaving"]
    held.file("/running", "running\n")
    assert "watchdog0: stopped" in held.done("putback", volatile=True)["done"]
    assert written(held).endswith("V")


@pytest.fixture
def arrived(held: Machine, hardware: Hardware) -> Machine:
    """A machine under a kernel that has not loaded the driver of the watchdog that was armed."""
    held.done("original")
    held.done("boot", how="reboot", extend=600.0, watchdog="watchdog0", watchdog_seconds=300)
    held.power_on()
    held.boots(release="7.3.4", token="77")
    (held.root / "dev/watchdog0").unlink()
    return held


def loads(machine: Machine, script: str) -> None:
    """Set what `modprobe` does on the machine."""
    asked = 'case $1 in --show-depends) echo "insmod /lib/modules/x/$2.ko"; exit 0 ;; esac\n'
    machine.file("/fakes/modprobe", f"#!/bin/sh\n{asked}{script}\n").chmod(0o755)


def test_its_driver_is_loaded_and_it_is_stopped_under_its_new_number(arrived: Machine) -> None:
    has_watchdog(arrived, 0, "Software Watchdog")
    folder = Path(CLASS) / "watchdog1"
    script = f"""
        /usr/bin/mkdir -p $ROOT{folder}
        echo i6300ESB timer > $ROOT{folder}/identity; echo 0 > $ROOT{folder}/nowayout
        echo > $ROOT/dev/watchdog1
        echo "$1 4096 0 - Live 0x0" >> $ROOT/proc/modules"""
    loads(arrived, script)
    assert arrived.done("confirm") == {"notes": []}
    assert written(arrived) == ""
    assert written(arrived, 1).strip() == "V"
    assert "modules" in arrived.journal()
    arrived.done("putback", volatile=True)
    assert "i6300esb" not in arrived.text("/proc/modules")


def test_watchdog_that_does_not_tell_its_name_is_the_one(arrived: Machine) -> None:
    has_watchdog(arrived, 0, "")
    (arrived.root / CLASS[1:] / "watchdog0/identity").unlink()
    assert arrived.done("confirm") == {"notes": []}
    assert written(arrived) == "V"


def test_arrival_is_confirmed_though_the_watchdog_is_not_stopped(arrived: Machine) -> None:
    loads(arrived, "echo no such module >&2; exit 1")
    (note,) = arrived.done("confirm")["notes"]
    assert note.startswith("the watchdog may restart the machine: modprobe i6300esb failed ")
    loads(arrived, "")
    (note,) = arrived.done("confirm")["notes"]
    assert note == "the watchdog may restart the machine: there is no i6300ESB timer"
    has_watchdog(arrived, 0, "i6300ESB timer", nowayout="1")
    (note,) = arrived.done("confirm")["notes"]
    assert note.endswith("i6300ESB timer cannot be stopped: nowayout is 1")
    assert written(arrived) == ""
    has_watchdog(arrived, 0, "i6300ESB timer")
    (arrived.root / "dev/watchdog0").unlink()
    (note,) = arrived.done("confirm")["notes"]
    assert "No such file or directory" in note
    assert (arrived.root / "run/barometer.confirmed").exists()
    assert arrived.done("status")["leases"][0]["left"] <= 60
