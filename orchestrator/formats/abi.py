"""Numbers of the kernel's and the processor's interfaces that collecting and judging share."""

from __future__ import annotations

import re

PAGE = 4096
"""Bytes of the base page of x86-64."""
LEAVES = {"4KiB": PAGE, "2MiB": 2 << 20, "1GiB": 1 << 30}
"""Bytes that one leaf of x86-64's page tables maps: PTE, PMD, PUD."""
ORDERS = {"4KiB": 0, "2MiB": 9, "1GiB": 18}
"""The fault order of each leaf: PMD_ORDER, PUD_ORDER (include/linux/pgtable.h)."""

MAP_DMA, UNMAP_DMA = 0x3B71, 0x3B72
"""VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA (include/uapi/linux/vfio.h)."""
IORESOURCE_MEM, IORESOURCE_PREFETCH, IORESOURCE_MEM_64 = 0x200, 0x2000, 0x100000
"""Flags for the kind of a BAR (include/linux/ioport.h)."""
IORESOURCE_UNSET = 0x20000000
"""Flag of a BAR that has a size but no address (include/linux/ioport.h)."""
VM_FAULT_NOPAGE = 0x100
"""Result of a fault that installed a mapping (include/linux/mm_types.h)."""

TAINTS = "PFSRMBUDAWCIOELKXTNJ"
"""Letters of the bits of /proc/sys/kernel/tainted
(Documentation/admin-guide/tainted-kernels.rst)."""
MACHINE_TAINTS = frozenset("SMUAI")
"""Taints raised by the machine (out of specification, machine check, firmware) or by its user."""
OVMF_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
OVMF_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
"""Debian's UEFI firmware for guests: its code, and the initial content of its variables."""


def parse_selected(text: str) -> str:
    """Return the selected value of a file under /sys: `always [madvise] never` is madvise."""
    selected = re.search(r"\[(.+?)\]", text)
    return selected[1] if selected else text
