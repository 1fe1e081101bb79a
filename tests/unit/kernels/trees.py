"""Small trees that look like a kernel's source from outside, and make as the build root runs
it."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.kernels.buildroot import KERNEL_FILES
from orchestrator.kernels.kbuild import Said, parsed

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


@dataclass
class Tree:
    """A tree with the interface of change.Source."""

    folder: Path
    files: Mapping[str, str]
    release: str = "7.0.0-test"
    version: str = "7.0.0-1"
    name: str = "linux-source-7.0"

    @property
    def names(self) -> Collection[str]:
        return frozenset(self.files)

    @property
    def configuration(self) -> Mapping[str, str]:
        return CONFIGURATION

    def tree(self, parts: Collection[str]) -> Path:
        return self.folder

    def evaluate(self, names: Sequence[str] | None, folders: Sequence[str]) -> Said:
        """Evaluate as orchestrator.kernels.module does in the build root."""
        conf = self.folder / "auto.conf"
        conf.write_text("".join(f"{name}={value}\n" for name, value in CONFIGURATION.items()))
        variables = f"conf={conf}" if names is None else f"names={' '.join(names)}"
        text = ""
        for folder in folders:
            done = subprocess.run(
                ["make", "-rRs", "--no-print-directory", "-f", str(KERNEL_FILES / "objects.mk"),
                 f"dir={folder}", variables],
                cwd=self.folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            text += f"folder {folder}\n{done.stdout}"
        return parsed(text)


def tree_in(folder: Path, more: Mapping[str, str] | None = None) -> Tree:
    files = {**MAKEFILES, **SOURCES, **(more or {})}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Tree(folder, files)
