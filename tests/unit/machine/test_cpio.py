from __future__ import annotations

import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.machine.runner.cpio import CpioArchive, pack_files

NAMES = st.text("abcdefghijklmnopqrstuvwxyzö.-_", min_size=1, max_size=9).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@dataclass(frozen=True)
class Entry:
    name: str
    mode: int
    links: int
    content: bytes


def unpacked(data: bytes) -> list[Entry]:
    """Read newc as strictly as the kernel does (init/initramfs.c)."""
    entries: list[Entry] = []
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, links, mtime, size, *_, name_size, check = numbers
        assert (uid, gid, mtime, check) == (0, 0, 0, 0)
        name = data[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0"
        at = (at + 110 + name_size + 3) & ~3
        content = data[at : at + size]
        assert len(content) == size
        at = (at + size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return entries
        entries.append(Entry(name[:-1].decode(), mode, links, content))


def by_name(archive: CpioArchive) -> dict[str, Entry]:
    entries = unpacked(archive.pack())
    assert len({e.name for e in entries}) == len(entries)
    return {e.name: e for e in entries}


def test_file_folder_and_link_are_what_they_were() -> None:
    archive = CpioArchive()
    archive.file("usr/bin/tool", b"#!x", 0o755)
    archive.link("bin", "usr/bin")
    archive.folder("root", 0o700)
    found = by_name(archive)
    assert found["usr/bin/tool"] == Entry("usr/bin/tool", stat.S_IFREG | 0o755, 1, b"#!x")
    assert found["bin"] == Entry("bin", stat.S_IFLNK | 0o777, 1, b"usr/bin")
    assert found["root"] == Entry("root", stat.S_IFDIR | 0o700, 2, b"")


def test_last_file_of_a_name_counts() -> None:
    archive = CpioArchive()
    archive.file("a", b"1")
    archive.file("a", b"22")
    assert by_name(archive)["a"].content == b"22"


def test_folder_that_was_made_keeps_its_mode() -> None:
    archive = CpioArchive()
    archive.folder("root", 0o700)
    archive.file("root/x", b"")
    assert by_name(archive)["root"].mode == stat.S_IFDIR | 0o700


def test_copy_takes_files_and_links_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    (tmp_path / "f").chmod(0o700)
    (tmp_path / "l").symlink_to("f")
    archive = CpioArchive()
    archive.copy("lib/f", tmp_path / "f")
    archive.copy("lib/l", tmp_path / "l")
    found = by_name(archive)
    assert (found["lib/f"].mode, found["lib/f"].content) == (stat.S_IFREG | 0o744, b"data")
    assert (found["lib/l"].mode, found["lib/l"].content) == (stat.S_IFLNK | 0o777, b"f")


def test_keys_are_for_root_alone() -> None:
    [folder, key] = unpacked(pack_files({"barometer/key": b"secret"}))
    assert (folder.name, key.mode) == ("barometer", stat.S_IFREG | 0o600)


@given(st.dictionaries(PATHS, st.binary(max_size=40), max_size=6))
def test_any_files_come_back_behind_their_folders(files: dict[str, bytes]) -> None:
    # a file and a folder cannot have the same name
    clean = {
        n: c for n, c in files.items() if not any(other.startswith(f"{n}/") for other in files)
    }
    entries = unpacked(pack_files(clean))
    assert {e.name: e.content for e in entries if stat.S_ISREG(e.mode)} == clean
    seen: set[str] = set()
    for entry in entries:
        parent = entry.name.rpartition("/")[0]
        assert not parent or parent in seen
        seen.add(entry.name)


def test_archives_may_stand_behind_one_another() -> None:
    one, two = pack_files({"a": b"1"}), pack_files({"b": b"2"})
    assert len(one) % 4 == 0
    assert [e.name for e in unpacked(two)] == ["b"]


def test_same_files_are_the_same_bytes() -> None:
    assert pack_files({"a": b"1", "b/c": b"2"}) == pack_files({"a": b"1", "b/c": b"2"})


def test_real_program_unpacks_it(tmp_path: Path) -> None:
    """Uses cpio or busybox if they are installed; the reader above always checks."""
    archive = CpioArchive()
    archive.file("d/file", b"content\n", 0o640)
    archive.link("link", "d/file")
    packed = archive.pack()
    assert [e.name for e in unpacked(packed)] == ["d", "d/file", "link"]
    for program in (["cpio"], ["busybox", "cpio"]):
        if shutil.which(program[0]) is None:
            continue
        folder = tmp_path / program[0]
        folder.mkdir()
        subprocess.run([*program, "-idm"], input=packed, cwd=folder, check=True, timeout=30,
                       capture_output=True)  # fmt: skip
        assert (folder / "link").read_text() == "content\n"
        assert stat.S_IMODE((folder / "d/file").stat().st_mode) == 0o640
