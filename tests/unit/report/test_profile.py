"""A profile as its reader sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.analysis.diagnosis.advice import NO_REMEDY
from orchestrator.report.text.profile_text import profile_json, text_profile
from tests.unit.analysis.test_profile import ALIGNED, BAR, Trace, booted, profiled


def flat(text: str) -> str:
    return " ".join(text.split())


def test_it_names_what_is_slow_and_what_would_help_in_a_hundred_columns() -> None:
    text = text_profile(profiled(booted()))
    assert max(map(len, text.splitlines())) <= 100
    said = flat(text)
    assert said.startswith(
        "gpu vm, 25 s: 48% are maps of BARs: at most 12 s less with a host kernel v6.15"
    )
    assert "boot: 25 s from QEMU's exec to the last map, unmap or zap;" in said
    assert "host 6.8.0, QEMU 9.2.0, libvirt 11.3.0, 8GiB of memory" in said
    assert "0000:3b:00.0 BAR 1 32GiB" in said
    assert "3 maps of 0000:3b:00.0 BAR 1 (32GiB), 3 s each" in said
    assert "all maps of 32GiB BARs 4 3 s 12 s 48.0%" in said
    assert "0000:3b:00.0 BAR 1: leaves of 1GiB at most, 4KiB a lookup" in said
    assert "Where the 25 s went, and what would help 1. 4 maps of 0000:3b:00.0 BAR 1" in said
    assert "(v6.15) (12 s, 48.0%) -> a host kernel v6.15 or later looks up leaf by leaf" in said
    assert "not explained: 0 s, 0.0%" in said
    assert said.endswith(
        "The profile ended after 20 s without a map, an unmap or a line on a serial port; its"
        " probes are gone; gpu vm is left running."
    )


def test_a_quick_boot_is_said_to_be_one() -> None:
    quick = Trace().exec(1.0).mark(1.1, "run").mapped(5.0, 0.0002, ALIGNED, BAR.size)
    text = flat(text_profile(profiled(quick.mark(60.0, "agent"))))
    assert "59 s from QEMU's exec to the connection of the guest agent" in text
    assert "leaves of 1GiB at most (the best there is)" in text
    assert "1. the guest's firmware, kernel and userspace ran" in text
    assert NO_REMEDY in text


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"ended": "domain-ended"}, "The profile ended when the domain did; its probes are gone."),
        ({"ended": "limit"}, "ended after 15 minutes"),
        ({"ended": "agent", "until": "agent"}, "ended with the connection of the guest agent"),
        ({"definition_changed": True}, "The definition of gpu vm is another than before"),
        ({"parts": False}, "return probes of 6.8.0 know no arguments (v6.9)"),
    ],
)
def test_what_its_reader_must_know_is_at_the_end(facts: dict[str, Any], words: str) -> None:
    assert words in flat(text_profile(profiled(booted(), **facts)))


def test_a_reboot_is_told_from_its_reset() -> None:
    trace = Trace().zapped(98.0).mark(99.0, "reset").mapped(101.0, 1.0, ALIGNED, BAR.size)
    text = text_profile(profiled(trace, boot="reboot"))
    assert "\nboot: 4 s from the reset of its machine" in text


def test_the_document_has_everything_that_the_text_says() -> None:
    document = json.loads(json.dumps(profile_json(profiled(booted()))))
    assert document["schema"] == 1
    assert (document["boot_seconds"], document["boot_ends"]) == (25.0, "map")
    assert document["totals"]["maps of 32GiB BARs"] == {
        "calls": 4, "one": 3.0, "total": 12.0, "share": 0.48
    }  # fmt: skip
    first = document["advice"][0]
    assert (first["name"], first["bars"]) == ("no-series", [BAR.name])
    assert [remedy["name"] for remedy in first["remedies"]] == ["no-series", "many-maps"]
    assert first["remedies"][0]["text"] in first["help"]
    assert document["sentence"].startswith("gpu vm, 25 s: 48% are maps of BARs")
    assert document["unexplained_seconds"] == 0.0
    (level,) = document["levels"]
    assert (level["bar"], level["leaf"], level["reasons"][0]["name"]) == (
        BAR.name, "1GiB", "no-series"
    )  # fmt: skip
    assert [o["kind"] for o in document["operations"]].count("map") == 5
