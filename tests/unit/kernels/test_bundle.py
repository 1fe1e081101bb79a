from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.base.errors import ScenarioError
from orchestrator.kernels.image.bundle import KernelBundle, release_in
from tests.unit.kernels.fakes import bzimage

DEP = """\
kernel/drivers/vfio/vfio.ko.xz:
kernel/drivers/vfio/vfio_iommu_type1.ko.xz: kernel/drivers/vfio/vfio.ko.xz
kernel/drivers/vfio/pci/vfio-pci-core.ko.xz: kernel/drivers/vfio/vfio.ko.xz kernel/virt/irqbypass.ko.xz
kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz \
kernel/drivers/vfio/vfio.ko.xz kernel/virt/irqbypass.ko.xz
kernel/virt/irqbypass.ko.xz:
"""  # noqa: E501  # a line of modules.dep


@pytest.fixture
def bundle(tmp_path: Path) -> KernelBundle:
    (tmp_path / "modules.dep").write_text(DEP)
    (tmp_path / "modules.builtin").write_text("kernel/drivers/block/virtio_blk.ko\n")
    return KernelBundle("7.0", tmp_path / "vmlinuz", tmp_path, None, "abc")


def test_release_is_read_from_the_image(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage("6.12.107+deb13-cloud-amd64"))
    assert release_in(tmp_path / "vmlinuz") == "6.12.107+deb13-cloud-amd64"


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF" + bytes(4096), bzimage("7.0")[:0x206], bzimage("7.0")[:0x20F]]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(content)
    with pytest.raises(ScenarioError, match="vmlinuz") as caught:
        release_in(tmp_path / "vmlinuz")
    assert caught.value.reason == "not-a-kernel"


def test_image_without_a_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage("", extra=""))
    with pytest.raises(ScenarioError, match="vmlinuz") as caught:
        release_in(tmp_path / "vmlinuz")
    assert caught.value.reason == "not-a-kernel"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64), st.integers(0, 0x1000))
def test_any_image_has_a_release_or_is_refused(tmp_path: Path, patch: bytes, at: int) -> None:
    image = bytearray(bzimage("7.0"))
    image[at : at + len(patch)] = patch
    (tmp_path / "vmlinuz").write_bytes(image)
    try:
        release = release_in(tmp_path / "vmlinuz")
    except ScenarioError:
        return
    assert release
    assert not set(release) & set(" \n\0")


def test_modules_are_in_load_order(bundle: KernelBundle) -> None:
    order = [Path(p).name for p in bundle.module_closure(["vfio_iommu_type1", "vfio-pci"])]
    assert order == [
        "vfio.ko.xz", "vfio_iommu_type1.ko.xz", "irqbypass.ko.xz", "vfio-pci-core.ko.xz",
        "vfio-pci.ko.xz",
    ]  # fmt: skip


def test_every_module_comes_after_what_it_needs(bundle: KernelBundle) -> None:
    order = bundle.module_closure(["vfio-pci", "vfio_iommu_type1", "irqbypass"])
    assert len(set(order)) == len(order)
    for line in DEP.splitlines():
        path, _, needs = line.partition(":")
        assert all(order.index(n) < order.index(path) for n in needs.split())


def test_names_are_the_same_with_hyphens_and_underscores(bundle: KernelBundle) -> None:
    assert bundle.module_closure(["vfio_pci"]) == bundle.module_closure(["vfio-pci"])
    assert bundle.has_module("vfio-pci-core")
    assert bundle.has_module("vfio_pci_core")


def test_built_in_module_needs_no_loading(bundle: KernelBundle) -> None:
    assert bundle.has_module("virtio_blk")
    assert bundle.module_closure(["virtio_blk"]) == []


def test_missing_module_is_refused_before_anything_boots(bundle: KernelBundle) -> None:
    assert not bundle.has_module("kvm_amd")
    with pytest.raises(ScenarioError, match=r"\bkvm_amd\b") as caught:
        bundle.module_closure(["vfio", "kvm_amd"])
    assert caught.value.reason == "kernel-lacks-module"
    every, _, nested = caught.value.hint.partition("nested host")
    assert "vfio-pci" in every
    assert "ext4" not in every
    assert "ext4" in nested


def test_kernel_without_any_modules_has_none(tmp_path: Path) -> None:
    empty = KernelBundle("7.0", tmp_path / "vmlinuz", tmp_path, None, "abc")
    assert not empty.has_module("vfio")
