"""A profile as its reader sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.analysis.diagnosis.advice import NO_REMEDY
from orchestrator.report.text.profile_text import profile_json, text_profile
from tests.unit.analysis.test_profile import ALIGNED, BAR, Trace, booted, profiled
from tests.unit.stable import has_in_order


def test_it_names_what_is_slow_and_what_would_help_in_a_hundred_columns() -> None:
    text = text_profile(profiled(booted()))
    assert max(map(len, text.splitlines())) <= 100
    assert has_in_order(text, "gpu vm", "25 s", "48%", "maps of BARs", "12 s", "v6.15")
    assert has_in_order(text, "boot:", "25 s", "QEMU's exec")
    assert has_in_order(text, "host 6.8.0", "QEMU 9.2.0", "libvirt 11.3.0", "8GiB")
    assert has_in_order(text, "0000:3b:00.0 BAR 1", "32GiB")
    assert has_in_order(text, "3 maps of 0000:3b:00.0 BAR 1 (32GiB)", "3 s each")
    assert has_in_order(text, "all maps of 32GiB BARs", "4", "3 s", "12 s", "48.0%")
    assert has_in_order(text, "0000:3b:00.0 BAR 1:", "1GiB", "4KiB")
    assert has_in_order(text, "1.", "4 maps", "12 s", "48.0%", "v6.15")  # the first item
    assert has_in_order(text, "not explained", "0.0%")
    assert has_in_order(text.strip().rpartition("\n\n")[2], "20 s", "gpu vm", "running")


def test_a_quick_boot_is_said_to_be_one() -> None:
    quick = Trace().exec(1.0).mark(1.1, "run").mapped(5.0, 0.0002, ALIGNED, BAR.size)
    text = text_profile(profiled(quick.mark(60.0, "agent")))
    assert has_in_order(text, "59 s", "QEMU's exec", "agent")
    assert has_in_order(text, "0000:3b:00.0 BAR 1:", "1GiB", "best")
    assert has_in_order(text, "1.", "guest", NO_REMEDY)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"ended": "domain-ended"}, ("domain",)),
        ({"ended": "limit"}, ("15 minutes",)),
        ({"ended": "agent", "until": "agent"}, ("agent",)),
        ({"definition_changed": True}, ("definition", "gpu vm")),
        ({"parts": False}, ("6.8.0", "v6.9")),
    ],
)
def test_what_its_reader_must_know_is_at_the_end(
    facts: dict[str, Any], words: tuple[str, ...]
) -> None:
    end, usual_end = (
        text_profile(profiled(booted(), **changes)).rpartition("not explained")[2]
        for changes in (facts, {})
    )
    assert has_in_order(end, *words)
    assert not has_in_order(usual_end, *words)


def test_a_reboot_is_told_from_its_reset() -> None:
    trace = Trace().zapped(98.0).mark(99.0, "reset").mapped(101.0, 1.0, ALIGNED, BAR.size)
    text = text_profile(profiled(trace, boot="reboot"))
    assert has_in_order(text, "boot:", "4 s", "reset")


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
    assert has_in_order(document["sentence"], "gpu vm", "25 s", "48%", "maps of BARs")
    assert document["unexplained_seconds"] == 0.0
    (level,) = document["levels"]
    assert (level["bar"], level["leaf"], level["reasons"][0]["name"]) == (
        BAR.name, "1GiB", "no-series"
    )  # fmt: skip
    assert [o["kind"] for o in document["operations"]].count("map") == 5
