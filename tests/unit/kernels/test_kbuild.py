from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.kernels.module.kbuild import (
    DryRun,
    Includes,
    folders_of,
    is_foreign,
    is_part,
    parse_dry_run,
    room_of,
    symbols_of,
)
from tests.unit.kernels.trees import MAKEFILES, tree_in

TOPS = ("/build/tree", "/usr/src/linux-headers-6.12-common")


def dry_run(release: str, *rooms: str) -> DryRun:
    """Parse what `make -nk` printed for that release, without most of the compiler's options."""
    log = Path(__file__).with_name(f"dry-run-{release}.txt").read_text()
    return parse_dry_run(log, rooms, TOPS)


def test_what_kbuild_makes() -> None:
    parsed = dry_run("7.3", "drivers/vfio", "drivers/iommu")
    objects = parsed.objects
    assert objects.modules == {
        "drivers/vfio/vfio": {"drivers/vfio/vfio_main.o", "drivers/vfio/group.o"}
    }
    assert objects.built_in == {"drivers/iommu/iommu.o", "drivers/iommu/entry.o"}
    assert objects.modules_of("drivers/vfio/group.c") == ["drivers/vfio/vfio"]
    assert objects.is_compiled("drivers/iommu/entry.S")
    # vfio.o is linked from its parts, not compiled
    assert not objects.is_compiled("drivers/vfio/vfio.c")
    assert not parsed.missing
    assert not objects.failures


def test_what_is_in_the_way_of_kbuild() -> None:
    parsed = dry_run("6.12", "arch/x86/kvm")
    assert parsed.objects.modules_of("virt/kvm/kvm_main.c") == ["arch/x86/kvm/kvm"]
    assert parsed.missing == {"virt/kvm/kvm_main.o", "virt/kvm/Makefile.kvm", "drivers/off"}
    # a folder that the configuration leaves out is no failure
    assert len(parsed.objects.failures) == 1
    assert "kvm_main.o" in parsed.objects.failures[0]


@pytest.mark.parametrize(
    ("source", "symbols"),
    [
        ("drivers/vfio/iommufd.c", ["CONFIG_IOMMUFD", "CONFIG_VFIO"]),
        ("drivers/iommu/iommu.c", ["CONFIG_IOMMU_API"]),
        ("drivers/iommu/sva.c", ["CONFIG_SVA"]),
        ("drivers/iommu/always.c", []),
        ("drivers/vfio/pci/core.c", ["CONFIG_VFIO_PCI_CORE"]),
        ("drivers/vfio/pci/zdev.c", ["CONFIG_VFIO_PCI_CORE", "CONFIG_ZDEV"]),
    ],
)
def test_which_symbols_decide(source: str, symbols: list[str]) -> None:
    assert symbols_of(MAKEFILES[f"{Path(source).parent}/Makefile"], source) == symbols


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
    assert is_part("virt/kvm/kvm_main.c")
    assert not is_part("/usr/src/linux-headers-7.3/include/generated/autoconf.h")
    assert not is_part("scripts/asn1_compiler")


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
    parse_dry_run(text, [], TOPS)
    symbols_of(text, "a/b.c")
