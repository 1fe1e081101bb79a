from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.kernels.kbuild import (
    Includes,
    Owners,
    Said,
    folders_of,
    is_foreign,
    parsed,
    room_of,
)
from tests.unit.kernels.trees import MAKEFILES, Tree, tree_in


def said(tree: Tree, *files: str) -> Said:
    return tree.evaluate(None, folders_of(files, tree.names))


@pytest.mark.parametrize(
    ("source", "modules", "built_in"),
    [
        ("drivers/vfio/vfio_iommu_type1.c", {"drivers/vfio/vfio_iommu_type1"}, False),
        ("drivers/vfio/group.c", {"drivers/vfio/vfio"}, False),  # by CONFIG_VFIO_GROUP=y
        ("drivers/vfio/vfio.c", set(), False),  # vfio.o is linked from its parts, not compiled
        ("drivers/vfio/iommufd.c", set(), False),
        ("drivers/vfio/never.c", set(), False),  # obj-y in a folder that only obj-m enters
        ("drivers/vfio/pci/core.c", {"drivers/vfio/pci/vfio-pci-core"}, False),
        ("drivers/vfio/pci/zdev.c", set(), False),
        ("drivers/iommu/iommu.c", set(), True),
        ("drivers/iommu/always.c", set(), True),
        ("drivers/iommu/sva.c", set(), True),
        ("drivers/off/lost.c", set(), False),  # no Makefile enters its folder
        ("arch/x86/kvm/x86.c", {"arch/x86/kvm/kvm"}, False),
    ],
)
def test_what_a_file_is_compiled_into(
    tmp_path: Path, source: str, modules: set[str], built_in: bool
) -> None:
    owners = said(tree_in(tmp_path), source).owners(source)
    assert owners == Owners(frozenset(modules), built_in)
    assert bool(owners) == (bool(modules) or built_in)


def test_parts_of_a_module_may_be_elsewhere(tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    below = said(tree, "drivers/vfio/pci/core.c")
    assert below.parts("drivers/vfio/pci/vfio-pci-core") == {
        "drivers/vfio/pci/core.o", "drivers/vfio/shared.o",
    }  # fmt: skip
    assert below.owners("drivers/vfio/shared.c").modules == {"drivers/vfio/pci/vfio-pci-core"}
    kvm = said(tree, "arch/x86/kvm/x86.c")
    assert kvm.owners("virt/kvm/kvm_main.c").modules == {"arch/x86/kvm/kvm"}
    assert kvm.makefiles() == {
        "arch/x86/Kbuild", "arch/x86/kvm/Makefile", "virt/kvm/Makefile.kvm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "symbols"),
    [
        ("drivers/vfio/iommufd.c", ["CONFIG_IOMMUFD", "CONFIG_VFIO"]),
        ("drivers/iommu/iommu.c", ["CONFIG_IOMMU_API"]),
        ("drivers/iommu/sva.c", ["CONFIG_SVA"]),
        ("drivers/iommu/always.c", []),
        ("drivers/vfio/pci/core.c", ["CONFIG_VFIO_PCI_CORE"]),
    ],
)
def test_which_symbols_decide(tmp_path: Path, source: str, symbols: list[str]) -> None:
    names = ["CONFIG_VFIO", "CONFIG_VFIO_GROUP", "CONFIG_IOMMUFD", "CONFIG_IOMMU_API",
             "CONFIG_SVA", "CONFIG_VFIO_PCI_CORE", "CONFIG_ZDEV"]  # fmt: skip
    folder = str(Path(source).parent)
    assert sorted(tree_in(tmp_path).evaluate(names, [folder]).symbols(source)) == symbols


def test_folders_are_those_with_makefiles_of_this_architecture() -> None:
    files = ["drivers/vfio/pci/core.c", "arch/arm64/kvm/mmu.c", "arch/x86/kvm/vmx/vmx.c"]
    assert folders_of(files, MAKEFILES) == [
        "arch/x86", "arch/x86/kvm", "drivers", "drivers/vfio", "drivers/vfio/pci",
    ]  # fmt: skip
    assert [f for f in files if is_foreign(f)] == ["arch/arm64/kvm/mmu.c"]


def test_rooms() -> None:
    assert room_of("drivers/vfio/pci/core.c") == "drivers/vfio"
    assert room_of("arch/x86/kvm/vmx/vmx.c") == "arch/x86/kvm"
    assert room_of("mm/memory.c") == "mm"
    assert room_of("MAINTAINERS") == ""


def test_who_includes_a_header(tmp_path: Path) -> None:
    tree = tree_in(
        tmp_path,
        {
            "drivers/vfio/pci/by_flag.c": "#include <linux/vfio.h>\n#include <deep.h>\n",
            "drivers/vfio/pci/loop_a.h": '#include "loop_b.h"\n',
            "drivers/vfio/pci/loop_b.h": '#include "loop_a.h"\n',
            "drivers/vfio/pci/vfio.h": "",
            "drivers/vfio/pci/own.c": '#include "vfio.h"\n',
        },
    )
    includes = Includes(tree.folder, ["drivers/vfio"], {})
    # pci/own.c includes the header beside it; <linux/vfio.h> is another one
    assert includes.users("drivers/vfio/vfio.h") == {
        "drivers/vfio/vfio.h", "drivers/vfio/vfio_main.c", "drivers/vfio/group.c",
        "drivers/vfio/vfio_iommu_type1.c",
    }  # fmt: skip
    assert includes.users("drivers/vfio/deep.h") == {
        "drivers/vfio/deep.h", "drivers/vfio/pci/core.h", "drivers/vfio/pci/core.c",
        "drivers/vfio/pci/by_flag.c",
    }  # fmt: skip
    assert includes.users("drivers/vfio/pci/loop_a.h") == {
        "drivers/vfio/pci/loop_a.h", "drivers/vfio/pci/loop_b.h",
    }  # fmt: skip


def test_includes_are_those_after_the_change(tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    changed = {"drivers/vfio/new.h": b"", "drivers/vfio/group.c": b'#include "new.h"\n'}
    includes = Includes(tree.folder, ["drivers/vfio"], changed)
    assert includes.users("drivers/vfio/new.h") == {*changed}
    assert "drivers/vfio/group.c" not in includes.users("drivers/vfio/vfio.h")
    gone = Includes(tree.folder, ["drivers/vfio"], {"drivers/vfio/vfio.h": None})
    assert "drivers/vfio/group.c" in gone.users("drivers/vfio/vfio.h")


@given(st.text())
def test_any_output_is_read(text: str) -> None:
    found = parsed(text)
    assert found.owners("a/b.c") is not None
    assert all("-" in name for variables in found.folders.values() for name in variables)


@given(st.lists(st.sampled_from(["a.o", "b.o", "sub/", "../up/"]), max_size=4))
def test_folders_that_name_each_other_end(words: list[str]) -> None:
    loop = {"obj-y": words, "obj-m": words}
    found = Said({"x": loop, "x/sub": loop, "up": loop})
    assert found.owners("x/a.c").built_in == ("a.o" in words)
