from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestrator.analysis.comparison import boots_of, compare
from orchestrator.analysis.timeline import Note, Timeline
from orchestrator.analysis.trial import Findings, TrialResult, read_result
from orchestrator.evidence import TrialDir, read_json
from orchestrator.report.text import text_report
from orchestrator.report.timeline import calls_and_cost
from orchestrator.scenario import ArmName, Scenario
from tests.unit.recorded import RUN, copied, sealed, unpatched
from tests.unit.scenarios import map_scenario, scenario
from tests.unit.timelines import booted

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


def in_unit(unit: Literal["s", "Ginsn"], results: list[TrialResult]) -> list[TrialResult]:
    """As if the hosts had run otherwise."""
    return [
        replace(one, findings=replace(one.findings, timelines=tuple(
            replace(boot, unit=unit) for boot in one.findings.timelines
        )))
        for one in results
    ]  # fmt: skip


def with_boots(arm: ArmName, *boots: Timeline) -> TrialResult:
    return TrialResult("t", arm, "measured", findings=Findings(timelines=boots))


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
    assert row(text, "DMA maps of the BAR, start to exit")[2:] == ["12", "12", "1", "equivalent"]
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
    real = report(plan | {"accel": "kvm", "accel_reason": "works"}, *in_unit("s", recorded))
    assert "emulated" not in real.lower()
    assert "one DMA map, s" in real


def test_calls_and_cost_of_a_boot_are_said(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan, *recorded)
    compared = compare(scenario("device.bar=1GiB"), KERNELS, recorded, 2, plan["accel"])
    assert f"\n{calls_and_cost(boots_of(compared))}\n" in text
    maps = row(text, "all maps of 1GiB BARs")
    assert (maps[1:4], maps[5]) == (["12", "500 ms", "6 s"], "12")
    # and the last one at QEMU's exit
    unmaps = row(text, "all unmaps of 1GiB BARs")
    assert (unmaps[1], unmaps[5]) == ("11", "11")
    assert row(text[text.index("After the boot mark:") :], "unmap 1GiB BAR")[1] == "1"


def test_run_without_a_traced_boot_has_nothing_of_calls_and_cost(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    text = report(plan, *(replace(one, findings=Findings()) for one in recorded))
    assert "DMA maps of the BAR, start to exit" in text
    assert "Maps and unmaps" not in text
    assert "Notes:" not in text


@pytest.mark.parametrize(
    "name", ["no-mmap", "guest-viommu", "iommufd-without-dma-buf", "clock-step", "clock-source"]
)
def test_note_on_a_boot_is_said_of_its_arm(plan: dict[str, Any], name: str) -> None:
    noted = with_boots("candidate", booted("candidate", notes=(Note(name, "so it was"),)))
    text = report(plan, with_boots("baseline", booted(notes=())), noted)
    assert f"\nNotes:\n  candidate  {name}: so it was\n\n" in text
    assert text.index("Notes:") < text.index("Maps and unmaps in one guest boot")


def test_note_is_said_once_of_each_arm_however_many_boots_have_it(plan: dict[str, Any]) -> None:
    one, other = Note("clock-step", "stepped"), Note("no-mmap", "never mapped")
    results = [
        with_boots("baseline", booted(notes=(one, other)), booted(notes=(one,))),
        with_boots("baseline", booted(notes=(one,))),
        with_boots("candidate", booted("candidate", notes=(one,))),
    ]
    said = report(plan, *results).partition("Notes:\n")[2].partition("\n\n")[0]
    assert said.splitlines() == [
        "  baseline   clock-step: stepped",
        "  baseline   no-mmap: never mapped",
        "  candidate  clock-step: stepped",
    ]


def test_boot_without_a_note_has_no_section_of_notes(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    assert "Notes:" not in report(plan, *recorded)


def test_note_of_a_trial_that_does_not_count_is_not_said(plan: dict[str, Any]) -> None:
    noted = with_boots("baseline", booted(notes=(Note("no-mmap", "never mapped"),)))
    assert "no-mmap" not in report(plan, replace(noted, kind="invalid"))


def test_guest_boot_on_an_exact_host_is_in_instructions(
    plan: dict[str, Any], recorded: list[TrialResult]
) -> None:
    exact = plan | {"accel": "exact", "accel_reason": "asked for"}
    text = report(exact, *in_unit("Ginsn", recorded))
    assert "one DMA map, Ginsn" in text
    assert "Maps and unmaps in one guest boot, up to the boot mark, Ginsn (one:" in text
    assert row(text, "all maps of 1GiB BARs")[1:4] == ["12", "500 Minsn", "6 Ginsn"]
    assert "Costs are INSTRUCTIONS" in text
    assert "EMULATED" not in text
    assert "steps of 1 us" not in text
    assert "Ginsn: the host is emulated" in text


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (("plain", "timing", "counts"), ("plain: ", "timing: ", "counts: ")),
        (("plain",), ("plain: ",)),
        (("counts",), ("counts: ",)),
        (("timing", "counts"), ("timing: ", "counts: ")),
    ],
)
def test_notes_are_of_the_passes_that_were_run(
    plan: dict[str, Any], recorded: list[TrialResult], passes: tuple[str, ...],
    said: tuple[str, ...],
) -> None:  # fmt: skip
    names = ", ".join(f'"{name}"' for name in passes)
    chosen = scenario("device.bar=1GiB", f"trace.passes=[{names}]")
    notes = report(plan, *recorded, chosen=chosen).partition("Each value is a trial's")[2]
    assert tuple(re.findall(r"(?m)^(?:plain|timing|counts): ", notes)) == said
    assert ("its clock has steps of 1 us" in notes) == ("timing" in passes)


def test_trials_that_were_begun_again_are_said_of_their_arm(plan: dict[str, Any]) -> None:
    again = TrialResult(
        "t", "candidate", "measured", repeated=("host-crash", "exact-crawl")
    )  # fmt: skip
    lines = report(plan, TrialResult("t", "baseline", "measured"), again).splitlines()
    assert [line for line in lines if "measured" in line] == [
        "baseline   6.12.107+deb13  (deb:old; 1 measured)",
        "candidate  7.3.4+deb13  (deb:new; 1 measured; begun again: host-crash, exact-crawl)",
    ]


def test_trial_of_the_evidence_says_that_it_was_begun_again(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    trial = sealed(copied(tmp_path), repeated=["host-crash"])
    assert "1 measured; begun again: host-crash)" in report(plan, read_result(trial))


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
        "guest.backing=hugetlb-2MiB", "guest.viommu=intel", "guest.backend=iommufd",
        "guest.phys_bits=40",
    )  # fmt: skip
    text = report(plan, chosen=chosen)
    assert "device     4 x ivshmem, BAR 32GiB, no mmap, intel vIOMMU\n" in text
    assert (
        ", 512MiB, ovmf, booted from a disk, memory hugetlb-2MiB, intel vIOMMU, by iommufd,"
        " 40 address bits\n"
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
