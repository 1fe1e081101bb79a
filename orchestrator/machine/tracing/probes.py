"""Kernel probes on the host, in a tracefs instance of their own.

These functions are probed: `vfio_pin_pages_remote` is called once for a BAR on every kernel and
returns the same page count, so kernels differ only in its duration and in what it calls.
`vaddr_get_pfns` is the lookup. Before "vfio/type1: Use mapping page mask for pfnmaps" (v6.15) each
call covers one base page; since then it covers the rest of the mapping's leaf. The exported
`vfio_pin_pages` is the mediated-device path and never sees a BAR. There is no static tracepoint in
vfio.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from orchestrator.base.errors import BarometerError
from orchestrator.evidence.layout import TrialWriter
from orchestrator.formats.abi import MAP_DMA, PAGE, UNMAP_DMA
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing.armer import (
    TRACEFS,
    ArmedProbes,
    ProbeSpec,
    armed_probes,
    find_functions,
)

_INSTANCE, _TIMING = "barometer", "barotime"
_FOLDER = f"{TRACEFS}/instances/{_INSTANCE}"
MARKER = f"{_FOLDER}/trace_marker"
"""What is written to this file becomes a record of the trace, with a time of the trace clock."""
UNTIL_KERNEL = tuple(
    f"{_FOLDER}/events/{_TIMING}/{event}/enable" for event in ("fault_in", "fault_out", "leaf")
)
"""Switches of the probes that fire for each leaf of a mapping. On a patched kernel these probes
would double the cost of a map, so they are switched off when the guest's kernel starts. By then
the faults of the firmware's first maps are recorded."""
_TYPE1, _PCI = "vfio_iommu_type1", "vfio_pci_core"
FAULT, FAULT_BEFORE = "vfio_pci_mmap_huge_fault", "vfio_pci_mmap_fault"
"""Fault handler of a BAR since v6.12, which has huge pfnmaps, and the handler before v6.12."""
_ZAP = "vfio_pci_zap_and_down_write_memory_lock"


def timing_spec(
    bars: Sequence[int],
    clock: str = "mono",
    *,
    boot: bool = False,
    kvm: bool = False,
    faults: bool = False,
    emulator: str = "*qemu-system*",
    instance: str = _INSTANCE,
    group: str = _TIMING,
) -> ProbeSpec:
    """Return a specification of probes that make a few records for each map and unmap of BARs of
    the sizes `bars` (bytes), and no record for each page.

    `clock`: mono; x86-tsc on an exact host, where it counts instructions (1 GHz).
    `boot`: record a guest boot, too: the exec of its QEMU and, under `kvm`, the line feeds that
    the guest sends to its serial port (0x3f8: the console, stamped when the guest writes it) and
    its writes to two model-specific registers: EFER (long mode: its kernel's entry) and KVM's
    clock.
    `emulator`: glob of the QEMU that is executed then.
    `faults`: record the page faults of a map, and the fault handler's attempts at 1 GiB (order
    18), as long as the watch agent leaves the probes armed (UNTIL_KERNEL). They fire for each
    leaf.

    Offsets: struct vfio_dma has iova at 24 and size at 40; MAP's user structure has vaddr at 8,
    iova at 16, size at 24; UNMAP's has iova at 8, size at 16 (bytes really unmapped on return);
    struct vm_fault has the address at 24.
    """
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
        f"p:{group}/zap_in {_PCI}:{_ZAP}",
        f"r:{group}/zap_out {_PCI}:{_ZAP}",
    ]
    symbols = [
        "vfio_iommu_type1_ioctl", "vfio_pin_pages_remote", "iommu_map", "vfio_unmap_unpin",
        "iommu_unmap_fast", "vfio_unpin_pages_remote", _ZAP,
    ]  # fmt: skip
    filters = dict.fromkeys(
        (f"{group}/ioctl_in", f"{group}/ioctl_out"),
        f"cmd == {MAP_DMA:#x} || cmd == {UNMAP_DMA:#x}",
    )
    # Filter by the exact sizes of the BARs, because RAM makes a run for each of its fragments.
    for event in ("pin_in", "pin_out", "unpin_in", "unpin_out"):
        filters[f"{group}/{event}"] = " || ".join(f"npage == {bar // PAGE}" for bar in bars)
    of_size = " || ".join(f"size == {bar:#x}" for bar in bars)
    for event in ("imap_in", "imap_out", "iun_in", "iun_out"):
        filters[f"{group}/{event}"] = of_size
    # the kernel's own tracepoints, to check the probes independently of kprobes
    static = {f"iommu/{event}": of_size for event in ("map", "unmap")}
    if boot:
        static["sched/sched_process_exec"] = f'filename ~ "{emulator}"'
        if kvm:
            static["kvm/kvm_pio"] = "port == 0x3f8 && val == 10"
            static["kvm/kvm_msr"] = "write == 1 && (ecx == 0xc0000080 || ecx == 0x4b564d01)"
    if faults:
        definitions += [
            f"p:{group}/fault_in fixup_user_fault address=$arg2:x64",
            f"r:{group}/fault_out fixup_user_fault address=$arg2:x64 ret=$retval:s32",
            f"r:{group}/leaf {_PCI}:{FAULT} order=$arg2:u32 addr=+24($arg1):x64 ret=$retval:x32",
        ]
        filters[f"{group}/leaf"] = "order == 18"
        symbols += ["fixup_user_fault", FAULT]
    probed = [f"{group}/{line.split()[0].split('/')[1]}" for line in definitions]
    return ProbeSpec(
        instance=instance,
        group=group,
        clock=clock,
        buffer_kb=8192,
        symbols=tuple(symbols),
        definitions=tuple(definitions),
        filters=filters | static,
        enable=(*probed, *static),
    )


def counts_spec(
    present: Sequence[str], *, instance: str = _INSTANCE, group: str = "barocount"
) -> ProbeSpec:
    """Return a specification of in-kernel histograms that count what a map and an unmap do. They
    have no durations. `present` lists the fault handlers that this kernel has.

    lookup     vaddr_get_pfns, by its return value: the base pages that one lookup covered
    pin        vfio_pin_pages_remote, by its return value
    fault      page faults of the BAR, by order and result
    iova_walk  iommu_iova_to_phys: walks of the IOMMU's page tables, on unmap
    """
    huge = FAULT in present or FAULT_BEFORE not in present
    fault = FAULT if huge else FAULT_BEFORE
    definitions = [
        f"r:{group}/lookup {_TYPE1}:vaddr_get_pfns ret=$retval:s32",
        f"r:{group}/pin {_TYPE1}:vfio_pin_pages_remote ret=$retval:s64",
        f"r:{group}/fault {_PCI}:{fault} " + "order=$arg2:u32 " * huge + "ret=$retval:x32",
        f"p:{group}/iova_walk iommu_iova_to_phys",
    ]
    return ProbeSpec(
        instance=instance, group=group, clock="mono", buffer_kb=64,
        symbols=("vaddr_get_pfns", fault, "iommu_iova_to_phys", "vfio_pin_pages_remote"),
        definitions=tuple(definitions), filters={},
        triggers={
            f"{group}/lookup": "hist:keys=ret",
            f"{group}/pin": "hist:keys=ret",
            f"{group}/fault": "hist:keys=order,ret.hex" if huge else "hist:keys=ret.hex",
            f"{group}/iova_walk": "hist:keys=common_pid",
        },
    )  # fmt: skip


@contextmanager
def armed_tracer(
    host: Host,
    kind: Literal["timing", "counts"],
    label: str,
    bar: int,
    trial: TrialWriter,
    *,
    boot: bool = False,
    faults: bool = False,
) -> Iterator[dict[str, str]]:
    """Keep probes armed while the block runs; then save their evidence as host/*-LABEL.txt
    (hist-*.txt for histograms, trace-LABEL.txt.gz), and undo everything. Yield, by event, the
    files on the host in which the block can read the histograms. `boot` and `faults` are those of
    `timing_spec`.

    Raises BenchError with the kernel's own reason if the kernel refuses a probe. An error is
    better than a silent zero.
    """
    if kind == "timing":
        clock = "x86-tsc" if host.accel == "exact" else "mono"
        spec = timing_spec([bar], clock, boot=boot, kvm=host.kvm, faults=faults)
    else:
        spec = counts_spec(find_functions(host.shell, (FAULT, FAULT_BEFORE)))
    host.change.tracing(spec.instance, spec.group)
    with armed_probes(host.shell, spec) as armed:
        try:
            yield {event.split("/")[1]: spec.histogram(event) for event in spec.triggers}
        except BarometerError:
            # The trace until now may show the cause. A second error must not hide the first.
            with contextlib.suppress(BarometerError, OSError):
                _save(armed, label, trial)
            raise
        _save(armed, label, trial)


def _save(armed: ArmedProbes, label: str, trial: TrialWriter) -> None:
    for name, text in armed.files().items():
        content = text.encode(errors="replace")
        stem = name.removesuffix(".txt")
        if stem == "trace":  # mostly the same words again and again
            packed = gzip.compress(content, mtime=0)
            (trial.host / f"trace-{label}.txt.gz").write_bytes(packed)
        elif stem.startswith("hist-"):
            (trial.host / name).write_bytes(content)
        else:
            (trial.host / f"{stem}-{label}.txt").write_bytes(content)
