"""Journals, leases and boot entries that are damaged, half-written, or a newer barometer's: the
readable part is put back, the rest is set aside and named, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from keeper import boot, deadman, leftovers, means
from keeper import machine as real
from keeper.journaling import journal as journals
from keeper.journaling import kinds, records, set_aside
from keeper.steps import KINDS
from tests.unit.agents.keeper.machines import (
    EFI,
    GRUBENV,
    HUGE,
    LOADER,
    OWNER,
    THP,
    Machine,
    made_up,
    sealed_by_a_newer,
)
from tests.unit.agents.keeper.test_kills import ACTIONS
from tests.unit.examples import share

JOURNAL = "/var/lib/barometer/journal.jsonl"
SET_ASIDE = "var/lib/barometer/set-aside"
OTHER = {**OWNER, "runner": "ci8"}
Damage = Callable[[bytes], bytes]

positions = st.floats(0, 1, exclude_max=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


def lines_of(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


@st.composite
def cuts(draw: st.DrawFn) -> Damage:
    at = draw(positions)
    return lambda content: content[: int(at * len(content))]


@st.composite
def flips(draw: st.DrawFn) -> Damage:
    where = draw(st.lists(st.tuples(positions, st.integers(0, 7)), min_size=1, max_size=4))

    def flip(content: bytes) -> bytes:
        flipped = bytearray(content)
        for at, bit in where if content else ():
            flipped[int(at * len(flipped))] ^= 1 << bit
        return bytes(flipped)

    return flip


@st.composite
def moves(draw: st.DrawFn) -> Damage:
    """Delete, duplicate and reorder lines."""
    keys = draw(st.lists(positions, min_size=1, max_size=12))
    return lambda content: b"".join(
        lines_of(content)[int(key * len(lines_of(content)))] for key in keys if content
    )


@st.composite
def doubles(draw: st.DrawFn) -> Damage:
    """Keep every line at least once, in any order."""
    chance = draw(st.randoms(use_true_random=False))

    def double(content: bytes) -> bytes:
        lines = lines_of(content)
        more = lines + [chance.choice(lines) for _ in range(3) if lines]
        chance.shuffle(more)
        return b"".join(more)

    return double


RUBBISH = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([
        b"\0" * 4096, b"[" * 100_000, b"{}", b"[]", b"7", b"null", b"\xff\xfe", b"x" * 300_000,
        b'{"struck": "1"}', b'{"struck": 1e999}', b'{"number": ' + b"9" * 10_000 + b"}",
        b'{"number": NaN, "kind": "write", "token": 1, "boot_id": "", "what": {}}',
    ]),
    st.builds(lambda what: json.dumps(what).encode(), values),
)  # fmt: skip


@st.composite
def rubbish(draw: st.DrawFn) -> Damage:
    """Insert a line of rubbish."""
    at, line = draw(positions), draw(RUBBISH)

    def insert(content: bytes) -> bytes:
        lines = lines_of(content)
        where = int(at * (len(lines) + 1))
        return b"".join([*lines[:where], line + b"\n", *lines[where:]])

    return insert


@st.composite
def rewrites(draw: st.DrawFn) -> Damage:
    """Rewrite a line: with another value of a member or of what its undo needs, with an unknown
    kind, as a newer barometer, or without a checksum. Other checksums are right."""
    at, key, value = draw(positions), draw(positions), draw(values)
    kind = draw(st.sampled_from(["member", "what", "unknown", "newer", "unsealed"]))

    def rewrite(content: bytes) -> bytes:
        lines = lines_of(content)
        if not lines:
            return content
        record = records.unseal(lines[number := int(at * len(lines))], {})
        inner = record.get("what", record) if kind == "what" else record
        if kind == "unknown":
            record["kind"] = "teleport"
        elif inner and kind in ("member", "what"):
            inner[[*inner][int(key * len(inner))]] = value
        seal = sealed_by_a_newer if kind == "newer" else records.seal
        line = json.dumps(record).encode() if kind == "unsealed" else seal(record)
        return b"".join([*lines[:number], line + b"\n", *lines[number + 1 :]])

    return rewrite


whole_damages = st.one_of(doubles(), rubbish())
of_disks = st.one_of(
    cuts(), flips(), moves(), rubbish(), RUBBISH.map(lambda content: lambda _: content)
)
WILD = st.one_of(of_disks, rewrites())
CHANGES = st.lists(st.sampled_from(sorted({*ACTIONS} - {"power"})), min_size=1, max_size=6)


def recovered(machine: Machine) -> dict[str, list[Any]]:
    """Recover as a runner does that finds the machine in this state, and return the keeper's
    answers."""
    held = machine.done("status")["leases"]
    machine.acquire(takeover=held[0]["token"] if held else 0)
    first = machine.done("putback", volatile=True)
    second = machine.done("putback", volatile=False)
    machine.done("kernel_restored")
    machine.done("release")
    return {name: first[name] + second[name] for name in ("done", "failed")}


def outside(machine: Machine) -> dict[str, tuple[int, bytes]]:
    """Return everything except barometer's own folder and lock."""
    return {
        name: facts for name, facts in machine.all().items()
        if not name.startswith(("var/lib/barometer", "run/barometer.lock"))
    }  # fmt: skip


def changed_by(actions: list[str], machine: Machine) -> None:
    machine.acquire()
    for action in actions:
        ACTIONS[action](machine)
        if action == "huge pages":  # some changes are put back already
            machine.done("putback", volatile=True)


def damage(machine: Machine, path: str, how: Damage) -> bytes:
    there = machine.root / path[1:]
    content = there.read_bytes() if there.exists() else b""
    there.write_bytes(how(content))
    return content


@share(0.1)
@given(actions=CHANGES, damages=st.lists(whole_damages, min_size=1, max_size=3))
def test_every_change_is_put_back_whatever_stands_between_its_lines(
    actions: list[str], damages: list[Damage]
) -> None:
    with made_up() as machine:
        before = outside(machine)
        changed_by(actions, machine)
        for how in damages:
            damage(machine, JOURNAL, how)
        answer = recovered(machine)
        assert [failed for failed in answer["failed"] if failed["kind"] != "journal"] == []
        assert outside(machine) == before
        event(f"set aside: {(machine.root / SET_ASIDE).exists()}")


@share(0.2)
@given(actions=CHANGES, damages=st.lists(WILD, min_size=1, max_size=2))
def test_readable_changes_are_put_back_and_nothing_else_is_touched(
    actions: list[str], damages: list[Damage]
) -> None:
    with made_up() as machine:
        before = outside(machine)
        changed_by(actions, machine)
        lines = {*damage(machine, JOURNAL, lambda content: content).splitlines()}
        for how in damages:
            damage(machine, JOURNAL, how_safe(how))
        changed = outside(machine)
        whole = (machine.root / JOURNAL[1:]).read_bytes().split(b"\n")[:-1]
        readable = [records.unseal(line, {}) for line in {*whole} & lines]
        struck = [line.get("struck") for line in map(unsealed, whole)]
        answer = recovered(machine)
        assert not [failed for failed in answer["failed"] if "a bug" in failed["why"]]
        left = {entry["number"] for entry in machine.done("status")["journal"]}
        assert left.isdisjoint(r["number"] for r in readable if "number" in r)
        expected = [r for r in readable if r.get("kind", "kernel") != "kernel"]
        assert len(answer["done"]) >= len([r for r in expected if r["number"] not in struck])
        after = outside(machine)
        for name in before.keys() | changed.keys() | after.keys():
            was = (before.get(name), changed.get(name))
            assert after.get(name) in was or is_in_between(name, was, after.get(name)), name
        named = machine.done("status")["unreadable"]
        assert bool(named) == (machine.root / SET_ASIDE).exists()
        again = recovered(machine)
        assert again == {"done": [], "failed": []}
        assert machine.done("status")["unreadable"] == named
        assert outside(machine) == after


def unsealed(line: bytes) -> dict[str, Any]:
    try:
        return records.unseal(line, {})
    except records.UnreadableError:
        return {}


def how_safe(how: Damage) -> Damage:
    """Skip the rewrite of a line that an earlier damage has broken."""

    def safe(content: bytes) -> bytes:
        try:
            return how(content)
        except records.UnreadableError:
            return content

    return safe


def is_in_between(name: str, was: Any, now: Any) -> bool:
    """True for files that several changes are made to, of which some are put back, and for GRUB's
    padding."""
    shared = ("proc/modules", "sys/bus/pci", "boot/grub/", THP[1:], HUGE[1:])
    return name.startswith(shared)


def append(machine: Machine, content: bytes) -> None:
    damage(machine, JOURNAL, lambda whole: whole + content)


# -- one damage after the other --------------------------------------------------------------


def entry(kind: str, number: int = 9, **what: Any) -> dict[str, Any]:
    return {"number": number, "kind": kind, "token": 7, "boot_id": "x", "what": what}


CLAIM = entry("claim", paths=["/boot/x"])
SEALED = records.seal(CLAIM)


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0", b"{}", b"[]", b"null", b"7", b"\xff\xfe{}", b"[" * 100_000, b"x" * 5_000_000,
        SEALED[:-1], SEALED + b"}", SEALED.replace(b"/boot/x", b"/boot/y"),
        SEALED.replace(b'"schema": 2', b'"schema": 1'), sealed_by_a_newer(CLAIM),
        b'{"struck": "1"}', b'{"struck": 1, "schema": true}',
        b'{"struck": ' + b"9" * 5000 + b"}", b'{"struck": NaN}',
        *(records.seal(record) for record in (
            {**CLAIM, "kind": "teleport"}, {**CLAIM, "kind": 7}, {**CLAIM, "what": []},
            {**CLAIM, "token": "7"}, {**CLAIM, "number": 1.5}, {"struck": None},
            entry("claim"), entry("claim", paths="/boot/x"), entry("claim", paths=["/etc/passwd"]),
            entry("claim", paths=["/boot/../etc/passwd"]), entry("claim", paths=["/boot/a\0b"]),
            entry("claim", paths=["/boot/\ud800"]), entry("claim", paths=["/var/lib/barometer"]),
            entry("write", path="/etc/passwd", value="", former=""),
            entry("guest", uuid="qemu"), entry("tracing", instance="../..", group="x"),
            entry("grub-next", entry="x", prefix="rm", folder="/boot/grub", former=None),
            entry("leaving", script="", unit="sshd.service", boot_token="", time=0),
            entry("put", path="/boot/x", content_base64="A", mode=0, made=[], former=None),
        )),
    ],
    ids=lambda line: str(zlib.crc32(line)),
)  # fmt: skip
def test_line_that_is_no_change_of_barometers_is_set_aside_and_named(
    machine: Machine, line: bytes
) -> None:
    machine.file("/boot/y", "theirs")
    before = outside(machine)
    machine.acquire()
    machine.done("write", path=THP, value="always")
    append(machine, line + b"\n")
    content = (machine.root / JOURNAL[1:]).read_bytes()
    assert machine.refused("write", path=HUGE, value="64").startswith("unfinished: ")
    assert machine.acquire(takeover=machine.token)["unfinished"] is True
    assert len(machine.done("status")["unreadable"]) == 1
    answer = recovered(machine)
    assert [failed["kind"] for failed in answer["failed"]] == ["journal"]
    assert outside(machine) == before
    (kept,) = (machine.root / SET_ASIDE).iterdir()
    assert kept.read_bytes() == content
    (named,) = machine.done("status")["unreadable"]
    assert (named["file"], named["line"]) == (f"/{SET_ASIDE}/{kept.name}", 2)
    assert machine.acquire()["unfinished"] is False
    machine.done("write", path=HUGE, value="64")
    assert recovered(machine)["failed"] == []
    assert machine.done("status")["unreadable"] == [named]


def test_line_without_a_schema_is_one_of_an_older_barometer(held: Machine) -> None:
    held.done("write", path=THP, value="always")
    (line,) = (held.root / JOURNAL[1:]).read_bytes().splitlines()
    written = json.dumps(records.unseal(line, {}))
    (held.root / JOURNAL[1:]).write_text(f"{written}\n")
    assert recovered(held) == {"done": [f"{THP}: defer"], "failed": []}
    assert held.text(THP) == "defer\n"


def test_change_after_a_damaged_one_is_not_taken_for_put_back(held: Machine) -> None:
    held.done("claim", paths=["/boot/x"])
    held.done("putback", volatile=False)
    journal = held.root / JOURNAL[1:]
    journal.write_bytes(lines_of(journal.read_bytes())[1])  # only the note that it was put back
    held.done("claim", paths=["/boot/y"])
    assert held.journal() == ["claim"]


@pytest.mark.parametrize("line", [b"\0" * 100, SEALED[:50], b'{"number'])
def test_line_that_was_cut_off_is_not_set_aside(held: Machine, line: bytes) -> None:
    held.done("write", path=THP, value="always")
    append(held, line)
    assert recovered(held)["failed"] == []
    assert not (held.root / SET_ASIDE).exists()


def test_line_whose_end_is_missing_is_read(held: Machine) -> None:
    held.done("write", path=THP, value="always")
    journal = held.root / JOURNAL[1:]
    journal.write_bytes(journal.read_bytes()[:-1])
    held.done("write", path=HUGE, value="64")
    assert held.journal() == ["write", "write"]
    assert recovered(held)["failed"] == []


def test_line_whose_end_is_damaged_is_named(held: Machine) -> None:
    held.done("write", path=THP, value="always")
    journal = held.root / JOURNAL[1:]
    journal.write_bytes(journal.read_bytes()[:-1] + b"J")
    assert [failed["kind"] for failed in recovered(held)["failed"]] == ["journal"]


def test_journal_that_is_a_folder_is_set_aside(held: Machine) -> None:
    held.file(f"{JOURNAL}/x", "")
    assert [failed["kind"] for failed in recovered(held)["failed"]] == ["journal"]
    assert held.acquire()["unfinished"] is False
    held.done("write", path=THP, value="always")
    assert recovered(held)["failed"] == []


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [Path.mkdir, pipe, link_to_a_device])
@pytest.mark.parametrize("record", [JOURNAL, boot.ORIGINAL, "lease", "/boot/grub/custom.cfg"])
def test_record_that_is_no_plain_file_stops_nothing(
    machine: Machine, record: str, make: Callable[[Path], object]
) -> None:
    token = machine.acquire()["token"]
    machine.done("original")
    path = f"/var/lib/barometer/lease-{token}.json" if record == "lease" else record
    (machine.root / path[1:]).unlink(missing_ok=True)
    make(machine.root / path[1:])
    assert machine.done("status")
    answer = machine.acquire(owner=OTHER)
    assert ("refused" in answer) == (record != "lease")
    left = recovered(machine)["failed"]
    assert [failed["kind"] for failed in left] == ["journal"] * (record == JOURNAL)
    assert machine.acquire()["unfinished"] is False


def test_journal_that_is_too_long_is_read_to_where_it_is(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.done("write", path=THP, value="always")
    length = (held.root / JOURNAL[1:]).stat().st_size
    monkeypatch.setattr(journals, "_LONGEST", length + 100)
    os.truncate(held.root / JOURNAL[1:], 1 << 40)  # sparse: takes no disk space
    assert [failed["kind"] for failed in recovered(held)["failed"]] == ["journal"]
    assert held.text(THP) == "defer\n"


def test_bug_in_an_undo_keeps_no_other_change(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.done("write", path=THP, value="always")
    held.done("claim", paths=["/boot/x"])

    def fails(_: object) -> str:
        raise TypeError("unhashable")

    broken = dataclasses.replace(KINDS["claim"], undo=fails)
    with mock.patch.dict(KINDS, claim=broken):
        (failed,) = held.done("putback", volatile=False)["failed"]
    assert (failed["kind"], failed["by_hand"]) == ("claim", "remove /boot/x")
    assert held.text(THP) == "defer\n"
    assert held.journal() == ["claim"]


def test_what_cannot_be_set_aside_stays_and_the_rest_is_put_back(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.done("write", path=THP, value="always")
    append(held, b"rubbish\n")
    replace = real.replace

    def full(path: Any, content: bytes, *more: Any) -> None:
        if path.name == "journal.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, content, *more)

    with monkeypatch.context() as patch:
        patch.setattr(real, "replace", full)
        for _ in range(2):
            (failed,) = held.done("putback", volatile=False)["failed"]
            assert failed["kind"] == "journal"
    assert held.text(THP) == "defer\n"
    assert [*(held.root / SET_ASIDE).iterdir()] == []
    assert held.refused("release").startswith("unfinished: ")
    assert [failed["kind"] for failed in recovered(held)["failed"]] == ["journal"]


def test_change_that_could_not_be_read_back_is_not_made(held: Machine) -> None:
    assert held.refused("tracing", instance="../x", group="x").startswith("bad-request: ")
    assert held.journal() == []


@pytest.mark.parametrize("driver", ["8139cp", "3w-9xxx", "PCI driver: x", None])
def test_driver_may_have_any_name(held: Machine, driver: str | None) -> None:
    held.function("0000:05:00.0", driver)
    held.done("modules", names=["vfio-pci"])
    held.done("bind", address="0000:05:00.0", driver="vfio-pci")
    assert recovered(held)["failed"] == []
    assert held.driver("0000:05:00.0") == driver


def test_folder_that_is_not_the_files_is_not_removed(held: Machine) -> None:
    (held.root / "srv").mkdir()
    (held.root / "boot/a").mkdir()
    link = entry("link", path="/boot/a/b", target="/boot/c", made=["/srv", "/boot/a"])
    append(held, records.seal(link) + b"\n")
    assert recovered(held)["failed"] == []
    assert (held.root / "srv").exists()
    assert not (held.root / "boot/a").exists()


def test_file_that_was_cut_off_is_as_before(held: Machine) -> None:
    before = held.text("/boot/grub/custom.cfg")
    held.put("/boot/grub/custom.cfg", f"{before}{MINE}".encode(), 0o644)
    os.truncate(held.root / "boot/grub/custom.cfg", len(before) + 10)
    recovered(held)
    assert held.text("/boot/grub/custom.cfg") == before


def test_journal_that_is_too_long_and_cannot_be_set_aside_is_not_cut(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.done("write", path=THP, value="always")
    journal = held.root / JOURNAL[1:]
    monkeypatch.setattr(journals, "_LONGEST", journal.stat().st_size + 100)
    append(held, b"\n" * 1000)
    before = journal.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(set_aside, "keep", full)
        assert {f["kind"] for f in held.done("putback", volatile=False)["failed"]} == {
            "journal", "write",
        }  # fmt: skip
    assert journal.read_bytes() == before
    assert recovered(held)["done"] == [f"{THP}: defer"]


def test_every_kind_says_what_to_do_by_hand() -> None:
    assert kinds.RECORDS.keys() == KINDS.keys()


# -- the machine's own kernel ----------------------------------------------------------------


@share(0.1)
@given(how=of_disks)
def test_record_of_the_own_kernel_that_is_damaged_is_set_aside(how: Damage) -> None:
    with made_up() as machine:
        machine.acquire()
        known = machine.done("original")
        damage(machine, boot.ORIGINAL, how_safe(how))
        found = machine.done("status")["original"]
        assert found in (known, None)
        assert recovered(machine)["failed"] == []
        assert (machine.root / SET_ASIDE).exists() is (found is None)
        assert machine.acquire()["unfinished"] is False
        assert machine.done("original")["release"] == known["release"]


def test_own_kernel_whose_record_is_damaged_is_known_by_its_release(held: Machine) -> None:
    held.done("original")
    held.file(boot.ORIGINAL, "rubbish")
    held.boots(release="7.3.4")
    assert held.refused("kernel_restored").startswith("wrong-kernel: ")
    assert held.refused("original").startswith("original-damaged: ")
    held.boots()
    held.done("kernel_restored")
    assert held.journal() == []


# -- leases ----------------------------------------------------------------------------------


@share(0.3)
@given(how=WILD)
def test_lease_holds_as_long_as_it_can_be_read(how: Damage) -> None:
    with made_up() as machine:
        first = machine.acquire()["token"]
        path = f"/var/lib/barometer/lease-{first}.json"
        whole = damage(machine, path, how_safe(how))
        answer = machine.acquire(owner=OTHER)
        try:
            same = json.loads((machine.root / path[1:]).read_bytes().decode())
        except (OSError, ValueError, RecursionError):
            same = None
        if same == json.loads(whole):
            assert answer["refused"] == "lease-held"
        elif answer.get("refused") != "lease-held":  # a newer barometer may hold it
            assert answer["token"] > first
            assert [lease["owner"] for lease in machine.done("status")["leases"]] == [OTHER]
            machine.done("release")
        assert deadman.held() in (True, False)


@pytest.mark.parametrize("name", ["lease-x.json", "lease-007.json", "lease--1.json",
                                  f"lease-{'9' * 20}.json", f"lease-{'9' * 300}"])  # fmt: skip
def test_what_is_named_as_a_lease_and_is_none_holds_nothing(machine: Machine, name: str) -> None:
    machine.file(f"/var/lib/barometer/{name[:200]}", "{}")
    machine.acquire()
    machine.done("renew")
    machine.done("release")


def test_lease_under_the_name_of_another_is_none(machine: Machine) -> None:
    first = machine.acquire()["token"]
    folder = machine.root / "var/lib/barometer"
    (folder / f"lease-{first}.json").rename(folder / f"lease-{first + 1}.json")
    assert machine.acquire(owner=OTHER)["token"] > first + 1
    assert len([*folder.glob("lease-*")]) == 1


@share(0.3)
@given(
    block=st.sampled_from([1, 512, 4096]), owner=st.text(max_size=3000), room=st.integers(0, 3),
    verbs=st.lists(st.sampled_from(["renew", "putback"]), max_size=3),
)  # fmt: skip
def test_full_disk_cuts_no_lease(block: int, owner: str, room: int, verbs: list[str]) -> None:
    with made_up() as machine, pytest.MonkeyPatch.context() as patch:
        machine.acquire(owner={**OWNER, "what": owner.encode(errors="ignore").decode()})
        left = [room * 1000]
        write = os.write

        def written(file: int, content: bytes | memoryview) -> int:
            grows = os.lseek(file, 0, os.SEEK_CUR) + len(content) - os.fstat(file).st_size
            if grows > 0:
                fits = len(content) if grows <= left[0] else len(content) - grows + left[0]
                left[0] = max(0, left[0] - grows)
                if fits <= 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                content = content[:fits]
            return write(file, content)

        patch.setattr(os, "write", written)
        for verb in verbs:
            machine.ask(verb, volatile=True)
            (lease,) = machine.done("status")["leases"]
            assert (lease["token"], lease["expired"]) == (machine.token, False)


# -- boot entries ----------------------------------------------------------------------------

MINE = "menuentry 'barometer' --unrestricted --id barometer-77 {\n\tinsmod ext2\n\treboot\n}\n"
THEIRS = "menuentry 'rescue' {\n\tlinux /rescue\n}\n"


@given(cut=st.integers(0, len(MINE)), before=st.booleans(), after=st.booleans())
def test_entry_of_grubs_menu_is_removed_though_it_was_cut_off(
    cut: int, before: bool, after: bool
) -> None:
    mine = MINE[: len("menuentry 'barometer' --unrestricted --id barometer-7") + cut]
    theirs = (THEIRS * before).encode(), (THEIRS * after).encode()
    if after and not mine.endswith("\n"):
        mine += "\n"
    menu = theirs[0] + mine.encode() + theirs[1]
    assert leftovers.without_entries(menu, ()) == b"".join(theirs)
    assert leftovers.without_entries(menu, (7, 77)) == menu


@given(menu=st.binary() | st.text(alphabet="menutry 'barometer-7{}\n\t#").map(str.encode))
def test_menu_without_an_entry_of_barometers_is_left_alone(menu: bytes) -> None:
    assert leftovers.without_entries(menu, ()) == menu or b"barometer-" in menu


@share(0.15)
@given(
    how=st.sampled_from(["grub", "systemd-boot"]), damaged=st.lists(of_disks, min_size=1),
    which=st.sampled_from(["menu", "environment", "entry", "image", "oneshot"]),
    is_lost=st.booleans(),
)  # fmt: skip
def test_boot_entries_are_removed_by_name(
    how: str, damaged: list[Damage], which: str, is_lost: bool
) -> None:
    with made_up() as machine:
        machine.file("/boot/grub/grubenv", f"{GRUBENV}{'#' * 40}")
        machine.acquire()
        machine.done("original")
        ACTIONS[how](machine)
        name = f"barometer-{machine.token}"
        path = {
            "menu": "/boot/grub/custom.cfg", "environment": "/boot/grub/grubenv",
            "entry": f"/boot/efi/loader/entries/{name}.conf",
            "image": f"/boot/efi/{name}/linux", "oneshot": f"{EFI}/LoaderEntryOneShot-{LOADER}",
        }[which]  # fmt: skip
        for each in damaged:
            if (machine.root / path[1:]).exists():
                damage(machine, path, how_safe(each))
        if is_lost:
            (machine.root / JOURNAL[1:]).unlink()
        assert recovered(machine)["failed"] == []
        menu = machine.root / "boot/grub/custom.cfg"
        if menu.exists():
            assert f"menuentry 'barometer' --unrestricted --id {name}" not in menu.read_text(
                "latin-1"
            )
        for variable in (means.grub_variable("/boot/grub", "next_entry"),
                         means.loader_variable(means.ONESHOT)):  # fmt: skip
            assert name not in (variable or "")
        assert not [*(machine.root / "boot/efi").rglob("*barometer-*")]
        after = outside(machine)
        assert recovered(machine) == {"done": [], "failed": []}
        assert outside(machine) == after


def test_entries_of_another_live_lease_are_left(machine: Machine) -> None:
    machine.acquire(resources=["0000:3b:00.0"])
    other = f"barometer-{machine.token}"
    machine.file("/boot/grub/custom.cfg", MINE.replace("barometer-77", other))
    machine.file("/boot/grub/grubenv", f"# GRUB Environment Block\nnext_entry={other}\n")
    machine.file(f"/boot/efi/{other}/linux", "")
    before = outside(machine)
    machine.acquire(resources=["0000:5e:00.0"], owner=OTHER)
    assert machine.done("putback", volatile=False) == {"done": [], "failed": []}
    assert outside(machine) == before


def test_environment_block_that_grubs_own_program_refuses_is_put_back(held: Machine) -> None:
    held.done("original")
    ACTIONS["grub"](held)
    damage(held, "/boot/grub/grubenv", lambda block: b"x" + block[1:])
    assert recovered(held)["failed"] == []
    assert means.grub_variable("/boot/grub", "next_entry") is None


def test_damaged_environment_block_keeps_its_length_and_its_other_lines(held: Machine) -> None:
    name = f"barometer-{held.token}"
    block = f"# GRUB Environment Blo\nsaved_entry=debian\nnext_entry={name}\n{'#' * 900}"
    held.file("/boot/grub/grubenv", block)
    held.done("putback", volatile=False)
    now = held.text("/boot/grub/grubenv")
    assert len(now) == len(block)
    assert now.rstrip("#") == "# GRUB Environment Blo\nsaved_entry=debian\n"
    assert means.grub_variable("/boot/grub", "next_entry") is None
