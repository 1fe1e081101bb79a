"""The index of a kernel's modules is made again only if rebuilt modules may change it: held to
depmod itself, over all modules."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.kernels.debian.index import (
    can_pack,
    copy_index,
    index_modules,
    is_index_same,
    pack_module,
)
from orchestrator.kernels.image.ko import read_module
from tests.unit.kernels.test_ko import PROGBITS, STRTAB, SYMTAB, elf

RELEASE = "7.3.4-made-up"
EXPORTERS = {"core_add": "core", "user_add": "user"}


class Spec(NamedTuple):
    """What depmod looks at in a module, and what it does not look at."""

    aliases: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    softdep: str = ""
    text: bytes = b"\xc3"


def made(spec: Spec) -> bytes:
    """Return the module's file."""
    depends = ",".join(sorted({EXPORTERS[name] for name in spec.needs}))
    info = [f"alias={name}" for name in spec.aliases] + [f"depends={depends}", "license=GPL"]
    info += [f"softdep={spec.softdep}"] if spec.softdep else []
    names, entries = b"\0", [(0, 0, 0, 0, 0, 0)]
    for name in spec.needs:
        entries.append((len(names), 0x10, 0, 0, 0, 0))
        names += name.encode() + b"\0"
    return elf([
        (".text", PROGBITS, 4 | 2, spec.text),
        (".modinfo", PROGBITS, 2, "".join(f"{line}\0" for line in info).encode()),
        ("__ksymtab_strings", PROGBITS, 2, "".join(f"{n}\0" for n in spec.exports).encode()),
        (".strtab", STRTAB, 0, names),
        (".symtab", SYMTAB, 0, b"".join(struct.pack("<IBBHQQ", *entry) for entry in entries)),
    ])  # fmt: skip


CORE = Spec(("pci:v1",), ("core_add",))
USER = Spec(("pci:v2",), ("user_add",), ("core_add",))
OTHER = Spec(("pci:v3", "fs-x"), (), ("user_add",), "pre: core")


def tree(folder: Path, *specs: Spec) -> Path:
    """Lay out the modules core, user, other, and index them. Return the folder of modules."""
    place = folder / "modules/kernel"
    place.mkdir(parents=True)
    for name, spec in zip(("core", "user", "other"), specs, strict=True):
        (place / f"{name}.ko").write_bytes(made(spec))
    index_modules(folder, RELEASE)
    return folder / "modules"


def texts(modules: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in modules.glob("modules.*")}


SPECS = st.builds(
    Spec,
    st.sampled_from([("pci:v2",), (), ("pci:v2", "usb:v1")]),
    st.sampled_from([("user_add",), (), ("user_add", "user_more")]),
    st.sampled_from([("core_add",), ()]),
    st.sampled_from(["", "pre: core"]),
    st.sampled_from([b"\xc3", b"\x90\xc3"]),
)


@settings(max_examples=40, deadline=None)
@given(SPECS)
def test_index_that_is_called_the_same_is_depmods_own(
    tmp_path_factory: pytest.TempPathFactory, spec: Spec
) -> None:
    folder = tmp_path_factory.mktemp("index")
    before = tree(folder / "before", CORE, USER, OTHER)
    after = tree(folder / "after", CORE, spec, OTHER)
    is_same = texts(before) == texts(after)
    called = is_index_same(before, after, ["kernel/user.ko"])
    assert is_same or not called
    assert called or spec._replace(text=USER.text) != USER


def test_every_module_that_changed_counts(tmp_path: Path) -> None:
    before = tree(tmp_path / "before", CORE, USER, OTHER)
    after = tree(tmp_path / "after", CORE._replace(aliases=()), USER, OTHER)
    assert is_index_same(before, after, ["kernel/user.ko"])
    assert not is_index_same(before, after, ["kernel/user.ko", "kernel/core.ko"])


def test_module_that_needs_others_than_before_changes_the_index(
    tmp_path: Path,
) -> None:
    """Depmod sees only the changed modules here, so what they need is known by their own word."""
    before = tree(tmp_path / "before", CORE, USER._replace(needs=()), OTHER)
    after = tree(tmp_path / "after", CORE, USER._replace(needs=("core_add",)), OTHER)
    assert not is_index_same(before, after, ["kernel/user.ko"])
    assert b"kernel/user.ko: kernel/core.ko" in texts(after)["modules.dep"]


def test_index_is_copied_whole(tmp_path: Path) -> None:
    source = tree(tmp_path / "source", CORE, USER, OTHER)
    target = tmp_path / "target"
    target.mkdir()
    copy_index(source, target)
    made_by_depmod = {name for name in texts(source) if not name.startswith("modules.builtin.bin")}
    assert texts(target).keys() == made_by_depmod
    assert all(texts(source)[name] == text for name, text in texts(target).items())


@pytest.mark.parametrize(
    ("name", "can"),
    [("a.ko", True), ("a.ko.xz", True), ("a.ko.zst", False), ("a.ko.gz", False)],
)
def test_module_is_packed_as_its_name_says_or_not_at_all(
    tmp_path: Path, name: str, can: bool
) -> None:
    assert can_pack(name) == can
    if can:
        (tmp_path / name).write_bytes(pack_module(made(USER), name))
        assert read_module(tmp_path / name).info["depends"] == "core"
        if name.endswith(".xz"):
            assert lzma.decompress((tmp_path / name).read_bytes()) == made(USER)
