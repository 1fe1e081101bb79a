from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.conditions.consequences import (
    infer_from_file,
    infer_from_parameter,
    infer_from_words,
)

THP = "/sys/kernel/mm/transparent_hugepage"


@pytest.mark.parametrize(
    ("word", "conditions"),
    [
        ("transparent_hugepage=never", {"host.thp"}),
        ("transparent_hugepage_shmem=always", {"host.thp_shmem"}),
        ("iommu.strict=1", {"host.iommu_group_type", "host.parameters.iommu.strict"}),
        ("iommu.passthrough=1", {"host.iommu_group_type", "host.parameters.iommu.passthrough"}),
        ("iommu=pt", {"host.iommu_group_type"}),
        ("intel_iommu=on,sm_on", {"host.iommu_group_type"}),
        ("mitigations=off", {"host.kernel.mitigations", "host.smt"}),
        ("spectre-v2=off", {"host.kernel.mitigations"}),
        ("nosmt", {"host.smt"}),
        ("nosmt=force", {"host.smt"}),
        ("clocksource=hpet", {"host.clocksource"}),
        ("tsc=unstable", {"host.clocksource"}),
        ("lockdown=integrity", {"host.lockdown"}),
        ("vfio-iommu-type1.disable_hugepages=1",
         {"host.parameters.vfio_iommu_type1.disable_hugepages"}),
        ("quiet", set()),
        ("xtransparent_hugepage=never", set()),
        ("iommuXstrict=1", set()),
    ],
)  # fmt: skip
def test_what_follows_from_a_word(word: str, conditions: set[str]) -> None:
    assert {*infer_from_words([word])} == conditions


@pytest.mark.parametrize(
    ("path", "conditions"),
    [
        (f"{THP}/enabled", {"host.thp"}),
        (f"{THP}/defrag", {"host.thp_defrag"}),
        (f"{THP}/shmem_enabled", {"host.thp_shmem"}),
        (f"{THP}/khugepaged/defrag", set()),
        ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", {"host.governor"}),
        ("/sys/devices/system/cpu/smt/control", {"host.smt"}),
        ("/sys/module/vfio_iommu_type1/parameters/disable_hugepages",
         {"host.parameters.vfio_iommu_type1.disable_hugepages"}),
        ("/proc/sys/vm/nr_hugepages", set()),
    ],
)  # fmt: skip
def test_what_follows_from_a_file(path: str, conditions: set[str]) -> None:
    assert {*infer_from_file(path)} == conditions


def test_parameter_is_recorded_by_its_name() -> None:
    assert [*infer_from_parameter("vfio-pci.ids")] == ["host.parameters.vfio_pci.ids"]


@given(st.text(), st.text())
def test_anything_has_consequences_among_the_conditions_of_a_host(word: str, other: str) -> None:
    conditions = [*infer_from_words([word, f"{word}.{other}"]), *infer_from_file(other)]
    assert all(name.startswith("host.") and not name.endswith("*") for name in conditions)
