from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.trial import TrialResult, read_result
from orchestrator.evidence import TrialDir, read_json
from orchestrator.report.text import text_report
from orchestrator.scenario import ArmName, Scenario
from tests.unit.recorded import RUN, copied, unpatched
from tests.unit.scenarios import map_scenario, scenario

KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12.107+deb13", "source": "deb:old"},
    "candidate": {"release": "7.3.4+deb13", "source": "deb:new"},
}


@pytest.fixture
def plan() -> dict[str, Any]:
    found: dict[str, Any] = read_json(RUN / "plan.json")
    return found


def report(plan: dict[str, Any], *results: TrialResult, chosen: Scenario | None = None) -> str:
    chosen = chosen or scenario("device.bar=1GiB")
    return text_report(
        chosen, compare(chosen, KERNELS, results, len(results), plan["accel"]), plan
    )


@pytest.fixture
def recorded(tmp_path: Path) -> list[TrialResult]:
    return [read_result(unpatched(tmp_path)), read_result(TrialDir.open(copied(tmp_path)))]


def row(text: str, title: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(title)]
    return re.split(r"\s{2,}", line.strip())


def test_report_begins_with_the_verdict_and_both_kernels(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    lines = report(plan, *recorded).splitlines()
    assert lines[0] == "small: improved"
    assert lines[2] == "baseline   6.12.107+deb13  (deb:old; 1 measured)"
    assert lines[3] == "candidate  7.3.4+deb13  (deb:new; 1 measured)"


def test_table_has_exact_counts_ratio_and_verdict(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan, *recorded)
    assert row(text, "page lookups in one map") == [
        "page lookups in one map", "counts", "262144", "1", "3.815e-06", "improved",
    ]  # fmt: skip
    assert row(text, "DMA maps of the BAR in one boot")[2:] == ["12", "12", "1", "equivalent"]
    assert row(text, "one DMA map")[2] == "0.5"


def test_theory_is_held_against_the_counts(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan, *recorded)
    assert "a 1GiB BAR has 262144 pages of 4 KiB" in text
    assert "baseline   262144: one for each 4KiB, exactly" in text
    assert "candidate  1: one for each 1GiB, exactly" in text
    assert "do not have the best stride" not in text


@pytest.mark.parametrize(
    ("lookups", "said"),
    [
        (512, "do not have the best stride, 1GiB"),
        (513, "no leaf size fits that number"),
    ],
)
def test_candidate_short_of_the_theory_is_said(
    plan: dict[str, Any], lookups: float, said: str
) -> None:
    arms: tuple[ArmName, ArmName] = ("baseline", "candidate")
    results = [
        TrialResult("t", arm, "measured", samples={"pfn_lookups_per_map": (value,)})
        for arm, value in zip(arms, (262144, lookups), strict=True)
    ]
    assert said in report(plan, *results)


def test_emulated_seconds_are_said_to_be_emulated(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan, *recorded)
    assert "EMULATED" in text
    assert "one DMA map, emulated s" in text
    real = report(plan | {"accel": "kvm", "accel_reason": "works"}, *recorded)
    assert "emulated" not in real.lower()
    assert "one DMA map, s" in real


def test_share_of_maps_in_the_boot_is_said(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    assert re.search(
        r"baseline   25\.79 s boot: maps 6 s \(23\.3%\), unmaps 0\.5293 s \(the last",
        report(plan, *recorded),
    )


def test_guest_boot_on_an_exact_host_is_in_instructions(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan | {"accel": "exact", "accel_reason": "asked for"}, *recorded)
    assert "one DMA map, Ginsn" in text
    assert re.search(r"baseline   25\.79 Ginsn boot: maps 6 Ginsn", text)
    assert "Costs are INSTRUCTIONS" in text
    assert "EMULATED" not in text
    assert "steps of 1 us" not in text
    assert "Ginsn: the host is emulated" in text


def test_guests_that_are_emulated_on_a_real_host_are_said_to_be(plan: dict[str, Any]) -> None:
    real = plan | {"accel": "kvm", "accel_reason": "works"}
    for guest, said in (("tcg", True), ("kvm", False)):
        one = TrialResult("t", "baseline", "measured", guest_accel=guest)
        assert ("its guests are EMULATED" in report(real, one)) == said


def test_workload_of_a_map_is_named_with_its_backend(plan: dict[str, Any]) -> None:
    chosen = map_scenario("map.backend=iommufd", 'trace.passes=["plain"]')
    text = report(plan | {"guest_kernel": None}, chosen=chosen)
    assert "workload   map from the host's user space, iommufd" in text
    assert "guest      " not in text
    # a map's scenario may have a guest, that is not booted
    assert "guest      " not in report(plan, chosen=map_scenario("guest.kernel.dir=guest"))


def test_what_a_guest_has_that_is_not_usual_is_said(plan: dict[str, Any]) -> None:
    usual = report(plan)
    assert "device     ivshmem, BAR 1GiB, intel vIOMMU\n" in usual
    assert ", 512MiB\n" in usual
    chosen = scenario(
        "device.count=4", "device.mmap=false", "guest.firmware=ovmf", "guest.boot=disk",
        "guest.backing=hugetlb-2MiB", "guest.viommu=intel", "guest.phys_bits=40",
    )  # fmt: skip
    text = report(plan, chosen=chosen)
    assert "device     4 x ivshmem, BAR 32GiB, no mmap, intel vIOMMU\n" in text
    assert (
        ", 512MiB, ovmf, booted from a disk, memory hugetlb-2MiB, intel vIOMMU, 40 address bits\n"
    ) in text


def test_level_of_the_guest_and_of_the_count_are_said(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan, *recorded)
    levels = " ".join(text[text.index("Mapping level") :].split())
    assert "guest-1 baseline leaves of 1GiB at most, from where QEMU put it" in levels
    assert "full/1GiB baseline leaves of 1GiB, 1 fault; 262144 lookups of 4KiB;" in levels
    assert "candidate leaves of 1GiB, 1 fault; 1 lookup of 1GiB;" in levels


def test_several_trials_show_their_range(plan: dict[str, Any]) -> None:
    values: list[tuple[ArmName, float]] = [("baseline", 4), ("baseline", 5), ("candidate", 1)]
    results = [
        TrialResult("t", arm, "measured", samples={"bar_map_seconds": (value,)})
        for arm, value in values
    ]
    assert "4.5 [4 5]" in report(plan, *results)


def test_trials_that_do_not_count_are_listed_with_their_evidence(plan: dict[str, Any]) -> None:
    bad = TrialResult(
        "0002-candidate", "candidate", "failed", "guest-panic", "guest-0-plain", "it panicked",
        "\n".join(f"line {i}" for i in range(30)),
    )  # fmt: skip
    text = report(plan, bad)
    assert "0002-candidate: failed at guest-0-plain: guest-panic: it panicked" in text
    assert "  | line 29" in text
    assert "line 17\n" not in text
    assert "(deb:new; 1 failed)" in text
    assert "(deb:old; no trials)" in text


def test_report_without_a_measurement_has_no_notes_on_values(plan: dict[str, Any]) -> None:
    text = report(plan)
    assert "small: invalid" in text
    assert "Each value" not in text
    assert "theory" not in text


def test_report_is_plain_text_of_a_readable_width(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan, *recorded)
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert not [line for line in text.splitlines() if line != line.rstrip()]
