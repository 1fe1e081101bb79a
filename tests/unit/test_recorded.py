"""The recorded runs, judged again: they give the same numbers as when they were made."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.analysis.boot.causes import UNKNOWN
from orchestrator.analysis.boot.cost import build_cost_table
from orchestrator.analysis.boot.timeline import RAM
from orchestrator.analysis.maps.theory import count_pages, predict_lookups
from orchestrator.analysis.verdict.comparison import Comparison, boots_of, find_laws
from orchestrator.analysis.verdict.expectations import choose_exit_code
from orchestrator.evidence.layout import RunDir
from orchestrator.formats.abi import LEAVES
from orchestrator.formats.units import GIB, format_size
from orchestrator.report.text.timeline_text import calls_and_cost
from orchestrator.run.judging.matrix import MatrixDir, judge_cells
from orchestrator.scenario.model import Scenario
from tests.unit.recorded import judge_and_save as judge

TESTER = "A Tester <tester@example.org>"
RECORDED = Path(__file__).parents[2] / "fixtures/recorded"
RUNS = sorted(path.parent for path in RECORDED.glob("*/plan.json"))
CELLS = sorted(path.parent for path in RECORDED.glob("*/cells/*/plan.json"))
of_every_run = pytest.mark.parametrize("recorded", RUNS, ids=lambda path: path.name)
of_every_cell = pytest.mark.parametrize("recorded", CELLS, ids=lambda path: path.name)
MAPS = {  # for one device, by guest kernel and firmware
    ("6.12.107+deb13-cloud-amd64", "seabios"): 12,
    ("6.12.107+deb13-cloud-amd64", "ovmf"): 13,
    ("7.3.4+deb13-cloud-amd64", "seabios"): 5,
    ("7.3.4+deb13-cloud-amd64", "ovmf"): 6,
}


Judging = Callable[[Path], tuple[Path, Scenario, Comparison, str]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judging:
    """Judges a copy of a recorded run, once."""

    @functools.cache
    def judged(recorded: Path) -> tuple[Path, Scenario, Comparison, str]:
        run = shutil.copytree(recorded, tmp_path_factory.mktemp("runs") / recorded.name)
        return (run, *judge(RunDir.open(run), TESTER))

    return judged


def test_a_run_of_both_kernels_is_recorded() -> None:
    assert RUNS, f"no run in {RECORDED}"


@of_every_run
def test_recorded_evidence_is_judged_to_the_same_numbers(recorded: Path, judged: Judging) -> None:
    run, _, comparison, report = judged(recorded)
    written = json.loads((run / "comparison.json").read_text())
    assert written == json.loads((recorded / "comparison.json").read_text())
    assert report == (recorded / "report.txt").read_text()
    assert not [r.message for r in comparison.results if r.kind != "measured"]
    assert choose_exit_code(comparison) == 0


@pytest.mark.parametrize(
    ("name", "unmap"), [("placebo", "equivalent"), ("slower-unmap", "regressed")]
)
def test_one_code_built_twice_is_equivalent_and_a_few_percent_are_found(
    name: str, unmap: str, judged: Judging
) -> None:
    recorded = RECORDED / "verdicts" / name
    _, _, comparison, report = judged(recorded)
    assert report == (recorded / "report.txt").read_text()
    assert (comparison.verdict, choose_exit_code(comparison)) == (unmap, 0)
    metric = comparison.metric("bar_unmap_cost")
    assert metric is not None
    assert metric.ratio == pytest.approx(1.034 if unmap == "regressed" else 1, rel=5e-4)
    assert {m.control.verdict for m in comparison.metrics if m.control} == {"equivalent"}


def test_an_unmap_as_a_whole_takes_one_walk(judged: Judging) -> None:
    """The series unmap-contiguous changes the unmap alone."""
    recorded = RECORDED / "verdicts/unmap-contiguous"
    _, _, comparison, report = judged(recorded)
    assert report == (recorded / "report.txt").read_text()
    found = {metric.name: metric for metric in comparison.metrics}
    walks = found["iova_lookups_per_unmap"]
    assert (walks.baseline, walks.candidate) == ((count_pages(32 * GIB),), (1,))
    unmap = found["bar_unmap_cost"].ratio
    assert unmap is not None
    assert unmap < 1 / 300_000
    others = {name: metric.verdict for name, metric in found.items() if "unmap" not in name}
    assert {*others.values()} == {"equivalent"}


def test_matrix_is_judged_to_the_same_table(tmp_path: Path) -> None:
    recorded = RECORDED / "factors"
    matrix = MatrixDir(shutil.copytree(recorded, tmp_path / "run"))
    report, code, *_ = judge_cells(matrix, TESTER).save()
    assert (report, code) == ((recorded / "report.txt").read_text(), 0)


@of_every_run
def test_recorded_lookups_are_pages_unpatched_and_leaves_patched(
    recorded: Path, judged: Judging
) -> None:
    _, scenario, comparison, _ = judged(recorded)
    if "counts" not in scenario.trace.passes:
        return
    bar = scenario.device.bar
    metric = comparison.metric("pfn_lookups_per_map")
    assert metric is not None
    assert set(metric.baseline) == {count_pages(bar)}
    assert set(metric.candidate) == {predict_lookups(bar)["1GiB"]}
    maps = comparison.metric("bar_map_cost")
    assert maps is not None
    assert maps.ratio is not None
    assert maps.ratio < 1 / 1000


@of_every_run
def test_recorded_boots_have_twelve_maps_and_are_explained(
    recorded: Path, judged: Judging
) -> None:
    run, scenario, comparison, _ = judged(recorded)
    boots = boots_of(comparison)
    if scenario.workload == "map":
        assert boots == {"baseline": [], "candidate": []}
        assert not (run / "timelines").exists()
        return
    for [boot] in boots.values():
        large = [s for s in boot.steps if s.bar != RAM and s.size == scenario.device.bar]
        assert sorted(s.kind for s in large) == ["map"] * 12 + ["unmap"] * 12
        assert not [s for s in large if s.cause == UNKNOWN]
        assert min(s.attributed_share for s in large if s.seconds > 0.01) > 0.99
        assert boot.attributed_share > 0.999
        assert (run / f"timelines/{boot.trial}-{boot.guest}.pftrace").exists()


@of_every_cell
def test_recorded_cells_have_the_maps_of_their_factors(recorded: Path, judged: Judging) -> None:
    run, scenario, comparison, report = judged(recorded)
    assert report == (recorded / "report.txt").read_text()
    assert not [r.message for r in comparison.results if r.kind != "measured"]
    guest = scenario.guest
    assert guest is not None
    kernel = RunDir.open(run).plan().guest_kernel
    assert kernel is not None
    expected = MAPS[kernel.release, guest.firmware] * scenario.device.count
    for [boot] in boots_of(comparison).values():
        maps = [s for s in boot.steps if s.size == scenario.device.bar and s.kind == "map"]
        assert len(maps) == expected
        assert not [s for s in maps if s.cause == UNKNOWN]
        assert min(s.attributed_share for s in boot.steps if s.seconds > 0.001) > 0.95
        assert boot.attributed_share > 0.98
        assert boot.mark_bound == 0


@of_every_run
def test_recorded_boots_differ_by_their_maps(recorded: Path, judged: Judging) -> None:
    _, scenario, comparison, report = judged(recorded)
    difference = build_cost_table(boots_of(comparison)).difference
    assert (difference is not None) == (scenario.workload == "guest-boot")
    if difference is None:
        return
    maps = difference.operations[f"maps of {format_size(scenario.device.bar)} BARs"]
    assert difference.whole < maps / 2 < 0
    assert calls_and_cost(boots_of(comparison)).splitlines()[-1] in report


@of_every_run
def test_recorded_points_have_the_lookups_of_their_alignment(
    recorded: Path, judged: Judging
) -> None:
    _, scenario, comparison, _ = judged(recorded)
    for point in scenario.points() if "counts" in scenario.trace.passes else ():
        metric = comparison.metric(point.metric("pfn_lookups_per_map"))
        assert metric is not None
        assert set(metric.baseline) == {count_pages(point.size)}
        assert set(metric.candidate) == {point.size // LEAVES[point.alignment]}
        faults = comparison.metric(point.metric("pfn_faults_per_map"))
        assert faults is not None
        leaves = point.size // LEAVES[point.alignment] if point.state == "cold" else 0
        assert {*faults.baseline, *faults.candidate} == {leaves}


@of_every_run
def test_recorded_levels_have_a_reason_or_are_best(recorded: Path, judged: Judging) -> None:
    _, _, comparison, _ = judged(recorded)
    for result in comparison.results:
        for level in result.findings.levels:
            names = {reason.name for reason in level.reasons}
            assert "unexplained" not in names
            by_host = level.stride is not None
            expected = {"no-series"} if result.arm == "baseline" and by_host else set()
            if level.leaf == "4KiB":  # pages are looked up one by one anyway
                expected = set()
            if level.place.endswith(("/2MiB", "/4KiB")):
                expected |= {"misaligned"}
            assert names == expected, level.place


@of_every_run
def test_recorded_costs_grow_with_what_is_visited(recorded: Path, judged: Judging) -> None:
    _, scenario, comparison, _ = judged(recorded)
    if scenario.workload != "map" or len(scenario.map.sizes) < 3:
        return
    for arm in ("baseline", "candidate"):
        assert find_laws(comparison, arm) == {}  # three sizes are no law
        for what in ("map", "unmap"):
            one, two = (
                comparison.metric(f"bar_{what}_cost@{size}/1GiB/warm") for size in ("1GiB", "2GiB")
            )
            assert one is not None
            assert two is not None
            [first], [second] = getattr(one, arm), getattr(two, arm)
            by_leaves = arm == "candidate" and what == "map"  # little beside what is fixed
            assert second / first == pytest.approx(1.12 if by_leaves else 2.0, rel=0.01)
