"""initramfs archives in the `newc` format (Documentation/driver-api/early-userspace/
buffer-format.rst). The kernel unpacks several archives, one after the other."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_PAGE = 4


class CpioArchive:
    """Files, folders and links of an initramfs; everything belongs to root, times are zero."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes]] = {}

    def folder(self, name: str, mode: int = 0o755) -> None:
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            self._entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b""))
        self._entries.setdefault(name, (stat.S_IFDIR | mode, b""))

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._parent(name)
        self._entries[name] = (stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self._parent(name)
        self._entries[name] = (stat.S_IFLNK | 0o777, target.encode())

    def copy(self, name: str, path: Path) -> None:
        """Add a file or link of this machine as `name`."""
        if path.is_symlink():
            self.link(name, str(path.readlink()))
        else:
            self.file(name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode) | 0o444)

    def _parent(self, name: str) -> None:
        parent = PurePosixPath(name).parent
        if str(parent) != ".":
            self.folder(str(parent))

    def pack(self) -> bytes:
        parts = [
            _record(number, name, mode, content)
            for number, (name, (mode, content)) in enumerate(self._entries.items(), 1)
        ]
        return b"".join([*parts, _record(0, "TRAILER!!!", 0, b"")])


def pack_files(files: Mapping[str, bytes], mode: int = 0o600) -> bytes:
    """Return a small archive of plain files."""
    archive = CpioArchive()
    for name, content in files.items():
        archive.file(name, content, mode)
    return archive.pack()


def _record(inode: int, name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    #        ino    mode  uid gid nlink mtime size      dev (4 numbers)   name length     check
    numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % n for n in numbers) + encoded
    return _pad(header) + _pad(content)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _PAGE)
