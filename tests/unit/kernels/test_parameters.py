from __future__ import annotations

import struct
from pathlib import Path

import pytest

from orchestrator.base.errors import ScenarioError
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.kernels.module.parameters import check_parameter, parameters_of

BUILT_IN = (
    b"vfio.license=GPL\0vfio.parmtype=enable_unsafe:bool\0vfio.parm=enable_unsafe:Text: more\0"
    b"vfio_pci.parmtype=ids:string\0"
)
MODULE = (
    b"license=GPL\0parmtype=disable_hugepages:bool\0"
    b"parm=disable_hugepages:first line\nnot_a_name:second line\0parmtype=limit:uint\0"
)


def elf(section: bytes) -> bytes:
    """Return an object with a section .modinfo, as far as modinfo(8) reads it (elf(5))."""
    names = b"\0.modinfo\0.shstrtab\0"
    body = section + names
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 3, 2)
    rows = [(0,) * 10, (1, 1, 2, 0, 64, len(section), 0, 0, 1, 0),
            (10, 3, 0, 0, 64 + len(section), len(names), 0, 0, 1, 0)]  # fmt: skip
    return head + body + b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows)


@pytest.fixture
def kernel(tmp_path: Path) -> KernelBundle:
    file = tmp_path / "kernel/vfio_iommu_type1.ko"
    file.parent.mkdir()
    file.write_bytes(elf(MODULE))
    (tmp_path / "modules.dep").write_text("kernel/vfio_iommu_type1.ko:\n")
    (tmp_path / "modules.builtin").write_text("kernel/vfio.ko\nkernel/vfio-pci.ko\n")
    (tmp_path / "modules.builtin.modinfo").write_bytes(BUILT_IN)
    return KernelBundle("7.0", tmp_path / "vmlinuz", tmp_path, None, "abc")


def error_of(kernel: KernelBundle, name: str) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        check_parameter(kernel, name)
    assert (caught.value.reason, caught.value.exit_code) == ("no-such-parameter", 2)
    return caught.value


def test_parameters_are_those_that_modules_declare(kernel: KernelBundle) -> None:
    assert parameters_of(kernel, "vfio_iommu_type1") == {"disable_hugepages", "limit"}
    assert parameters_of(kernel, "vfio") == {"enable_unsafe"}
    assert parameters_of(kernel, "vfio_pci") == {"ids"}


@pytest.mark.parametrize(
    "name",
    ["vfio_iommu_type1.disable_hugepages", "vfio-iommu-type1.limit", "vfio.enable-unsafe",
     "vfio-pci.ids"],
)  # fmt: skip
def test_parameter_that_a_module_has_is_accepted(kernel: KernelBundle, name: str) -> None:
    check_parameter(kernel, name)


def test_parameter_that_it_has_not_is_refused_with_the_nearest(kernel: KernelBundle) -> None:
    error = error_of(kernel, "vfio_iommu_type1.disable_hugepage")
    assert '"vfio_iommu_type1.disable_hugepages"' in error.message
    assert '"vfio.enable_unsafe"' in error_of(kernel, "vfio.enable_unsave").message


def test_module_that_a_kernel_has_not_is_refused_with_the_nearest(kernel: KernelBundle) -> None:
    error = error_of(kernel, "vfio_iomu_type1.limit")
    assert '"vfio_iommu_type1.limit"' in error.message
    assert "cmdline" in error.hint
    assert '"' not in error_of(kernel, "rcutree.rcu_fanout_leaf").message  # nothing is near


def test_module_without_parameters_has_none(kernel: KernelBundle) -> None:
    (kernel.modules / "modules.builtin.modinfo").write_bytes(b"vfio.license=GPL\0")
    assert '"' not in error_of(kernel, "vfio.limit").message  # no name to suggest


def test_what_cannot_be_known_before_it_runs_is_accepted(kernel: KernelBundle) -> None:
    """A folder may have no modules.builtin.modinfo; then only the host proves the parameter."""
    (kernel.modules / "modules.builtin.modinfo").unlink()
    assert parameters_of(kernel, "vfio") is None
    check_parameter(kernel, "vfio.anything")
