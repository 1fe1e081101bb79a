"""The table over many nights. The recorded table comes with the findings of Apache Otava 0.8.0,
which is not run here: its dependencies (one numpy, one scipy) conflict with ours."""

from __future__ import annotations

import csv
import io
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.trial import TrialResult
from orchestrator.report.exports.results_csv import results_csv
from orchestrator.scenario.vocabulary import METRICS
from tests.unit.report.made import BOOT, MAP, ROLES, Run, ended, run
from tests.unit.scenarios import scenario

RECORDED = Path(__file__).parents[1] / "data/otava"
"""nights.csv, the output of `history()`; otava.yaml; found.json, the output of `otava analyze
nightly --config-file otava.yaml --output json` in that folder."""
SLOWER_FROM = 14


def trials(number: int = 0, slower: float = 1.0, noise: float = 0.01) -> list[TrialResult]:
    """Make three pairs of a night, with every metric that the scenario measures. `slower` is the
    factor of the candidate's map of the BAR. The machine itself is faster or slower from night to
    night."""
    chance = random.Random(number)
    machine = chance.gauss(1, 0.05)
    begin = datetime(2026, 9, 1, 2, tzinfo=UTC) + timedelta(days=number)
    rows = []
    for pair in range(3):
        for role in ROLES:
            samples: dict[str, tuple[float, ...]] = {}
            for name in scenario().metrics():
                if METRICS[name] != "count":
                    factor = slower if (name, role) == (MAP, "candidate") else 1.0
                    samples[name] = (round(factor * machine * chance.gauss(0.5, 0.5 * noise), 6),)
                else:
                    samples[name] = (12,)
            at = begin + timedelta(minutes=pair)
            rows.append(TrialResult(
                f"{pair}-{role}", role, "measured", pair=pair, samples=samples,
                started=at.isoformat(), digest=f"{number}-{pair}-{role}",
            ))  # fmt: skip
    return rows


def text_of(of: Run) -> str:
    return results_csv(of.scenario.metrics(), of.comparison, of.plan)


def rows_of(of: Run) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(text_of(of)))]


def history() -> str:
    """Concatenate 24 nights, as the README describes."""
    nights = [
        text_of(run(trials(night, 1.06 if night >= SLOWER_FROM else 1.0))) for night in range(24)
    ]
    header = nights[0].splitlines()[0]
    assert all(night.splitlines()[0] == header for night in nights)
    return "\n".join([header, *(night.splitlines()[1] for night in nights)]) + "\n"


def test_run_is_a_row() -> None:
    [row] = rows_of(run(trials(), f"{BOOT}=not-regressed"))
    assert (row["time"], row["branch"]) == ("2026-09-01T02:00:00+00:00", "small/kvm")
    assert (row["baseline.kernel"], row["verdict"]) == ("6.12.107+deb13 (deb:old)", "inconclusive")
    before, after = float(row[f"{MAP}.baseline"]), float(row[f"{MAP}.candidate"])
    assert before == pytest.approx(0.5, rel=0.2)
    assert float(row[f"{MAP}.ratio"]) == pytest.approx(after / before, rel=0.02)
    assert row["bar_maps_per_boot.baseline"] == "12"
    assert "bar_maps_per_boot.ratio" not in row


def test_header_is_that_of_the_scenario_whatever_was_measured() -> None:
    whole, nothing = text_of(run(trials())), text_of(run([], planned=2))
    assert nothing == whole.splitlines()[0] + "\n"


def _without_maps(results: list[TrialResult]) -> list[TrialResult]:
    return [
        replace(result, samples={n: v for n, v in result.samples.items() if n != MAP})
        for result in results
    ]


def _untimed(results: list[TrialResult]) -> list[TrialResult]:
    return [replace(result, started="") for result in results]


def _emulated_once(results: list[TrialResult]) -> list[TrialResult]:
    return [replace(result, guest_accel="tcg" if i else "kvm") for i, result in enumerate(results)]


@pytest.mark.parametrize("change", [_without_maps, _untimed, _emulated_once])
def test_night_of_which_something_is_missing_has_no_row(change: Any) -> None:
    assert rows_of(run(change(trials()))) == []


def test_night_that_is_not_complete_has_no_row() -> None:
    assert rows_of(run(trials(), planned=20)) == []


def test_night_with_a_failed_trial_has_its_row() -> None:
    [row] = rows_of(run([*trials(), ended("candidate", 9)]))
    assert row["verdict"] == "regressed"


def test_accelerators_are_branches() -> None:
    [row] = rows_of(run(trials(), accel="tcg"))
    assert (row["branch"], row["unit"]) == ("small/tcg", "emulated s")


def test_history_is_what_otava_was_given() -> None:
    """If the form of the table changes, run Otava again."""
    assert (RECORDED / "nights.csv").read_text() == history()


def test_otava_found_the_night_and_nothing_else() -> None:
    [change] = json.loads((RECORDED / "found.json").read_text())["nightly"]
    row = [*csv.DictReader((RECORDED / "nights.csv").read_text().splitlines())][SLOWER_FROM]
    assert change["attributes"]["run"] == row["run"]
    assert change["time"] == datetime.fromisoformat(row["time"]).timestamp()
    changes = {
        entry["metric"]: float(entry["forward_change_percent"]) for entry in change["changes"]
    }
    assert changes == {"one map, ratio": pytest.approx(6, abs=1)}


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)"])
def test_text_is_no_formula(name: str) -> None:
    made = run(trials())
    of = replace(made, comparison=replace(made.comparison, scenario=name))
    [row] = rows_of(of)
    assert row["branch"].startswith(f"'{name}/")
