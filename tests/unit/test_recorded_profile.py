"""Profiles of real domains that were recorded: their text is the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.diagnosis.diagnosis import Profile, analyse_profile
from orchestrator.evidence.surveys.profile_facts import load_profile
from orchestrator.report.text.profile_text import profile_json, text_profile

FOLDER = Path(__file__).parents[2] / "fixtures/recorded/profile"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def recorded(name: str) -> Profile:
    evidence = load_profile(FOLDER / name)
    return analyse_profile(evidence.facts, evidence.files, evidence.xml)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_profile_reads_the_same(name: str) -> None:
    assert text_profile(recorded(name)) == (FOLDER / name / "report.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_all_of_a_recorded_boot_is_accounted_for(name: str) -> None:
    profile = recorded(name)
    named = sum(advice.seconds for advice in profile.advice)
    assert named >= 0.95 * profile.whole_seconds
    assert named + profile.unexplained == pytest.approx(profile.whole_seconds)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linux-6.1", {"leaf": "4KiB", "why": ["no-huge-pfnmap"]}),
        ("linux-6.12", {"leaf": "1GiB", "why": ["no-series"]}),
        ("reboot", {"leaf": "1GiB", "why": ["no-series"]}),
        ("thp-never", {"leaf": "4KiB", "why": ["thp-sysfs"]}),
    ],
)
def test_what_was_slow_is_named(name: str, expected: dict[str, Any]) -> None:
    document = json.loads(json.dumps(profile_json(recorded(name))))
    (level,) = document["levels"]
    assert document["totals"]["maps of 1GiB BARs"]["calls"] == 12
    assert level["leaf"] == expected["leaf"]
    assert [reason["name"] for reason in level["reasons"]] == expected["why"]
    assert {*expected["why"]} <= {advice["name"] for advice in document["advice"]}
