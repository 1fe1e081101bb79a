"""Compare two objects of a kernel: does a change of the source make it another kernel?

The idea is that of kpatch-build and klp-build. Only what a kernel loads counts: sections with
SHF_ALLOC, what they refer to, and the symbols that other objects can see. So debug information,
names of local symbols, and paths and times of the build do not count.
"""

from __future__ import annotations

from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section, Symbol, SymbolTableSection

from orchestrator.kernels.image.ko import DAMAGED

_BUGS = "__bug_table"
Reference = tuple[int, int, str, int]
"""Place in the section, kind of relocation, symbol or section referred to, and place there."""


def difference(old: Path, new: Path) -> str | None:
    """Return what differs between two objects; None if a kernel is the same with either.

    An object that is missing or cannot be read differs from every other."""
    try:
        before, after = _parts(old), _parts(new)
    except FileNotFoundError:
        return "it does not compile here"
    except DAMAGED as exc:
        return f"it cannot be read: {exc}"
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not names and list(before) != list(after):
        return "order of its sections"
    return ", ".join(names) or None


def _parts(path: Path) -> dict[str, object]:
    """Return the parts of an object that are compared: section -> its content, and `symbols` ->
    the symbols that other objects can see. Sections of one name get numbers."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        sections = list(elf.iter_sections())
        names = [section.name for section in sections]
        labels = [
            f"{name}#{n}" if (n := names[:at].count(name)) else name
            for at, name in enumerate(names)
        ]
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            raise ELFError("it has no symbols")
        symbols = list(table.iter_symbols())
        relocations = {
            section["sh_info"]: section
            for section in sections
            if isinstance(section, RelocationSection)
        }
        parts: dict[str, object] = {}
        for number, section in enumerate(sections):
            if not section["sh_flags"] & SH_FLAGS.SHF_ALLOC:
                continue
            own_relocations = relocations.get(number)
            references: list[Reference] = [
                (r["r_offset"], r["r_info_type"],
                 *_target(symbols[r["r_info_sym"]], labels, r["r_addend"]))
                for r in (own_relocations.iter_relocations() if own_relocations else ())
            ]  # fmt: skip
            parts[labels[number]] = (
                section["sh_type"], section["sh_flags"], section["sh_addralign"],
                section["sh_size"], _content(section, len(references)), references,
            )  # fmt: skip
        parts["symbols"] = sorted(
            (s.name, str(s["st_info"]), str(s["st_other"]), _place(s, labels), s["st_value"],
             s["st_size"])
            for s in symbols
            if s["st_info"]["bind"] != "STB_LOCAL" and s["st_shndx"] != "SHN_UNDEF"
        )  # fmt: skip
        return parts


def _place(symbol: Symbol, labels: list[str]) -> str:
    """Return the section that a symbol is in, or what it is instead: SHN_UNDEF, SHN_ABS."""
    index = symbol["st_shndx"]
    return labels[index] if isinstance(index, int) else str(index)


def _target(symbol: Symbol, labels: list[str], addend: int) -> tuple[str, int]:
    """Return what a relocation refers to. A local symbol is a place in a section: its name may
    contain a number that the compiler counts up."""
    if symbol["st_info"]["bind"] == "STB_LOCAL":
        return _place(symbol, labels), symbol["st_value"] + addend
    return symbol.name, addend


def _content(section: Section, pointers: int) -> bytes:
    if section["sh_type"] == "SHT_NOBITS":
        return b""
    data: bytes = section.data()
    return _without_lines(data, pointers) if section.name == _BUGS else data


def _without_lines(bugs: bytes, pointers: int) -> bytes:
    """Return the content of __bug_table without line numbers.

    A WARN() that moved to another line is the same WARN(): the kernel under test prints the line
    that it has in its own source. A __LINE__ in code counts as a change, since there it is a
    constant like any other.

    An entry (include/asm-generic/bug.h) is two or three relative pointers of 4 bytes, then 2 bytes
    for the line and 2 for the flags. A table of another form is compared as it is."""
    count, rest = divmod(len(bugs) - 4 * pointers, 4)
    if rest or count <= 0 or pointers not in (2 * count, 3 * count):
        return bugs
    size = len(bugs) // count
    return b"".join(
        bugs[at : at + size - 4] + bugs[at + size - 2 : at + size]
        for at in range(0, len(bugs), size)
    )
