from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.analysis.maps.maps import Counts, MapPass, check_alike, check_counts
from orchestrator.base.errors import EvidenceError
from orchestrator.formats.units import GIB, KIB, MIB
from tests.unit.answers import (
    ADDRESS,
    BAR_ADDRESS,
    answer,
    by_1gib,
    by_2mib,
    by_4kib,
    map_pass,
    point,
    read,
    sample,
)
from tests.unit.stable import has_in_order, numbers_in

BAR = 32 * GIB
PAGES = 8388608
ROWS = st.dictionaries(st.integers(0, 2**20).map(lambda k: (k,)), st.integers(1, 9), max_size=4)
Change = Callable[[dict[str, Any]], object]


def refused(*points: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(EvidenceError) as caught:
        check_counts(map_pass(*points, **changes))
    assert caught.value.reason == "counts-disagree"
    return caught.value.message


def test_answer_is_read_with_its_units() -> None:
    result = map_pass(by_1gib(map_ns=117_900, iommu_table_pages=3))
    assert (result.backend, result.bar_bytes) == ("type1", BAR)
    assert (result.thp_enabled, result.thp_off_in_process) == ("[always] madvise never", False)
    assert result.clock_seconds[0] == 150e-9
    assert result.empty_seconds[-1] == 50e-6
    [place] = result.places
    assert (place.name, place.dma_buf) == ("full/1GiB", False)
    assert place.mapping.address == ADDRESS
    assert place.mapping.physical == BAR_ADDRESS
    assert "pf" in place.vm_flags
    cold, warm = place.samples
    assert (cold.state, warm.state) == ("cold", "warm")
    assert (cold.map_seconds, cold.unmap_seconds) == (117.9e-6, 2e-3)
    assert (cold.minor_faults, warm.minor_faults) == (32, 0)
    assert cold.iommu_table_pages == 3
    assert place.of_state("warm") == [warm]


def test_warm_up_is_no_place() -> None:
    answered = answer(by_1gib())
    assert [p["name"] for p in answered["points"]] == ["warm-up", "full/1GiB"]
    assert [p.name for p in read(answered).places] == ["full/1GiB"]


def test_pass_without_histograms_has_no_counts() -> None:
    [place] = map_pass(by_1gib(), counted=False).places
    assert [s.counts for s in place.samples] == [None, None]
    assert place.leaves is None


def test_counts_of_a_sample_are_what_the_histograms_grew_by() -> None:
    first, second = map_pass(by_1gib(series=False), by_2mib(BAR)).places
    for taken in first.samples:
        assert taken.counts is not None
        assert taken.counts.lookups == {1: PAGES}
        assert taken.counts.pins == {PAGES: 1}
        assert taken.counts.iova_walks == PAGES
    cold, warm = (taken.counts for taken in second.samples)
    assert cold is not None
    assert warm is not None
    assert (cold.lookups, warm.lookups) == ({512: 16384}, {512: 16384})
    assert (cold.faults, warm.faults) == ({(9, 0x100): 16384}, {})
    assert (first.leaves, second.leaves) == ({"1GiB": 32}, {"2MiB": 16384})


@given(ROWS, ROWS, st.integers(0, 99), st.integers(0, 99))
def test_difference_of_counts_is_what_came_between(
    before: dict[tuple[int, ...], int], more: dict[tuple[int, ...], int], walks: int, grown: int
) -> None:
    def counts(rows: dict[tuple[int, ...], int], n: int) -> Counts:
        single = Counter({key[0]: hits for key, hits in rows.items()})
        return Counts(single, single.copy(), Counter(rows), n)

    first, grew = counts(before, walks), counts(more, grown)
    later = Counts(
        first.lookups + grew.lookups, first.pins + grew.pins, first.faults + grew.faults,
        walks + grown,
    )  # fmt: skip
    assert later - first == grew


def test_faults_that_installed_nothing_are_no_leaves() -> None:
    skewed = by_2mib()
    skewed["samples"][0]["counts"]["fault"][18, 0x800] = 33
    [place] = map_pass(skewed).places
    counts = place.samples[0].counts
    assert counts is not None
    assert counts.installed == 16384
    assert place.leaves == {"2MiB": 16384}
    check_counts(map_pass(skewed))


def test_kernel_before_huge_faults_does_not_say_what_its_leaves_are() -> None:
    old = by_4kib(GIB, series=False)
    result = map_pass(old, huge_fault=False)
    [place] = result.places
    counts = place.samples[0].counts
    assert counts is not None
    assert (counts.leaves, counts.installed, place.leaves) == (None, 262144, None)
    check_counts(result)


def test_leaf_of_an_order_without_a_name_is_named_by_it() -> None:
    mapped = by_1gib(GIB)
    mapped["samples"][0]["counts"]["fault"] = {(4, 0x100): 16384}
    assert map_pass(mapped).places[0].leaves == {"order 4": 16384}


def test_leaves_are_those_of_the_first_map_that_was_not_warm() -> None:
    [place] = map_pass(by_1gib(states=["prime", "warm"])).places
    assert place.leaves == {"1GiB": 32}
    [place] = map_pass(by_1gib(states=["warm"])).places
    assert place.leaves is None


def test_histogram_that_dropped_hits_is_an_evidence_error() -> None:
    answered = answer(by_1gib())
    snapshots = answered["points"][1]["samples"][0]["snapshots"]
    snapshots["pin"] = snapshots["pin"].replace("Hits: 2", "Hits: 7").replace("ped: 0", "ped: 5")
    with pytest.raises(EvidenceError, match="'pin': 5") as caught:
        read(answered)
    assert caught.value.reason == "lost-events"


@pytest.mark.parametrize("key", ["points", "backend", "bar_address", "thp", "instrument"])
def test_answer_of_another_form_is_no_pass(key: str) -> None:
    answered = answer(by_1gib())
    del answered[key]
    with pytest.raises(ValidationError, match=key):
        read(answered)


@pytest.mark.parametrize("series", [True, False])
@pytest.mark.parametrize("place", [by_1gib, by_2mib, by_4kib])
def test_independent_counts_of_a_map_agree(
    place: Callable[..., dict[str, Any]], series: bool
) -> None:
    check_counts(map_pass(place(series=series, states=["cold", "warm", "cold", "warm"])))


def test_leaves_of_several_sizes_agree_with_theory() -> None:
    mixed = point("part/1GiB", GIB + 2 * MIB + 4 * KIB, {"1GiB": 1, "2MiB": 1, "4KiB": 1},
                  tables=8 * KIB)  # fmt: skip
    check_counts(map_pass(mixed))


def test_domain_that_walks_once_for_an_unmap_is_accepted() -> None:
    mapped = by_1gib()
    for taken in mapped["samples"]:
        taken["counts"]["iova_walk"] = {(326,): 1}
    check_counts(map_pass(mapped))


def change_counts(event: str, hits: dict[tuple[int, ...], int]) -> Change:
    return lambda taken: taken["counts"].update({event: hits})


@pytest.mark.parametrize(
    ("change", "name", "numbers"),
    [
        (lambda s: s.update(unmapped_bytes=BAR - 4096), "bytes", ["34359734272", "34359738368"]),
        (change_counts("lookup", {(262144,): 31}), "lookups", ["8126464", "8388608"]),
        (change_counts("pin", {(262144,): 31}), "vfio_pin_pages_remote", ["8126464", "8388608"]),
        (lambda s: s.update(minor_faults=33), "minor faults", ["32", "33"]),
        (change_counts("iova_walk", {(326,): 32}), "iommu_iova_to_phys", ["32", "8388608"]),
        (change_counts("lookup", {(512,): 16384}), "lookups", ["16384", "32", "8388608"]),
        (lambda s: s.update(page_table_bytes=4096), "VmPTE", ["4096", "0"]),
    ],
)  # fmt: skip
def test_disagreement_about_a_cold_map_names_both_numbers(
    change: Change, name: str, numbers: list[str]
) -> None:
    mapped = by_1gib()
    change(mapped["samples"][0])
    message = refused(mapped)
    assert has_in_order(message, "full/1GiB/cold", "1", name)
    assert numbers_in(message)[1:] == numbers


@pytest.mark.parametrize(
    ("change", "name", "number"),
    [
        (lambda s: s.update(minor_faults=32, counts=sample("cold", BAR, {"1GiB": 32})["counts"]),
         "faults", "32"),
        (lambda s: s.update(page_table_bytes=8192), "VmPTE", "8192"),
    ],
)  # fmt: skip
def test_warm_map_that_made_something_is_refused(change: Change, name: str, number: str) -> None:
    mapped = by_1gib()
    change(mapped["samples"][1])
    message = refused(mapped)
    assert has_in_order(message, "full/1GiB/warm", "2", name)
    assert numbers_in(message)[1:] == [number, "0"]


def test_leaves_that_are_not_those_of_theory_are_refused() -> None:
    mapped = point("full/1GiB", 2 * GIB, {"1GiB": 1, "2MiB": 512}, tables=4096)
    assert refused(mapped) == (
        "full/1GiB/cold (sample 1): leaves installed: {'1GiB': 1, '2MiB': 512};"
        " theory of leaves up to 1GiB: {'1GiB': 2}"
    )


def test_only_the_first_map_makes_page_tables() -> None:
    mapped = by_2mib(states=["cold", "cold"])
    mapped["samples"][1]["page_table_bytes"] = 132 * KIB
    message = refused(mapped)
    assert "VmPTE" in message
    assert {"2", "135168"} <= {*numbers_in(message)}
    mapped = by_2mib()
    mapped["samples"][0]["page_table_bytes"] = 0
    message = refused(mapped)
    assert "VmPTE" in message
    assert numbers_in(message)[-2:] == ["0", "135168"]


def test_disagreement_is_named_with_its_place() -> None:
    two = by_4kib(GIB)
    two["samples"][1]["minor_faults"] = 7
    assert refused(by_1gib(GIB), two).startswith("full/4KiB/warm (sample 2): ")


def test_sample_without_histograms_is_missing_evidence() -> None:
    with pytest.raises(EvidenceError, match="full/1GiB: a sample") as caught:
        check_counts(map_pass(by_1gib(), counted=False))
    assert caught.value.reason == "missing-evidence"


def test_iommufd_owes_no_lookups() -> None:
    mapped = by_1gib()
    for taken in mapped["samples"]:
        taken["minor_faults"] = 0
        taken["counts"] = {event: {} for event in taken["counts"]}
    check_counts(map_pass(mapped, backend="iommufd"))
    mapped["samples"][0]["unmapped_bytes"] = 0
    assert numbers_in(refused(mapped, backend="iommufd"))[-2:] == ["0", str(BAR)]


def test_upper_tables_that_a_mapping_needs_are_part_of_the_growth() -> None:
    mapped = by_2mib()
    mapped["upper_tables"] = 2
    assert numbers_in(refused(mapped))[-2:] == ["135168", "143360"]
    mapped["samples"][0]["page_table_bytes"] += 8192
    check_counts(map_pass(mapped))
    assert map_pass(mapped).places[0].upper_tables == 2
    assert map_pass(by_2mib()).places[0].upper_tables == 0


def unlike(headline: MapPass, counted: MapPass) -> str:
    with pytest.raises(EvidenceError) as caught:
        check_alike(headline, counted)
    assert caught.value.reason == "counts-disagree"
    return caught.value.message


def test_pass_whose_maps_are_those_that_were_counted_is_alike() -> None:
    counted = map_pass(by_1gib(states=["cold", "warm"]), by_2mib(states=["prime", "warm"]))
    check_alike(counted, counted)
    repeated = by_1gib(states=["cold", "warm", "cold", "warm"], map_ns=7)
    check_alike(map_pass(repeated, counted=False), counted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(unmapped_bytes=4096), ("bytes", "4096", str(BAR))),
        (lambda s: s.update(minor_faults=5), ("minor faults", "5", "counts")),
    ],
)
@pytest.mark.parametrize(("number", "state"), [(0, "cold"), (1, "warm")])
def test_pass_whose_maps_were_others_is_not_alike(
    change: Change, words: tuple[str, ...], number: int, state: str
) -> None:
    mapped = by_1gib()
    change(mapped["samples"][number])
    message = unlike(map_pass(mapped, counted=False), map_pass(by_1gib()))
    assert has_in_order(message, f"full/1GiB/{state}", f"{number + 1}", *words)


def test_pass_of_another_backend_or_place_is_not_alike() -> None:
    counted = map_pass(by_1gib())
    assert "iommufd" in unlike(map_pass(by_1gib(), backend="iommufd"), counted)
    assert "full/2MiB" in unlike(map_pass(by_2mib()), counted)
    # a place that is counted but not measured is no disagreement: timing has only the largest
    # place
    check_alike(counted, map_pass(by_1gib(), by_2mib()))


@pytest.mark.parametrize(("size", "walks"), [(3 * GIB, 2), (GIB, 1), (12 * KIB, 2)])
def test_walks_of_an_unmap_are_pages_or_blocks_of_the_iommu(size: int, walks: int) -> None:
    leaves = {"1GiB": size // GIB} if size >= GIB else {"4KiB": size // 4096}
    for count in (walks, size // 4096):
        mapped = point("full/1GiB", size, leaves, tables=0 if size >= GIB else 8192)
        for taken in mapped["samples"]:
            taken["counts"]["iova_walk"] = {(326,): count}
        check_counts(map_pass(mapped))
    mapped["samples"][1]["counts"]["iova_walk"] = {(326,): walks + 2}
    message = refused(mapped)
    assert "iommu_iova_to_phys" in message
    assert "2" in numbers_in(message)


@pytest.mark.parametrize("event", ["lookup", "fault", "iova_walk"])
def test_nothing_is_looked_up_in_a_dma_buf(event: str) -> None:
    mapped = by_1gib()
    mapped["dma_buf"] = True
    for taken in mapped["samples"]:
        taken["counts"] = {event: {} for event in taken["counts"]}
    check_counts(map_pass(mapped, backend="iommufd"))
    keys = (18, 0x100) if event == "fault" else (1,)
    mapped["samples"][0]["counts"][event] = {keys: 1}
    assert "of a dma-buf: (0, 0, 0)" in refused(mapped, backend="iommufd")


def test_page_tables_of_a_kernel_without_huge_faults_are_those_of_pages() -> None:
    old = by_4kib(GIB, series=False)
    old["samples"][0]["page_table_bytes"] -= 4096
    pages = old["samples"][0]["page_table_bytes"]
    assert numbers_in(refused(old, huge_fault=False))[-3:] == [str(pages), "4", str(pages + 4096)]


@pytest.mark.parametrize("key", ["map_ns", "unmap_ns"])
@pytest.mark.parametrize("value", [0, -1])
def test_time_that_is_none_is_no_pass(key: str, value: int) -> None:
    answered = answer(by_1gib())
    answered["points"][1]["samples"][0][key] = value
    with pytest.raises(ValidationError, match=key):
        read(answered)


@pytest.mark.parametrize(("prctl", "off"), [(1, True), (0, False), (-1, False)])
def test_huge_pages_are_off_only_where_the_kernel_says_so(prctl: int, off: bool) -> None:
    thp = {"enabled": "[always] madvise never", "process_disabled": prctl}
    assert map_pass(by_1gib(), thp=thp).thp_off_in_process == off
