"""JUnit XML, read back by the parser of Python's library and by junitparser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml

from orchestrator.report.exports.cases import Case, Suite, clean_text, not_run
from orchestrator.report.exports.junit import junit_xml
from tests.unit.report.made import BOOT, MAP, RUNS, ended, pairs, run

ANYTHING = st.text(st.characters())


def read(*suites: Suite) -> ET.Element:
    text = junit_xml(suites)
    JUnitXml.fromstring(text.encode())
    return ET.fromstring(text.encode())


def cases(root: ET.Element) -> dict[str, ET.Element]:
    return {str(case.get("name")): case for case in root.iter("testcase")}


def results(root: ET.Element, name: str) -> list[tuple[str, str | None]]:
    return [(element.tag, element.get("type")) for element in cases(root)[name] if element.tag in
            ("failure", "error", "skipped")]  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_a_suite_whose_numbers_add_up(name: str) -> None:
    make, code = RUNS[name]
    suite = make().suite
    root = read(suite)
    [of_run] = root
    for element in (root, of_run):
        for tag, attribute in (("failure", "failures"), ("error", "errors")):
            assert element.get(attribute) == str(len([*root.iter(tag)]))
        assert element.get("tests") == str(len(suite.cases))
        assert element.get("skipped") == "0"
    assert (of_run.get("name"), bool(code)) == ("small", bool(results(root, "verdict")))


def test_what_is_not_known_is_an_error_and_what_is_not_met_a_failure() -> None:
    root = read(RUNS["not as expected"][0]().suite)
    assert results(root, MAP) == [("failure", "equivalent")]
    assert results(root, BOOT) == []
    root = read(RUNS["expected and inconclusive"][0]().suite)
    assert results(root, BOOT) == [("error", "inconclusive")]


def test_trials_that_ended_early_have_their_console() -> None:
    lost = ended("candidate", 2, "invalid", reason="lost-events", evidence="")
    root = read(run([*pairs(0.5, 2), ended("baseline", 2), lost]).suite)
    [failure], [error] = [*root.iter("failure")], [*root.iter("error")]
    assert failure.get("message") == "failed at guest-0-plain: guest-panic: the guest panicked"
    assert str(failure.text).endswith("\n[   1.0] Oops\n[   1.1] Kernel panic\n")
    assert error.get("type") == "lost-events"


def test_numbers_are_properties() -> None:
    of_metric = cases(read(run(pairs(0.5), f"{MAP}=improved").suite))[MAP]
    properties = {str(p.get("name")): str(p.get("value")) for p in of_metric.iter("property")}
    assert float(properties["ratio"]) == pytest.approx(0.5)
    assert float(properties["ci95.low"]) < 0.5 < float(properties["ci95.high"])
    assert float(properties["p"]) < 0.001
    assert [properties[name] for name in ("unit", "verdict", "expected")] == [
        "s", "improved", "improved",
    ]  # fmt: skip


def test_kernels_are_properties_of_the_suite() -> None:
    [of_run] = read(run(pairs(0.5)).suite)
    properties = {p.get("name"): p.get("value") for p in of_run.findall("properties/property")}
    assert properties["baseline.kernel"] == "6.12.107+deb13 (deb:old)"
    assert [properties[name] for name in ("verdict", "exit_code", "accel")] == [
        "improved", "0", "kvm",
    ]  # fmt: skip


def test_only_trials_have_times_and_those_are_the_runners() -> None:
    root = read(run([*pairs(0.5, 1), ended("baseline", 1)], accel="exact").suite)
    times = {name: case.get("time") for name, case in cases(root).items()}
    assert [name for name, time in times.items() if time] == ["0000-baseline", "0001-candidate"]
    assert times["0000-baseline"] == "99.5"
    [of_run] = root
    assert (of_run.get("time"), of_run.get("timestamp")) == ("199.0", "2026-11-22T22:00:20")


def test_run_without_a_recorded_time_has_none() -> None:
    [of_run] = read(run([]).suite)
    assert of_run.get("timestamp") is None


def test_group_has_no_dot_but_those_that_part_it() -> None:
    root = read(replace(run(pairs(0.5, 1)).suite, name="debian-6.12-vs-7"))
    assert {case.get("classname") for case in root.iter("testcase")} == {
        f"barometer.debian-6_12-vs-7.{group}" for group in ("run", "metrics", "trials")
    }


def test_cells_are_suites() -> None:
    first = run(pairs(0.4, 1)).suite
    root = read(first, first, not_run("job-ovmf", 4))
    assert [suite.get("name") for suite in root] == ["small", "small", "job-ovmf"]
    assert (root.get("tests"), root.get("errors")) == ("9", "1")


@given(ANYTHING, ANYTHING, ANYTHING)
def test_text_from_outside_does_not_break_it(reason: str, message: str, evidence: str) -> None:
    broken = ended("candidate", 0, reason=reason, message=message, evidence=evidence)
    root = read(run([broken]).suite)
    [failure] = [f for f in root.iter("failure") if f.get("message", "").startswith("failed")]
    assert str(failure.text).endswith(clean_text(evidence))


@given(st.builds(dict, name=ANYTHING, message=ANYTHING, tail=ANYTHING))
def test_plain_text_is_read_back_as_it_was(texts: dict[str, Any]) -> None:
    texts = {key: clean_text(value) for key, value in texts.items()}
    case = Case("trial", outcome="failed", reason="r", **texts)
    [element] = read(Suite("s", 1, (case,))).iter("testcase")
    assert element.get("name") == texts["name"]
    text = "\n".join(filter(None, (texts["message"], texts["tail"])))
    assert (element.find("failure") or element[0]).text in (text, text or None)
