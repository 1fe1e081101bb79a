"""Claims about both kernels. With `--barometer-replay fixtures/recorded` they are judged by saved
runs, without it they are measured."""

from __future__ import annotations

import pytest

from orchestrator.testing import ArmName, JudgedPair, KernelLog, arms

DEBIAN = {
    "baseline": {"kernel": {"deb": "linux-image-cloud-amd64", "suite": "trixie"}},
    "candidate": {"kernel": {"deb": "linux-image-cloud-amd64", "suite": "trixie-backports"}},
}
LEAVES = {"1GiB": 4, "2MiB": 2048, "4KiB": 1048576}
"""Leaves of each size that map a BAR of 4 GiB."""


@pytest.mark.barometer(
    name="levels", device={"bar": "4GiB"}, arms=DEBIAN,
    map={"sizes": ["1GiB", "2GiB", "full"], "alignment": [*LEAVES], "state": ["cold", "warm"]},
)  # fmt: skip
class TestLevels:
    @pytest.mark.parametrize("leaf", LEAVES)
    def test_a_lookup_goes_as_far_as_a_leaf(self, ab: JudgedPair, leaf: str) -> None:
        lookups = ab[f"pfn_lookups_per_map@full/{leaf}/cold"]
        assert lookups.candidate == LEAVES[leaf]
        lookups.at_most(LEAVES[leaf])

    @pytest.mark.parametrize("leaf", LEAVES)
    def test_the_unpatched_kernel_looks_up_each_page(self, ab: JudgedPair, leaf: str) -> None:
        assert ab[f"pfn_lookups_per_map@full/{leaf}/cold"].baseline == LEAVES["4KiB"]

    @pytest.mark.parametrize("leaf", LEAVES)
    def test_leaves_are_as_large_as_the_alignment_allows(
        self, ab: JudgedPair, arm: ArmName, leaf: str
    ) -> None:
        assert ab.level(alignment=leaf, arm=arm).leaf == leaf

    def test_the_map_is_a_thousand_times_cheaper(self, ab: JudgedPair) -> None:
        ab["bar_map_cost"].improved(by=1000).at_most("50 kinsn")

    def test_small_leaves_gain_nothing(self, ab: JudgedPair) -> None:
        ab["pfn_lookups_per_map@full/4KiB/warm"].equivalent()

    @pytest.mark.xfail(strict=True, reason="every kernel unmaps a BAR page by page")
    def test_an_unmap_walks_each_leaf_once(self, ab: JudgedPair) -> None:
        ab["iova_lookups_per_unmap"].at_most(LEAVES["1GiB"])

    @arms("candidate")
    def test_no_soft_lockup(self, kmsg: KernelLog) -> None:
        assert not kmsg.of_kind("soft-lockup")

    def test_the_scenario_comes_out_as_expected(self, ab: JudgedPair) -> None:
        ab.as_expected()


@pytest.mark.barometer(
    "host.accel=exact", name="stride-clamp", workload="map", device={"bar": "32GiB"}
)
class TestStride:
    """One kernel in both arms; a parameter of the baseline limits each lookup to a page."""

    def test_the_stride_alone_makes_maps_cheap(self, ab: JudgedPair) -> None:
        ab["bar_map_cost"].improved(by="100000x")
        ab["pfn_lookups_per_map"].improved().at_most(32).at_most(8388608, arm="baseline")

    def test_it_changes_nothing_else(self, ab: JudgedPair) -> None:
        ab["bar_unmap_cost"].equivalent(margin="1%").not_regressed()
        ab["iova_lookups_per_unmap"].equivalent()

    def test_the_kernel_stays_sound(self, kmsg: KernelLog) -> None:
        kmsg.require_none()


@pytest.mark.barometer("host.accel=exact", name="debian-6.12-vs-7", workload="guest-boot")
class TestInstructionsOfABoot:
    def test_maps_are_all_but_gone(self, ab: JudgedPair) -> None:
        ab["bar_map_cost_per_boot"].improved(by="99.9%").at_most("2 Minsn")

    def test_the_boot_needs_fewer_instructions(self, ab: JudgedPair) -> None:
        ab["guest_boot_cost"].improved(by=2)

    @pytest.mark.xfail(strict=True, reason="an unmap by the newer kernel costs 41 % more")
    def test_unmaps_are_no_dearer(self, ab: JudgedPair) -> None:
        ab["bar_unmap_cost"].not_regressed()


@pytest.mark.barometer("host.accel=tcg", name="debian-6.12-vs-7", workload="guest-boot")
class TestGuestBoot:
    def test_the_guest_boots_faster(self, ab: JudgedPair) -> None:
        ab["guest_boot_cost"].improved()

    def test_maps_no_longer_count(self, ab: JudgedPair) -> None:
        ab["bar_map_cost"].improved(by=1000).at_most("1ms")
        ab["pfn_lookups_per_map"].at_most(32)

    def test_the_host_maps_by_leaves_of_1_gib(self, ab: JudgedPair) -> None:
        assert ab.level(arm="candidate").leaf == "1GiB"

    def test_qemu_maps_as_often(self, ab: JudgedPair) -> None:
        ab["bar_maps_per_boot"].equivalent()

    def test_no_panic(self, kmsg: KernelLog) -> None:
        assert not kmsg.of_kind("panic", "oops")
