"""The frequency of the runner's TSC, as it is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.machine.runner import tsc


def test_frequency_is_that_of_the_processors_name() -> None:
    """Processors name a frequency, if any, to 10 MHz."""
    tsc.tsc_khz.cache_clear()
    named = re.search(r"@ ([0-9.]+)GHz", Path("/proc/cpuinfo").read_text())
    khz = tsc.tsc_khz()
    if khz is None:
        assert not {*tsc._cpu_flags()} >= {"constant_tsc", "nonstop_tsc"}
    else:
        assert 500_000 < khz < 8_000_000
        assert named is None or abs(khz / 1e6 - float(named[1])) < 0.1


@pytest.mark.parametrize("flags", [[], ["constant_tsc"], ["tsc", "nonstop_tsc"]])
def test_tsc_that_is_not_steady_has_no_frequency(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsc, "_cpu_flags", lambda: flags)
    tsc.tsc_khz.cache_clear()
    assert tsc.tsc_khz() is None
    tsc.tsc_khz.cache_clear()


def test_other_processors_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    tsc.tsc_khz.cache_clear()
    assert tsc.tsc_khz() is None
    tsc.tsc_khz.cache_clear()
