"""Trials of the map workload with every pass, some of them altered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from orchestrator.analysis.maps.level import Level
from orchestrator.analysis.trial import TrialResult, read_result
from orchestrator.scenario.vocabulary import AT_POINTS
from tests.unit.examples import share
from tests.unit.fabricated import BAR, IOCTL, PAGES, WALK, map_trial, scenario_of_it
from tests.unit.recorded import rewrite, sealed
from tests.unit.stable import numbers_in

NEEDED = [
    "map.json", "host/hist-lookup.txt", "host/hist-pin.txt", "host/hist-fault.txt",
    "host/hist-iova_walk.txt", "host/profile-counts.txt", "host/stats-counts.txt",
    "host/clock-counts.txt", "host/trace-map.txt", "host/profile-map.txt", "host/stats-map.txt",
    "host/clock-map.txt", "host/profile-0.folded", "host/profile-3.folded",
]  # fmt: skip


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return map_trial(tmp_path)


def judged(trial: Path, **facts: Any) -> TrialResult:
    return read_result(sealed(trial, **facts))


def measured(trial: Path, **facts: Any) -> TrialResult:
    result = judged(trial, **facts)
    assert result.kind == "measured", result.message
    return result


def invalid(trial: Path, reason: str) -> str:
    result = judged(trial)
    assert (result.kind, result.reason) == ("invalid", reason), result.message
    assert not result.by_bench
    return result.message


def answer(trial: Path, change: Callable[[dict[str, Any]], object]) -> None:
    def changed(text: str) -> str:
        whole = json.loads(text)
        change(whole["passes"])
        return json.dumps(whole)

    rewrite(trial / "map.json", changed)


def test_every_point_has_every_metric(trial: Path) -> None:
    result = measured(trial)
    points = scenario_of_it().points()
    assert set(result.samples) == {p.metric(base) for p in points for base in AT_POINTS}
    assert len(result.samples) == 5 * 3 * 3 * 2
    assert all(len(values) == 1 for values in result.samples.values())


def test_full_bar_at_its_best_and_warm_has_the_plain_names(trial: Path) -> None:
    result = measured(trial)
    assert result.value("bar_map_cost") == 10_800e-9
    assert result.value("pfn_lookups_per_map") == 4
    assert result.value("pfn_faults_per_map") == 0
    assert result.value("iova_lookups_per_unmap") == PAGES
    assert result.value("bar_map_cost@full/1GiB/cold") == 18_800e-9
    assert result.value("pfn_faults_per_map@full/1GiB/cold") == 4
    assert result.value("pfn_lookups_per_map@2GiB/2MiB/warm") == 1024
    assert result.value("pfn_faults_per_map@1GiB/4KiB/cold") == 262144


def test_times_are_those_of_the_plain_pass_and_counts_those_of_counts(tmp_path: Path) -> None:
    plain = measured(map_trial(tmp_path / "a", passes=("plain",)))
    assert plain.value("bar_map_cost") == 10_800e-9
    assert {name.partition("@")[0] for name in plain.samples} == {
        "bar_map_cost", "bar_unmap_cost",
    }  # fmt: skip
    counts = measured(map_trial(tmp_path / "b", passes=("counts",)))
    assert counts.value("bar_map_cost") is None
    assert counts.value("pfn_lookups_per_map") == 4
    timing = measured(map_trial(tmp_path / "c", passes=("timing",)))
    assert timing.samples == {}
    assert len(timing.findings.traced) == 4


def test_boot_of_an_exact_host_is_no_metric(trial: Path) -> None:
    assert measured(trial).value("host_boot_seconds") is None
    for clock in ("map", "counts"):
        (trial / f"host/clock-{clock}.txt").write_text("[mono]")
    assert measured(trial, accel="tcg").value("host_boot_seconds") == 60


def test_maps_that_only_prime_are_not_measured(trial: Path) -> None:
    def primed(passes: dict[str, Any]) -> None:
        for which in ("plain", "counts"):
            for point in passes[which]["points"]:
                point["samples"][0]["state"] = "prime"

    answer(trial, primed)
    result = measured(trial)
    assert not [name for name in result.samples if name.endswith("/cold")]
    assert result.value("pfn_lookups_per_map") == 4


def test_repeats_of_a_point_are_its_samples(trial: Path) -> None:
    def repeated(passes: dict[str, Any]) -> None:
        samples = passes["plain"]["points"][3]["samples"]
        samples.append(samples[1] | {"map_ns": 20_000})

    answer(trial, repeated)
    result = measured(trial)
    assert result.samples["bar_map_cost"] == (10_800e-9, 20_000e-9)
    # chance only adds to a count of instructions
    assert result.value("bar_map_cost") == 10_800e-9
    for label in ("map", "counts"):
        (trial / f"host/clock-{label}.txt").write_text("[mono]")
    assert measured(trial, accel="tcg").value("bar_map_cost") == pytest.approx(15_400e-9)


def level(result: TrialResult, place: str) -> Level:
    [level] = [level for level in result.findings.levels if level.place == place]
    return level


def test_every_place_has_its_level(trial: Path, tmp_path: Path) -> None:
    result = measured(trial)
    assert len(result.findings.levels) == 9
    assert level(result, "full/1GiB").best
    assert level(result, "2GiB/2MiB").stride == "2MiB"
    assert level(result, "full/4KiB").stride == "4KiB"
    old = measured(map_trial(tmp_path / "old", "baseline", series=False))
    assert [r.name for r in level(old, "full/1GiB").reasons] == ["no-series"]
    assert [r.name for r in level(old, "full/2MiB").reasons] == ["misaligned", "no-series"]


def test_parts_of_the_last_maps_are_kept(trial: Path) -> None:
    traced = measured(trial).findings.traced
    assert [(o.kind, o.seconds) for o in traced] == [("map", 16e-6), ("unmap", 500e-6)] * 2
    assert (traced[0].pin_seconds, traced[0].iommu_seconds) == (10e-6, 2e-6)
    assert (traced[1].walk_seconds, traced[1].size) == (400e-6, BAR)


def test_instructions_are_broken_down_by_function(trial: Path, tmp_path: Path) -> None:
    breakdowns = measured(trial).findings.breakdowns
    assert [(b.operation, b.state, b.logged) for b in breakdowns] == [
        ("map", "cold", True), ("map", "warm", True), ("unmap", "warm", False),
    ]  # fmt: skip
    assert breakdowns[2].within(WALK) == 160 * PAGES
    assert breakdowns[2].within("put_pfn") == 40 * PAGES
    assert breakdowns[0].within(IOCTL) == breakdowns[0].total == 17_800
    old = measured(map_trial(tmp_path / "old", "baseline", series=False)).findings.breakdowns
    assert [(b.operation, b.logged) for b in old] == [("map", False), ("unmap", False)]
    assert old[0].within("vaddr_get_pfns") == 1200 * PAGES


@pytest.mark.parametrize("name", NEEDED)
def test_trial_is_invalid_when_evidence_is_missing(trial: Path, name: str) -> None:
    (trial / name).unlink()
    assert name in invalid(trial, "missing-evidence")


@pytest.mark.parametrize("name", NEEDED)
def test_trial_is_invalid_when_evidence_is_empty(trial: Path, name: str) -> None:
    (trial / name).write_text("")
    assert judged(trial).kind == "invalid"


@share(0.25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*NEEDED, "host/facts.json", "host/profile.json"]), st.floats(0, 1))
def test_evidence_cut_anywhere_never_raises(
    tmp_path_factory: pytest.TempPathFactory, name: str, share: float
) -> None:
    trial = map_trial(tmp_path_factory.mktemp("cut"))
    text = (trial / name).read_text()
    (trial / name).write_text(text[: int(len(text) * share)])
    assert judged(trial).kind in ("measured", "invalid")


@pytest.mark.parametrize("which", ["plain", "timing", "counts"])
def test_trial_is_invalid_without_one_of_its_passes(trial: Path, which: str) -> None:
    answer(trial, lambda passes: passes.pop(which))
    assert f"passes.{which}" in invalid(trial, "bad-evidence")


@pytest.mark.parametrize("which", ["plain", "timing", "counts"])
def test_trial_is_invalid_when_a_pass_has_no_samples(trial: Path, which: str) -> None:
    def emptied(passes: dict[str, Any]) -> None:
        for point in passes[which]["points"][1:]:
            point["samples"] = []

    answer(trial, emptied)
    assert which in invalid(trial, "missing-evidence").split()


@pytest.mark.parametrize("which", ["plain", "timing", "counts"])
def test_trial_is_invalid_when_a_pass_had_another_bar(trial: Path, which: str) -> None:
    answer(trial, lambda passes: passes[which].update(bar_bytes=BAR // 2))
    invalid(trial, "wrong-bar")


def test_trial_is_invalid_when_counts_disagree(trial: Path) -> None:
    def faulted(passes: dict[str, Any]) -> None:
        passes["counts"]["points"][4]["samples"][0]["minor_faults"] = 511

    answer(trial, faulted)
    assert invalid(trial, "counts-disagree") == (
        "1GiB/2MiB/cold (sample 1): faults that installed a mapping: 512;"
        " minor faults of the thread: 511"
    )


@pytest.mark.parametrize(("label", "clock"), [("map", "x86-tsc"), ("counts", "mono")])
def test_trial_is_invalid_when_a_trace_clock_is_another(
    trial: Path, label: str, clock: str
) -> None:
    rewrite(trial / f"host/clock-{label}.txt", lambda text: text.replace(f"[{clock}]", clock))
    assert {label, clock} <= {*invalid(trial, "wrong-clock").split()}


def test_timing_on_a_host_that_is_not_exact_is_in_its_own_seconds(trial: Path) -> None:
    (trial / "host/clock-map.txt").write_text("[mono] x86-tsc")
    assert judged(trial, accel="tcg").kind == "measured"


@pytest.mark.parametrize("label", ["map", "counts"])
def test_trial_is_invalid_when_a_tracer_lost_something(trial: Path, label: str) -> None:
    rewrite(
        trial / f"host/stats-{label}.txt", lambda text: text.replace("overrun: 0", "overrun: 2")
    )
    message = invalid(trial, "lost-events")
    assert label in message.split()
    assert numbers_in(message) == ["2"]


def test_trial_is_invalid_when_the_trace_has_fewer_maps_than_were_made(trial: Path) -> None:
    def shorter(text: str) -> str:
        lines = text.splitlines()
        starts = [i for i, line in enumerate(lines) if "ioctl_in" in line]
        return "\n".join([lines[0], *lines[starts[3] :]]) + "\n"

    rewrite(trial / "host/trace-map.txt", shorter)
    message = invalid(trial, "maps-disagree")
    assert numbers_in(message)[:2] == ["2", "3"]


def test_trial_is_invalid_when_a_traced_map_was_refused(trial: Path) -> None:
    rewrite(
        trial / "host/trace-map.txt",
        lambda text: re.sub(r"(ioctl_out: .*cmd=0x3b71.*ret=)0", r"\1-14", text, count=1),
    )
    assert "results [-14, 0]" in invalid(trial, "maps-disagree")


def test_trial_is_invalid_when_a_log_does_not_add_up(trial: Path) -> None:
    rewrite(trial / "host/profile-0.folded", lambda text: text.replace(" 8000", " 8001"))
    assert numbers_in(invalid(trial, "bad-evidence"))[-2:] == ["17801", "17800"]


def test_trial_is_invalid_when_the_profile_pass_left_nothing(trial: Path) -> None:
    (trial / "host/profile.json").unlink()
    invalid(trial, "missing-evidence")


def test_trial_is_invalid_when_the_functions_do_not_add_up(trial: Path) -> None:
    def slower(passes: dict[str, Any]) -> None:
        for point in passes["plain"]["points"]:
            for taken in point["samples"]:
                taken["map_ns"] += 501 * (taken["state"] == "cold")

    answer(trial, slower)
    assert invalid(trial, "sums-disagree") == (
        "the functions of the map (cold) add up to 17800 instructions, 18301 were measured"
    )


@pytest.mark.parametrize("which", ["plain", "timing"])
def test_trial_is_invalid_when_another_pass_made_other_maps(trial: Path, which: str) -> None:
    def faulted(passes: dict[str, Any]) -> None:
        for point in passes[which]["points"]:
            if point["name"] == "full/1GiB":
                point["samples"][1]["minor_faults"] = 3

    answer(trial, faulted)
    assert invalid(trial, "counts-disagree") == (
        "full/1GiB/warm (sample 2): minor faults of the thread: 3; in the counts pass: 0"
    )
