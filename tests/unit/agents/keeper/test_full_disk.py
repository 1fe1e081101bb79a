"""A disk without a free block."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.agents.keeper.machines import HUGE, OWNER, THP, Machine
from tests.unit.agents.keeper.test_leases import Clock, clock

__all__ = ["clock"]
OTHER = {**OWNER, "runner": "ci8"}
Fill = Callable[[int], None]


@pytest.fixture
def fill(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Leave no block free, with blocks of so many bytes, except those that barometer's files give
    back. write(2) writes as much as the file's last block has room for, and then fails."""
    write, folder = os.write, machine.root / "var/lib/barometer"

    def used(block: int) -> int:
        return sum(-(-file.stat().st_size // block) for file in folder.rglob("*"))

    def filled(block: int) -> None:
        blocks = used(block)

        def written(file: int, content: bytes | memoryview) -> int:
            if folder not in Path(f"/proc/self/fd/{file}").readlink().parents:
                return write(file, content)
            whole = -(-os.fstat(file).st_size // block) + blocks - used(block)
            room = whole * block - os.lseek(file, 0, os.SEEK_CUR)
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, content[:room])

        monkeypatch.setattr(os, "write", written)

    return filled


def test_change_that_cannot_be_written_down_is_not_made(held: Machine, fill: Fill) -> None:
    held.done("write", path=THP, value="always")
    before = held.all()
    fill(4096)
    many = [f"/boot/{number:0200}" for number in range(100)]
    assert held.refused("claim", paths=many) == (
        "os-error: /var/lib/barometer/journal.jsonl: No space left on device"
    )
    assert held.all() == before
    held.done("write", path=HUGE, value="64")  # there is room for a short line
    assert held.journal() == ["write", "write"]
    assert held.done("putback", volatile=False)["failed"] == []


def test_all_is_put_back_though_that_cannot_be_written_down(held: Machine, fill: Fill) -> None:
    held.done("write", path=THP, value="always")
    held.done("write", path=HUGE, value="64")
    fill(1)
    answer = held.done("putback", volatile=False)
    assert answer["done"] == []
    assert ["No space left" in failed["why"] for failed in answer["failed"]] == [True, True]
    assert (held.text(THP), held.text(HUGE)) == ("defer\n", "0\n")
    assert held.journal() == ["write", "write"]


def test_lease_is_renewed(held: Machine, clock: Clock, fill: Fill) -> None:
    held.done("renew")
    clock.goes(30)
    fill(1)
    assert held.done("renew")["left"] == 60
    assert held.done("status")["leases"][0]["left"] == 60
    assert not [*(held.root / "var/lib/barometer").glob(".*")]


def test_lease_that_expired_gives_its_room_to_the_next(
    machine: Machine, clock: Clock, fill: Fill
) -> None:
    machine.acquire()
    machine.done("claim", paths=["/boot/x"])
    clock.goes(61)
    fill(4096)
    assert machine.acquire(owner=OTHER)["unfinished"] is True
    assert [lease["owner"] for lease in machine.done("status")["leases"]] == [OTHER]
    assert machine.done("putback", volatile=False)["failed"] == []
    machine.done("release")
