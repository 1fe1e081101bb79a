"""Files that became something else: each kind is an error that names the file, at once."""

from __future__ import annotations

import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.base.plainfile import read_plain, read_plain_text, unpack_plain


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "none": lambda path: None,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": listen,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("read", [read_plain, read_plain_text, unpack_plain])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_no_plain_file_is_an_error_that_names_it(
    tmp_path: Path, make: Callable[[Path], object], read: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    make(path)
    before = [*Path("/proc/self/fd").iterdir()]
    with pytest.raises(OSError, match=r".") as caught:
        read(path)
    assert str(caught.value.filename) == str(path)
    assert len([*Path("/proc/self/fd").iterdir()]) == len(before)


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_plain(tmp_path)


def test_file_is_read_up_to_its_limit_also_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"1234567\r\n\xff")
    link.symlink_to(path)
    assert read_plain(link, 10) == b"1234567\r\n\xff"
    with pytest.raises(OSError, match="too large"):
        read_plain(link, 9)
    with pytest.raises(ValueError, match="utf-8"):
        read_plain_text(path)
    assert read_plain_text(path, "replace") == "1234567\n\ufffd"


def test_small_file_that_unpacks_to_more_than_its_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(bytes(1_000_000)))
    assert path.stat().st_size < 10_000
    assert unpack_plain(path) == bytes(1_000_000)
    with pytest.raises(OSError, match="too large"):
        unpack_plain(path, 999_999)
