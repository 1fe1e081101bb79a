"""ci/budget.toml, and whether the clock measures anything on a machine that others use."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ci.lanes.budget import OtherWork, find_exceeded, read_budget
from ci.lanes.groups import read_groups


def test_each_lane_of_a_landing_has_a_number() -> None:
    groups = read_groups()
    assert {*read_budget()} == {"unit", *groups.processes(groups.all)}


def test_lane_over_its_number_or_without_one_is_named() -> None:
    lines = find_exceeded({"a": 10.4, "b": 9.0, "c": 1.0}, {"a": 10, "b": 9})
    assert [line.partition(":")[0] for line in lines] == ["a", "c"]


@pytest.mark.parametrize("number", ["0", "-1", '"10"', "1.5"])
def test_what_is_no_number_of_seconds_is_refused(tmp_path: Path, number: str) -> None:
    file = tmp_path / "budget.toml"
    file.write_text(f"[seconds]\nunit = {number}\n")
    with pytest.raises(ValueError, match=r"unit = "):
        read_budget(file)


@pytest.mark.parametrize(
    ("child", "words", "counts"),
    [(True, "", False), (False, "of-this-run", False), (False, "of-another", True)],
    ids=["child", "orphan-of-ours", "others"],
)
def test_processes_of_others_are_told_from_ours(child: bool, words: str, counts: bool) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)", words]
    # the shell ends and leaves its child to another parent
    command = sleep if child else ["sh", "-c", f"{shlex.join(sleep)} > /dev/null & echo $!"]
    with (
        OtherWork("of-this-run") as others,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        pid = process.pid if child else int(process.stdout.readline())
        try:
            if not child:
                process.wait()
            others.look()
            assert (pid in {seen for seen, _ in others.spent}) == counts
        finally:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("later", "busy"), [(11.0, True), (10.5, False)])
def test_machine_is_busy_by_what_others_used_since(
    later: float, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    # one process is gone, one continues, and one begins and is gone before the end
    seen = iter([{(1, 1): 50.0, (2, 1): 10.0}, {(2, 1): later, (3, 1): 0.4}, {(2, 1): later}])
    monkeypatch.setattr(OtherWork, "_read_usage", lambda _: next(seen))
    others = OtherWork("")
    others.look()
    others.look()
    assert others.is_busy() == busy
