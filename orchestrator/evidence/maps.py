"""map.json and host/profile.json: maps from the host's user space. guests/agents/map.py measures
them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.evidence.model import Address, Change, Count, Evidence, FileName, Size

Nanoseconds = Annotated[int, Field(gt=0, lt=1 << 63)]
"""Duration on the host's CLOCK_MONOTONIC. It is not zero, unless the clock stands still."""


class SampleRecord(Evidence):
    """One map and unmap."""

    state: Literal["cold", "warm", "prime"]
    """cold: vfio-pci has zapped the page tables before the map. warm: they are as the map before
    left them. prime: the cold map before the first warm one, if only warm was requested."""
    map_ns: Nanoseconds
    """Time around the ioctl that maps."""
    unmap_ns: Nanoseconds
    unmapped_bytes: Count
    """Bytes that the ioctl reports as unmapped."""
    minor_faults: Count
    """Minor faults of the thread in the map (getrusage)."""
    page_table_bytes: Change
    """Growth of the process's page tables in the map (VmPTE)."""
    iommu_table_pages: Change | None
    """Growth of the machine's IOMMU page tables in the map (nr_iommu_pages); null if the kernel
    does not count them."""
    snapshots: dict[str, str] | None = None
    """Event -> text of the kernel's histogram after this sample. Only the pass counts has it."""


class PointRecord(Evidence):
    """One size at one alignment."""

    name: str
    """SIZE/ALIGNMENT, as the scenario spells them; `warm-up` for the first, which is not used."""
    address: Address
    """Virtual address of the mapping."""
    size: Size = Field(alias="bytes")
    """Bytes that are mapped for DMA."""
    vm_flags: tuple[str, ...]
    """VmFlags of the mapping in /proc/self/smaps."""
    dma_buf: bool = False
    """True if iommufd maps the BAR as a dma-buf. Points of the backend type1 lack it."""
    upper_tables: Count = 0
    """Page tables of the PUD level that the mapping needs in addition."""
    samples: tuple[SampleRecord, ...]


class ThpRecord(Evidence):
    """Transparent huge pages."""

    enabled: str | None
    """/sys/kernel/mm/transparent_hugepage/enabled; null if the kernel has none."""
    process_disabled: int
    """prctl(PR_GET_THP_DISABLE): 1 if they are off in the process; -1 if that is not known."""


class InstrumentRecord(Evidence):
    """Cost of measuring."""

    clock_ns: tuple[Count, ...] = Field(min_length=1)
    """Times between two readings of the clock with nothing between them."""
    empty_ioctl_ns: tuple[Count, ...] = Field(min_length=1)
    """Times of an ioctl that does nothing, measured like a map."""


class PassRecord(Evidence):
    """What the map agent answered in one pass."""

    backend: str
    """type1 or iommufd."""
    bar_address: Address
    """Physical address of the BAR."""
    bar_bytes: Size
    """Size of the largest BAR that the agent found."""
    thp: ThpRecord
    instrument: InstrumentRecord
    points: tuple[PointRecord, ...]


class MapRecord(Evidence):
    """map.json."""

    passes: dict[str, PassRecord]
    """Answers by pass: plain, timing, counts."""


class LogRecord(Evidence):
    """An instruction log: that of a whole ioctl, or of the beginning of one."""

    operation: Literal["map", "unmap"]
    size: Size = Field(alias="bytes")
    """Bytes of the map."""
    state: str
    """cold or warm."""
    window: bool
    """True if only the beginning was logged."""
    file: FileName
    """File in host/ with the folded stacks: `FUNCTION;FUNCTION COUNT`."""
    calls: dict[str, Count]
    """Function -> number of calls in the log."""
    instructions: Count
    """Instructions of all stacks."""


class LogsRecord(Evidence):
    """host/profile.json: what the pass profile logged."""

    bar: Size
    logged: tuple[LogRecord, ...]
