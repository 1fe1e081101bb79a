"""A kernel that is ready to boot."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.kernel import Provenance
from orchestrator.kernels.image.ko import SUFFIX

# Offsets of the x86 boot protocol (Documentation/arch/x86/boot.rst): the magic "HdrS", and the
# pointer to the version string, relative to 0x200.
_HDRS, _VERSION_POINTER = 0x202, 0x20E


@dataclass(frozen=True)
class KernelBundle:
    """vmlinuz, modules and config of one kernel, as a folder of the cache."""

    release: str
    """Kernel release, as `uname -r` will print it."""
    vmlinuz: Path
    modules: Path
    """The folder lib/modules/RELEASE."""
    config: Path | None
    digest: str
    """Identifies the content."""
    provenance: Provenance = field(default_factory=Provenance)
    swapped: dict[str, str] = field(default_factory=dict)
    """Rebuilt modules of the kernel: name -> the srcversion that /sys/module/NAME/srcversion must
    show on the host."""
    index: str = ""
    """Digest of another kernel whose modules have the same index; empty if there is none."""

    @cached_property
    def _built_in(self) -> set[str]:
        return {_name(line) for line in _lines(self.modules / "modules.builtin")}

    @cached_property
    def _dependencies(self) -> dict[str, list[str]]:
        """Path of each module -> paths of what it needs, nearest first (modules.dep(5))."""
        table = {}
        for line in _lines(self.modules / "modules.dep"):
            path, _, needs = line.partition(":")
            table[path] = needs.split()
        return table

    @cached_property
    def _paths(self) -> dict[str, str]:
        return {_name(path): path for path in self._dependencies}

    def has_module(self, name: str) -> bool:
        """True if `modprobe name` will work: the kernel has the module as a file or built in."""
        return _name(name) in self._built_in or _name(name) in self._paths

    def is_built_in(self, name: str) -> bool:
        return _name(name) in self._built_in

    def module_file(self, name: str) -> Path | None:
        """Return the module's file, or None if it is built in or the kernel does not have it."""
        path = self._paths.get(_name(name))
        return self.modules / path if path is not None else None

    def module_names(self) -> set[str]:
        """Return the names of all modules, built in or not, with `_` for `-`."""
        return self._built_in | {*self._paths}

    def module_closure(self, names: list[str]) -> list[str]:
        """Return paths (relative to `modules`) of the modules and all they need, in load order.

        Modules that are built in are left out. Raises ScenarioError if the kernel lacks one.
        """
        order: dict[str, None] = {}
        for name in names:
            if _name(name) in self._built_in:
                continue
            if _name(name) not in self._paths:
                raise ScenarioError(
                    f"the kernel {self.release} has no module {name}, and it is not built in",
                    hint="a host kernel needs vfio-pci, vfio_iommu_type1 and KVM for its CPU; that"
                    " of a nested host also virtio_blk, virtio_net, ext4 and overlay",
                    reason=Reason.KERNEL_LACKS_MODULE,
                )
            path = self._paths[_name(name)]
            for needed in [*reversed(self._dependencies[path]), path]:
                order.setdefault(needed)
        return list(order)


def release_in(vmlinuz: Path) -> str:
    """Read the release from the header of a bzImage. Raises ScenarioError if it is not one."""
    with vmlinuz.open("rb") as file:
        head = file.read(0x10000)
    if head[_HDRS : _HDRS + 4] != b"HdrS" or len(head) < _VERSION_POINTER + 2:
        raise ScenarioError(
            f"{vmlinuz} is not an x86 bzImage: no HdrS at 0x202",
            hint="arch/x86/boot/bzImage of a build, or /boot/vmlinuz-* of a package",
            reason=Reason.NOT_A_KERNEL,
        )
    start = struct.unpack_from("<H", head, _VERSION_POINTER)[0] + 0x200
    match = re.match(rb"[\x21-\x7e]+", head[start : start + 128])
    if match is None:
        raise ScenarioError(f"{vmlinuz} has no version string", reason=Reason.NOT_A_KERNEL)
    return match[0].decode("ascii")


def _name(module: str) -> str:
    """Return a module's name: `vfio_pci` for `kernel/drivers/vfio/vfio-pci.ko.xz` and
    `vfio-pci`."""
    return SUFFIX.sub("", module.rsplit("/", 1)[-1]).replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
