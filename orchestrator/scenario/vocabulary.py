"""Words that every room uses: arms, passes, metrics, points of a map. No pydantic, no TOML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.formats.abi import PAGE
from orchestrator.formats.units import GIB, MIB


def is_emulated(accel: str) -> bool:
    """True if the accelerator emulates the machine, so that its seconds are emulated. `none` is a
    real machine."""
    return accel in ("tcg", "exact")


Metric = str
"""Name of a metric: a key of METRICS; at a point of a map also NAME@SIZE/ALIGNMENT/STATE."""


METRICS: dict[Metric, Literal["cost", "s", "count"]] = {
    "guest_boot_cost": "cost",
    "guest_ssh_cost": "cost",
    "host_boot_seconds": "s",
    "bar_map_cost": "cost",
    "bar_unmap_cost": "cost",
    "bar_maps_per_boot": "count",
    "bar_unmaps_per_boot": "count",
    "bar_map_cost_per_boot": "cost",
    "bar_unmap_cost_per_boot": "cost",
    "pfn_lookups_per_map": "count",
    "pfn_faults_per_map": "count",
    "iova_lookups_per_unmap": "count",
    "iommu_map_cost": "cost",
}
"""Kind of each metric's number. A cost is in seconds, or on an exact host in Ginsn (10^9
instructions): analysis/comparison.py `unit_of`. Its name has no unit, so that an expectation, a
bisection and a plot apply to every accelerator as they are; the unit stands beside each number."""


_FORMER_NAMES: dict[Metric, Metric] = {
    name.replace("_cost", "_seconds"): name for name, kind in METRICS.items() if kind == "cost"
}
"""Name up to schema 1 of comparison.json -> name. It said seconds of what may be instructions."""


AT_POINTS: tuple[Metric, ...] = (
    "bar_map_cost",
    "bar_unmap_cost",
    "pfn_lookups_per_map",
    "pfn_faults_per_map",
    "iova_lookups_per_unmap",
)
"""The metrics that each point of the `map` workload has."""


Pass = Literal["plain", "timing", "counts", "profile"]


ArmName = Literal["baseline", "candidate"]


ARMS: tuple[ArmName, ...] = ("baseline", "candidate")


Role = Literal["baseline", "candidate", "control", "warm-up"]
"""Role of a trial. control: the baseline's kernel once more, to compare the bench with itself.
warm-up: its numbers are not used."""


CONTROL: Role = "control"


WARM_UP: Role = "warm-up"


Alignment = Literal["1GiB", "2MiB", "4KiB"]


State = Literal["cold", "warm"]


Backing = Literal["anonymous", "memfd", "hugetlb-2MiB", "hugetlb-1GiB"]


BACKING_PAGE: dict[Backing, int] = {
    "anonymous": PAGE,
    "memfd": PAGE,
    "hugetlb-2MiB": 2 * MIB,
    "hugetlb-1GiB": GIB,
}


def word_name(word: str) -> str:
    """Return the name of what a word of a kernel's command line sets. The kernel does not
    distinguish `-` and `_` there (parameq() in kernel/params.c)."""
    return word.partition("=")[0].replace("-", "_")


BootWay = Literal["kexec", "grub", "systemd-boot"]
"""Methods to boot another kernel once on a machine, the best first."""


BOOT_WAYS: tuple[BootWay, ...] = get_args(BootWay)


def is_headline(point: str, *, whole: bool) -> bool:
    """True if SIZE/ALIGNMENT/STATE is the headline: the whole BAR, aligned as well as possible,
    warm. `whole`: SIZE is the whole BAR."""
    return whole and point.endswith("/1GiB/warm")


def metric_at(base: Metric, point: str, *, whole: bool) -> Metric:
    """Return the name of one of AT_POINTS at SIZE/ALIGNMENT/STATE. The headline has the plain
    name."""
    return base if is_headline(point, whole=whole) else f"{base}@{point}"


def current_name(metric: Metric) -> Metric:
    """Return the present name of a metric, which may have its former one; any other text as it
    is."""
    base, at, point = metric.partition("@")
    return _FORMER_NAMES.get(base, base) + at + point


def former_names_note(source: str, names: Iterable[Metric]) -> str:
    """Return a line that tells the present names of metrics with former ones; empty if all names
    are the present ones."""
    renamed = [f"{name} is {now} now" for name in names if (now := current_name(name)) != name]
    return f"{source}: {', '.join(renamed)}; the old names still work" if renamed else ""


@dataclass(frozen=True)
class Point:
    """A point at which a map is measured: how much of the BAR, how aligned, in which state."""

    size: int
    """Bytes."""
    spelled: str
    """The size as the scenario spells it: "full" or "4GiB"."""
    alignment: Alignment
    state: State
    headline: bool
    """True for the headline (is_headline) and for the one point of a guest boot. Its metrics have
    plain names."""

    @property
    def name(self) -> str:
        return f"{self.spelled}/{self.alignment}/{self.state}"

    def metric(self, base: Metric) -> Metric:
        """Return the name of one of AT_POINTS at this point."""
        return base if self.headline else f"{base}@{self.name}"


def is_config_line(text: str) -> bool:
    """True if an item of a kernel's `config` is a line of configuration, not a file."""
    return text.startswith(("CONFIG_", "# CONFIG_"))
