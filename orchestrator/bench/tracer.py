"""Kernel probes on the host, in a tracefs instance of their own.

Which functions and why: `vfio_pin_pages_remote` is called once for a BAR on every kernel and
returns the same page count, so only its duration and what happens inside tell kernels apart.
`vaddr_get_pfns` is the lookup: one base page a call before "vfio/type1: Use mapping page mask
for pfnmaps" (v6.15), up to the end of the mapping's leaf since. The exported `vfio_pin_pages` is
the mediated-device path and never sees a BAR. There is no static tracepoint in vfio.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from orchestrator.bench.host import Host
from orchestrator.errors import BarometerError, BenchError
from orchestrator.evidence import TrialWriter
from orchestrator.scenario import GIB

_INSTANCE = "barometer"
_TYPE1, _PCI = "vfio_iommu_type1", "vfio_pci_core"
_PAGE = 4096
MAP_DMA, UNMAP_DMA = 0x3B71, 0x3B72
"""VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA of include/uapi/linux/vfio.h."""


def timing_spec(bar: int) -> dict[str, Any]:
    """A few records for each map and unmap of a BAR of `bar` bytes, none for each page.

    Offsets: struct vfio_dma has iova at 24 and size at 40; MAP's user structure has vaddr at 8,
    iova at 16, size at 24; UNMAP's has iova at 8, size at 16 (bytes really unmapped on return).
    """
    group = "barotime"
    least = min(bar, GIB)
    definitions = [
        f"p:{group}/ioctl_in {_TYPE1}:vfio_iommu_type1_ioctl cmd=$arg2:x32 q8=+u8($arg3):x64 "
        "q16=+u16($arg3):x64 q24=+u24($arg3):x64",
        f"r:{group}/ioctl_out {_TYPE1}:vfio_iommu_type1_ioctl cmd=$arg2:x32 q8=+u8($arg3):x64 "
        "q16=+u16($arg3):x64 ret=$retval:s64",
        f"p:{group}/pin_in {_TYPE1}:vfio_pin_pages_remote vaddr=$arg2:x64 npage=$arg3:s64",
        f"r:{group}/pin_out {_TYPE1}:vfio_pin_pages_remote npage=$arg3:s64 ret=$retval:s64",
        f"p:{group}/imap_in iommu_map iova=$arg2:x64 paddr=$arg3:x64 size=$arg4:x64",
        f"r:{group}/imap_out iommu_map iova=$arg2:x64 size=$arg4:x64 ret=$retval:s32",
        f"p:{group}/unmap_in {_TYPE1}:vfio_unmap_unpin iova=+24($arg2):x64 size=+40($arg2):x64",
        f"r:{group}/unmap_out {_TYPE1}:vfio_unmap_unpin ret=$retval:s64",
        f"p:{group}/iun_in iommu_unmap_fast iova=$arg2:x64 size=$arg3:x64",
        f"r:{group}/iun_out iommu_unmap_fast iova=$arg2:x64 size=$arg3:x64 ret=$retval:x64",
        f"p:{group}/unpin_in {_TYPE1}:vfio_unpin_pages_remote iova=$arg2:x64 npage=$arg4:s64",
        f"r:{group}/unpin_out {_TYPE1}:vfio_unpin_pages_remote iova=$arg2:x64 npage=$arg4:s64 "
        "ret=$retval:s64",
        f"p:{group}/zap {_PCI}:vfio_pci_zap_and_down_write_memory_lock",
    ]
    filters = dict.fromkeys(
        (f"{group}/ioctl_in", f"{group}/ioctl_out"),
        f"cmd == {MAP_DMA:#x} || cmd == {UNMAP_DMA:#x}",
    )
    for event in ("pin_in", "pin_out", "unpin_in", "unpin_out"):
        filters[f"{group}/{event}"] = f"npage >= {least // _PAGE}"
    for event in ("imap_in", "imap_out", "iun_in", "iun_out", "unmap_in"):
        filters[f"{group}/{event}"] = f"size >= {least:#x}"
    # the kernel's own tracepoints, as a check that owes nothing to kprobes
    static = {f"iommu/{event}": f"size >= {least:#x}" for event in ("map", "unmap")}
    return {
        "instance": _INSTANCE, "group": group, "clock": "mono", "buffer_kb": 8192,
        "symbols": [
            "vfio_iommu_type1_ioctl", "vfio_pin_pages_remote", "iommu_map", "vfio_unmap_unpin",
            "iommu_unmap_fast", "vfio_unpin_pages_remote",
            "vfio_pci_zap_and_down_write_memory_lock",
        ],
        "definitions": definitions, "filters": filters | static, "triggers": {},
        "enable": [f"{group}/{line.split()[0].split('/')[1]}" for line in definitions]
        + list(static),
    }  # fmt: skip


def counts_spec() -> dict[str, Any]:
    """In-kernel histograms of the page lookups, faults and unmap walks; no durations.

    The return value of `vaddr_get_pfns` is the number of base pages one lookup covered.
    """
    group = "barocount"
    definitions = [
        f"r:{group}/lookup {_TYPE1}:vaddr_get_pfns ret=$retval:s32",
        f"r:{group}/fault {_PCI}:vfio_pci_mmap_huge_fault order=$arg2:u32 ret=$retval:x32",
        f"p:{group}/walk iommu_iova_to_phys",
        f"r:{group}/pin {_TYPE1}:vfio_pin_pages_remote ret=$retval:s64",
    ]
    return {
        "instance": _INSTANCE, "group": group, "clock": "mono", "buffer_kb": 64,
        "symbols": ["vaddr_get_pfns", "vfio_pci_mmap_huge_fault", "iommu_iova_to_phys",
                    "vfio_pin_pages_remote"],
        "definitions": definitions, "filters": {},
        "triggers": {
            f"{group}/lookup": "hist:keys=ret",
            f"{group}/fault": "hist:keys=order,ret.hex",
            f"{group}/walk": "hist:keys=common_pid",
            f"{group}/pin": "hist:keys=ret",
        },
        "enable": [],
    }  # fmt: skip


@contextmanager
def armed_tracer(
    host: Host, kind: Literal["timing", "counts"], label: str, bar: int, trial: TrialWriter
) -> Iterator[None]:
    """Probes armed while the block runs; then their evidence is saved as host/*-LABEL.txt
    (hist-*.txt for histograms), and everything is undone.

    Raises BenchError with the kernel's own reason when it refuses a probe: rather no figure
    than a silent zero.
    """
    spec = timing_spec(bar) if kind == "timing" else counts_spec()
    instance, group = spec["instance"], spec["group"]
    answer = host.shell.run(
        host.agent("tracer", "arm"), stdin=json.dumps(spec).encode(), doing="arming the tracer"
    ).stdout
    if not json.loads(answer)["armed"]:
        _clear(host, instance, group)
        raise BenchError(
            f"the {kind} pass cannot be armed on {host.release}",
            evidence=json.loads(answer)["why"], reason="tracer-refused",
            hint="the probes need arguments in return probes (Linux v6.9) and, for counts,"
            " vfio_pci_mmap_huge_fault (v6.12); a function that the compiler copied under another"
            " name (.constprop, .isra) cannot be traced",
        )  # fmt: skip
    try:
        yield
    except BarometerError:
        # what was traced until then may say why
        with contextlib.suppress(BarometerError):
            _collect(host, instance, group, label, trial)
        raise
    else:
        _collect(host, instance, group, label, trial)
    finally:
        _clear(host, instance, group)


def _collect(host: Host, instance: str, group: str, label: str, trial: TrialWriter) -> None:
    answer = host.shell.run(
        host.agent("tracer", "collect", instance, group), doing="reading the trace", timeout=300
    ).stdout
    for name, text in json.loads(answer)["files"].items():
        stem = name.removesuffix(".txt")
        file = name if stem.startswith("hist-") else f"{stem}-{label}.txt"
        (trial.host / file).write_text(text)


def _clear(host: Host, instance: str, group: str) -> None:
    host.undo(host.agent("tracer", "clear", instance, group))
