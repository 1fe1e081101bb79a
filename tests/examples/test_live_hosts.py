"""Tests on live hosts of both kernels, each of which boots once. `--barometer-host exact` counts
instructions; 1 GiB is enough to tell leaves from pages."""

from __future__ import annotations

import pytest

from orchestrator.testing import ArmName, JudgedPair, KernelLog, LiveBar, LiveHost, arms

pytestmark = pytest.mark.barometer(workload="map", device={"bar": "1GiB"})
LEAVES = {"1GiB": 1, "2MiB": 512, "4KiB": 262144}
"""Leaves of each size in 1 GiB."""
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


# The claim of "vfio/type1: Use mapping page mask for pfnmaps" (v6.15).
@arms("candidate")
@pytest.mark.parametrize("leaf", LEAVES)
def test_a_lookup_goes_as_far_as_a_leaf(bar: LiveBar, leaf: str) -> None:
    assert bar.map(alignment=leaf).lookups == LEAVES[leaf]


@arms("baseline")
@pytest.mark.parametrize("leaf", LEAVES)
def test_the_unpatched_kernel_looks_up_each_page(bar: LiveBar, leaf: str) -> None:
    assert bar.map(alignment=leaf).lookups == LEAVES["4KiB"]


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_are_as_large_as_the_alignment_allows(bar: LiveBar, leaf: str) -> None:
    mapped = bar.map(alignment=leaf)
    assert mapped.level.leaf == leaf
    assert mapped.faults == LEAVES[leaf]


def test_a_warm_map_faults_nothing(bar: LiveBar) -> None:
    assert bar.map(state="warm").faults == 0


@arms("candidate")
def test_the_probe_of_a_user_counts_each_leaf_once(host: LiveHost, bar: LiveBar) -> None:
    with host.counting("vfio_pci_mmap_huge_fault") as faults, bar.mapped(alignment="2MiB"):
        pass
    # the warm-up's leaf of 1 GiB, then the leaves of the map; those of a map that is primed again
    assert faults.number >= LEAVES["2MiB"]


def test_a_mapping_survives_a_decode_toggle(host: LiveHost, bar: LiveBar) -> None:
    with bar.mapped() as mapping:
        mapping.toggle_decode()
        host.require_alive()
    assert mapping.unmapped_bytes == bar.size


@arms("candidate")
def test_huge_pages_that_are_off_do_not_change_bars(host: LiveHost, bar: LiveBar) -> None:
    """Some kernels (v6.12's first) apply the policy for anonymous memory to BARs, too."""
    before = host.sysfs(THP)
    host.sysfs(THP, "never")
    try:
        assert bar.map().level.leaf == "1GiB"
    finally:
        host.sysfs(THP, before.partition("[")[2].partition("]")[0])


def test_the_vfio_modules_are_loaded(host: LiveHost) -> None:
    assert host.module_param("vfio_iommu_type1.disable_hugepages") == "N"
    assert host.run(["uname", "-r"]).stdout.strip() == host.release


def test_the_kernel_stays_sound(bar: LiveBar, kmsg: KernelLog, arm: ArmName) -> None:
    bar.map()
    kmsg.require_none(["soft-lockup", "hard-lockup", "rcu-stall", "hung-task", "oops", "panic"])


@pytest.mark.xfail(strict=True, reason="every kernel unmaps a BAR page by page")
def test_an_unmap_walks_each_leaf_once(bar: LiveBar) -> None:
    assert bar.map().walks <= LEAVES["1GiB"]


def test_the_map_is_cheaper_and_the_unmap_is_measured(ab: JudgedPair) -> None:
    ab["bar_map_cost"].improved(by=100)
    ab["pfn_lookups_per_map"].at_most(LEAVES["1GiB"])
