from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels import describe_kernel
from orchestrator.kernels.directory import copy_kernel, release_of
from orchestrator.scenario.kernel_forms import DirKernel
from tests.unit.kernels.fakes import bzimage, folder_kernel

RELEASE = "7.0.0-test"


def refused(folder: Path) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        release_of(DirKernel(dir=folder))
    return caught.value


def test_release_is_the_images_own(tmp_path: Path) -> None:
    kernel = DirKernel(dir=folder_kernel(tmp_path / "k"))
    assert release_of(kernel) == RELEASE
    assert describe_kernel(kernel, Cache(tmp_path / "cache")) == f"dir:{tmp_path}/k ({RELEASE})"


@pytest.mark.parametrize("name", ["vmlinuz-7.0", "bzImage", "boot/vmlinuz-7.0.0-test"])
def test_image_may_have_the_name_a_build_gives_it(tmp_path: Path, name: str) -> None:
    folder_kernel(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "vmlinuz").rename(tmp_path / name)
    assert release_of(DirKernel(dir=tmp_path)) == RELEASE


@pytest.mark.parametrize("place", ["usr/lib/modules/7.0.0-test", "modules"])
def test_modules_may_be_where_a_build_puts_them(tmp_path: Path, place: str) -> None:
    folder_kernel(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "lib/modules" / RELEASE).rename(tmp_path / place)
    assert release_of(DirKernel(dir=tmp_path)) == RELEASE


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path / "none")
    assert error.reason == Reason.NO_SUCH_KERNEL
    assert str(tmp_path / "none") in error.message


def test_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.reason == Reason.NO_SUCH_KERNEL
    assert "bzImage" in error.hint


def test_folder_with_two_images_is_refused_and_names_them(tmp_path: Path) -> None:
    folder_kernel(tmp_path)
    shutil.copy(tmp_path / "vmlinuz", tmp_path / "bzImage")
    error = refused(tmp_path)
    assert "found 2" in error.message
    assert "bzImage" in error.evidence


def test_modules_of_another_release_are_refused_and_named(tmp_path: Path) -> None:
    folder_kernel(tmp_path, "6.1.0-other")
    (tmp_path / "vmlinuz").write_bytes(bzimage(RELEASE))
    error = refused(tmp_path)
    assert f"lib/modules/{RELEASE}" in error.message
    assert "6.1.0-other" in error.message
    assert error.reason == "kernel-modules-missing"


def test_kernel_is_copied_and_indexed(tmp_path: Path) -> None:
    folder = folder_kernel(tmp_path / "k")
    (folder / "config").write_text("CONFIG_VFIO=m\n")
    bundle = copy_kernel(DirKernel(dir=folder), Cache(tmp_path / "cache"))
    shutil.rmtree(folder)
    assert bundle.release == RELEASE
    assert bundle.vmlinuz.read_bytes() == bzimage(RELEASE)
    assert bundle.config is not None
    assert bundle.config.read_text() == "CONFIG_VFIO=m\n"
    assert bundle.has_module("virtio-blk")
    assert (bundle.modules / "modules.dep").read_text() == "kernel/fs/ext4.ko:\n"
    assert bundle.module_closure(["ext4"]) == ["kernel/fs/ext4.ko"]
    assert bundle.provenance.to_json() == {"from": f"dir:{folder}"}


def test_same_kernel_is_copied_once_and_another_build_is_another(tmp_path: Path) -> None:
    cache, kernel = Cache(tmp_path / "cache"), DirKernel(dir=folder_kernel(tmp_path / "k"))
    first = copy_kernel(kernel, cache)
    assert copy_kernel(kernel, cache) == first
    moved = folder_kernel(tmp_path / "elsewhere")
    assert copy_kernel(DirKernel(dir=moved), cache).digest == first.digest
    (kernel.dir / "lib/modules" / RELEASE / "kernel/fs/ext4.ko").write_bytes(b"a new build")
    second = copy_kernel(kernel, cache)
    assert second.digest != first.digest
    assert (first.modules / "kernel/fs/ext4.ko").read_bytes() == b"not really"


def test_links_to_the_source_tree_are_left_behind(tmp_path: Path) -> None:
    folder = folder_kernel(tmp_path / "k")
    (folder / "lib/modules" / RELEASE / "build").symlink_to(tmp_path)
    bundle = copy_kernel(DirKernel(dir=folder), Cache(tmp_path / "cache"))
    assert not (bundle.modules / "build").is_symlink()
