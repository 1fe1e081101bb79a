"""A metric has one entry, from which everything that tells of metrics is made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cli.entry import run_verb
from orchestrator.scenario.factors import build_file_schema
from orchestrator.scenario.metrics import METRIC_WORDS, WORDS
from orchestrator.scenario.vocabulary import AT_POINTS, METRICS
from tests.unit.scenarios import map_scenario, scenario


def test_every_metric_has_one_entry_with_words_of_its_own() -> None:
    assert [*METRICS] == [words.name for words in METRIC_WORDS]
    for key in ("name", "title", "meaning"):
        assert len({getattr(words, key) for words in METRIC_WORDS}) == len(METRIC_WORDS)


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_measured_by_the_pass_that_its_entry_names(name: str) -> None:
    words = WORDS[name]
    everything = ["plain", "timing", "counts"]
    for which in everything:
        boots = scenario(f"trace.passes=['{which}']").metrics()
        assert (name in boots) == (words.in_boots in ("host", which))
    assert (name in AT_POINTS) == bool(words.in_maps)
    if words.in_maps:
        assert name in map_scenario(f"trace.passes=['{words.in_maps}']").metrics()
    elif words.in_boots != "host":
        assert name not in map_scenario("trace.passes=['plain', 'counts']").metrics()


def explained(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["barometer", "explain", *arguments])
    code = run_verb()
    return code, capsys.readouterr().out


def test_explain_prints_the_entry_of_a_metric_and_of_its_points_and_former_name(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    texts = {
        explained(monkeypatch, capsys, spelled)
        for spelled in ("bar_map_cost", "bar_map_cost@full/1GiB/cold", "bar_map_seconds")
    }
    [(code, text)] = texts
    assert code == 0
    assert WORDS["bar_map_cost"].meaning in text
    code, text = explained(monkeypatch, capsys)
    assert all(words.meaning in text for words in METRIC_WORDS)
    code, text = explained(monkeypatch, capsys, "--json")
    assert [entry["name"] for entry in json.loads(text)["metrics"]] == [*METRICS]


def test_explain_refuses_what_is_no_metric(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert explained(monkeypatch, capsys, "bar_map_costs")[0] == 2


def test_schema_explains_every_metric() -> None:
    offered = build_file_schema()["properties"]["expect"]["properties"]
    assert [*offered] == [*METRICS]
    assert all(WORDS[name].meaning in entry["description"] for name, entry in offered.items())
