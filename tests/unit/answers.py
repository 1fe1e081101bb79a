"""Made-up answers of the map agent: maps of a BAR at 0x380000000000 whose numbers agree."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.analysis.maps.maps import EVENTS, MapPass, Place, read_pass
from orchestrator.evidence.maps import PassRecord
from orchestrator.formats.abi import LEAVES, ORDERS, PAGE
from orchestrator.formats.units import GIB

BAR_ADDRESS = 0x380000000000
ADDRESS = 0x7F0000000000
NOPAGE, FALLBACK = 0x100, 0x800
Hits = Mapping[tuple[int, ...], int]


def histogram(event: str, hits: Hits) -> str:
    """Format a histogram as tracefs does."""
    rows = "".join(f"{{ {_keys(event, keys)} }} hitcount: {n:>10}\n" for keys, n in hits.items())
    return (
        f"# event histogram\n#\n\n{rows}\nTotals:\n    Hits: {sum(hits.values())}\n"
        f"    Entries: {len(hits)}\n    Dropped: 0\n"
    )


def _keys(event: str, keys: tuple[int, ...]) -> str:
    if event == "fault":
        return ", ".join([*(f"order: {k:>10}" for k in keys[:-1]), f"ret: {keys[-1]:x}"])
    return f"{'common_pid' if event == 'iova_walk' else 'ret'}: {keys[0]:>10}"


def sample(
    state: str,
    size: int,
    leaves: Mapping[str, int],
    *,
    tables: int = 0,
    series: bool = True,
    map_ns: int = 100_000,
    unmap_ns: int = 2_000_000,
    iommu_table_pages: int | None = 0,
) -> dict[str, Any]:
    """A map and an unmap through `leaves`. `counts` are the hits of the kernel's probes."""
    pages = size // PAGE
    faults = {(ORDERS[name], NOPAGE): n for name, n in leaves.items()} if state != "warm" else {}
    lookups = {(LEAVES[name] // PAGE,): n for name, n in leaves.items()} if series else {}
    return {
        "state": state, "map_ns": map_ns, "unmap_ns": unmap_ns, "unmapped_bytes": size,
        "minor_faults": sum(faults.values()), "page_table_bytes": tables,
        "iommu_table_pages": iommu_table_pages,
        "counts": {"lookup": lookups or {(1,): pages}, "pin": {(pages,): 1}, "fault": faults,
                   "iova_walk": {(326,): pages}},
    }  # fmt: skip


def point(
    name: str,
    size: int,
    leaves: Mapping[str, int],
    *,
    skew: int = 0,
    tables: int = 0,
    states: Iterable[str] = ("cold", "warm"),
    **how: Any,
) -> dict[str, Any]:
    """A size and alignment. Its first map makes the page tables."""
    return {
        "name": name, "address": ADDRESS + skew, "bytes": size, "mapping_bytes": size,
        "vm_flags": ["rd", "wr", "sh", "pf", "io"],
        "samples": [
            sample(state, size, leaves, tables=0 if number else tables, **how)
            for number, state in enumerate(states)
        ],
    }  # fmt: skip


def answer(
    *points: dict[str, Any], counted: bool = True, huge_fault: bool = True, **changes: Any
) -> dict[str, Any]:
    """A pass of map.json. `counted`: the histograms were read after each sample, and grow.
    `huge_fault`: they include the order of the faults."""
    first = point("warm-up", GIB, {"1GiB": 1}, states=["cold"])
    whole = copy.deepcopy([first, *points])
    total: dict[str, Counter[tuple[int, ...]]] = {event: Counter() for event in EVENTS}
    for one in whole:
        for taken in one["samples"]:
            counts = taken.pop("counts")
            if not huge_fault:
                counts["fault"] = {(key[-1],): n for key, n in counts["fault"].items()}
            for event in total:
                total[event] += Counter(counts[event])
            if counted:
                taken["snapshots"] = {e: histogram(e, hits) for e, hits in total.items()}
    return {
        "device": "0000:01:00.0", "backend": "type1", "bar": 2,
        "bar_bytes": max(one["bytes"] for one in whole), "bar_address": BAR_ADDRESS,
        "thp": {"enabled": "[always] madvise never", "process_disabled": 0},
        "instrument": {"clock_ns": [150] * 15 + [9000], "empty_ioctl_ns": [1000] * 15 + [50000]},
        "points": whole, **changes,
    }  # fmt: skip


def read(answered: Mapping[str, Any]) -> MapPass:
    """Read a pass as map.json has it."""
    return read_pass(PassRecord.model_validate_json(json.dumps(answered)))


def map_pass(*points: dict[str, Any], **how: Any) -> MapPass:
    return read(answer(*points, **how))


def place_of(one: dict[str, Any], **changes: Any) -> tuple[Place, MapPass]:
    """Return one place of a counts pass, and the pass."""
    found = map_pass(one, **changes)
    return found.places[0], found


def by_1gib(size: int = 32 * GIB, **how: Any) -> dict[str, Any]:
    return point("full/1GiB", size, {"1GiB": size // GIB}, **how)


def by_2mib(size: int = 32 * GIB, **how: Any) -> dict[str, Any]:
    """A point that is skewed by 2 MiB: 132 kB of page tables for 32 GiB."""
    count = size // LEAVES["2MiB"]
    tables = PAGE * (size // GIB + 1)
    return point("full/2MiB", size, {"2MiB": count}, skew=2 << 20, tables=tables, **how)


def by_4kib(size: int = 32 * GIB, **how: Any) -> dict[str, Any]:
    """A point that is skewed by 4 KiB."""
    tables = PAGE * (size // LEAVES["2MiB"] + 1 + size // GIB + 1)
    return point("full/4KiB", size, {"4KiB": size // PAGE}, skew=PAGE, tables=tables, **how)
