from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from orchestrator.analysis.maps.breakdown import Breakdown
from orchestrator.analysis.maps.level import Level, LevelReason
from orchestrator.analysis.trial import Findings, TrialResult, read_result
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.analysis.verdict.comparison_file import comparison_json
from orchestrator.formats.units import GIB, KIB, MIB
from orchestrator.report.text.maps_text import map_sections
from orchestrator.report.text.run_text import text_report
from orchestrator.scenario.vocabulary import ArmName, Metric
from tests.unit.answers import by_1gib, map_pass, point
from tests.unit.fabricated import scenario_of_it, sealed_map_trial
from tests.unit.manifests import plan_of
from tests.unit.report.test_text import THEORY
from tests.unit.scenarios import scenario
from tests.unit.stable import has_in_order, numbers_in

KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12", "source": "deb:old"},
    "candidate": {"release": "7.3", "source": "deb:new"},
}
PLAN = plan_of(accel="exact", accel_reason="asked for", guest_kernel=None)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[TrialResult]:
    folder = tmp_path_factory.mktemp("maps")
    return [
        read_result(sealed_map_trial(folder, "baseline", series=False, number=1)),
        read_result(sealed_map_trial(folder)),
    ]


@pytest.fixture(scope="module")
def comparison(results: list[TrialResult]) -> Comparison:
    return compare_trials(scenario_of_it(), KERNELS, results, 2, "exact")


@pytest.fixture(scope="module")
def report(comparison: Comparison) -> str:
    return text_report(scenario_of_it(), comparison, PLAN)


LEVELS, LAWS, LOOKING = "Mapping level", "Scaling law", "Cost of looking"
PARTS, FUNCTIONS = "Parts of the last map", "Where the instructions"
"""Titles of sections."""


def section(text: str, title: str) -> str:
    """Return the lines from the title to an empty line, joined into one."""
    begin = text.index(title)
    return " ".join(text[begin:].partition("\n\n")[0].split())


def row(text: str, title: str, point: str) -> list[str]:
    """Return the cells of a point below a title of the table."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(title):
            break
    for line in lines:
        if line.startswith(f"  {point}"):
            return re.split(r"\s{2,}", line.strip())[1:]
    raise AssertionError(f"{title}: {point}")


def of(*levels: Level, arm: ArmName = "candidate", **findings: Any) -> str:
    result = TrialResult("t", arm, "measured", findings=Findings(levels=levels, **findings))
    return map_sections(compare_trials(scenario(), KERNELS, [result], 1, "exact"), exact=True)


def test_table_has_a_row_for_each_point(report: str) -> None:
    assert row(report, "one DMA map;", "full/1GiB/cold") == [
        "1.258 Ginsn", "18.8 kinsn", "1/66931", "improved",
    ]  # fmt: skip
    assert row(report, "one DMA unmap;", "1GiB/4KiB/warm") == [
        "39.32 Minsn", "52.43 Minsn", "+33.3%", "regressed",
    ]  # fmt: skip
    assert row(report, "page lookups in a map;", "full/2MiB/warm") == [
        "1048576", "2048", "1/512", "improved",
    ]  # fmt: skip
    assert row(report, "page faults in a map;", "full/1GiB/warm") == [
        "0", "0", "same", "equivalent",
    ]  # fmt: skip
    table = report[report.index("one DMA map;") : report.index("one DMA unmap;")]
    points = [line.split()[0] for line in table.splitlines()[1:]]
    assert points == [p.name for p in scenario_of_it().points()]


def test_point_with_the_plain_name_says_so(report: str) -> None:
    assert has_in_order(report, "one DMA map", "full/1GiB/warm", "bar_map_cost")


def test_head_says_what_was_done_and_in_what_unit(report: str) -> None:
    head = section(report, "device ")
    assert "BAR 4GiB" in head
    assert has_in_order(head, "workload", "map", "type1", "1 CPU", "exact", "INSTRUCTIONS", "10^9")
    assert "\nINSTRUCTIONS    " in report
    assert "emulated s" not in report
    assert "guest " not in head


def test_notes_explain_points_and_instructions(report: str) -> None:
    notes = section(report, "Each value is")
    assert "SIZE/ALIGNMENT/STATE" in notes
    assert has_in_order(notes, "Ginsn:", "10^9")


def test_theory_of_one_lookup_count_is_not_that_of_points(report: str) -> None:
    assert THEORY not in report


def test_level_is_said_for_each_arm_with_its_counts(report: str) -> None:
    levels = section(report, LEVELS)
    assert has_in_order(
        levels, "baseline", "1GiB", "4 faults", "1048576 lookups", "4KiB", "1048576", "no-series"
    )
    assert has_in_order(levels, "1GiB", "1 fault", "1 lookup", "1GiB", "262144", "best")
    assert has_in_order(levels, "candidate", "2MiB", "512 faults", "512 lookups", "2MiB")


def test_reason_is_told_once_for_each_arm(report: str, results: list[TrialResult]) -> None:
    levels = section(report, LEVELS)
    of_arms = [
        (result.arm, reason)
        for result in results for level in result.findings.levels for reason in level.reasons
    ]  # fmt: skip
    texts = Counter(reason.text for _, reason in {*of_arms})
    assert {text: levels.count(text) for text in texts} == texts
    names = Counter(reason.name for _, reason in of_arms)
    assert {name: levels.count(f"- {name}: ") for name in names} == names
    assert names.total() > texts.total()


def test_level_of_a_guest_is_from_where_qemu_put_it() -> None:
    text = of(Level("guest-1", "2MiB", None, None, (LevelReason("misaligned", "it is off"),)))
    words = section(text, LEVELS)
    assert has_in_order(words, "candidate", "2MiB", "QEMU", "misaligned", "it is off")
    assert "(best)" not in words


def test_law_says_what_the_cost_goes_with(report: str) -> None:
    laws = section(report, LAWS)
    assert has_in_order(laws, "baseline", "linear", "6 kinsn", "1.2 kinsn", "page")
    assert has_in_order(laws, "candidate", "flat", "6 kinsn", "1.2 kinsn", "GiB")
    assert has_in_order(laws, "candidate", "linear", "6 kinsn", "3.2 kinsn", "2MiB")
    assert has_in_order(laws, "unmap/4KiB/cold", "baseline", "2 kinsn", "150 insn")


def test_cost_of_looking_is_said_of_the_largest_map(report: str) -> None:
    words = section(report, LOOKING)
    assert has_in_order(
        words, "candidate", "full/1GiB/warm", "10.8 kinsn", "209.7 Minsn", "150 insn (1.39%",
        "1 kinsn (9.26%", "timing", "map +101.85% (11 kinsn", "unmap +0.01%",
        "counts", "map +7407.41% (800 kinsn",
    )  # fmt: skip
    assert has_in_order(words, "baseline", "full/1GiB/warm", "1.258 Ginsn", "timing", "map +0.00%")
    assert "full/2MiB" not in words
    assert "noisy" not in words


def test_parts_of_the_last_map_and_unmap_are_said(report: str) -> None:
    words = section(report, PARTS)
    assert has_in_order(
        words, "candidate", "map", "16 kinsn", "vfio_pin_pages_remote", "62.5%", "iommu_map",
        "12.5%", "25.0%",
    )  # fmt: skip
    assert has_in_order(
        words, "baseline", "unmap", "500 kinsn", "iova_to_phys", "80.0%", "iommu_unmap_fast",
        "0.2%",
    )  # fmt: skip


def test_functions_are_said_with_their_share(report: str) -> None:
    words = section(report, f"{FUNCTIONS} of one unmap go: candidate, warm")
    assert "209.7 Minsn" in words
    assert "80.0% 80.0% iommu_iova_to_phys" in words
    assert "20.0% 20.0% put_pfn" in words
    assert "linear" in words
    words = section(report, f"{FUNCTIONS} of one map go: candidate, warm")
    assert "51.0% 100.0% vfio_iommu_type1_ioctl" in words
    assert "linear" not in words  # every instruction was logged
    assert report.count(FUNCTIONS) == 2 + 3


def test_functions_that_are_not_shown_are_summed_up() -> None:
    stacks: dict[tuple[str, ...], float] = {("f",): 50.0, ("f", "g"): 49.0, ("f", "h"): 1.0}
    words = section(of(breakdowns=(Breakdown("map", "warm", stacks, logged=True),)), FUNCTIONS)
    assert "50.0% 100.0% f" in words
    assert has_in_order(words, "1.0%", "1 other")
    assert "measured" not in words
    many: dict[tuple[str, ...], float] = {("f", f"g{n}"): 5.0 for n in range(20)}
    words = section(of(breakdowns=(Breakdown("map", "warm", many, logged=True),)), FUNCTIONS)
    assert has_in_order(words, "30.0%", "6 other")


def test_seconds_are_seconds_where_the_host_is_not_exact(results: list[TrialResult]) -> None:
    chosen = scenario_of_it("host.accel=tcg", 'trace.passes=["plain", "timing", "counts"]')
    plan = plan_of(accel="tcg", accel_reason="no KVM", guest_kernel=None)
    text = text_report(chosen, compare_trials(chosen, KERNELS, results, 2, "tcg"), plan)
    assert "\nEMULATED seconds " in text
    assert "insn" not in text.partition(FUNCTIONS)[0]
    assert "6 us + 1.2 us" in section(text, LAWS)
    assert "noisy" in section(text, LOOKING)


def test_guest_boot_without_counts_has_no_sections_of_maps() -> None:
    name: Metric = "bar_map_cost"
    pair: list[tuple[ArmName, float]] = [("baseline", 2.0), ("candidate", 1.0)]
    both = [TrialResult("t", arm, "measured", samples={name: (v,)}) for arm, v in pair]
    assert map_sections(compare_trials(scenario(), KERNELS, both, 2, "tcg"), exact=False) == ""


def test_arm_without_a_measured_trial_leaves_the_other_alone(results: list[TrialResult]) -> None:
    trials = [results[1], TrialResult("t", "baseline", "failed", "host-panic")]
    text = map_sections(compare_trials(scenario_of_it(), KERNELS, trials, 2, "exact"), exact=True)
    assert "baseline" not in text
    assert "candidate" in text


def test_report_is_plain_text_for_mail(report: str) -> None:
    assert report.isascii()
    assert max(map(len, report.splitlines())) <= 76
    assert not [line for line in report.splitlines() if line != line.rstrip()]
    assert "\n\n\n" not in report


def test_findings_of_passes_that_are_trials_of_their_own_are_all_shown() -> None:
    """On an exact host the plain, timing and counts passes of a guest boot are separate trials."""
    by_trial = [
        Findings(),
        Findings(levels=(Level("guest-0", "1GiB", None, None, ()),)),
        Findings(levels=(Level("full/1GiB", "1GiB", "1GiB", None, ()),),
                 passes={"counts": map_pass(by_1gib())}),
    ]  # fmt: skip
    results = [TrialResult("t", "candidate", "measured", findings=f) for f in by_trial]
    text = map_sections(compare_trials(scenario(), KERNELS, results, 3, "exact"), exact=True)
    assert "  guest-0\n" in text
    assert "  full/1GiB\n" in text
    document: Any = comparison_json(compare_trials(scenario(), KERNELS, results, 3, "exact"))
    shown = document["arms"]["candidate"]
    assert [level["place"] for level in shown["levels"]] == ["guest-0", "full/1GiB"]


def test_stride_that_is_not_known_is_not_said() -> None:
    mapped = by_1gib()
    mapped["samples"][0]["counts"]["lookup"] = {(512,): 16384}
    counted = map_pass(mapped)
    text = of(Level("full/1GiB", "1GiB", None, None, ()), passes={"counts": counted})
    assert "16384 lookups" in text
    assert "None" not in text


def test_leaves_of_several_sizes_are_listed() -> None:
    tables = 4 * KIB
    mixed = point("full/1GiB", GIB + 512 * MIB, {"1GiB": 1, "2MiB": 256}, tables=tables)
    text = of(Level("full/1GiB", "1GiB", "1GiB", None, ()), passes={"counts": map_pass(mixed)})
    words = section(text, LEVELS)
    assert has_in_order(words, "1 of 1GiB", "256 of 2MiB", "257 faults", "257 lookups")
    assert words.endswith("(best)")


def test_level_without_counts_is_not_said_to_be_the_best() -> None:
    words = section(of(Level("guest-1", "1GiB", None, None, ())), LEVELS)
    assert has_in_order(words, "guest-1", "candidate", "1GiB")
    assert "(best)" not in words


def test_cost_of_looking_that_was_not_measured_is_said_not_to_be() -> None:
    for findings in (
        of(Level("guest-1", "1GiB", None, None, ())), of(passes={"counts": map_pass(by_1gib())})
    ):  # fmt: skip
        assert not numbers_in(section(findings, LOOKING))
    assert numbers_in(section(of(passes={"plain": map_pass(by_1gib(), counted=False)}), LOOKING))
    assert LOOKING not in of()


def test_notes_are_of_the_passes_and_the_backend(results: list[TrialResult]) -> None:
    for override, counted in (
        ('trace.passes=["plain", "counts"]', True),
        ('trace.passes=["plain"]', False),
    ):
        chosen = scenario_of_it(override)
        text = text_report(chosen, compare_trials(chosen, KERNELS, results, 2, "exact"), PLAN)
        assert ("\ncounts: " in text) == counted
