"""KCIDB objects, checked against the schema by kcidb-io itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import kcidb_io
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.exports.kcidb import kcidb_objects
from tests.unit.manifests import plan_of
from tests.unit.report.made import BOOT, IDENTITIES, LOOKUPS, MAP, RUNS, Run, ended, pairs, run
from tests.unit.scenarios import metal_scenario
from tests.unit.stable import has_in_order

ANYTHING = st.text(st.characters())


def objects(of: Run) -> dict[str, Any]:
    """Return the objects as a receiver reads them."""
    chosen = of.scenario
    made = kcidb_objects(chosen.host, chosen.device, chosen.workload, of.comparison, of.plan)
    document: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    kcidb_io.schema.LATEST.validate(document)
    return document


def by_name(of: Run) -> dict[str, dict[str, Any]]:
    return {test["id"].partition("/")[2]: test for test in objects(of)["tests"]}


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_valid_and_whole(name: str) -> None:
    document = objects(RUNS[name][0]())
    assert (kcidb_io.schema.LATEST.major, kcidb_io.schema.LATEST.minor) == (
        document["version"]["major"], document["version"]["minor"],
    )  # fmt: skip
    kinds = ("checkouts", "builds", "tests")
    ids = {kind: [entry["id"] for entry in document[kind]] for kind in kinds}
    assert all(len({*names}) == len(names) for names in ids.values())
    assert {build["checkout_id"] for build in document["builds"]} == {*ids["checkouts"]}
    assert {test["build_id"] for test in document["tests"]} <= {*ids["builds"]}
    assert all(name.startswith("barometer:") for names in ids.values() for name in names)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("improved", "PASS"),
        ("regressed", "FAIL"),
        ("candidate fails", "FAIL"),
        ("inconclusive", "DONE"),
        ("control", "ERROR"),
        ("accelerators", "ERROR"),
        ("bench fails", "MISS"),
    ],
)
def test_verdict_is_the_status(name: str, status: str) -> None:
    verdict = by_name(RUNS[name][0]())["verdict"]
    assert verdict["status"] == status
    assert verdict["path"] == "barometer.small.verdict"
    assert verdict["build_id"] == "barometer:candcandcandcand"


def test_metrics_have_numbers_of_each_arm() -> None:
    tests = by_name(run(pairs(0.5), f"{MAP}=improved"))
    before, after = (tests[f"{MAP}/{arm}"] for arm in ("baseline", "candidate"))
    assert before["number"] == {"value": pytest.approx(0.5, rel=0.01), "unit": "s",
                                "prefix": "metric"}  # fmt: skip
    assert (before["status"], after["status"]) == ("DONE", "PASS")
    assert after["number"]["value"] == pytest.approx(0.25, rel=0.01)
    assert before["path"] == after["path"] == "barometer.small.bar_map_cost"
    assert (before["build_id"], after["build_id"]) == (
        "barometer:basebasebasebase", "barometer:candcandcandcand",
    )  # fmt: skip
    assert after["misc"]["compared"]["ratio"] == pytest.approx(0.5)
    assert len(before["misc"]["samples"]) == 12
    assert tests[f"{BOOT}/candidate"]["status"] == "DONE"  # the scenario expects nothing of it
    assert tests[f"{LOOKUPS}/candidate"]["number"] == {"value": 500}


@pytest.mark.parametrize(
    ("accel", "number"),
    [
        ("tcg", {"value": 40, "unit": "emulated s"}),
        ("exact", {"value": 40e9, "unit": "instructions", "prefix": "metric"}),
    ],
)
def test_numbers_are_in_the_unit_of_the_accelerator(accel: str, number: dict[str, Any]) -> None:
    tests = by_name(run(pairs(0.4, 1), accel=accel))
    assert tests[f"{BOOT}/baseline"]["number"] == number
    comment = tests["verdict"]["environment"]["comment"]
    assert has_in_order(comment, "nested VM", accel, "EMULATED", "intel vIOMMU", "ivshmem")


def test_emulated_guests_of_a_real_host_are_said() -> None:
    results = [replace(result, guest_accel="tcg") for result in pairs(1.0, 1)]
    comment = by_name(run(results))["verdict"]["environment"]["comment"]
    assert has_in_order(comment, "nested VM", "kvm", "guests EMULATED")


def test_metric_that_was_not_measured_is_an_error() -> None:
    test = by_name(RUNS["expected and not measured"][0]())[f"{MAP}/candidate"]
    assert (test["status"], "number" in test) == ("ERROR", False)


def test_trials_have_their_times_and_their_console() -> None:
    by_bench = ended("control", 4, "invalid", by_bench=True, evidence="")
    tests = by_name(
        run([*pairs(0.5, 1), ended("candidate", 2), ended("baseline", 3, "invalid"), by_bench])
    )
    measured = tests["trial/0000-baseline"]
    assert (measured["status"], measured["start_time"], measured["duration"]) == (
        "DONE", "2026-11-22T22:00:20+00:00", 99.5,
    )  # fmt: skip
    failed, invalid, bench = (tests[f"trial/{name}"] for name in (
        "0094-candidate", "0096-baseline", "0098-control",
    ))  # fmt: skip
    assert (failed["status"], invalid["status"], bench["status"]) == ("FAIL", "ERROR", "MISS")
    assert failed["log_excerpt"].endswith("Kernel panic\n")
    assert not failed.keys() & {"start_time", "duration"}  # not in the evidence
    assert bench["build_id"] == "barometer:basebasebasebase"
    assert "log_excerpt" not in bench


def test_what_is_submitted_twice_is_the_same() -> None:
    assert objects(run(pairs(0.5))) == objects(run(pairs(0.5)))
    night, next_night = objects(run(pairs(0.5))), objects(run(pairs(0.5, 3)))
    assert night["builds"] == next_night["builds"]
    ids = [{test["id"] for test in report["tests"]} for report in (night, next_night)]
    assert not ids[0] & ids[1]


def test_kernel_against_itself_is_one_build() -> None:
    same = dict.fromkeys(("baseline", "candidate"), IDENTITIES["baseline"])
    document = objects(replace(run(pairs(1.0)), plan=plan_of(kernels=same)))
    assert (len(document["checkouts"]), len(document["builds"])) == (1, 1)


def test_point_of_a_map_has_a_path() -> None:
    results = pairs(0.4, 1)
    at = "pfn_lookups_per_map@1GiB/2MiB/cold"
    for result in results:
        result.samples[at] = (512.0,)
    test = by_name(run(results))[f"{at}/baseline"]
    assert test["path"] == "barometer.small.pfn_lookups_per_map_1GiB_2MiB_cold"
    assert test["misc"]["metric"] == at


def test_long_console_is_cut_to_its_end() -> None:
    [*_, trial] = objects(run([ended("candidate", 0, evidence="x" * 20000 + "end")]))["tests"]
    assert (len(trial["log_excerpt"]), trial["log_excerpt"][-3:]) == (16384, "end")


@given(ANYTHING, ANYTHING, ANYTHING)
def test_text_from_outside_does_not_break_it(reason: str, message: str, evidence: str) -> None:
    objects(run([ended("candidate", 0, reason=reason, message=message, evidence=evidence)]))


@pytest.mark.parametrize(
    ("accel", "words"),
    [("none", ("accel none", "hostdev", "1GiB")),
     ("kvm", ("accel kvm", "hostdev", "1GiB")),
     ("tcg", ("accel tcg", "EMULATED", "hostdev", "1GiB"))],
)  # fmt: skip
def test_metal_host_is_the_environment(accel: str, words: tuple[str, ...]) -> None:
    of = run(pairs(0.5), accel=accel)
    document = objects(replace(of, scenario=metal_scenario(), plan=plan_of(accel=accel)))
    [comment] = {test["environment"]["comment"] for test in document["tests"]}
    assert has_in_order(comment, *words)
    misc = document["tests"][0]["environment"]["misc"]
    assert misc == {
        "accel": accel, "device": "hostdev", "device_count": 1, "bar_bytes": 1 << 30,
        "workload": "map",
    }  # fmt: skip
