from __future__ import annotations

import contextlib
import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.image.ko import Module, read_module

EXECUTABLE, PROGBITS, SYMTAB, STRTAB, RELA, NOBITS = 4, 1, 2, 3, 4, 8
LINK = {SYMTAB: ".strtab", RELA: ".symtab"}
INFO = b"license=GPL\0srcversion=B67EAF8893665EF09C6841C\0vermagic=7.0 SMP \0alias=a\0alias=b\0"


def elf(sections: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    """Return a relocatable file (elf(5)) with these sections: name, type, flags, content."""
    every = [name for name, *_ in sections]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in every) + b".shstrtab\0"
    table, body, at, start = b"", b"", 1, 64
    for name, kind, flags, content in [*sections, (".shstrtab", STRTAB, 0, strings)]:
        link = every.index(LINK[kind]) if kind in LINK else 0
        table += struct.pack("<IIQQQQIIQQ", at, kind, flags, 0, start + len(body), len(content),
                             link, 0, 1, 24 if kind in LINK else 0)  # fmt: skip
        at += len(name) + 1
        if kind != NOBITS:
            body += content
    head = b"\x7fELF\2\1\1" + b"\0" * 9 + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0,
        start + len(body), 0, 64, 0, 0, 64, len(sections) + 1, len(sections))  # fmt: skip
    return head + body + table


def module(text: bytes = b"\x90\xc3", info: bytes = INFO, calls: bytes = b"map") -> bytes:
    symbols = [(0, 0, 0, 0, 0, 0), (1, 0x10, 0, 0, 0, 0), (0, 3, 0, 4, 0, 0), (0, 3, 0, 5, 0, 0)]
    places = [(0, 1 << 32 | 4, -4), (1, 2 << 32 | 11, 3), (1, 3 << 32 | 11, 7)]
    return elf([
        (".text", PROGBITS, EXECUTABLE | 2, text),
        (".init.text", PROGBITS, EXECUTABLE | 2, b"\xc3"),
        (".bss", NOBITS, 3, b"\1" * 4096),
        (".modinfo", PROGBITS, 2, info),
        (".data", PROGBITS, 3, b"data"),
        (".rodata.str1.1", PROGBITS, 2, b"/build/a.c\0"),
        (".strtab", STRTAB, 0, b"\0" + calls + b"\0"),
        (".symtab", SYMTAB, 0, b"".join(struct.pack("<IBBHQQ", *entry) for entry in symbols)),
        (".rela.text", RELA, 0, b"".join(struct.pack("<QQq", *entry) for entry in places)),
    ])  # fmt: skip


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Module]:
    def reading(data: bytes, suffix: str = ".ko") -> Module:
        path = tmp_path / f"vfio{suffix}"
        path.write_bytes(data)
        return read_module(path)

    return reading


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.gz", gzip.compress), (".ko.zst", zstd)],
)
def test_what_a_module_says(
    suffix: str, packed: Callable[[bytes], bytes], read: Callable[..., Module]
) -> None:
    parsed = read(packed(module()), suffix)
    assert parsed.srcversion == "B67EAF8893665EF09C6841C"
    assert parsed.info["vermagic"] == "7.0 SMP "
    assert parsed.info["alias"] == "b"
    assert parsed.text_bytes == 2
    assert set(parsed.code) == {".text", ".init.text"}
    # every version of barometer must compute the same, because builds are recorded with it
    assert parsed.code_digest == "4b54b22c4984adb9"


def test_a_module_without_a_srcversion(read: Callable[..., Module]) -> None:
    assert read(module(info=b"license=GPL\0")).srcversion is None


def test_the_digest_is_of_the_code(read: Callable[..., Module]) -> None:
    first = read(module()).code_digest
    assert first == read(module(info=b"license=GPL\0")).code_digest
    assert first != read(module(text=b"\x91\xc3")).code_digest
    assert first != read(module(calls=b"other")).code_digest
    # the border between two sections counts
    assert first != read(elf([(".text", PROGBITS, 6, b"\x90\xc3\xc3")])).code_digest


@pytest.mark.parametrize("suffix", [".ko.lz4", ".o"])
def test_another_compression_is_named(suffix: str, read: Callable[..., Module]) -> None:
    with pytest.raises(BenchError, match=suffix.rsplit(".", maxsplit=1)[-1]):
        read(module(), suffix)


@pytest.mark.parametrize("suffix", [".ko.xz", ".ko.gz", ".ko.zst"])
def test_missing_program_is_not_the_modules_fault(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"m{suffix}").write_bytes(b"packed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError) as caught:
        read_module(tmp_path / f"m{suffix}")
    assert caught.value.reason == Reason.PROGRAM_MISSING


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.gz", ".ko.zst"])
def test_what_is_no_module_is_refused(suffix: str, read: Callable[..., Module]) -> None:
    for content in (b"", b"text", gzip.compress(module())[:-20], zstd(module())[:-20]):
        with pytest.raises(BenchError, match=f"vfio{suffix}") as caught:
            read(content, suffix)
        assert caught.value.reason == "module-unreadable"


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Draw files in which a few bytes are changed, or the end is missing."""
    at = st.integers(0, len(data))
    numbers = st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" * 7, b"\1", b"\xff\xff"])
    return st.one_of(
        at.map(lambda end: data[:end]),
        st.lists(st.tuples(at, numbers | st.binary(min_size=1, max_size=8)), max_size=4).map(
            lambda changes: overwritten(data, changes)
        ),
    )


def overwritten(data: bytes, changes: Sequence[tuple[int, bytes]]) -> bytes:
    for at, new in changes:
        data = data[:at] + new + data[at + len(new) :]
    return data


@given(content=st.binary(max_size=200) | damaged(module()))
@example(content=overwritten(module(), [(45, b"\0\0\x80")]))  # e_shoff is far outside the file
@example(content=overwritten(module(), [(58, b"\0\0\0\0")]))  # e_shentsize and e_shnum are 0
def test_a_damaged_file_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "x.ko"
    path.write_bytes(content)
    with contextlib.suppress(BenchError):
        assert len(read_module(path).code_digest) == 16


def compiled(folder: Path, text: str) -> Module:
    folder.mkdir()
    (folder / "a.c").write_text(text)
    subprocess.run(["gcc", "-O2", "-c", "a.c"], cwd=folder, check=True)
    return read_module((folder / "a.o").rename(folder / "a.ko"))


def test_code_that_calls_another_function_is_other_code(tmp_path: Path) -> None:
    text = (
        'int map(const char *); int unmap(const char *);\nint f(void) { return map("a/b.h"); }\n'
    )
    first = compiled(tmp_path / "1", text)
    assert first.code_digest == compiled(tmp_path / "2", text).code_digest
    other = compiled(tmp_path / "3", text.replace("return map", "return unmap"))
    assert first.code == other.code  # calls are filled in when the module is loaded
    assert first.code_digest != other.code_digest
    # a path of the build is not part of the code
    assert first.code_digest == compiled(tmp_path / "4", text.replace("a/", "/x/a/")).code_digest
