"""Runs as test cases. They agree with the exit code, however a run ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.evidence.faults import Attempt
from orchestrator.report.exports.cases import Case, clean_line, clean_text, not_run
from tests.unit.report.made import BOOT, MAP, RUNS, ended, pairs, run
from tests.unit.stable import has_in_order

ANYTHING = st.text(st.characters())  # with control characters and lone surrogates


def metrics(cases: tuple[Case, ...]) -> dict[str, Case]:
    return {case.name: case for case in cases if case.kind == "metric"}


@pytest.mark.parametrize("name", RUNS)
def test_cases_agree_with_the_exit_code(name: str) -> None:
    make, code = RUNS[name]
    suite = make().suite
    verdict, *others = suite.cases
    assert suite.exit_code == code
    assert (verdict.kind, verdict.name) == ("run", "verdict")
    assert verdict.outcome == {0: "passed", 1: "failed"}.get(code, "unknown")
    of_metrics = {case.outcome for case in others if case.kind == "metric"}
    if code == 0:
        assert of_metrics == {"passed"}
    elif code == 1:
        assert any(case.outcome == "failed" for case in others)
    else:
        assert "failed" not in of_metrics
        assert "unknown" in of_metrics or not of_metrics


def test_case_of_a_metric_says_what_was_found_and_expected() -> None:
    case = metrics(run(pairs(0.5), f"{MAP}=improved").suite.cases)[MAP]
    assert has_in_order(
        case.message, "improved", "improved", "0.5", "95 %", "0.4978 .. 0.5023", "p 0.00049"
    )
    assert case.numbers["unit"] == "s"
    assert case.numbers["ratio"] == pytest.approx(0.5)
    assert case.numbers["baseline.median"] == pytest.approx(0.5, rel=0.01)
    assert case.numbers["pairs"] == 12
    assert set(case.numbers) == {
        "unit", "baseline.median", "candidate.median", "ratio", "ci95.low", "ci95.high", "p",
        "p_adjusted", "pairs", "basis", "verdict", "expected",
    }  # fmt: skip


def test_number_that_there_is_not_has_no_place() -> None:
    case = metrics(run(pairs(0.4, 1)).suite.cases)[MAP]
    assert not case.numbers.keys() & {"p", "p_adjusted", "ci95.low", "ci95.high", "expected"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not complete", ("24", "30")),
        ("accelerators", ("KVM",)),
        ("conditions", ("invalid", "runner.qemu", "10.0.2 | 10.1.0")),
        ("candidate fails", ("1", "3")),
        ("bench fails", ("baseline",)),
        ("not as expected", ("met", BOOT, "not met", MAP)),
        ("expected and inconclusive", ("not known", BOOT)),
    ],
)
def test_verdict_says_why(name: str, words: tuple[str, ...]) -> None:
    assert has_in_order(RUNS[name][0]().suite.cases[0].message, *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not complete", ("not complete",)),
        ("accelerators", ("invalid",)),
        ("control", ("bench", "baseline")),
        ("baseline is 0", ("baseline", "0")),
        ("expected and not measured", ("expected", "improved")),
    ],
)
def test_metric_says_why_it_is_not_known(name: str, words: tuple[str, ...]) -> None:
    [case] = metrics(RUNS[name][0]().suite.cases).values()
    assert has_in_order(case.message, *words)


def test_trials_are_cases_with_their_time_and_their_tail() -> None:
    first, *_, last = run([*pairs(0.5, 1), ended("baseline", 1)]).suite.cases[2:]
    assert (first.name, first.outcome, first.seconds) == ("0000-baseline", "passed", 99.5)
    assert first.numbers[BOOT] == 40
    assert (last.outcome, last.reason, last.seconds) == ("failed", "guest-panic", None)
    assert has_in_order(last.message, "failed", "guest-0-plain", "guest-panic", "panicked")
    assert last.tail == "[   1.0] Oops\n[   1.1] Kernel panic\n"


def test_trial_that_was_begun_again_says_so() -> None:
    again = ended(
        "candidate",
        1,
        "invalid",
        repeated=tuple(Attempt("candidate", r, "bench") for r in ("host-crash", "exact-crawl")),
    )
    case = run([again]).suite.cases[-1]
    assert (case.outcome, case.numbers) == ("unknown", {"begun_again": "host-crash, exact-crawl"})


@pytest.mark.parametrize(
    ("accel", "unit"), [("kvm", "s"), ("tcg", "emulated s"), ("exact", "Ginsn")]
)
def test_seconds_are_named_what_they_are(accel: str, unit: str) -> None:
    suite = run(pairs(0.4, 1), accel=accel).suite
    assert suite.facts["cost_unit"] == unit
    assert suite.metrics[MAP]["unit"] == unit
    assert suite.metrics["pfn_lookups_per_map"]["unit"] == "count"


def test_what_the_arms_differ_in_is_a_fact_of_a_run() -> None:
    made = run(pairs(0.4, 1))
    assert "variable" not in made.suite.facts
    variable = Variable(
        (Differing("setting", "m.p", "N", "Y\x1b[1m"),), ("same kernel 7",), 5, (), ()
    )
    explained = replace(made, comparison=replace(made.comparison, variable=variable))
    assert explained.suite.facts["variable"] == (
        "Arms differ in: m.p: N | Y; nothing else (same kernel 7). Checked: 5 conditions the same."
    )


def test_run_begins_with_its_first_trial() -> None:
    assert run(pairs(1.0)).suite.started == "2026-11-22T22:00:20+00:00"
    assert run([]).suite.started == ""


def test_digest_is_of_the_evidence() -> None:
    same = [run(pairs(factor)).suite.digest for factor in (1.0, 2.0)]
    assert same[0] == same[1]  # the results are no part of the digest
    assert run(pairs(1.0, 2)).suite.digest != same[0]
    assert run(pairs(1.0), accel="tcg").suite.digest != same[0]


def test_cell_that_was_not_run_is_a_suite() -> None:
    suite = not_run("job-ovmf", 4)
    assert [(case.name, case.outcome, case.message) for case in suite.cases] == [
        ("verdict", "unknown", "not run"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[1;31mpanic\x1b[0m", "panic"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1bcclear\x1b(B", "clear"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a\x00b\x08c\x7f\x9b", "a\ufffdb\ufffdc\ufffd\ufffd"),
        ("\ud800 \ufffe \U0001f9ea \tß", "\ufffd \ufffd \U0001f9ea \tß"),
    ],
)
def test_text_from_outside_is_made_plain(text: str, left: str) -> None:
    assert clean_text(text) == left


@given(ANYTHING)
def test_plain_text_is_printable_and_stays_so(text: str) -> None:
    cleaned = clean_text(text)
    assert all(c in "\t\n" or c.isprintable() or ord(c) > 0x9F for c in cleaned)
    assert clean_text(cleaned) == cleaned
    cleaned.encode()


@given(ANYTHING)
def test_line_is_one(text: str) -> None:
    assert len(clean_line(text).splitlines()) <= 1
