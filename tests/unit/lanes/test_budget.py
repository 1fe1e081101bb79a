"""ci/budget.toml, and whether times are a measure on a machine that others use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ci.lanes.budget import OtherWork, exceeded, read_budget
from ci.lanes.groups import read_groups


def test_each_lane_of_a_landing_has_a_number() -> None:
    groups = read_groups()
    assert {*read_budget()} == {"unit", *groups.processes(groups.all)}


def test_lane_over_its_number_or_without_one_is_named() -> None:
    lines = exceeded({"a": 10.4, "b": 9.0, "c": 1.0}, {"a": 10, "b": 9})
    assert [line.partition(":")[0] for line in lines] == ["a", "c"]


@pytest.mark.parametrize("number", ["0", "-1", '"10"', "1.5"])
def test_what_is_no_number_of_seconds_is_refused(tmp_path: Path, number: str) -> None:
    file = tmp_path / "budget.toml"
    file.write_text(f"[seconds]\nunit = {number}\n")
    with pytest.raises(ValueError, match=r"unit = .* is no number of seconds"):
        read_budget(file)


def test_work_of_others_is_told_from_ours() -> None:
    loop = [sys.executable, "-c", "while True: pass"]

    def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def until_it_used(process: subprocess.Popen[bytes], seconds: float) -> None:
        while cpu_seconds(process) < seconds:
            time.sleep(0.02)

    with subprocess.Popen(loop) as before:
        try:
            until_it_used(before, 0.1)
            others = OtherWork.begin()
            with subprocess.Popen(loop) as ours:
                try:
                    until_it_used(before, 0.5)
                finally:
                    ours.kill()
            assert others.is_busy(elapsed=1)  # 0.4 CPU seconds in one
            assert not others.is_busy(elapsed=1000)
        finally:
            before.kill()
