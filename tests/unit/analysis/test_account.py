from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.analysis.boot.account import Account, build_account
from orchestrator.analysis.boot.boottrace import BootTrace, read_boot
from orchestrator.analysis.boot.qemu import QemuEvent
from orchestrator.analysis.tracefs.trace import Operation
from orchestrator.base.errors import EvidenceError
from tests.unit.analysis.boots import MAIN, recorded_boot
from tests.unit.recorded import BAR, PAGES
from tests.unit.stable import numbers_in

ADDED = "vfio_listener_region_add_ram"


def account(
    boot: BootTrace, *, bar: int = BAR, mmap: bool = True, viommu: bool = False, qemu_log: str = ""
) -> Account:
    return build_account(boot, bar, mmap=mmap, viommu=viommu, qemu_log=qemu_log)


def refused(boot: BootTrace, reason: str, **how: bool) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        account(boot, **how)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    return caught.value


def changed(
    boot: BootTrace, change: Callable[[Operation], Operation], kind: str = "map", bar: int = BAR
) -> BootTrace:
    """Change one operation on the BAR."""
    index = next(i for i, o in enumerate(boot.operations) if (o.kind, o.size) == (kind, bar))
    boot.operations[index] = change(boot.operations[index])
    return boot


def without_bars(boot: BootTrace) -> BootTrace:
    """Reduce the boot to that of a guest that maps its memory and no BAR."""
    is_bar = {o.iova for o in boot.operations if o.size in (BAR, 4096)}
    boot.operations = [o for o in boot.operations if o.iova not in is_bar]
    bars = tuple(f"[ram] {iova:#x} " for iova in is_bar)
    boot.qemu = [e for e in boot.qemu if e.name != ADDED or not any(b in e.text for b in bars)]
    boot.iommu_maps = []
    return boot


def test_recorded_boot_is_accounted_for() -> None:
    accounted = account(recorded_boot())
    assert (len(accounted.maps), len(accounted.unmaps), accounted.notes) == (12, 12, ())
    assert [o.kind for o in accounted.unmaps] == ["unmap"] * 11 + ["release"]
    assert {o.size for o in accounted.maps + accounted.unmaps} == {BAR}


def test_refused_map_is_told_with_its_errno() -> None:
    error = refused(changed(recorded_boot(), lambda o: replace(o, result=-12)), "map-refused")
    assert numbers_in(error.message) == ["1", "12", "-12"]


def test_refused_map_of_memory_is_qemus_own_business() -> None:
    """QEMU ends if that fails."""
    boot = changed(recorded_boot(), lambda o: replace(o, result=-12), bar=512 << 20)
    assert len(account(boot).maps) == 12


def test_map_of_fewer_pages_is_partial() -> None:
    error = refused(changed(recorded_boot(), lambda o: replace(o, pages=512)), "partial-map")
    assert numbers_in(error.message) == ["512", str(PAGES)]


def test_map_whose_pages_were_not_probed_is_taken_for_whole() -> None:
    assert len(account(changed(recorded_boot(), lambda o: replace(o, pages=None))).maps) == 12


@pytest.mark.parametrize(("size", "start"), [(BAR, 0x3FFF80000000), (512 << 20, 0)])
def test_map_that_qemu_does_not_know_of_is_a_disagreement(size: int, start: int) -> None:
    boot = recorded_boot()
    gone = next(
        e
        for e in boot.qemu
        if e.name == ADDED and f" {start:#x} - {start + size - 1:#x}" in e.text
    )
    boot.qemu = [e for e in boot.qemu if e is not gone]
    message = refused(boot, "maps-disagree").message
    assert {f"{size:#x}", f"{start:#x}"} <= {*numbers_in(message)}


@pytest.mark.parametrize("size", [BAR, 512 << 20, 4096])
def test_map_that_the_kernel_was_not_asked_for_is_a_disagreement(size: int) -> None:
    boot = recorded_boot()
    index = next(i for i, o in enumerate(boot.operations) if (o.kind, o.size) == ("map", size))
    gone = boot.operations.pop(index)
    message = refused(boot, "maps-disagree").message
    assert {f"{size:#x}", f"{gone.iova:#x}"} <= {*numbers_in(message)}


def test_region_of_another_place_is_a_disagreement() -> None:
    boot = changed(recorded_boot(), lambda o: replace(o, iova=o.iova + 4096))
    message = refused(boot, "maps-disagree").message
    assert message.endswith("0 added, 1 mapped")


@pytest.mark.parametrize("times", [0, 11, 13, 23])
def test_tracepoint_that_saw_another_number_of_maps_is_a_disagreement(times: int) -> None:
    boot = recorded_boot()
    (place,) = {m for m in boot.iommu_maps if m[1] == BAR}
    boot.iommu_maps = [place] * times
    assert numbers_in(refused(boot, "maps-disagree").message) == ["12", "12", str(times)]


def test_tracepoint_may_see_a_map_for_each_iommu_domain() -> None:
    boot = recorded_boot()
    boot.iommu_maps *= 2
    assert len(account(boot).maps) == 12


@pytest.mark.parametrize("kind", ["unmap", "release"])
def test_unmap_that_is_missing_is_a_disagreement(kind: str) -> None:
    boot = recorded_boot()
    index = next(i for i, o in enumerate(boot.operations) if (o.kind, o.size) == (kind, BAR))
    del boot.operations[index]
    message = refused(boot, "unmaps-disagree").message
    assert numbers_in(message)[:2] == ["12", "11"]


def test_unmap_that_failed_is_a_disagreement() -> None:
    boot = changed(recorded_boot(), lambda o: replace(o, result=-22), kind="unmap")
    assert "results [-22, 0]" in refused(boot, "unmaps-disagree").message


def test_bars_that_qemu_was_told_not_to_map_are_noted() -> None:
    accounted = account(without_bars(recorded_boot()), mmap=False)
    assert (accounted.maps, accounted.unmaps) == ((), ())
    [note] = accounted.notes
    assert note.name == "no-mmap"
    assert "x-no-mmap" in note.text


def test_bar_that_was_mapped_though_it_was_not_to_be_makes_a_boot_invalid() -> None:
    assert "12 times" in refused(recorded_boot(), "mapped-anyway", mmap=False).message


def test_iommu_of_the_guest_that_keeps_the_bars_from_being_mapped_is_noted() -> None:
    boot = without_bars(recorded_boot())
    boot.qemu.append(QemuEvent("vfio_listener_region_add_iommu", "", MAIN, 1.0, 1.0))
    [note] = account(boot, viommu=True).notes
    assert note.name == "guest-viommu"


def test_iommu_of_the_guest_that_qemu_knows_nothing_of_explains_nothing() -> None:
    refused(without_bars(recorded_boot()), "bar-not-mapped", viommu=True)


def test_iommu_that_nobody_asked_for_explains_nothing() -> None:
    boot = without_bars(recorded_boot())
    boot.qemu.append(QemuEvent("vfio_listener_region_add_iommu", "", MAIN, 1.0, 1.0))
    refused(boot, "bar-not-mapped")


IOMMUFD = "qemu-system-x86_64: warning: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?\n"


def test_iommufd_that_takes_no_bar_is_a_note() -> None:
    boot = recorded_boot()
    boot.operations = []
    boot.iommu_maps = []
    accounted = build_account(boot, BAR, mmap=True, viommu=False, qemu_log=IOMMUFD, iommufd=True)
    assert [note.name for note in accounted.notes] == ["iommufd-without-dma-buf"]
    assert not accounted.maps


@pytest.mark.parametrize("words", ["Cannot allocate memory", "No space left on device"])
@pytest.mark.parametrize("before", ["", IOMMUFD])
def test_another_error_of_iommufds_is_no_missing_dma_buf(words: str, before: str) -> None:
    log = f"{before}qemu-system-x86_64: IOMMU_IOAS_MAP failed: {words}\n"
    with pytest.raises(EvidenceError, match=words) as caught:
        build_account(recorded_boot(), BAR, mmap=True, viommu=False, qemu_log=log, iommufd=True)
    assert caught.value.reason == "map-refused"


def test_iommufd_that_was_not_refused_is_not_traced() -> None:
    with pytest.raises(EvidenceError) as caught:
        build_account(recorded_boot(), BAR, mmap=True, viommu=False, qemu_log="", iommufd=True)
    assert caught.value.reason == "iommufd-not-traced"


def test_memory_as_large_as_a_bar_is_none() -> None:
    boot = recorded_boot()
    maps = len(account(boot).maps)
    piece = next(o for o in boot.operations if o.kind == "map" and o.iova == 0)
    boot.operations.append(replace(piece, iova=1 << 32, size=BAR))
    boot.qemu.append(
        QemuEvent(
            "vfio_listener_region_add_ram",
            f"region_add [ram] {1 << 32:#x} - {(1 << 32) + BAR - 1:#x} [0x7f0000000000]",
            MAIN, 1.0, 1.0,
        )
    )  # fmt: skip
    assert len(account(boot).maps) == maps


def test_bar_that_was_not_mapped_for_no_reason_makes_a_boot_invalid() -> None:
    boot = without_bars(recorded_boot())
    with pytest.raises(EvidenceError) as caught:
        account(boot, qemu_log="".join(f"line {n}\n" for n in range(20)))
    assert caught.value.reason == "bar-not-mapped"
    assert caught.value.evidence.splitlines() == [
        f"{boot.events} events in the trace", *[f"line {n}" for n in range(12, 20)],
    ]  # fmt: skip


def test_empty_trace_has_no_bar() -> None:
    refused(read_boot("# tracer: nop\n"), "bar-not-mapped")


def test_bars_of_several_devices_are_counted_together() -> None:
    boot, region = recorded_boot(), "0x3fff80000000 - 0x3fffbfffffff"
    other = "0x3fffc0000000 - 0x3fffffffffff"
    boot.operations += [
        replace(o, iova=o.iova + BAR, start=o.start + 0.5)
        for o in boot.operations
        if o.size == BAR
    ]
    boot.qemu += [
        replace(e, text=e.text.replace(region, other))
        for e in boot.qemu
        if e.name == ADDED and region in e.text
    ]
    boot.qemu += [
        replace(e, text=e.text.replace("01:00.0 2,0x3fff80000000", "02:00.0 2,0x3fffc0000000"))
        for e in boot.qemu
        if e.name == "pci_update_mappings_add" and "01:00.0 2,0x3fff80000000" in e.text
    ]
    boot.iommu_maps += [(iova + BAR, size) for iova, size in boot.iommu_maps]
    accounted = account(boot)
    assert (len(accounted.maps), len(accounted.unmaps)) == (24, 24)
