"""Records and answers of a machine that are damaged, cut, false, or of a newer version. The keeper
runs as it does on a machine: each request brings its program and starts a process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.machine.metal.keeper import MACHINE, Image, Keeper
from orchestrator.machine.transport.local import LocalMachine
from tests.faults.place import Fault
from tests.faults.test_records import cut, pipe, rubbish
from tests.unit.agents.keeper.machines import HUGE, THP, Machine, sealed_by_a_newer
from tests.unit.recorded import MEASURED, rewrite, sealed

JOURNAL, LEASE = "var/lib/barometer/journal.jsonl", "var/lib/barometer/lease-*.json"
Damage = Callable[[Path], object]


@pytest.fixture
def keeper(machine: Machine) -> Keeper:
    """Return a keeper that holds a lease and has made one change under it."""
    made = Keeper(LocalMachine)
    assert made.acquire([MACHINE], "nightly.toml", ttl=60) is False
    made.write(THP, "always")
    return made


def refused(fault: Fault, ask: Callable[[], object]) -> None:
    """Check that the keeper refuses a request as the row says."""
    begun = time.monotonic()
    with pytest.raises(BenchError) as caught:
        ask()
    assert caught.value.reason == fault.row.reason, caught.value
    for name in fault.row.names:
        assert name in str(caught.value)
    assert time.monotonic() - begun < fault.row.seconds


def put_back(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    """Put back, and check that every change with a readable record is undone. The keeper's report
    on the other records must have the row's names."""
    left = keeper.putback()
    problems = "\n".join(map(str, [*left.failed, *keeper.unreadable()]))
    for name in fault.row.names:
        assert name in problems, problems
    assert bool(left.failed) == bool(fault.row.names)
    assert machine.text(THP) == "defer\n"
    assert machine.text(HUGE) == "0\n"
    keeper.release()


# journals ------------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    """Change a word of the second line, but not its checksum."""
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"write"', b'"wrote"') + b"".join(rest))


def cut_off(path: Path) -> None:
    """Append the line of a keeper that was killed while it announced a change."""
    with path.open("ab") as file:
        file.write(b'{"number": 3, "kind": "wri')


def by_a_newer(path: Path) -> None:
    entry = {"number": 3, "kind": "teleport", "token": 7, "boot_id": "x", "what": {}}
    with path.open("ab") as file:
        file.write(sealed_by_a_newer(entry) + b"\n")


def zeroes(path: Path) -> None:
    """Append zeroes, like a file system that lost the end of a file in a power failure."""
    with path.open("ab") as file:
        file.write(b"\0" * 4096 + b"\n")


JOURNALS: dict[str, Damage] = {
    "cut-off": cut_off, "flipped": flipped, "newer": by_a_newer, "zeroes": zeroes,
}  # fmt: skip


@pytest.mark.parametrize("damage", JOURNALS.values(), ids=JOURNALS)
def test_journal(fault: Fault, keeper: Keeper, machine: Machine, damage: Damage) -> None:
    keeper.write(THP, "never")
    keeper.write(HUGE, "64")
    damage(machine.root / JOURNAL)
    if damage is flipped:  # nobody knows what that line announced: the other changes are undone
        machine.file(THP, "always\n")
    put_back(fault, keeper, machine)


def test_journal_is_a_folder(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    (machine.root / JOURNAL).unlink()
    (machine.root / JOURNAL).mkdir()
    machine.file(THP, "defer\n")
    put_back(fault, keeper, machine)


def test_journal_is_a_pipe(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    """Whoever opens a named pipe waits for its writer."""
    pipe(machine.root / JOURNAL)
    machine.file(THP, "defer\n")
    put_back(fault, keeper, machine)


def test_change_on_a_machine_with_a_damaged_journal(
    fault: Fault, keeper: Keeper, machine: Machine
) -> None:
    rubbish(machine.root / JOURNAL)
    refused(fault, lambda: keeper.write(HUGE, "64"))


# leases --------------------------------------------------------------------------------------


def lease(machine: Machine) -> Path:
    [lease] = machine.root.glob(LEASE)
    return lease


def test_lease_is_held(fault: Fault, keeper: Keeper) -> None:
    """The holder is a live process: this one."""
    refused(fault, lambda: Keeper(LocalMachine).acquire([MACHINE], "again.toml", ttl=60))


def test_lease_is_of_a_newer_barometer(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    path = lease(machine)
    record = json.loads(path.read_text()) | {"mood": "good"}
    record["owner"]["pid_namespace"] = "another"
    del record["schema"], record["sum"]
    path.write_bytes(sealed_by_a_newer(record))
    refused(fault, lambda: Keeper(LocalMachine).acquire([MACHINE], "again.toml", ttl=60))


def test_lease_is_cut(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    # not in the middle: a lease's file is padded with blanks
    lease(machine).write_bytes(lease(machine).read_bytes()[:100])
    refused(fault, lambda: keeper.write(HUGE, "64"))


def test_lease_is_rubbish_and_the_next_runner_puts_back(
    fault: Fault, keeper: Keeper, machine: Machine
) -> None:
    rubbish(lease(machine))
    following = Keeper(LocalMachine)
    assert following.acquire([MACHINE], "again.toml", ttl=60) is True
    put_back(fault, following, machine)


def test_lease_was_taken_over(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    lease(machine).unlink()
    Keeper(LocalMachine).acquire([MACHINE], "again.toml", ttl=60)
    refused(fault, lambda: keeper.write(HUGE, "64"))


# boots ---------------------------------------------------------------------------------------


def image(machine: Machine) -> Image:
    return Image(**machine.image())


def boot(keeper: Keeper, machine: Machine, how: str) -> None:
    keeper.boot(how, image(machine), "ro barometer.token=7", extend=600.0)  # type: ignore[arg-type]


def test_environment_of_grub_is_damaged(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    keeper.original()
    machine.file("/boot/grub/grubenv", "rubbish\n")
    refused(fault, lambda: boot(keeper, machine, "grub"))


def test_staged_kernel_is_cut(fault: Fault, keeper: Keeper, machine: Machine) -> None:
    keeper.original()
    staged = image(machine)
    cut(machine.root / staged.kernel[1:])
    refused(fault, lambda: keeper.boot("kexec", staged, "ro barometer.token=7", extend=600.0))


def test_record_of_the_original_kernel_is_damaged(
    fault: Fault, keeper: Keeper, machine: Machine
) -> None:
    keeper.original()
    cut(machine.root / "var/lib/barometer/original.json")
    refused(fault, keeper.original)


def test_boot_entry_of_a_run_whose_journal_is_lost(
    fault: Fault, keeper: Keeper, machine: Machine
) -> None:
    """The entry is recognized by its name and removed."""
    entry = machine.file("/boot/efi/loader/entries/barometer-7.conf", "title barometer\n")
    put_back(fault, keeper, machine)
    assert not entry.exists()


# answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    ["echo '<html>'", "exit 127", "echo '{\"leases\": '", f"echo '{'[' * 100_000}'"],
    ids=["rubbish", "no", "cut", "deep"],
)
def test_keepers_answer(fault: Fault, machine: Machine, script: str) -> None:
    (machine.root / "fakes/python3").unlink()
    machine.file("/fakes/python3", f"#!/bin/sh\n{script}\n", 0o755)
    refused(fault, lambda: Keeper(LocalMachine).status())


# marks and consoles --------------------------------------------------------------------------


def said_by_anybody(trial: Path) -> None:
    """Append reports of a dying kernel and a mark, as any user's program can print them."""
    words = "x Kernel panic - not syncing: x\nx Oops: 0000 [#1]\nbarometer: boot mark\n"
    rewrite(trial / "guest-0/console.log", lambda text: text + words)
    rewrite(trial / "host/console.log", lambda text: text + words)


def mark_again(trial: Path) -> None:
    """Append a second mark. The first one counts."""
    rewrite(trial / "guest-0/marks.txt", lambda text: text + "E 999999999999 mark\n")


def mark_is_cut(trial: Path) -> None:
    rewrite(trial / "guest-0/marks.txt", lambda text: text + "E 99999")


def mark_is_missing(trial: Path) -> None:
    rewrite(
        trial / "guest-0/marks.txt",
        lambda text: "".join(
            line for line in text.splitlines(keepends=True) if line.split()[2:3] != ["mark"]
        ),
    )


def mark_before_the_start(trial: Path) -> None:
    rewrite(trial / "guest-0/marks.txt", lambda text: "E 1 mark\n" + text)


MARKS: dict[str, Damage] = {
    "said-by-anybody": said_by_anybody, "again": mark_again, "cut": mark_is_cut,
    "missing": mark_is_missing, "before-the-start": mark_before_the_start,
}  # fmt: skip


@pytest.mark.parametrize("lie", MARKS.values(), ids=MARKS)
def test_marks(fault: Fault, lie: Damage) -> None:
    run = fault.place.recorded()
    lie(run / "trials" / MEASURED)
    sealed(run / "trials" / MEASURED)
    ended = fault.ends("report", run, "--table")
    assert fault.row.reason in ended.out
