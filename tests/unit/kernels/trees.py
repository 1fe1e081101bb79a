"""Small trees that look like a kernel's source from outside, with what kbuild makes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.kernels.module.change import Files
from orchestrator.kernels.module.kbuild import Objects, room_of

MAKEFILES = {
    "drivers/Makefile": (
        "obj-$(CONFIG_VFIO) += vfio/\nobj-y += iommu/\nobj-$(CONFIG_OFF) += off/\n"
    ),
    "drivers/vfio/Makefile": (
        "obj-$(CONFIG_VFIO) += vfio.o\n"
        "vfio-y += vfio_main.o\n"
        "vfio-$(CONFIG_VFIO_GROUP) += group.o\n"
        "vfio-$(CONFIG_IOMMUFD) += iommufd.o\n"
        "obj-$(CONFIG_VFIO_IOMMU_TYPE1) += vfio_iommu_type1.o\n"
        "obj-$(CONFIG_VFIO_PCI_CORE) += pci/\n"
        "obj-y += never.o\n"
    ),
    "drivers/vfio/pci/Makefile": (
        "vfio-pci-core-objs := core.o ../shared.o\n"
        "vfio-pci-core-$(CONFIG_ZDEV) += zdev.o\n"
        "obj-$(CONFIG_VFIO_PCI_CORE) += vfio-pci-core.o\n"
    ),
    "drivers/iommu/Makefile": (
        "obj-$(CONFIG_IOMMU_API) += iommu.o\nobj-y += always.o\n"
        "obj-$(CONFIG_SVA) += sva-all.o\nsva-all-y := sva.o\n"
    ),
    "drivers/off/Makefile": "obj-m += lost.o\n",
    "virt/kvm/Makefile.kvm": "kvm-y := ../../../virt/kvm/kvm_main.o\n",
    "arch/x86/Kbuild": "obj-$(subst m,y,$(CONFIG_KVM)) += kvm/\n",
    "arch/x86/kvm/Makefile": (
        "include $(srctree)/virt/kvm/Makefile.kvm\nkvm-y += x86.o\nobj-$(CONFIG_KVM) += kvm.o\n"
    ),
    "arch/arm64/kvm/Makefile": (
        "include $(srctree)/virt/kvm/Makefile.kvm\nobj-$(CONFIG_KVM) += kvm.o\n"
    ),
}
SOURCES = {
    "drivers/vfio/vfio.h": "",
    "drivers/vfio/only.h": "",
    "drivers/vfio/vfio_main.c": '#include <linux/vfio.h>\n#include "vfio.h"\n',
    "drivers/vfio/group.c": '# include "vfio.h"\n',
    "drivers/vfio/iommufd.c": '#include "only.h"\n',
    "drivers/vfio/vfio_iommu_type1.c": '#include "vfio.h"\n',
    "drivers/vfio/shared.c": "",
    "drivers/vfio/never.c": "",
    "drivers/vfio/pci/core.c": '#include "core.h"\n',
    "drivers/vfio/pci/core.h": '#include "../deep.h"\n',
    "drivers/vfio/deep.h": "",
    "drivers/vfio/pci/zdev.c": "",
    "drivers/iommu/iommu.c": '#include "iommu-priv.h"\n',
    "drivers/iommu/iommu-priv.h": "",
    "drivers/iommu/always.c": "",
    "drivers/iommu/sva.c": "",
    "drivers/off/lost.c": "",
    "include/linux/vfio.h": "",
    "arch/x86/include/asm/io.h": "",
    "arch/x86/kvm/x86.c": "",
    "arch/arm64/kvm/mmu.c": "",
    "virt/kvm/kvm_main.c": "",
    "Documentation/driver-api/vfio.rst": "",
    "MAINTAINERS": "",
}
CONFIGURATION = {
    "CONFIG_VFIO": "m",
    "CONFIG_VFIO_GROUP": "y",
    "CONFIG_VFIO_IOMMU_TYPE1": "m",
    "CONFIG_VFIO_PCI_CORE": "m",
    "CONFIG_IOMMU_API": "y",
    "CONFIG_SVA": "y",
    "CONFIG_KVM": "m",
}


MODULES = {
    "drivers/vfio/vfio": ("drivers/vfio/vfio_main.o", "drivers/vfio/group.o"),
    "drivers/vfio/vfio_iommu_type1": ("drivers/vfio/vfio_iommu_type1.o",),
    "drivers/vfio/pci/vfio-pci-core": ("drivers/vfio/pci/core.o", "drivers/vfio/shared.o"),
    "arch/x86/kvm/kvm": ("arch/x86/kvm/x86.o", "virt/kvm/kvm_main.o"),
}
BUILT_IN = ("drivers/iommu/iommu.o", "drivers/iommu/always.o", "drivers/iommu/sva.o")


@dataclass
class Tree:
    """A tree with the interfaces of change.Source and change.Kbuild."""

    folder: Path
    files: Mapping[str, str]
    release: str = "7.0.0-test"
    version: str = "7.0.0-1"
    name: str = "linux-source-7.0"
    hidden: Collection[str] = ()
    """Objects that kbuild does not tell of."""
    failures: tuple[str, ...] = ()

    @property
    def names(self) -> Collection[str]:
        return frozenset(self.files)

    @property
    def configuration(self) -> Mapping[str, str]:
        return CONFIGURATION

    def tree(self, parts: Collection[str]) -> Path:
        return self.folder

    def objects(self, rooms: Collection[str]) -> Objects:
        modules = {
            module: frozenset(objects).difference(self.hidden)
            for module, objects in MODULES.items()
            if room_of(module) in rooms
        }
        return Objects(
            rooms=frozenset({*rooms, *(room_of(o) for made in modules.values() for o in made)}),
            modules=modules,
            built_in=frozenset(o for o in BUILT_IN if room_of(o) in rooms).difference(self.hidden),
            failures=self.failures,
        )

    def differing(
        self, rooms: Collection[str], objects: Collection[str], files: Files
    ) -> Mapping[str, str]:
        """A comment changes no object, anything else every one."""
        assert {room_of(path) for path in (*objects, *files)} <= set(rooms)
        same = all((text or b"").startswith(b"//") for text in files.values())
        return {} if same else dict.fromkeys(objects, ".text")


def tree_in(folder: Path, more: Mapping[str, str] | None = None) -> Tree:
    files = {**MAKEFILES, **SOURCES, **(more or {})}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Tree(folder, files)
