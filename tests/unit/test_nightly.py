"""`barometer nightly`, whose other verbs are those of a program that only records its calls."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.evidence.layout import RunDir
from orchestrator.history.rows import NightRow
from orchestrator.history.store import Store
from tests.unit.recorded import copied_run
from tests.unit.recorded import judge_and_save as judge

pytestmark = pytest.mark.slow  # each starts processes
ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from orchestrator.run.nights import nightly
nightly.PROGRAM = [sys.argv.pop(1)]
from orchestrator.cli import main
main()
"""
SECONDS = 60.0
HEADER = "time,bar_map_cost.ratio\n"
FAKE = """#!/bin/bash
# Each call is a line; what it does stands in files beside: the exit code of a verb, and of `run`
# what it leaves (whole), or that it hangs.
here=$(dirname "$0")
said() { printf '%s\\n' "$*" >>"$here/calls"; }
said "$*"
code() { cat "$here/$1" 2>/dev/null || echo 0; }
case $1 in
  run)
    while [ "$1" != --out ]; do shift; done
    out=$2
    mkdir -p "$out"
    if [ -e "$here/hangs" ]; then
      trap 'kill $!; sleep 0.2; said ended; exit 130' TERM
      said hangs
      sleep 60 & wait
    fi
    [ ! -e "$here/dies" ] || kill -KILL $$
    [ ! -e "$here/whole" ] || cp -r "$here/whole/." "$out"
    exit "$(code run)" ;;
  recover)
    while [ -e "$here/slow" ]; do sleep 0.02; done
    said recovered ;;
  compare) echo "tonight against $2" ;;
esac
exit "$(code "$1")"
"""


class Lab:
    """A folder of nights, and a fake barometer before the real one on PATH."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.dir = folder / "bin", folder / "nights"
        self.scenario = folder / "gpu.toml"
        shutil.copy(ROOT / "fixtures/scenarios/metal-gpu.toml", self.scenario)
        self.bin.mkdir()
        self.replaced_by(FAKE)

    def replaced_by(self, program: str) -> None:
        (self.bin / "barometer").write_text(program)
        (self.bin / "barometer").chmod(0o755)

    def exits(self, verb: str, code: int) -> None:
        (self.bin / verb).write_text(f"{code}\n")

    def measures(self, *cells: str) -> None:
        """Make the next run whole."""
        for folder in (self.bin / "whole" / cell for cell in cells or ("",)):
            whole(folder)

    def begin(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, self.bin / "barometer", "nightly", "--dir", self.dir,
             *map(str, arguments or (self.scenario,))],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(self.dir.parent)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.scenario.parent, start_new_session=True,
        )  # fmt: skip

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Run a night; return its exit code and its output."""
        night = self.begin(*arguments)
        out, err = night.communicate(timeout=SECONDS)
        return night.returncode, out + err

    @property
    def calls(self) -> list[str]:
        file = self.bin / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def verbs(self) -> list[str]:
        return [call.split()[0] for call in self.calls]

    @property
    def nights(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "runs").iterdir())

    @property
    def folder(self) -> Path:
        """The folder of the scenario."""
        return self.dir / "gpu"

    def until(self, call: str) -> None:
        deadline = time.monotonic() + SECONDS
        while call not in self.verbs:
            assert time.monotonic() < deadline, f"no {call} in {self.calls}"
            time.sleep(0.02)

    def night(self, name: str, *cells: str) -> Path:
        """Add an earlier night. It is whole if it has cells; "" is the run itself."""
        folder = self.folder / "runs" / name
        folder.mkdir(parents=True)
        for cell in cells:
            whole(folder / cell)
        return folder


def whole(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text(HEADER + "2026-09-01,0.5\n")
    for name in ("report.html", "report.txt", "junit.xml", "comparison.json"):
        (folder / name).write_text(name)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def session_members(sid: int) -> list[int]:
    """Return the processes of a session that still run (proc_pid_stat(5), fields 3 and 6)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == sid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def all_ended(night: subprocess.Popen[str]) -> bool:
    """True if the session ends long before its hanging programs would end by themselves. A killed
    process takes a moment to go."""
    deadline = time.monotonic() + 10
    while session_members(night.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not session_members(night.pid)


@pytest.fixture
def hanging(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """A night whose run does not end by itself."""
    (lab.bin / "hangs").touch()
    night = lab.begin()
    try:
        lab.until("hangs")
        yield night
    finally:
        for pid in session_members(night.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        night.communicate(timeout=SECONDS)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 70])
def test_exit_code_is_the_runs_and_the_machine_is_always_put_back(lab: Lab, code: int) -> None:
    lab.measures()
    lab.exits("run", code)
    assert lab()[0] == code
    assert lab.verbs == ["run", "clean", "recover", "recovered"]
    assert lab.calls[2] == f"recover {lab.scenario}"


@pytest.mark.parametrize("code", [0, 1, 2, 4])
def test_a_machine_that_is_not_as_it_was_outweighs_a_verdict(lab: Lab, code: int) -> None:
    lab.measures()
    lab.exits("run", code)
    lab.exits("recover", 3)
    ended, said = lab()
    assert ended == 3
    assert "the machine is not as it was; once that is mended: barometer recover" in said
    assert (lab.folder / "published/report.html").exists()


def test_a_runner_that_cannot_be_cleaned_is_no_reason_to_leave_the_machine(lab: Lab) -> None:
    lab.exits("clean", 70)
    assert lab()[0] == 0
    assert "recovered" in lab.verbs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_in_order_and_then_the_machine_is_put_back(
    lab: Lab, hanging: subprocess.Popen[str], number: signal.Signals
) -> None:
    hanging.send_signal(number)
    hanging.wait(SECONDS)
    assert hanging.returncode == 130
    assert lab.verbs[:6] == ["run", "hangs", "ended", "clean", "recover", "recovered"]
    assert all_ended(hanging)


def test_the_interrupt_of_a_terminal_is_no_other(lab: Lab, hanging: subprocess.Popen[str]) -> None:
    os.killpg(hanging.pid, signal.SIGINT)
    hanging.wait(SECONDS)
    assert hanging.returncode == 130
    assert lab.verbs[:6] == ["run", "hangs", "ended", "clean", "recover", "recovered"]


def test_signals_do_not_cut_putting_back_short(lab: Lab) -> None:
    lab.measures()
    (lab.bin / "slow").touch()
    night = lab.begin()
    lab.until("recover")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.killpg(night.pid, number)
    (lab.bin / "slow").unlink()
    night.communicate(timeout=SECONDS)
    assert night.returncode == 0
    assert lab.verbs[-1] == "recovered"


def test_a_killed_night_takes_its_run_along_and_the_next_step_puts_back(
    lab: Lab, hanging: subprocess.Popen[str]
) -> None:
    hanging.kill()
    hanging.wait(SECONDS)
    assert lab("--recover", lab.scenario)[0] == 0  # waits: the run is still ending
    assert lab.verbs == ["run", "hangs", "ended", "clean", "recover", "recovered"]


@pytest.mark.parametrize("moment", [0.01, 0.05, 0.12])
def test_whenever_it_is_ended_what_began_is_put_back(lab: Lab, moment: float) -> None:
    (lab.bin / "hangs").touch()
    night = lab.begin()
    time.sleep(moment)
    night.terminate()
    night.communicate(timeout=SECONDS)
    assert night.returncode in (130, -signal.SIGTERM)
    assert lab.verbs[-1:] in ([], ["recovered"], ["report"])
    assert ("recovered" in lab.verbs) == (night.returncode == 130)
    assert all_ended(night)


def test_a_run_that_is_killed_is_put_back_after(lab: Lab) -> None:
    (lab.bin / "dies").touch()
    ended, said = lab()
    assert ended == 3
    assert "the run was killed (exit code -9)" in said
    assert lab.verbs[:4] == ["run", "clean", "recover", "recovered"]


def test_a_run_ends_at_its_limit(lab: Lab) -> None:
    (lab.bin / "hangs").touch()
    ended, said = lab("--limit", "1s", lab.scenario)
    assert ended == 3
    assert "error: the run was not done within 1 s" in said
    assert lab.verbs[:6] == ["run", "hangs", "ended", "clean", "recover", "recovered"]


def test_of_two_nights_at_once_the_second_touches_nothing(
    lab: Lab, hanging: subprocess.Popen[str]
) -> None:
    ended, said = lab()
    assert ended == 3
    assert f"another night is at work in {lab.folder}" in said
    assert lab.verbs == ["run", "hangs"]


def test_what_fails_after_the_run_is_no_regression(lab: Lab) -> None:
    lab.measures()
    lab.dir.mkdir()
    (lab.dir / "history.db").write_text("no database, " * 1000)
    ended, said = lab()
    assert ended == 3
    assert "history add RUN" in said
    assert "recovered" in lab.verbs
    assert (lab.folder / "published/report.html").exists()


def test_recover_alone(lab: Lab) -> None:
    assert lab("--recover", lab.scenario)[0] == 0
    assert lab.verbs == ["clean", "recover", "recovered"]
    lab.exits("recover", 3)
    assert lab("--recover", lab.scenario)[0] == 3


def test_a_wrong_scenario_touches_nothing(lab: Lab) -> None:
    lab.scenario.write_text("name = 1")
    assert lab()[0] == 2
    assert lab.calls == []


def test_a_nested_host_ends_with_its_run_and_is_not_put_back(lab: Lab) -> None:
    shutil.copy(ROOT / "fixtures/recorded/map-exact/scenario.toml", lab.scenario)
    lab.measures()
    assert lab()[0] == 0
    assert lab.verbs == ["run", "clean"]
    assert night_of(lab).put_back is None


def test_options_of_the_run_are_handed_on(lab: Lab) -> None:
    lab("--keep", 3, lab.scenario, "--pairs", 3, "--set", "host.wait=60")
    night = f"{lab.folder}/runs/{lab.nights[0]}"
    assert lab.calls[0] == f"run {lab.scenario} --out {night} --pairs 3 --set host.wait=60"


def test_what_a_failed_run_has_is_reported(lab: Lab) -> None:
    copied_run(lab.bin / "whole")
    lab.exits("run", 3)
    lab.exits("report", 4)
    assert lab()[0] == 3
    assert lab.calls[-1] == f"report {lab.folder}/runs/{lab.nights[0]}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--keep", "0", "gpu.toml"], "Invalid value for '--keep'"),
        (["--limit", "soon", "gpu.toml"], "--limit soon: not a time"),
        (["gpu.toml", "--set", "host.address=b"], "the scenario names the machine"),
        (["gpu.toml", "--out", "x"], "No such option"),
        (["missing.toml"], "missing.toml"),
        (["gpu.toml", "gpu.toml"], "one name"),
    ],
)
def test_a_wrong_command_line_touches_nothing(
    lab: Lab, arguments: list[str], expected: str
) -> None:
    ended, text = lab(*arguments)
    assert ended == 2
    assert expected in text
    assert lab.calls == []


def night_of(lab: Lab) -> NightRow:
    """Return what the store has of the last night."""
    with Store.open(str(lab.dir / "history.db"), create=False) as store:
        return store.nights()[-1]


def test_a_night_without_a_run_is_stored_with_its_reason(lab: Lab) -> None:
    lab.exits("run", 3)
    fails = FAKE.replace(
        'said "$*"\n',
        'said "$*"\n[ "$1" != run ] || printf '
        "'barometer: error: no SSH server\\nreason: host-no-ssh\\n' >&2\n",
    )
    lab.replaced_by(fails)
    assert lab()[0] == 3
    night = night_of(lab)
    assert (night.reason, night.message) == ("host-no-ssh", "no SSH server")
    assert (night.exit_code, night.put_back) == (3, True)
    assert "no run, host-no-ssh" in (lab.dir / "page/index.html").read_text()
    assert "no run, host-no-ssh" in (lab.folder / "published/mail.txt").read_text()


def test_a_machine_that_is_not_as_it_was_is_stored(lab: Lab) -> None:
    lab.exits("recover", 3)
    assert lab()[0] == 3
    assert night_of(lab).put_back is False
    assert "not as it was" in (lab.dir / "page/mail.txt").read_text()


def test_nights_of_several_scenarios_are_in_one_store(lab: Lab) -> None:
    other = lab.scenario.with_name("gpu2.toml")
    other.write_text(lab.scenario.read_text().replace('name = "', 'name = "second-'))
    copied_run(lab.bin / "whole")
    lab.exits("run", 1)
    assert lab(lab.scenario, other)[0] == 1
    assert lab.verbs == ["run", "clean", "recover", "recovered", "report"] * 2
    with Store.open(str(lab.dir / "history.db"), create=False) as store:
        folders = {Path(run.row.folder).parents[1].name for run in store.runs()}
        assert folders <= {"gpu", "gpu2"}
        assert len(store.nights()) == 2
        assert store.series()


@pytest.mark.parametrize(
    ("run", "compare", "code"),
    [(0, 0, 0), (0, 1, 1), (0, 4, 0), (0, 2, 0), (1, 0, 1), (3, 1, 3), (4, 1, 4)],
)
def test_a_night_is_compared_with_the_last_whole_one(
    lab: Lab, run: int, compare: int, code: int
) -> None:
    lab.night("20260829T011700Z", "")
    before = lab.night("20260830T011700Z", "")
    lab.night("20260831T011700Z")
    lab.measures()
    lab.exits("run", run)
    lab.exits("compare", compare)
    ended, said = lab()
    assert ended == code
    assert lab.calls[4] == f"compare {before} {lab.folder}/runs/{lab.nights[-1]}"
    # to explain a red night uses the machine again
    assert lab.verbs[5:] == (["clean", "recover", "recovered"] if compare == 1 else [])
    assert (lab.folder / "published/red.txt").exists() == (compare == 1)
    assert (lab.folder / "published/compare.txt").read_text() == f"tonight against {before}\n"
    assert ("the candidate regressed since" in said) == (compare == 1)


def test_cells_of_a_matrix_are_compared_each(lab: Lab) -> None:
    before = lab.night("20260831T011700Z", "cells/ovmf", "cells/seabios")
    lab.measures("cells/ovmf", "cells/seabios")
    lab()
    tonight = lab.folder / "runs" / lab.nights[-1]
    assert lab.calls[-2:] == [
        f"compare {before}/cells/{cell} {tonight}/cells/{cell}" for cell in ("ovmf", "seabios")
    ]
    published = {
        path.relative_to(lab.folder / "published").as_posix()
        for path in (lab.folder / "published").rglob("*.*")
        if path.is_file()
    }
    assert {"cells/ovmf/report.html", "cells/seabios/compare.txt"} <= published
    assert not any("trials" in name for name in published)


def test_old_nights_are_removed_if_the_store_has_them(lab: Lab) -> None:
    """Nights without a run are stored by their night.json; one that nobody stored stays."""
    (lab.folder / "runs").mkdir(parents=True)
    unknown = copied_run(lab.folder / "runs/20260810T011700Z")
    for _ in range(3):
        assert lab("--keep", 1, lab.scenario)[0] == 0
        time.sleep(1.0)  # a night's folder is named after its second
    assert len(lab.nights) == 2
    assert lab.nights[0] == unknown.name
    with Store.open(str(lab.dir / "history.db"), create=False) as store:
        assert len(store.nights()) == 3


def test_what_was_published_is_of_this_night(lab: Lab) -> None:
    (lab.folder / "published").mkdir(parents=True)
    (lab.folder / "published/report.html").touch()
    lab.replaced_by("#!/bin/sh\nexit 2\n")  # leaves nothing
    assert lab()[0] == 3  # not put back, either
    assert {path.name for path in (lab.folder / "published").iterdir()} == {
        "night.json", "mail.txt"
    }  # fmt: skip


def test_two_nights_judged_by_barometer_itself(lab: Lab, tmp_path: Path) -> None:
    """Only `run` and `recover` are fake."""
    real = f"{sys.executable} -m orchestrator.cli"
    copied_run(tmp_path / "recorded")
    lab.replaced_by(
        "#!/bin/sh\n"
        f'[ "$1" != recover ] || exit 0\n[ "$1" = run ] || exec {real} "$@"\n'
        f'cp -r {tmp_path}/recorded "$4"\nexec {real} report "$4"\n'
    )
    before = lab.folder / "runs/20260831T011700Z"
    shutil.copytree(tmp_path / "recorded", before)
    judge(RunDir.open(before))
    ended, said = lab()
    assert ended == 0, said
    with Store.open(str(lab.dir / "history.db"), create=False) as store:
        assert [run.row.folder for run in store.runs()] == [
            str(lab.folder / "runs" / lab.nights[-1])
        ]
        assert store.nights()[0].reason == ""
    assert (lab.dir / "page/index.html").exists()
    published = {path.name for path in (lab.folder / "published").iterdir()}
    assert published == {
        "report.html", "report.txt", "junit.xml", "results.csv", "comparison.json", "compare.txt",
        "night.json", "mail.txt",
    }  # fmt: skip
    assert "against" in (lab.folder / "published/compare.txt").read_text()
