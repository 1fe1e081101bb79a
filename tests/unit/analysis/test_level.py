from __future__ import annotations

from collections.abc import Mapping as MappingType
from typing import Any

import pytest

from orchestrator.analysis.maps.level import Level, find_guest_level, find_level
from orchestrator.analysis.maps.theory import Mapping
from orchestrator.formats.units import GIB, KIB, MIB
from tests.unit.answers import ADDRESS, BAR_ADDRESS, by_1gib, by_2mib, by_4kib, place_of, point
from tests.unit.stable import numbers_in

SETTINGS: dict[str, str | None] = {
    "transparent_hugepage": "[always] madvise never", "vfio_disable_hugepages": "N",
    "cmdline": "console=ttyS0 intel_iommu=on",
}  # fmt: skip
NEVER = "always madvise [never]"
ON_ADVICE = "always [madvise] never"


def facts(**settings: str) -> dict[str, str | None]:
    return SETTINGS | settings


def level(
    mapped: dict[str, Any], host: MappingType[str, str | None] = SETTINGS, **changes: Any
) -> Level:
    place, counted = place_of(mapped, **changes)
    return find_level(place, counted, host)


def reasons(result: Level) -> list[str]:
    assert result.best == (not result.reasons)
    assert all(reason.text for reason in result.reasons)
    return [reason.name for reason in result.reasons]


def text(result: Level, name: str) -> str:
    [reason] = [r for r in result.reasons if r.name == name]
    return reason.text


def by_pages(**how: Any) -> dict[str, Any]:
    """A point that is aligned, and nevertheless mapped by pages."""
    return point("full/1GiB", GIB, {"4KiB": 262144}, tables=2052 * KIB, **how)


def thp(enabled: str, *, disabled: int = 0) -> dict[str, Any]:
    return {"thp": {"enabled": enabled, "process_disabled": disabled}}


def test_patched_kernel_and_aligned_bar_are_best() -> None:
    result = level(by_1gib())
    assert (result.place, result.leaf, result.stride) == ("full/1GiB", "1GiB", "1GiB")
    assert result.iommu is None
    assert reasons(result) == []


def test_kernel_without_the_series_looks_up_pages_of_large_leaves() -> None:
    result = level(by_1gib(series=False))
    assert (result.leaf, result.stride) == ("1GiB", "4KiB")
    assert reasons(result) == ["no-series"]
    assert "1GiB" in text(result, "no-series")


@pytest.mark.parametrize(
    ("mapped", "leaf", "off"), [(by_2mib(), "2MiB", "2 MiB"), (by_4kib(), "4KiB", "4 KiB")]
)
def test_misaligned_address_is_why_leaves_are_small(
    mapped: dict[str, Any], leaf: str, off: str
) -> None:
    result = level(mapped)
    assert (result.leaf, result.stride) == (leaf, leaf)
    assert reasons(result) == ["misaligned"]
    address, of_bar = numbers_in(text(result, "misaligned"))[-2:]
    assert off in text(result, "misaligned")
    assert (address[:8], of_bar) == ("0x7f0000", "0x380000000000")


def test_every_reason_is_given_where_several_are_in_the_way() -> None:
    assert reasons(level(by_2mib(series=False))) == ["misaligned", "no-series"]
    # any kernel looks up pages one by one
    assert reasons(level(by_4kib(series=False))) == ["misaligned"]
    skewed = point("full/2MiB", GIB, {"4KiB": 262144}, skew=2 * MIB, tables=2056 * KIB)
    assert reasons(level(skewed, **thp(NEVER))) == ["misaligned", "thp-sysfs"]


def test_kernel_without_huge_faults_maps_by_pages() -> None:
    result = level(by_pages(series=False), huge_fault=False)
    assert (result.leaf, result.stride) == ("4KiB", "4KiB")
    assert reasons(result) == ["no-huge-pfnmap"]


def test_bar_smaller_than_a_leaf_is_too_small_for_it() -> None:
    half = point("full/1GiB", 512 * MIB, {"2MiB": 256}, tables=4096)
    result = level(half)
    assert (result.leaf, result.stride) == ("2MiB", "2MiB")
    assert reasons(result) == ["too-small"]
    assert text(result, "too-small") == "512 MiB is less than a leaf of 1GiB"


def test_small_bar_is_misaligned_only_by_what_its_own_leaves_need() -> None:
    fine = point("full/2MiB", 512 * MIB, {"2MiB": 256}, skew=2 * MIB, tables=8192)
    assert reasons(level(fine)) == ["too-small"]
    off = point("full/4KiB", 512 * MIB, {"4KiB": 131072}, skew=4 * KIB, tables=0)
    result = level(off)
    assert reasons(result) == ["too-small", "misaligned"]
    assert "modulo 2MiB" in text(result, "misaligned")


@pytest.mark.parametrize(
    ("how", "flags", "reason"),
    [
        (thp("[always] madvise never", disabled=1), [], "thp-prctl"),
        (thp("[always] madvise never"), ["nh"], "thp-madvise"),
        (thp(NEVER), [], "thp-sysfs"),
        (thp(NEVER), ["hg"], "thp-sysfs"),
        (thp(ON_ADVICE), [], "thp-sysfs"),
        (thp(ON_ADVICE), ["hg"], "unexplained"),
        (thp("[always] madvise never"), [], "unexplained"),
        ({"thp": {"enabled": None, "process_disabled": 0}}, [], "no-huge-pfnmap"),
        ({"thp": {"enabled": None, "process_disabled": 0}}, ["nh"], "thp-madvise"),
        # the setting that takes effect first is named
        (thp(NEVER, disabled=1), ["nh"], "thp-prctl"),
        (thp(NEVER), ["nh"], "thp-madvise"),
    ],
)
def test_pages_of_an_aligned_bar_have_their_reason(
    how: dict[str, Any], flags: list[str], reason: str
) -> None:
    mapped = by_pages()
    mapped["vm_flags"] = flags
    result = level(mapped, **how)
    assert (result.leaf, result.stride) == ("4KiB", "4KiB")
    assert reasons(result) == [reason]


def test_policy_is_named_as_it_is_set() -> None:
    for policy, setting in (("never", NEVER), ("madvise", ON_ADVICE)):
        words = text(level(by_pages(), **thp(setting)), "thp-sysfs").split()
        assert {"/sys/kernel/mm/transparent_hugepage/enabled", "v6.12"} <= {*words}
        assert [word.strip(",") for word in words if word.strip(",") in ("never", "madvise")] == [
            policy
        ]
    assert "4KiB" in text(level(by_pages()), "unexplained")


def test_policy_that_did_not_apply_is_no_reason() -> None:
    assert reasons(level(by_1gib(), **thp(NEVER, disabled=1))) == []


@pytest.mark.parametrize("value", ["Y", "1"])
def test_disabled_huge_pages_of_vfio_are_seen_by_single_pins(value: str) -> None:
    mapped = by_1gib(GIB, series=False, iommu_table_pages=513)
    for taken in mapped["samples"]:
        taken["counts"]["pin"] = {(1,): 262144}
    result = level(mapped, facts(vfio_disable_hugepages=value))
    assert reasons(result) == ["disable-hugepages"]
    # neither the setting alone nor single pins without it are a reason
    assert reasons(level(by_1gib(GIB), facts(vfio_disable_hugepages=value))) == []
    assert reasons(level(mapped)) == ["no-series", "iommu-no-superpages"]


@pytest.mark.parametrize(
    ("cmdline", "why"),
    [
        ("intel_iommu=on,sp_off quiet", "sp_off"),
        ("intel_iommu=on intel_iommu=sp_off", "sp_off"),
        ("amd_iommu=v2_pgsizes_only", "driver"),
        ("amd_iommu=nohugepages", "nohugepages"),
        ("intel_iommu=on", "driver"),
        ("x_intel_iommu=on note=sp_off", "driver"),
    ],
)
def test_leaves_of_the_iommu_are_told_by_the_growth_of_its_tables(cmdline: str, why: str) -> None:
    result = level(by_1gib(iommu_table_pages=16384 + 33), facts(cmdline=cmdline))
    assert (result.leaf, result.stride, result.iommu) == ("1GiB", "1GiB", "4KiB")
    assert reasons(result) == ["iommu-no-superpages"]
    assert text(result, "iommu-no-superpages").split()[-1] == why


@pytest.mark.parametrize(
    ("size", "grown", "leaf"),
    [(GIB, 511, None), (GIB, 512, "4KiB"), (GIB, None, None), (GIB, 0, None), (GIB, -5, None)],
)
def test_growth_that_is_not_of_page_leaves_says_nothing(
    size: int, grown: int | None, leaf: str | None
) -> None:
    assert level(by_1gib(size, iommu_table_pages=grown)).iommu == leaf


def test_small_map_says_nothing_of_the_iommus_leaves() -> None:
    small = point("4MiB/1GiB", 4 * MIB, {"2MiB": 2}, tables=4096, iommu_table_pages=4)
    assert level(small).iommu is None


def test_mixture_is_called_by_what_maps_most_of_it() -> None:
    mixed = point("part/1GiB", GIB + 512 * MIB, {"1GiB": 1, "2MiB": 256}, tables=4096)
    result = level(mixed)
    assert (result.leaf, result.stride) == ("1GiB", "1GiB")
    assert reasons(result) == []
    mixed = point("part/1GiB", 6 * MIB, {"2MiB": 1, "4KiB": 1024}, tables=8192)
    assert level(mixed).leaf == "4KiB"


def test_count_that_is_neither_leaves_nor_pages_has_no_stride() -> None:
    mapped = by_1gib()
    mapped["samples"][0]["counts"]["lookup"] = {(512,): 16384}
    result = level(mapped)
    assert (result.leaf, result.stride) == ("1GiB", None)


def test_dma_buf_has_no_level() -> None:
    mapped = by_1gib()
    mapped["dma_buf"] = True
    result = level(mapped, backend="iommufd")
    assert (result.leaf, result.stride, result.iommu) == (None, None, None)
    assert result.best


def guest(
    skew: int = 0,
    tables: int | None = 0,
    size: int = 32 * GIB,
    enabled: str = "[always]",
    memory: int = 512 * MIB,
) -> Level:
    mapping = Mapping(ADDRESS + skew, BAR_ADDRESS, size)
    settings = facts(transparent_hugepage=enabled)
    return find_guest_level("guest-1", mapping, tables, memory, "10.0.2", settings)


def test_guest_whose_qemu_aligns_is_best() -> None:
    result = guest(tables=900 * KIB)
    assert (result.place, result.leaf, result.stride) == ("guest-1", "1GiB", None)
    assert reasons(result) == []


@pytest.mark.parametrize(("skew", "leaf"), [(2 * MIB, "2MiB"), (4 * KIB, "4KiB")])
def test_guest_whose_qemu_does_not_align_is_told_so(skew: int, leaf: str) -> None:
    result = guest(skew)
    assert result.leaf == leaf
    assert reasons(result) == ["misaligned", "qemu-unaligned"]
    assert "QEMU 10.0.2 " in text(result, "qemu-unaligned")


@pytest.mark.parametrize(
    ("qemu", "known"),
    [("7.2.0", True), ("9.1.2", True), ("9.2.0", False), ("9.2", False), ("10.0.2", False)],
)
def test_qemu_that_could_align_is_told_from_one_that_cannot(qemu: str, known: bool) -> None:
    mapping = Mapping(ADDRESS + 2 * MIB, BAR_ADDRESS, 32 * GIB)
    own, without_version = (
        text(find_guest_level("guest-1", mapping, 0, GIB, version, facts()), "qemu-unaligned")
        for version in (qemu, "8.0")
    )
    assert f"QEMU {qemu} " in own
    assert (own.replace(qemu, "8.0") == without_version) == known


def test_guest_with_page_tables_of_pages_is_mapped_by_them() -> None:
    assert guest(tables=65663 * KIB).leaf == "1GiB"
    result = guest(tables=65664 * KIB)
    assert result.leaf == "4KiB"
    assert reasons(result) == ["unexplained"]
    assert reasons(guest(tables=65664 * KIB, enabled=NEVER)) == ["thp-sysfs"]
    assert reasons(guest(4 * KIB, tables=80000 * KIB)) == ["misaligned", "qemu-unaligned"]


def test_guest_whose_page_tables_are_not_known_is_judged_by_its_address() -> None:
    assert guest(tables=None, enabled=NEVER).leaf == "1GiB"


def test_guest_with_a_small_bar_has_smaller_leaves() -> None:
    result = guest(size=512 * MIB)
    assert result.leaf == "2MiB"
    assert reasons(result) == ["too-small"]


def test_host_without_settings_has_a_level() -> None:
    assert level(by_1gib(), {}).best
    assert reasons(level(by_pages(), {})) == ["unexplained"]


@pytest.mark.parametrize("size", [128 * MIB, 256 * MIB, 512 * MIB, GIB])
def test_page_tables_that_qemu_needs_for_itself_are_none_of_the_bars(size: int) -> None:
    # values of a recorded QEMU with a guest of 512 MiB, whose 1 GiB BAR is mapped by one leaf
    assert guest(size=size, tables=1304 * KIB).leaf == ("1GiB" if size == GIB else "2MiB")


def test_page_tables_of_a_large_guest_may_be_those_of_its_memory() -> None:
    # the page tables of 32 GiB of memory in pages are as large as those of a BAR of 32 GiB
    assert guest(tables=70000 * KIB).leaf == "4KiB"
    assert guest(tables=70000 * KIB, memory=32 * GIB).leaf == "1GiB"
