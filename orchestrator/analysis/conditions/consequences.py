"""Conditions that follow from a setting by the kernel's own documentation: if the arms differ in
the setting, a difference in these conditions is intended.

Paths are below Documentation/ of the kernel's source; kernel-parameters.txt is in admin-guide/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # admin-guide/mm/transhuge.rst, "Boot parameters"
    ("transparent_hugepage", ("host.thp",)),
    ("transparent_hugepage_shmem", ("host.thp_shmem",)),
    # kernel-parameters.txt; types of groups: ABI/testing/sysfs-kernel-iommu_groups
    (r"iommu|iommu\.strict|iommu\.passthrough|intel_iommu|amd_iommu", ("host.iommu_group_type",)),
    # kernel-parameters.txt: `auto,nosmt` disables SMT if a mitigation needs it
    ("mitigations|l1tf|mds|tsx_async_abort|mmio_stale_data|retbleed",
     ("host.kernel.mitigations", "host.smt")),
    # kernel-parameters.txt, admin-guide/hw-vuln/
    ("pti|nopti|nospectre_v1|spectre_v2|nospectre_v2|spectre_bhi|spectre_v2_user"
     "|spec_store_bypass_disable|nospec_store_bypass_disable|srbds|gather_data_sampling"
     "|reg_file_data_sampling|spec_rstack_overflow|kvm\\.nx_huge_pages",
     ("host.kernel.mitigations",)),
    # kernel-parameters.txt
    ("nosmt", ("host.smt",)),
    ("clocksource|tsc|hpet|nohpet", ("host.clocksource",)),
    ("lockdown", ("host.lockdown",)),
    ("maxcpus|nr_cpus", ("host.cpus",)),
)  # fmt: skip
"""Pattern of an option's name on the kernel's command line, with `_` for `-` -> conditions that
follow from the option."""

_FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # admin-guide/mm/transhuge.rst, "Global THP controls"
    ("/sys/kernel/mm/transparent_hugepage/enabled", ("host.thp",)),
    ("/sys/kernel/mm/transparent_hugepage/defrag", ("host.thp_defrag",)),
    ("/sys/kernel/mm/transparent_hugepage/shmem_enabled", ("host.thp_shmem",)),
    # ABI/testing/sysfs-devices-system-cpu
    ("/sys/devices/system/cpu/smt/control", ("host.smt",)),
    (r"/sys/devices/system/cpu/(cpu\d+/cpufreq|cpufreq/policy\d+)/scaling_governor",
     ("host.governor",)),
    # admin-guide/pm/intel_pstate.rst; ABI/testing/sysfs-devices-system-cpu
    ("/sys/devices/system/cpu/(intel_pstate/no_turbo|cpufreq/boost)", ("host.turbo",)),
    # ABI/testing/sysfs-devices-system-clocksource
    (r"/sys/devices/system/clocksource/clocksource0/current_clocksource", ("host.clocksource",)),
    # ABI/testing/sysfs-kernel-iommu_groups
    (r"/sys/kernel/iommu_groups/\d+/type", ("host.iommu_group_type",)),
)  # fmt: skip
_PARAMETER_FILE = re.compile(r"/sys/module/([^/]+)/parameters/([^/]+)")


def infer_from_words(words: Iterable[str]) -> Iterator[str]:
    """Yield the conditions that may differ if these words of the command line do."""
    for word in words:
        name = word.partition("=")[0].replace("-", "_")
        yield from _of(name, _WORDS)
        if "." in name and "*" not in name:  # `*` would stand for any condition
            yield from infer_from_parameter(name)


def infer_from_parameter(name: str) -> Iterator[str]:
    """Yield the conditions that may differ if a module's parameter does, beginning with its
    value."""
    yield "host.parameters." + name.replace("-", "_")
    yield from _of(name.replace("-", "_"), _WORDS)


def infer_from_file(path: str) -> Iterator[str]:
    """Yield the conditions that may differ if a file under /sys or /proc/sys does."""
    yield from _of(path, _FILES)
    if match := _PARAMETER_FILE.fullmatch(path):
        yield from infer_from_parameter(f"{match[1]}.{match[2]}")


def _of(name: str, table: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    for pattern, conditions in table:
        if re.fullmatch(pattern, name):
            yield from conditions
