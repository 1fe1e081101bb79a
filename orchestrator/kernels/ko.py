"""Read a kernel module's file: a .ko, compressed or not, is an ELF file."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.errors import BenchError

SUFFIX = re.compile(r"\.ko(\.(xz|gz|zst))?$")
_OPEN = {".ko": lambda data: data, ".xz": lzma.decompress, ".gz": gzip.decompress}
# elf(5), 64 bits: e_shoff; e_shentsize, e_shnum and e_shstrndx; the start of a section header
_TABLE, _COUNTS, _SECTION = "<40xQ", "<58xHHH", "<IIQQQQ"
_NO_BITS, _EXECUTABLE = 8, 4
_DAMAGED = (
    lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError,
    struct.error, OverflowError,  # an offset beyond the file, beyond a Py_ssize_t
    ValueError, IndexError,
)  # fmt: skip
_RELA, _SYMBOL, _OF_SECTION = "<QQq", "<IBBHQQ", 3


@dataclass(frozen=True)
class Module:
    """A kernel module's file."""

    data: bytes

    @cached_property
    def _sections(self) -> list[tuple[str, int, bytes]]:
        """Name, flags and content of each section."""
        data = self.data
        (table,) = struct.unpack_from(_TABLE, data)
        size, count, names = struct.unpack_from(_COUNTS, data)
        rows = [struct.unpack_from(_SECTION, data, table + i * size) for i in range(count)]
        strings = data[rows[names][4] :]
        return [
            (
                strings[name : strings.index(b"\0", name)].decode("ascii"),
                flags,
                b"" if kind == _NO_BITS else data[at : at + length],
            )
            for name, kind, flags, _, at, length in rows
        ]

    @cached_property
    def info(self) -> dict[str, str]:
        """Fields as modinfo(8) shows them; the last value of a field that occurs several times."""
        blob = b"".join(content for name, _, content in self._sections if name == ".modinfo")
        lines = (line.decode("utf-8", "replace") for line in blob.split(b"\0") if line)
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    @property
    def srcversion(self) -> str | None:
        """Checksum of the text of the module's sources. Debian's modules without a MODULE_VERSION
        have none."""
        return self.info.get("srcversion")

    @cached_property
    def code(self) -> dict[str, bytes]:
        """Content of each section that is executed."""
        return {n: content for n, flags, content in self._sections if flags & _EXECUTABLE}

    @property
    def code_digest(self) -> str:
        """16 hexadecimal digits, equal if the machine code is, and what it calls and refers to.

        The place in .rodata that it refers to does not count: .rodata contains paths of the build.
        """
        total = hashlib.sha256()
        for name, content in sorted(self.code.items()):
            total.update(f"{name} {len(content)}\n".encode() + content)
            for at, kind, symbol, addend in self._relocations(name):
                place = 0 if symbol.startswith(".rodata") else addend
                total.update(f"{at} {kind} {symbol} {place}\n".encode())
        return total.hexdigest()[:16]

    def _relocations(self, section: str) -> list[tuple[int, int, str, int]]:
        """Return offset, type, symbol (or section) and addend of a section's relocations, which
        the kernel applies when it loads the module."""
        content = {name: data for name, _, data in self._sections}
        found = []
        for at, info, addend in struct.iter_unpack(_RELA, content.get(f".rela{section}", b"")):
            name, kind, _, index, _, _ = struct.unpack_from(
                _SYMBOL, content[".symtab"], (info >> 32) * struct.calcsize(_SYMBOL)
            )
            strings = content[".strtab"]
            symbol = strings[name : strings.index(b"\0", name)].decode("ascii", "replace")
            if kind & 0xF == _OF_SECTION:
                symbol = self._sections[index][0]
            found.append((at, info & 0xFFFFFFFF, symbol, addend))
        return found

    @property
    def text_bytes(self) -> int:
        return len(self.code.get(".text", b""))


def module_at(path: Path) -> Module:
    """Read a module's file. Raises BenchError if it is no module, or if its compression is not
    supported here."""
    opened = _OPEN.get(path.suffix)
    if opened is None:
        raise BenchError(f"{path}: a module compressed with {path.suffix[1:]} cannot be read",
                         reason="module-unreadable")  # fmt: skip
    try:
        module = Module(opened(path.read_bytes()))
        module.info  # noqa: B018  # read now, so that an error shows here
    except _DAMAGED as exc:
        raise BenchError(f"{path} is no kernel module", reason="module-unreadable") from exc
    return module
