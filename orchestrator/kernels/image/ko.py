"""Read a kernel module's file: a .ko, compressed or not, is an ELF file."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section, SymbolTableSection

from orchestrator.base.errors import BenchError
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason

SUFFIX = re.compile(r"\.ko(\.(xz|gz|zst))?$")
_PROGRAMS = {".xz": "xz", ".gz": "gzip", ".zst": "zstd"}
_UNPACK_SECONDS = 60.0
DAMAGED = (
    ELFError, zlib.error,
    # pyelftools raises these if a number points out of the file, or to a section of another type
    AttributeError, LookupError, OverflowError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Module:
    """Facts and code of a kernel module, read from its file."""

    info: dict[str, str]
    """Fields as modinfo(8) shows them; the last value of a field that occurs several times."""
    code: dict[str, bytes]
    """Content of each section that is executed, by its name."""
    code_digest: str
    """Digest of the machine code and of what it calls and refers to, in 16 hexadecimal digits.

    A reference to .rodata counts without its place there: .rodata contains paths of the build."""

    @property
    def srcversion(self) -> str | None:
        """Checksum of the text of the module's sources. Debian's modules without a MODULE_VERSION
        have none."""
        return self.info.get("srcversion")

    @property
    def text_bytes(self) -> int:
        return len(self.code.get(".text", b""))


def read_module(path: Path) -> Module:
    """Read a module's file. Raises BenchError if it is no module, or cannot be unpacked."""
    data = unpack_module(path, Reason.MODULE_UNREADABLE)
    try:
        return _parsed(ELFFile(io.BytesIO(data)))
    except DAMAGED as exc:
        raise BenchError(
            f"{path} is no kernel module", evidence=str(exc), reason=Reason.MODULE_UNREADABLE
        ) from exc


def unpack_module(path: Path, reason: Reason) -> bytes:
    """Return a module's ELF file. Raises BenchError with `reason` if it cannot be unpacked, or
    program-missing."""
    if path.suffix not in (".ko", *_PROGRAMS):
        raise BenchError(f"{path}: a module compressed with {path.suffix[1:]} cannot be read",
                         reason=reason)  # fmt: skip
    try:
        if path.suffix == ".ko":
            return path.read_bytes()
        return run(
            [_PROGRAMS[path.suffix], "-dc", path], doing=f"unpacking {path}",
            timeout=_UNPACK_SECONDS,
        ).content  # fmt: skip
    except OSError as exc:
        raise BenchError(f"{path} cannot be read: {exc}", reason=reason) from exc
    except BenchError as exc:
        if exc.reason is not Reason.PROGRAM_MISSING:  # else the module may be good
            exc.reason = reason
        raise


def _parsed(elf: ELFFile) -> Module:
    if elf["e_shentsize"] != elf.structs.Elf_Shdr.sizeof():  # with 0, the table would never end
        raise ELFError("its section headers have another size than elf(5) says")
    sections = {section.name: section for section in elf.iter_sections()}
    lines = _content(sections.get(".modinfo")).decode("utf-8", "replace").split("\0")
    code = {
        name: _content(section)
        for name, section in sections.items()
        if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR
    }
    symbols = _symbols(elf, sections.get(".symtab"))
    total = hashlib.sha256()
    for name, content in sorted(code.items()):
        total.update(f"{name} {len(content)}\n".encode() + content)
        # the kernel applies relocations when it loads the module
        relocations = sections.get(f".rela{name}")
        if isinstance(relocations, RelocationSection):
            for entry in relocations.iter_relocations():
                symbol = symbols[entry["r_info_sym"]]
                place = 0 if symbol.startswith(".rodata") else entry["r_addend"]
                at, kind = entry["r_offset"], entry["r_info_type"]
                total.update(f"{at} {kind} {symbol} {place}\n".encode())
    return Module(
        info={key: value for key, _, value in (line.partition("=") for line in lines if line)},
        code=code,
        code_digest=total.hexdigest()[:16],
    )


def _content(section: Section | None) -> bytes:
    return b"" if section is None or section["sh_type"] == "SHT_NOBITS" else section.data()


def _symbols(elf: ELFFile, table: Section | None) -> list[str]:
    """Return the names of the symbols. The symbol of a section gets the section's name."""
    if not isinstance(table, SymbolTableSection):
        return []
    return [
        elf.get_section(symbol["st_shndx"]).name
        if symbol["st_info"]["type"] == "STT_SECTION"
        else symbol.name
        for symbol in table.iter_symbols()
    ]
