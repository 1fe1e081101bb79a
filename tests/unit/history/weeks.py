"""A lab's nights: two machines, a step by a kernel, a step by QEMU, a machine that is lost."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

from orchestrator.history.rows import NightRow
from orchestrator.history.store import Store
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.history.made import CONDITIONS, FIRST_NIGHT, night_of

METRICS = (
    "guest_boot_cost", "bar_map_cost", "bar_unmap_cost", "bar_maps_per_boot",
    "bar_map_cost_per_boot", "bar_unmap_cost_per_boot", "pfn_lookups_per_map",
    "pfn_faults_per_map", "iommu_map_cost", "host_boot_seconds",
)  # fmt: skip
RED_NIGHT, QEMU_NIGHT = 45, 30
LOST_NIGHTS = range(20, 24)


def fill(store: Store, nights: int = 60, folder: str = "/nights") -> None:
    """Add the nights. gpu1's kernel is slower from RED_NIGHT on; QEMU changed on gpu2 at
    QEMU_NIGHT; gpu2 is lost in LOST_NIGHTS."""
    draw = random.Random(24)
    for machine in ("gpu1", "gpu2"):
        for day in range(nights):
            if machine == "gpu2" and day in LOST_NIGHTS:
                at = (FIRST_NIGHT + timedelta(days=day)).isoformat()
                store.add_night(NightRow(
                    machine, "nightly", at, f"{folder}/{day}", 3, "host-no-ssh",
                    "no SSH server answers on <gpu2> & co", False if day == 20 else None, 60.0,
                ))  # fmt: skip
                continue
            is_red = machine == "gpu1" and day >= RED_NIGHT
            is_moved = machine == "gpu2" and day >= QEMU_NIGHT
            factor = 1.08 if is_red or is_moved else 1.0
            ratios = {metric: factor * draw.lognormvariate(0, 0.005) for metric in METRICS}
            conditions: dict[ArmName, dict[str, str]] = {
                arm: {**of_arm, "host.qemu": "10.1.0" if is_moved else "10.0.2"}
                for arm, of_arm in CONDITIONS.items()
            }
            store.add(night_of(
                day, ratios, machine=machine, conditions=conditions, pairs=6,
                verdict="regressed" if is_red else "equivalent",
                kernel="b" if is_red else "a", folder=f"{folder}/{machine}/{day}",
            ))  # fmt: skip


def with_reports(folder: Path, nights: int) -> None:
    """Make a report for the last nights: older ones were removed."""
    for machine in ("gpu1", "gpu2"):
        for day in range(nights - 14, nights):
            (folder / machine / str(day)).mkdir(parents=True)
            (folder / machine / str(day) / "report.html").write_text("<h1>A report</h1>")
