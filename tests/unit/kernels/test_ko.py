from __future__ import annotations

import contextlib
import gzip
import lzma
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.errors import BenchError
from orchestrator.kernels.ko import Module, module_at

EXECUTABLE, PROGBITS, NOBITS = 4, 1, 8
INFO = b"license=GPL\0srcversion=B67EAF8893665EF09C6841C\0vermagic=7.0 SMP \0alias=a\0alias=b\0"


def elf(sections: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    """Return a relocatable file (elf(5)) with these sections: name, type, flags, content."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    table, body, at, start = b"", b"", 1, 64
    for name, kind, flags, content in [*sections, (".shstrtab", 3, 0, strings)]:
        table += struct.pack("<IIQQQQIIQQ", at, kind, flags, 0, start + len(body), len(content),
                             0, 0, 1, 0)  # fmt: skip
        at += len(name) + 1
        if kind != NOBITS:
            body += content
    head = b"\x7fELF\2\1\1" + b"\0" * 9 + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0,
        start + len(body), 0, 64, 0, 0, 64, len(sections) + 1, len(sections))  # fmt: skip
    return head + body + table


def module(text: bytes = b"\x90\xc3", info: bytes = INFO) -> bytes:
    return elf([
        (".text", PROGBITS, EXECUTABLE | 2, text),
        (".init.text", PROGBITS, EXECUTABLE | 2, b"\xc3"),
        (".bss", NOBITS, 3, b"\1" * 4096),
        (".modinfo", PROGBITS, 2, info),
        (".data", PROGBITS, 3, b"data"),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.gz", gzip.compress)],
)
def test_what_a_module_says(tmp_path: Path, suffix: str, packed: type) -> None:
    path = tmp_path / f"vfio{suffix}"
    path.write_bytes(packed(module()))
    found = module_at(path)
    assert found.srcversion == "B67EAF8893665EF09C6841C"
    assert found.info["vermagic"] == "7.0 SMP "
    assert found.info["alias"] == "b"
    assert found.text_bytes == 2
    assert set(found.code) == {".text", ".init.text"}


def test_a_module_without_a_srcversion() -> None:
    assert Module(module(info=b"license=GPL\0")).srcversion is None


def test_the_digest_is_of_the_code() -> None:
    one = Module(module()).code_digest
    assert one == Module(module(info=b"license=GPL\0")).code_digest
    assert one != Module(module(text=b"\x91\xc3")).code_digest
    # the border between two sections counts
    assert one != Module(elf([(".text", PROGBITS, 6, b"\x90\xc3\xc3")])).code_digest


@pytest.mark.parametrize("suffix", [".ko.zst", ".o"])
def test_another_compression_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vfio{suffix}"
    path.write_bytes(module())
    with pytest.raises(BenchError, match=suffix.rsplit(".", maxsplit=1)[-1]):
        module_at(path)


@given(content=st.one_of(
    st.binary(max_size=200),
    st.tuples(st.integers(0, 700), st.binary(max_size=40)).map(
        lambda damage: module()[: damage[0]] + damage[1] + module()[damage[0] + len(damage[1]) :]
    ),
), suffix=st.sampled_from([".ko", ".ko.xz", ".ko.gz"]))  # fmt: skip
@example(content=module()[:45] + b"\0\0\x80" + module()[48:], suffix=".ko")  # the table is far out
@example(content=gzip.compress(module())[:-20], suffix=".ko.gz")
def test_a_damaged_file_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("ko") / f"x{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(BenchError):
        assert len(module_at(path).code_digest) == 16


def compiled(folder: Path, text: str) -> Module:
    folder.mkdir()
    (folder / "a.c").write_text(text)
    subprocess.run(["gcc", "-O2", "-c", "a.c"], cwd=folder, check=True)
    return Module((folder / "a.o").read_bytes())


def test_code_that_calls_another_function_is_other_code(tmp_path: Path) -> None:
    text = (
        'int map(const char *); int unmap(const char *);\nint f(void) { return map("a/b.h"); }\n'
    )
    one = compiled(tmp_path / "1", text)
    assert one.code_digest == compiled(tmp_path / "2", text).code_digest
    other = compiled(tmp_path / "3", text.replace("return map", "return unmap"))
    assert one.code == other.code  # calls are filled in when the module is loaded
    assert one.code_digest != other.code_digest
    # a path of the build is not part of the code
    assert one.code_digest == compiled(tmp_path / "4", text.replace("a/", "/x/a/")).code_digest
