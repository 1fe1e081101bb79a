from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.module.change import (
    Files,
    SourceChange,
    check_paths,
    find_change,
    read_folder,
)
from orchestrator.kernels.module.kbuild import Includes, object_of, room_of, select_compiled
from orchestrator.scenario.kernel_forms import ModuleKernel
from tests.unit.kernels.trees import BUILT_IN, MODULES, SOURCES, tree_in

KERNEL = ModuleKernel(deb="linux-image-amd64", suite="trixie", series=("a.patch",))


def change(folder: Path, after: Files) -> SourceChange:
    tree = tree_in(folder)
    before = {name: tree.files[name].encode() if name in tree.files else None for name in after}
    return find_change(KERNEL, tree, before, after, tree)


def refused(folder: Path, after: Files) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        change(folder, after)
    return caught.value


def test_a_source_file_reaches_its_module(tmp_path: Path) -> None:
    reach = change(tmp_path, {"drivers/vfio/vfio_iommu_type1.c": b"changed"})
    assert reach.reached == {"drivers/vfio/vfio_iommu_type1": ("drivers/vfio/vfio_iommu_type1.c",)}
    assert reach.rooms == ("drivers/vfio",)


def test_a_private_header_reaches_all_that_include_it(tmp_path: Path) -> None:
    reach = change(tmp_path, {"drivers/vfio/vfio.h": b"changed"})
    assert reach.modules == ["drivers/vfio/vfio", "drivers/vfio/vfio_iommu_type1"]
    assert reach.reached["drivers/vfio/vfio"] == ("drivers/vfio/vfio.h",)
    deep = change(tmp_path, {"drivers/vfio/deep.h": b"changed"})
    assert deep.modules == ["drivers/vfio/pci/vfio-pci-core"]


def test_a_part_of_a_module_that_is_elsewhere(tmp_path: Path) -> None:
    reach = change(tmp_path, {"virt/kvm/kvm_main.c": b"changed"})
    assert reach.modules == ["arch/x86/kvm/kvm"]
    assert reach.rooms == ("arch/x86/kvm", "virt/kvm")


def test_what_nothing_is_made_from_is_passed_over(tmp_path: Path) -> None:
    same = tree_in(tmp_path).files["drivers/vfio/vfio_main.c"].encode()
    reach = change(
        tmp_path,
        {
            "Documentation/driver-api/vfio.rst": b"changed",
            "MAINTAINERS": b"changed",
            "drivers/vfio/group.c": b"changed",
            "drivers/vfio/vfio_main.c": same,
        },
    )
    assert reach.passed_over == ("Documentation/driver-api/vfio.rst", "MAINTAINERS")
    assert list(reach.after) == ["drivers/vfio/group.c"]


def test_an_object_of_the_kernel_that_stays_the_same_is_no_obstacle(tmp_path: Path) -> None:
    comment: Files = {"drivers/iommu/iommu.c": b"// a comment"}
    reach = change(tmp_path, {**comment, "drivers/vfio/group.c": b"// a comment"})
    assert reach.modules == ["drivers/vfio/vfio"]
    assert reach.passed_over == ("drivers/iommu/iommu.c",)
    assert list(reach.after) == ["drivers/vfio/group.c"]
    assert refused(tmp_path, comment).reason == "nothing-changed"


def test_what_differs_is_in_the_evidence(tmp_path: Path) -> None:
    error = refused(tmp_path, {"drivers/iommu/iommu-priv.h": b"changed"})
    assert error.evidence == "drivers/iommu/iommu.o differs: .text"


def test_a_new_header_comes_with_who_includes_it(tmp_path: Path) -> None:
    new: Files = {"drivers/vfio/new.h": b"", "drivers/vfio/group.c": b'#include "new.h"\n'}
    assert change(tmp_path, new).reached == {
        "drivers/vfio/vfio": ("drivers/vfio/group.c", "drivers/vfio/new.h")
    }


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("drivers/iommu/iommu.c", ["CONFIG_IOMMU_API=y"]),
        ("drivers/iommu/always.c", ["(always)"]),
        ("drivers/iommu/sva.c", ["CONFIG_SVA=y"]),
        ("drivers/iommu/iommu-priv.h", ["drivers/iommu/iommu.c", "CONFIG_IOMMU_API=y"]),
        ("include/linux/vfio.h", []),
        ("arch/x86/include/asm/io.h", []),
        ("drivers/vfio/Makefile", []),
        ("drivers/vfio/Kconfig.debug", []),
        ("Makefile", []),
        ("scripts/mod/modpost.c", []),
        ("drivers/vfio/table.lds", []),
    ],
)
def test_what_reaches_further_is_refused(tmp_path: Path, path: str, words: list[str]) -> None:
    tree = tree_in(tmp_path, {"scripts/mod/modpost.c": ""})
    with pytest.raises(ScenarioError) as caught:
        find_change(KERNEL, tree, {path: b""}, {path: b"changed"}, tree)
    error = caught.value
    assert error.reason == "beyond-modules"
    assert error.message.startswith(f"{path} ")
    for word in words:
        assert word in error.message
    assert 'kernel = { source = "linux-source-7.0", suite = "trixie"' in error.hint
    assert 'series = ["a.patch"] }' in error.hint


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("drivers/vfio/iommufd.c", "(CONFIG_IOMMUFD=n, CONFIG_VFIO=m)"),
        ("drivers/vfio/only.h", "drivers/vfio/iommufd.c"),
        ("drivers/vfio/unused.h", "drivers/vfio"),
        ("drivers/vfio/never.c", ""),
        ("drivers/off/lost.c", ""),
        ("drivers/vfio/vfio_iommu_type.c", "Makefile"),
        ("arch/arm64/kvm/mmu.c", "architecture"),
    ],
)
def test_what_reaches_nothing_is_refused(tmp_path: Path, path: str, words: str) -> None:
    error = refused(tmp_path, {path: b"changed"})
    assert error.reason == "not-compiled"
    assert error.message.startswith(path)
    assert words in error.message


FAILURE = "No rule to make target 'output/signing_key.pem', needed by 'certs/signing_key.x509'."
OBJECTS = sorted({*BUILT_IN, *itertools.chain(*MODULES.values())})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tree")


@given(st.sampled_from(sorted(SOURCES)), st.sets(st.sampled_from(OBJECTS)))
def test_what_kbuild_does_not_tell_of_is_never_taken_for_unreached(
    folder: Path, path: str, hidden: set[str]
) -> None:
    """What kbuild has to leave out may be compiled from any source file that it does not list."""
    tree = replace(tree_in(folder), hidden=hidden, failures=(FAILURE,))
    users = select_compiled(Includes(folder, [room_of(path)], {path: b"x"}).users(path))
    untold = {object_of(user) for user in users} - ({*OBJECTS} - hidden)
    error = None
    try:
        assert find_change(KERNEL, tree, {path: b""}, {path: b"// x"}, tree).modules
    except ScenarioError as exc:
        error = exc
    assert error or not untold
    if error and error.reason == "makefile-unreadable":
        assert untold
        assert error.evidence == FAILURE


def test_what_kbuild_tells_of_is_rebuilt_though_it_does_not_tell_all(tmp_path: Path) -> None:
    tree = replace(tree_in(tmp_path), failures=(FAILURE,))
    group = "drivers/vfio/group.c"
    found = find_change(KERNEL, tree, {group: b""}, {group: b"x"}, tree)
    assert found.modules == ["drivers/vfio/vfio"]
    only = "drivers/vfio/only.h"
    with pytest.raises(ScenarioError) as caught:
        find_change(KERNEL, tree, {only: b""}, {only: b"x"}, tree)
    assert caught.value.reason == "makefile-unreadable"
    assert f"drivers/vfio/iommufd.c, which {only} is part of" in caught.value.message


def test_a_misspelt_file_is_told_the_right_one(tmp_path: Path) -> None:
    error = refused(tmp_path, {"drivers/vfio/vfio_iommu_typ1.c": b"changed"})
    assert '"drivers/vfio/vfio_iommu_type1.c"' in error.hint


@pytest.mark.parametrize("path", ["vfio_iommu_type1.c", "vfio/vfio_iommu_type1.c"])
def test_a_file_at_no_place_is_told_its_place(tmp_path: Path, path: str) -> None:
    error = refused(tmp_path, {path: b"changed"})
    assert error.reason == "no-such-place"
    assert "drivers/vfio/vfio_iommu_type1.c" in error.hint


def test_nothing_changed(tmp_path: Path) -> None:
    same = tree_in(tmp_path).files["drivers/vfio/group.c"].encode()
    assert refused(tmp_path, {"drivers/vfio/group.c": same}).reason == "nothing-changed"
    assert refused(tmp_path, {"MAINTAINERS": b"changed"}).reason == "nothing-changed"


def test_paths_alone_are_looked_at_before_anything_is_unpacked(tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    check_paths(["drivers/vfio/group.c", "MAINTAINERS", "tools/testing/x.c"], KERNEL, tree)
    with pytest.raises(ScenarioError, match=r"include/linux/vfio\.h") as caught:
        check_paths(["drivers/vfio/group.c", "include/linux/vfio.h"], KERNEL, tree)
    assert caught.value.reason == Reason.BEYOND_MODULES


def test_what_of_a_folder_counts(tmp_path: Path) -> None:
    for name in ("drivers/vfio/a.c", "drivers/vfio/a.h", "drivers/vfio/Kbuild", "Kbuild",
                 "drivers/vfio/a.o", "drivers/vfio/a.mod.c", ".git/x.c", "notes.txt", "README",
                 "drivers/vfio/.a.o.cmd", "lost.c"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert read_folder(tmp_path) == {
        name: name.encode()
        for name in ("drivers/vfio/Kbuild", "drivers/vfio/a.c", "drivers/vfio/a.h", "lost.c")
    }
