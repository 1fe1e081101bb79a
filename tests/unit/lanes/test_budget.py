"""ci/budget.toml, and whether times are a measure on a machine that others use."""

from __future__ import annotations

import os
import shlex
import signal
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


@pytest.mark.parametrize(
    ("child", "words", "busy"),
    [(True, "", False), (False, "of-this-run", False), (False, "of-another", True)],
    ids=["child", "orphan-of-ours", "others"],
)
def test_work_of_others_is_told_from_ours(child: bool, words: str, busy: bool) -> None:
    loop = [sys.executable, "-c", "while True: pass", words]
    # a shell that ends leaves its child to another parent
    command = loop if child else ["sh", "-c", f"{shlex.join(loop)} > /dev/null & echo $!"]
    with OtherWork("of-this-run") as others:
        begun = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pid = process.pid if child else int(process.stdout.readline())
            try:
                while _cpu_seconds(pid) < 0.3 * (time.monotonic() - begun) or not _cpu_seconds(
                    pid
                ):
                    time.sleep(0.02)
                assert others.is_busy() == busy
            finally:
                os.kill(pid, signal.SIGKILL)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
