"""The agent on trees of files made here, and its readers of ELF and BTF on files made here."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.agents.loading import AGENTS, agent

checkup = agent("checkup")
RELEASE = os.uname().release
REQUEST = {
    "symbols": {"iommu_map": "", "vaddr_get_pfns": "vfio_iommu_type1"},
    "programs": ["qemu-kvm", "kexec"], "versions": ["qemu-kvm"], "folders": ["/var/lib/barometer"],
}  # fmt: skip
INT, PTR, STRUCT, FUNC, FUNC_PROTO = 1, 2, 4, 12, 13


class Types:
    """Type information as pahole(1) writes it: types in order, from id 1 or after those of a base;
    each name once."""

    def __init__(self, base: Types | None = None) -> None:
        self.names = b"\0" if base is None else b""
        self.first_name: int = 0 if base is None else base.first_name + len(base.names)
        self.first: int = 1 if base is None else base.first + len(base.types)
        self.types: list[bytes] = []
        self.offsets: dict[str, int] = {"": 0} if base is None else dict(base.offsets)

    def name(self, text: str) -> int:
        if text not in self.offsets:
            self.offsets[text] = self.first_name + len(self.names)
            self.names += text.encode() + b"\0"
        return self.offsets[text]

    def add(self, kind: int, name: str, other: int, words: list[int], vlen: int = 0) -> int:
        head = struct.pack("<III", self.name(name), kind << 24 | vlen, other)
        self.types.append(head + struct.pack(f"<{len(words)}I", *words))
        return self.first + len(self.types) - 1

    def struct(self, name: str, members: list[tuple[str, int]]) -> int:
        words = [w for member, kind in members for w in (self.name(member), kind, 0)]
        return self.add(STRUCT, name, 8, words, len(members))

    def function(self, name: str, parameters: list[tuple[str, int]]) -> int:
        words = [w for parameter, kind in parameters for w in (self.name(parameter), kind)]
        return self.add(FUNC, name, self.add(FUNC_PROTO, "", 0, words, len(parameters)), [])

    def packed(self) -> bytes:
        types = b"".join(self.types)
        head = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.names)
        )
        return head + types + self.names


def core_types(*members: str) -> Types:
    types = Types()
    number = types.add(INT, "int", 4, [32])
    types.struct("follow_pfnmap_args", [(member, number) for member in members])
    return types


def type1_types(core: Types, parameter: str, kind: str) -> Types:
    types = Types(core)
    pointer = types.add(PTR, "", types.struct(kind, [("size", 1)]), [])
    types.function("vaddr_get_pfns", [("npages", 1), (parameter, pointer)])
    return types


def elf(sections: dict[str, bytes]) -> bytes:
    """Return a 64-bit little-endian ELF file that has only sections."""
    names = b"\0" + b"\0".join(n.encode() for n in (*sections, ".shstrtab")) + b"\0"
    body, heads = b"", [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    for name, content in (*sections.items(), (".shstrtab", names)):
        at, size = names.index(b"\0" + name.encode() + b"\0") + 1, len(content)
        heads.append(struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, 64 + len(body), size, 0, 0, 1, 0))
        body += content
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(heads),
        len(heads) - 1,
    )  # fmt: skip
    return head + body + b"".join(heads)


def symbol_table(*functions: tuple[str, bool]) -> dict[str, bytes]:
    """Return a symbol table from names and whether the file defines each."""
    text, table = b"\0", struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    for name, defined in functions:
        table += struct.pack("<IBBHQQ", len(text), 0x12, 0, 1 if defined else 0, 0, 16)
        text += name.encode() + b"\0"
    return {".symtab": table, ".strtab": text}


def laid_out(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def asked(root: Path, request: dict[str, Any] = REQUEST) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-I", AGENTS / "checkup.py", json.dumps(request)], check=True, text=True,
        capture_output=True, timeout=30, env={**os.environ, "BAROMETER_ROOT": str(root)},
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_an_empty_machine_is_described(tmp_path: Path) -> None:
    said = asked(tmp_path)
    assert said["files"] == said["unreadable"] == said["groups"] == {}
    assert said["iommus"] == said["interrupts"] == []
    assert not any(
        (*said["present"].values(), *said["access"].values(), *said["sockets"].values())
    )
    assert said["programs"] == {"qemu-kvm": None, "kexec": None}
    assert said["symbols"] == {"iommu_map": None, "vaddr_get_pfns": None}
    assert said["types"] is None
    assert {*said["unread"]} == {"/proc/kallsyms", f"/lib/modules/{RELEASE}/modules.dep"}


def test_a_machine_is_read(tmp_path: Path) -> None:
    laid_out(tmp_path, {
        "/proc/cpuinfo": "processor : 0\nflags : vmx\n\nprocessor : 1\nflags : vmx\n",
        "/proc/interrupts": "  0: 1 IR-IO-APIC 2-edge timer\n 24: 9 IR-PCI-MSIX-0000:3b:00.0\n",
        "/sys/class/iommu/dmar0/intel-iommu/cap": "8d2078c106f0466\n",
        "/sys/kernel/iommu_groups/7/devices/0000:3b:00.0": "",
        "/sys/kernel/iommu_groups/7/devices/0000:3b:00.1": "",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "/dev/kvm": "", "/dev/shm/x": "", "/var/x": "",
    })  # fmt: skip
    said = asked(tmp_path)
    assert said["files"]["/proc/cpuinfo"] == "processor : 0\nflags : vmx\n"
    assert said["files"]["/sys/class/iommu/dmar0/intel-iommu/cap"] == "8d2078c106f0466\n"
    assert said["interrupts"] == ["IR-IO-APIC", "IR-PCI-MSIX"]
    assert said["iommus"] == ["dmar0"]
    assert said["groups"] == {"7": ["0000:3b:00.0", "0000:3b:00.1"]}
    assert said["present"]["/dev/kvm"]
    assert said["access"]["/dev/shm"]
    assert said["folders"]["/var/lib/barometer"]["at"] == "/var"
    assert said["folders"]["/var/lib/barometer"]["free"] > 0


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "proc/cmdline").mkdir(parents=True)  # a folder, because root can read every file
    said = asked(tmp_path)
    assert said["unreadable"] == {"/proc/cmdline": "Is a directory"}


def test_long_files_are_cut(tmp_path: Path) -> None:
    laid_out(tmp_path, {"/proc/cmdline": "x" * 100_000})
    assert len(asked(tmp_path)["files"]["/proc/cmdline"]) == checkup.MOST


def test_programs_are_found_where_root_has_them(tmp_path: Path) -> None:
    laid_out(tmp_path, {"/usr/libexec/qemu-kvm": "#!/bin/sh\necho QEMU emulator version 9.1.0\n",
                        "/usr/sbin/kexec": "#!/bin/sh\nexit 1\n"})  # fmt: skip
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)
    assert asked(tmp_path)["programs"] == {
        "qemu-kvm": {"path": "/usr/libexec/qemu-kvm", "version": "QEMU emulator version 9.1.0"},
        "kexec": {"path": "/usr/sbin/kexec", "version": ""},
    }


def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out(tmp_path, {"/bin/slow": "#!/bin/sh\nexec sleep 60\n"})
    (tmp_path / "bin/slow").chmod(0o755)
    monkeypatch.setattr(checkup, "ROOT", str(tmp_path))
    monkeypatch.setattr(checkup, "PROGRAM_SECONDS", 0.2)
    assert checkup.programs(["slow"], ["slow"])["slow"] == {"path": "/bin/slow", "version": ""}


def test_a_socket_is_one_that_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "ROOT", "")
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert not checkup.listens(str(path))
        server.listen()
        assert checkup.listens(str(path))
    assert not checkup.listens(str(path))


# -- functions ------------------------------------------------------------------------------


def test_loaded_functions_are_those_of_the_table(tmp_path: Path) -> None:
    laid_out(tmp_path, {
        "/proc/kallsyms": "0 T iommu_map\n0 t vaddr_get_pfns.isra.0\t[vfio_iommu_type1]\n",
        "/sys/module/vfio_iommu_type1/srcversion": "x",
    })  # fmt: skip
    said = asked(tmp_path)
    assert said["symbols"] == {"iommu_map": "/proc/kallsyms", "vaddr_get_pfns": None}
    assert said["unread"] == {}


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)]
)
def test_functions_of_a_module_that_is_not_loaded(tmp_path: Path, suffix: str, pack: Any) -> None:
    name = f"kernel/drivers/vfio/vfio_iommu_type1.ko{suffix}"
    content = elf(symbol_table(("vaddr_get_pfns", True), ("iommu_map", False)))
    laid_out(tmp_path, {
        "/proc/kallsyms": "0 T other\n",
        f"/lib/modules/{RELEASE}/modules.dep": f"kernel/other.ko:\n{name}: kernel/vfio.ko\n",
        f"/lib/modules/{RELEASE}/{name}": pack(content),
    })  # fmt: skip
    said = asked(tmp_path)
    path = f"/lib/modules/{RELEASE}/{name}"
    assert said["symbols"] == {"iommu_map": None, "vaddr_get_pfns": path}
    (tmp_path / path.lstrip("/")).write_bytes(b"\xfd7zXZ\0" if suffix else b"")
    if suffix:
        assert asked(tmp_path)["unread"] == {path: "cannot be unpacked"}


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_reader_of_elf(tail: bytes) -> None:
    whole = elf(symbol_table(("a", True)))
    assert checkup.functions(whole) == {"a"}
    checkup.functions(tail)
    checkup.functions(whole[:64] + tail)
    checkup.functions(whole[: len(tail)])


# -- types ----------------------------------------------------------------------------------


def test_types_of_a_kernel_with_the_series(tmp_path: Path) -> None:
    core = core_types("vma", "pfn", "addr_mask")
    laid_out(tmp_path, {
        "/sys/kernel/btf/vmlinux": core.packed(),
        "/sys/kernel/btf/vfio_iommu_type1": type1_types(core, "batch", "vfio_batch").packed(),
    })  # fmt: skip
    assert asked(tmp_path)["types"] == {
        "source": ["/sys/kernel/btf/vmlinux", "/sys/kernel/btf/vfio_iommu_type1"],
        "members": ["vma", "pfn", "addr_mask"],
        "parameters": [["npages", "int"], ["batch", "vfio_batch"]],
    }


@pytest.mark.parametrize("own_base", [False, True])
def test_types_of_a_module_that_is_not_loaded(tmp_path: Path, own_base: bool) -> None:
    """A module's file has its types relative to the kernel's, or to a base that it contains."""
    core = core_types("vma", "pfn")
    base = core
    sections = {}
    if own_base:
        base = Types()
        base.add(INT, "int", 4, [32])
        sections[".BTF.base"] = base.packed()
    sections[".BTF"] = type1_types(base, "pages", "page").packed()
    laid_out(tmp_path, {
        "/sys/kernel/btf/vmlinux": core.packed(),
        f"/lib/modules/{RELEASE}/modules.dep": "updates/vfio-iommu-type1.ko:\n",
        f"/lib/modules/{RELEASE}/updates/vfio-iommu-type1.ko": elf(sections),
    })  # fmt: skip
    types = asked(tmp_path)["types"]
    assert types["members"] == ["vma", "pfn"]
    assert types["parameters"] == [["npages", "int"], ["pages", "page"]]
    assert types["source"][1].endswith("/updates/vfio-iommu-type1.ko")


def test_a_kernel_without_huge_pfnmaps_has_no_such_struct(tmp_path: Path) -> None:
    core = Types()
    core.add(INT, "int", 4, [32])
    laid_out(tmp_path, {"/sys/kernel/btf/vmlinux": core.packed()})
    types = asked(tmp_path)["types"]
    assert (types["members"], types["parameters"]) == (None, None)


def test_types_built_in_are_in_the_kernels_own(tmp_path: Path) -> None:
    core = core_types("addr_mask")
    core.function("vaddr_get_pfns", [("batch", 1)])
    laid_out(tmp_path, {"/sys/kernel/btf/vmlinux": core.packed()})
    types = asked(tmp_path)["types"]
    assert types["source"] == ["/sys/kernel/btf/vmlinux"]
    assert types["parameters"] == [["batch", "int"]]


names = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=9)


@given(
    st.lists(st.tuples(names, st.lists(names, max_size=4)), unique_by=lambda one: one[0]),
    st.lists(st.tuples(names, st.lists(names, max_size=4)), unique_by=lambda one: one[0]),
)
def test_whatever_was_written_is_read(
    structs: list[tuple[str, list[str]]], functions: list[tuple[str, list[str]]]
) -> None:
    core = Types()
    number = core.add(INT, "kernel int", 4, [32])
    for name, members in structs:
        core.struct(name, [(member, number) for member in members])
    split = Types(core)
    for name, parameters in functions:
        split.function(name, [(parameter, number) for parameter in parameters])
    read = checkup.Btf(core.packed())
    for name, members in structs:
        assert read.members(name) == members
    module = checkup.Btf(split.packed(), read)
    for name, parameters in functions:
        assert module.parameters(name) == [[p, "kernel int"] for p in parameters]


@given(st.data())
def test_no_bytes_upset_the_reader_of_types(data: st.DataObject) -> None:
    whole = bytearray(type1_types(core_types("pfn"), "batch", "vfio_batch").packed())
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for content in (bytes(whole), cut):
        try:
            read = checkup.Btf(content)
        except ValueError:
            continue
        read.members("vfio_batch")
        read.parameters("vaddr_get_pfns")


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="no type information")
def test_types_of_this_machines_kernel_are_read() -> None:
    read = checkup.Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
    assert "next" in (read.members("list_head") or [])
    assert read.parameters("schedule") == []
