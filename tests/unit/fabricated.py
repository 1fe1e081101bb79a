"""A made-up trial of the map workload on an exact host: a 4 GiB BAR at three sizes and three
alignments. All numbers of its evidence agree."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.analysis.maps.maps import EVENTS
from orchestrator.analysis.maps.theory import Mapping
from orchestrator.evidence.layout import TrialDir
from orchestrator.formats.abi import LEAVES, PAGE
from orchestrator.formats.units import GIB
from orchestrator.scenario.model import Scenario
from tests.unit.answers import ADDRESS, BAR_ADDRESS, answer, point
from tests.unit.manifests import HOST, WHOLE
from tests.unit.recorded import sealed
from tests.unit.scenarios import map_scenario

BAR = 4 * GIB
PAGES = BAR // PAGE
PASSES = ("plain", "timing", "counts", "profile")
SIZES = {"1GiB": GIB, "2GiB": 2 * GIB, "full": BAR}
SERIES_SIZES = {"512MiB": GIB // 2, **SIZES}
"""Sizes that a scaling law can be fitted to."""
IOCTL = "vfio_iommu_type1_ioctl"
WALK = "iommu_iova_to_phys"
EMPTY_NS = 1000
MAP_OWN, UNMAP_OWN = 5000, 1000
"""Instructions of the ioctl itself. Together with those of its callees they are the plain pass's
measurement."""


def scenario_of_it(*overrides: str) -> Scenario:
    return map_scenario(
        "device.bar=4GiB", 'map.sizes=["1GiB", "2GiB", "full"]',
        'map.alignment=["1GiB", "2MiB", "4KiB"]',
        'trace.passes=["plain", "timing", "counts", "profile"]', *overrides,
    )  # fmt: skip


def place(name: str, *, series: bool, probes: int = 0) -> dict[str, Any]:
    """Make the place SIZE/ALIGNMENT, with costs of the size measured in a lab. `probes` is what
    probes add."""
    spelled, _, alignment = name.partition("/")
    size, skew = SERIES_SIZES[spelled], 0 if alignment == "1GiB" else LEAVES[alignment]
    mapping = Mapping(ADDRESS + skew, BAR_ADDRESS, size)
    leaves = mapping.leaves()
    made = point(name, size, leaves, skew=skew, tables=mapping.table_bytes(), series=series)
    count = sum(leaves.values())
    lookups = count if series else size // PAGE
    for taken in made["samples"]:
        faults = count if taken["state"] == "cold" else 0
        taken["map_ns"] = EMPTY_NS + MAP_OWN + 1200 * lookups + 2000 * faults + probes
        taken["unmap_ns"] = EMPTY_NS + UNMAP_OWN + (200 if series else 150) * size // PAGE + probes
    return made


def map_trial(
    folder: Path,
    arm: str = "candidate",
    *,
    series: bool = True,
    passes: tuple[str, ...] = PASSES,
    sizes: Iterable[str] = tuple(SIZES),
    number: int = 2,
    **facts: Any,
) -> Path:
    """Write the evidence of a trial. It is not sealed yet."""
    trial = folder / f"{number:04d}-{arm}"
    host = trial / "host"
    host.mkdir(parents=True)
    names = [f"{size}/{alignment}" for alignment in reversed(LEAVES) for size in sizes]
    answers = {}
    if "plain" in passes:
        places = [place(name, series=series) for name in names]
        answers["plain"] = answer(*places, counted=False)
    if "timing" in passes:
        best = place("full/1GiB", series=series, probes=11_000)
        answers["timing"] = answer(best, counted=False)
        _tracer(host, "map", "x86-tsc", {"ioctl_in": 4, "ioctl_out": 4})
        (host / "trace-map.txt").write_text(trace([s["state"] for s in best["samples"]]))
    if "counts" in passes:
        places = [place(name, series=series, probes=800_000) for name in names]
        answers["counts"] = counted = answer(*places)
        hists = counted["points"][-1]["samples"][-1]["snapshots"]
        hits = {e: int(hists[e].split("Hits: ")[1].split()[0]) for e in EVENTS}
        for event in EVENTS:
            (host / f"hist-{event}.txt").write_text(hists[event])
        _tracer(host, "counts", "mono", hits)
    (trial / "map.json").write_text(json.dumps({"passes": answers}))
    if "profile" in passes:
        _profile(host, series=series)
    settings = {"transparent_hugepage": "[always] madvise never", "vfio_disable_hugepages": "N",
                "cmdline": "intel_iommu=on"}  # fmt: skip
    (host / "facts.json").write_text(json.dumps(HOST | {"settings": settings}))
    release = "7.3.4" if series else "6.12.107"
    manifest = {
        **WHOLE, "trial": trial.name, "arm": arm, "accel": "exact", "release": release,
        "kernel": {"release": release, "source": f"dir:{release}", "digest": release},
        "bar": BAR, "passes": list(passes), "host_boot_seconds": 60.0, **facts,
    }  # fmt: skip
    (trial / "manifest.json").write_text(json.dumps(manifest))
    return trial


def sealed_map_trial(folder: Path, arm: str = "candidate", **how: Any) -> TrialDir:
    return sealed(map_trial(folder, arm, **how))


def _tracer(host: Path, label: str, clock: str, hits: dict[str, int]) -> None:
    (host / f"clock-{label}.txt").write_text(f"local [{clock}] global\n")
    (host / f"stats-{label}.txt").write_text("cpu0\noverrun: 0\ndropped events: 0\n")
    rows = "".join(f"  {event}    {n}    0\n" for event, n in hits.items())
    (host / f"profile-{label}.txt").write_text(rows)


def trace(states: list[str]) -> str:
    """Make a trace of a warm-up, and of one map and unmap for each state. A map takes 16 us, of
    which pinning takes 10 us and iommu_map 2 us; an unmap takes 500 us, of which walking takes 400
    us."""
    lines = ["# tracer: nop"]
    at = 300_000_000_000

    def event(after: int, name: str, rest: str) -> None:
        nonlocal at
        at += after
        lines.append(f"  python3-326   [000] .....  {at}: {name}: (f+0x4/0x40) {rest}")

    for _ in ["warm-up", *states]:
        wanted = f"q16={1 << 36:#x} q24={BAR:#x}"
        event(1_000_000, "ioctl_in", f"cmd=0x3b71 q8=0x7f0000000000 {wanted}")
        event(1000, "pin_in", f"vaddr=0x7f0000000000 npage={PAGES}")
        event(10_000, "pin_out", f"npage={PAGES} ret={PAGES}")
        event(1000, "imap_in", f"size={BAR:#x}")
        event(2000, "imap_out", f"size={BAR:#x} ret=0")
        event(2000, "ioctl_out", f"cmd=0x3b71 {wanted} ret=0")
        unmapped = f"q8={1 << 36:#x} q16={BAR:#x}"
        event(1_000_000, "ioctl_in", f"cmd=0x3b72 {unmapped} q24=0x0")
        event(1000, "unmap_in", f"iova={1 << 36:#x} size={BAR:#x}")
        event(400_000, "iun_in", f"size={BAR:#x}")
        event(1000, "iun_out", f"size={BAR:#x} ret={BAR:#x}")
        event(97_000, "unmap_out", "ret=0")
        event(1000, "ioctl_out", f"cmd=0x3b72 {unmapped} ret=0")
    return "\n".join(lines) + "\n"


def _profile(host: Path, *, series: bool) -> None:
    """Write the profile: a short map as a whole, and an unmap from two small ones and a window."""
    logged: list[dict[str, Any]] = []

    def log(operation: str, size: int, state: str, window: bool, **functions: int) -> None:
        file = f"profile-{len(logged)}.folded"
        own = {"map": MAP_OWN, "unmap": UNMAP_OWN}[operation]
        lines = [f"{IOCTL} {own}\n", *(f"{IOCTL};{name} {n}\n" for name, n in functions.items())]
        (host / file).write_text("".join(lines))
        logged.append({
            "operation": operation, "bytes": size, "state": state, "window": window, "file": file,
            "calls": {WALK: 1000 if window else size // PAGE} if WALK in functions else {},
            "instructions": own + sum(functions.values()),
        })  # fmt: skip

    if series:
        log("map", BAR, "cold", False, vaddr_get_pfns=4800, vfio_pci_mmap_huge_fault=8000)
        log("map", BAR, "warm", False, vaddr_get_pfns=4800)
    else:
        for size in (2 << 20, 4 << 20):
            log("map", size, "warm", False, vaddr_get_pfns=1200 * size // PAGE)
    for size in (2 << 20, 4 << 20):
        log("unmap", size, "warm", False, put_pfn=40 * size // PAGE, **{WALK: 300 * size // PAGE})
    log("unmap", GIB, "warm", True, **{WALK: 160_000 if series else 110_000})
    (host / "profile.json").write_text(json.dumps({"bar": BAR, "logged": logged}))
