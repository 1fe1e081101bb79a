"""The traces that a finished boot leaves."""

from __future__ import annotations

import os

import pytest

from keeper import machine as real
from tests.unit.agents.keeper.machines import Machine

PANIC = "Kernel panic - not syncing: Attempted to kill init!\n"


@pytest.fixture
def dead(held: Machine) -> Machine:
    """A machine whose kernel with the token 77 has panicked."""
    held.done("original")
    os.utime(held.root / "var/lib/barometer/original.json", (1000, 1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "realtime_ns", lambda: int(2000e9))
        held.done("boot", how="kexec", cmdline="ro barometer.token=77", extend=600.0,
                  **held.image())  # fmt: skip
    held.power_on()
    held.done("confirm")
    return held


def record(machine: Machine, path: str, time: float, text: str) -> None:
    os.utime(machine.file(path, text), (time, time))


@pytest.mark.parametrize("place", ["/sys/fs/pstore/dmesg-efi-1", "/var/lib/systemd/pstore/7/x"])
def test_record_of_the_boot_is_told_and_removed(dead: Machine, place: str) -> None:
    record(dead, place, 2010, PANIC)
    assert dead.done("last_words") == {"text": PANIC}
    assert dead.done("last_words") == {"text": ""}
    assert not (dead.root / place[1:]).exists()
    assert not (dead.root / "var/lib/systemd/pstore/7").exists()


def test_record_of_an_earlier_boot_of_ours_is_removed_and_not_told(dead: Machine) -> None:
    record(dead, "/sys/fs/pstore/dmesg-efi-1", 1500, PANIC)
    assert dead.done("last_words") == {"text": ""}
    assert not (dead.root / "sys/fs/pstore/dmesg-efi-1").exists()


def test_record_is_known_by_the_word_to_boot_where_no_kernel_was_recorded(dead: Machine) -> None:
    (dead.root / "var/lib/barometer/original.json").unlink()
    record(dead, "/sys/fs/pstore/dmesg-efi-1", 1500, "theirs\n")
    record(dead, "/sys/fs/pstore/dmesg-efi-2", 2010, PANIC)
    assert dead.done("last_words") == {"text": PANIC}
    assert [path.name for path in (dead.root / "sys/fs/pstore").iterdir()] == ["dmesg-efi-1"]


def test_record_of_the_machines_own_is_left(dead: Machine) -> None:
    record(dead, "/var/lib/systemd/pstore/6/dmesg.txt", 900, PANIC)
    record(dead, "/var/lib/systemd/pstore/6/ours", 2010, "ours\n")
    assert dead.done("last_words") == {"text": "ours\n"}
    assert dead.text("/var/lib/systemd/pstore/6/dmesg.txt") == PANIC


@pytest.mark.parametrize(
    ("token", "expected"), [("77", "".join(f"{n}\n" for n in range(40, 100))), ("7", ""), ("", "")]
)
def test_messages_are_those_of_that_boot(dead: Machine, token: str, expected: str) -> None:
    script = f"echo Command line: ro barometer.token={token} quiet; /usr/bin/seq 0 99\n"
    dead.file("/fakes/journalctl", f"#!/bin/sh\n{script}").chmod(0o755)
    assert dead.done("last_words") == {"text": expected}


def test_machine_that_was_not_booted_has_no_last_words(held: Machine) -> None:
    held.done("original")
    record(held, "/sys/fs/pstore/dmesg-efi-1", 4e9, PANIC)
    assert held.done("last_words") == {"text": ""}
    assert held.text("/sys/fs/pstore/dmesg-efi-1") == PANIC


def test_machine_without_a_journal_of_that_boot_says_nothing(dead: Machine) -> None:
    dead.file("/fakes/journalctl", "#!/bin/sh\necho no such boot >&2; exit 1\n").chmod(0o755)
    assert dead.done("last_words") == {"text": ""}
