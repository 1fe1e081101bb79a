"""Objects as gcc compiles them: what counts as a change of a kernel, and what does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.kernels.module.objects import _without_lines, difference

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

BASE = """\
extern int printk(const char *, ...);
extern int map(int);
static int calls;
static int helper(int n) { static int seen; return seen += map(n); }
int pages(int n) { calls++; printk("pages"); return helper(n) + 1; }
int *count(void) { return &calls; }
"""
# an entry of __bug_table as x86 has it: place, file, line, flags (include/asm-generic/bug.h)
WARN = """
#define TEXT(x) #x
#define STRING(x) TEXT(x)
void warn(void)
{
    asm volatile("1: ud2\\n"
                 ".pushsection __bug_table,\\"aw\\"\\n.long 1b - .\\n.long 2f - .\\n"
                 ".word " STRING(__LINE__) "\\n.word " STRING(FLAGS) "\\n.popsection\\n"
                 ".pushsection .rodata.str1.1,\\"aMS\\",@progbits,1\\n"
                 "2: .string \\"a.c\\"\\n.popsection\\n");
}
"""


def compiled(folder: Path, text: str, *options: str) -> Path:
    (folder / "a.c").write_text(text)
    made = folder / f"{len(list(folder.iterdir()))}.o"
    subprocess.run(["gcc", "-O2", "-c", *options, "-o", made.name, "a.c"], cwd=folder, check=True)
    return made


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("calls++;", "/* a comment\n   of two lines */ calls++;"),
        ("static int calls;", "static int renamed;\n#define calls renamed"),
        ("seen", "seen_before"),
        ("extern int map(int);", "struct unused;\nextern int map(int);\nextern int never(void);"),
    ],
)
def test_what_is_no_change(tmp_path: Path, old: str, new: str) -> None:
    assert old in BASE
    before = compiled(tmp_path, BASE, "-g")
    assert difference(before, compiled(tmp_path, BASE.replace(old, new), "-g")) is None


def test_debug_information_does_not_count(tmp_path: Path) -> None:
    before, after = compiled(tmp_path, BASE), compiled(tmp_path, BASE, "-g3")
    assert difference(before, after) is None


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("+ 1", "+ 2", ".text"),
        ("extern int map(int);", "extern int unmap(int);\n#define map unmap", ".text"),
        ('"pages"', '"lines"', ".rodata.str1.1"),
        ("static int calls;", "static int calls = 1;", ".data"),
        ("int *count", "static int unused;\nint *count_of", "symbols"),
        ("static int calls;", "static long calls;", ".bss"),
        ("int pages", "__attribute__((weak)) int pages", "symbols"),
        ("int pages", '__attribute__((section(".init.text"))) int pages', ".init.text"),
    ],
)
def test_what_is_a_change(tmp_path: Path, old: str, new: str, where: str) -> None:
    assert old in BASE
    differing = difference(compiled(tmp_path, BASE), compiled(tmp_path, BASE.replace(old, new)))
    assert differing is not None
    assert where in differing.split(", ")


def test_a_warning_on_another_line_is_no_change(tmp_path: Path) -> None:
    before = compiled(tmp_path, BASE + WARN + WARN.replace("warn", "other"), "-DFLAGS=1")
    moved = BASE + "\n\n" + WARN + "\n" + WARN.replace("warn", "other")
    assert difference(before, compiled(tmp_path, moved, "-DFLAGS=1")) is None
    assert difference(before, compiled(tmp_path, moved, "-DFLAGS=3")) == "__bug_table"


def test_a_line_number_in_code_is_a_change(tmp_path: Path) -> None:
    text = BASE + "int line(void) { return __LINE__; }\n"
    assert difference(compiled(tmp_path, text), compiled(tmp_path, "\n" + text)) == ".text"


def test_a_bug_table_of_another_form_is_compared_as_it_is() -> None:
    entries = b"AAAABBBBllffCCCCDDDDllff"
    assert _without_lines(entries, 4) == b"AAAABBBBffCCCCDDDDff"
    assert _without_lines(b"AAAABBBBCCCCllff", 3) == b"AAAABBBBCCCCff"
    for pointers in (0, 1, 3, 5, 6, 9):
        assert _without_lines(entries, pointers) == entries
    assert _without_lines(b"", 0) == b""


def test_what_cannot_be_compared_differs(tmp_path: Path) -> None:
    stock = compiled(tmp_path, BASE)
    broken = tmp_path / "broken.o"
    for content in (b"", b"\x7fELF", stock.read_bytes()[:200]):
        broken.write_bytes(content)
        assert difference(stock, broken)
        assert difference(broken, broken)
    assert difference(stock, tmp_path / "missing.o") == "it does not compile here"
