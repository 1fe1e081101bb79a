"""Barometer's files on somebody's machine."""

from __future__ import annotations

import json
import os
import re

import pytest

from keeper.machine import RefusedError
from tests.unit.agents.keeper.machines import RELEASE, Machine

OURS = ["/lib/modules/7.3.4", "/var/lib/barometer/vmlinuz", "/boot/barometer-1", "/efi/b",
        "/etc/systemd/system/b.service", "/run/barometer", "/run/barometer-1/x"]  # fmt: skip


def test_claimed_files_are_removed_with_all_that_is_in_them(held: Machine) -> None:
    (held.root / "efi").mkdir()
    before = held.all()
    held.done("claim", paths=OURS)
    for path in OURS[:-2]:
        held.file(f"{path}/kernel/deep/file", "x")
    (held.root / "run/barometer").symlink_to("../boot")
    assert held.done("putback", volatile=False)["failed"] == []
    after = held.all()
    after.pop("var/lib/barometer/journal.jsonl")
    assert after == before


def test_claim_of_what_is_there_is_refused(held: Machine) -> None:
    assert held.refused("claim", paths=["/boot/new", f"/lib/modules/{RELEASE}"]) == (
        f"exists: /lib/modules/{RELEASE} is there already, and not of barometer's"
    )
    assert held.journal() == []


def test_link_to_nowhere_is_there(held: Machine) -> None:
    (held.root / "boot/link").symlink_to("nowhere")
    assert held.ask("claim", paths=["/boot/link"])["refused"] == "exists"


LOG = "/var/log/libvirt/qemu/barometer-guest-0.log"


def test_what_a_lost_journal_left_is_claimed_again(held: Machine) -> None:
    held.file(LOG, "char device redirected\n")
    held.done("claim", paths=[LOG])
    assert held.done("putback", volatile=False)["failed"] == []
    assert not (held.root / LOG[1:]).exists()


def test_what_the_journal_names_is_not_claimed_again(held: Machine) -> None:
    held.done("claim", paths=[LOG])
    held.file(LOG, "char device redirected\n")
    assert held.ask("claim", paths=[LOG])["refused"] == "exists"


@pytest.mark.parametrize(
    "path",
    ["/", "/boot", "/lib/modules", "/etc/passwd", "/boot/../etc/passwd", "boot/x", "/boot/x/",
     "/boot//x", "/usr/bin/x", "/run/lock/x", "/var/lib/barometer", "/boot/a\nb", "/lib/modulesx",
     "/boot/out/x"],
)  # fmt: skip
def test_path_elsewhere_is_refused(held: Machine, path: str) -> None:
    (held.root / "boot/out").symlink_to("../usr")
    (held.root / "usr").mkdir()
    refusal = f"{path} is not below "
    assert held.refused("claim", paths=[path]).startswith(f"path-refused: {refusal}")
    with pytest.raises(RefusedError, match=re.escape(refusal)):
        held.put(path, b"")
    assert held.journal() == []


def test_link_that_was_claimed_is_removed_and_not_followed(held: Machine) -> None:
    held.file("/boot/keep/file", "precious")
    held.done("claim", paths=["/boot/x"])
    (held.root / "boot/x").symlink_to("keep")
    held.done("putback", volatile=False)
    assert held.text("/boot/keep/file") == "precious"
    assert not os.path.lexists(held.root / "boot/x")


def test_folder_that_was_swapped_for_a_link_leads_nowhere(held: Machine) -> None:
    held.file("/home/x", "precious")
    (held.root / "boot/sub").mkdir()
    held.done("claim", paths=["/boot/sub/x"])
    (held.root / "boot/sub").rmdir()
    (held.root / "boot/sub").symlink_to("../home")
    assert "is not below" in held.done("putback", volatile=False)["failed"][0]["why"]
    assert held.text("/home/x") == "precious"


def test_folder_with_a_mount_in_it_is_not_emptied(held: Machine) -> None:
    held.done("claim", paths=["/var/lib/barometer/tree"])
    held.file("/var/lib/barometer/tree/dev/null", "precious")
    mounts = held.text("/proc/self/mounts")
    held.file("/proc/self/mounts", f"{mounts}udev /var/lib/barometer/tree/dev devtmpfs rw 0 0\n")
    (failed,) = held.done("putback", volatile=False)["failed"]
    assert failed["why"] == ("/var/lib/barometer/tree/dev is a mount point: unmount it first")
    assert held.text("/var/lib/barometer/tree/dev/null") == "precious"
    held.file("/proc/self/mounts", mounts)
    assert held.done("putback", volatile=False)["failed"] == []


def test_new_file_is_written_and_removed(held: Machine) -> None:
    held.put("/boot/new.cfg", b"one\0two", 0o640)
    assert (held.root / "boot/new.cfg").read_bytes() == b"one\0two"
    assert (held.root / "boot/new.cfg").stat().st_mode & 0o777 == 0o640
    assert held.done("putback", volatile=False)["done"] == ["/boot/new.cfg: removed"]
    assert not (held.root / "boot/new.cfg").exists()


def test_missing_folders_of_a_new_file_are_removed_with_it(held: Machine) -> None:
    before = held.all()
    held.put("/boot/a/b/c.conf", b"")
    held.done("putback", volatile=False)
    after = held.all()
    after.pop("var/lib/barometer/journal.jsonl")
    assert after == before


def test_missing_folder_that_is_used_by_then_stays(held: Machine) -> None:
    held.put("/boot/a/b/c.conf", b"")
    held.file("/boot/a/theirs", "precious")
    assert held.done("putback", volatile=False)["failed"] == []
    assert held.text("/boot/a/theirs") == "precious"
    assert [path.name for path in (held.root / "boot/a").iterdir()] == ["theirs"]


def test_missing_folder_that_became_a_link_is_not_followed(held: Machine) -> None:
    (held.root / "boot/empty").mkdir()
    held.put("/boot/a/c.conf", b"")
    (held.root / "boot/a/c.conf").unlink()
    (held.root / "boot/a").rmdir()
    (held.root / "boot/a").symlink_to("empty")
    assert held.done("putback", volatile=False)["failed"] == []
    assert (held.root / "boot/a").is_symlink()
    assert (held.root / "boot/empty").exists()


def test_former_file_comes_back_with_its_mode_and_owner(held: Machine) -> None:
    custom = held.root / "boot/grub/custom.cfg"
    custom.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(custom, 12, 34)
    before = custom.stat()
    for content in (b"ours", b"ours again"):
        held.put("/boot/grub/custom.cfg", content)
        assert custom.read_bytes() == content
    held.done("putback", volatile=False)
    after = custom.stat()
    assert custom.read_text() == "# the admin's own\n"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip


def test_file_that_its_admin_has_edited_loses_only_what_was_added(held: Machine) -> None:
    custom = held.root / "boot/grub/custom.cfg"
    held.put("/boot/grub/custom.cfg", b"# the admin's own\nours\n", 0o600)
    custom.write_text("# the admin's own\nours\n# and more\n")
    assert held.done("putback", volatile=False) == {
        "done": ["/boot/grub/custom.cfg: somebody changed it since, so only what was added is"
                 " taken out"],
        "failed": [],
    }  # fmt: skip
    assert custom.read_text() == "# the admin's own\n# and more\n"
    assert custom.stat().st_mode & 0o777 == 0o644


def test_new_file_that_its_admin_has_added_to_is_kept_without_what_was_put(held: Machine) -> None:
    held.put("/boot/grub/new.cfg", b"ours\n", 0o600)
    held.file("/boot/grub/new.cfg", "ours\ntheirs\n", 0o640)
    held.done("putback", volatile=False)
    assert held.text("/boot/grub/new.cfg") == "theirs\n"
    assert (held.root / "boot/grub/new.cfg").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("added", [b"", b"ours\n"])
def test_file_that_is_another_now_is_left_alone(held: Machine, added: bytes) -> None:
    custom = held.root / "boot/grub/custom.cfg"
    held.put("/boot/grub/custom.cfg", custom.read_bytes() + added)
    custom.write_text("# all new\n")
    left = held.all()
    assert held.done("putback", volatile=False)["done"] == [
        "/boot/grub/custom.cfg: somebody changed it since, so it is left as it is"
    ]
    assert {**held.all(), "var/lib/barometer/journal.jsonl": left[
        "var/lib/barometer/journal.jsonl"]} == left  # fmt: skip
    assert held.journal() == []


def test_file_that_is_a_folder_or_gone_now_is_left_alone(held: Machine) -> None:
    held.put("/boot/new", b"ours")
    held.put("/boot/grub/custom.cfg", b"ours")
    (held.root / "boot/new").unlink()
    held.file("/boot/new/theirs", "")
    (held.root / "boot/grub/custom.cfg").unlink()
    assert held.done("putback", volatile=False)["failed"] == []
    assert (held.root / "boot/new/theirs").exists()
    assert not (held.root / "boot/grub/custom.cfg").exists()


def test_folder_or_link_is_not_overwritten(held: Machine) -> None:
    (held.root / "boot/link").symlink_to("grub/grub.cfg")
    for path in ("/boot/grub", "/boot/link"):
        with pytest.raises(RefusedError, match="is there already, and no plain file"):
            held.put(path, b"")


def test_line_that_was_cut_off_in_the_journal_announced_nothing(held: Machine) -> None:
    held.done("claim", paths=["/boot/x"])
    journal = held.root / "var/lib/barometer/journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"number": 2, "kind": "cla')
    assert held.journal() == ["claim"]
    held.done("claim", paths=["/boot/y"])
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["number"] for line in lines] == [1, 2]
    assert held.journal() == ["claim", "claim"]


def test_journal_is_on_the_disk_before_the_change(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, custom = held.root / "var/lib/barometer/journal.jsonl", held.root / "boot/x"
    seen: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        fsync(file)
        seen.append((journal.exists() and journal.stat().st_size > 0, custom.exists()))

    monkeypatch.setattr(os, "fsync", watched)
    held.put("/boot/x", b"")
    assert seen[0] == (True, False)  # after fsync of its content
    assert seen[1] == (True, False)  # after fsync of its folder
    assert seen[-1] == (True, True)
