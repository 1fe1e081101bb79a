"""A night of a lab: run a scenario, put its machine back whatever became of the run, then compare
it, explain it if it is red, store, publish, and remove old nights.

    DIR/history.db                  the store, unless another one is named
    DIR/page/                       its pages
    DIR/SCENARIO/runs/TIME/         a night: its run, night.json, compare.txt
    DIR/SCENARIO/published/         of the last night what people and other tools read

Each verb is a process of its own, so that none can take the night down with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from orchestrator.base import interrupts
from orchestrator.base.errors import BarometerError, BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import write_json
from orchestrator.evidence.night import NIGHT, NightRecord
from orchestrator.history.pages import write_pages
from orchestrator.history.place import find_place
from orchestrator.history.store import Store
from orchestrator.run.nights.red import ANSWER, KernelCommit, RedNight
from orchestrator.run.nights.remember import add_folders
from orchestrator.run.nights.retention import Kept, prune_nights
from orchestrator.scenario.factors import load_scenarios
from orchestrator.scenario.machines import MetalHost

PROGRAM: Sequence[str] = (sys.executable, "-m", "orchestrator.cli")
"""How a verb is started."""
_DIES_TOO = ("setpriv", "--pdeathsig", "TERM")
"""Ends the run in order if the night itself is killed."""
_log = logging.getLogger("barometer.nightly")
_KILL_SECONDS = 1800.0
"""Time that a run has to end in order: its machine may have to boot."""
_LOCK_SECONDS = 1800.0
_POLL_SECONDS = 0.5
_RUN_LOG = "run.log"
"""What the last run said on standard error; it goes into the night's folder."""
_OWN_CODES = (0, 1, 2, 3, 4, 70, 130)
_PUBLISHED = ("report.*", "junit.xml", "results.csv", "comparison.json", "compare.txt", ANSWER,
              NIGHT)  # fmt: skip
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class NightPlan:
    """What a night is to do."""

    folder: Path
    """Of all scenarios: DIR."""
    keep: int
    keep_red: int
    limit: float
    """Seconds of a run; putting back comes on top."""
    budget: float
    """Seconds to explain a red night; 0: it is not explained."""
    store: str
    """Place of the history; empty for that of the scenario, of the environment, or DIR's own."""
    link: str
    """Address of the page."""
    options: tuple[str, ...]
    """Options that `run` gets."""


def parse_time(option: str, text: str) -> float:
    """Return the seconds of a time such as 90m or 5h. `option` is what has it, for the error."""
    match = re.fullmatch(r"([1-9][0-9]*)([smhd]?)", text)
    if match is None:
        raise ScenarioError(
            f"{option} {text}: not a time such as 90m or 5h", reason=Reason.COMMAND_LINE
        )
    return float(int(match[1]) * _UNITS[match[2]])


def run_nights(scenarios: Sequence[Path], plan: NightPlan) -> int:
    """Run each scenario's night, and return the exit code of all. A signal ends the night that is
    at work in order; those after it are left out."""
    nights = [Night.of(scenario, plan) for scenario in scenarios]
    codes: list[int] = []
    for night in nights:
        codes.append(night.run())
        if interrupts.is_requested():
            break
    for worst in (130, 3, 1):
        if worst in codes:
            return worst
    return max(codes)


def recover_nights(scenarios: Sequence[Path], plan: NightPlan) -> int:
    """Only put the machines back, once the nights that are at work on them have ended."""
    codes = []
    for scenario in scenarios:
        night = Night.of(scenario, plan)
        with night.locked(_LOCK_SECONDS):
            codes.append(0 if night.put_back() is not False else BenchError.exit_code)
    return max(codes)


@dataclass
class Night:
    """One night of one scenario."""

    scenario: Path
    plan: NightPlan
    name: str
    machine: str
    is_metal: bool
    place: str
    """Place of the history."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    commit: KernelCommit | None = None
    """Commit of the candidate."""
    reason: str = ""
    message: str = ""
    _red: list[RedNight] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _is_late: bool = False

    @classmethod
    def of(cls, scenario: Path, plan: NightPlan) -> Night:
        """Raises ScenarioError if the scenario is wrong."""
        overrides = [value for option, value in pairwise(plan.options) if option == "--set"]
        file = load_scenarios(scenario, overrides)
        hosts = [cell.scenario.host for cell in file.cells]
        metal = next((host for host in hosts if isinstance(host, MetalHost)), None)
        own = file.cells[0].scenario.history.store
        place = plan.store or find_place(own) or str(plan.folder / "history.db")
        machine = metal.name if metal is not None else platform.node()
        commits = {KernelCommit.of(c.scenario.arms["candidate"].kernel) for c in file.cells}
        return cls(
            scenario, plan, file.name, machine, metal is not None, place,
            commit=commits.pop() if len(commits) == 1 else None,
        )  # fmt: skip

    @property
    def folder(self) -> Path:
        return self.plan.folder / self.scenario.stem

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / self.started.strftime("%Y%m%dT%H%M%SZ")

    @contextlib.contextmanager
    def locked(self, seconds: float = 0.0) -> Iterator[int]:
        """Hold the lock of the scenario's nights, and yield its descriptor: a run inherits it, so
        that the lock is held until the run has ended, too. Raises BenchError if another night
        holds it for so long."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + seconds
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as exc:
                    if time.monotonic() >= deadline:
                        raise BenchError(
                            f"another night is at work in {self.folder}",
                            reason=Reason.NIGHT_AT_WORK,
                        ) from exc
                    time.sleep(0.2)
            yield lock
        finally:
            os.close(lock)

    def run(self) -> int:
        """Run the night, and return its exit code: that of the run, but 1 also if the candidate
        regressed since the last whole night, and 3 if the machine is not as it was."""
        recover = f"barometer nightly --recover {self.scenario}"
        with self.locked() as lock, interrupts.duty("ending the night in order", recover):
            shutil.rmtree(self.folder / "published", ignore_errors=True)
            code, is_back = BenchError.exit_code, None
            begun = time.monotonic()
            try:
                code = self._measure(lock)
            finally:
                is_back = self._put_back_surely()
            if is_back is False:
                code = BenchError.exit_code
            record = NightRecord(
                schema=1, machine=self.machine, scenario=self.name,
                started=self.started.isoformat(), exit_code=code, reason=self.reason,
                message=self.message, put_back=is_back, seconds=time.monotonic() - begun,
            )  # fmt: skip
            self.run_folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _RUN_LOG).replace(self.run_folder / _RUN_LOG)
            write_json(self.run_folder / NIGHT, record.to_json())
            if self.commit is not None:
                self.commit.write(self.run_folder)
            return self._follow_up(code, lock)

    # the run -----------------------------------------------------------------------------------

    def _measure(self, lock: int) -> int:
        """Make the run, and return its exit code. A signal ends it in order."""
        log = _Log(self.folder / _RUN_LOG)
        try:
            code = self._make_run(lock, log)
        except KeyboardInterrupt:
            code = 130 if self._process is None else _end(self._process)
        self.reason, self.message = _parse_end(log.close())
        if self._is_late:
            self.reason = str(Reason.TIMEOUT)
            self.message = f"the run was not done within {self.plan.limit:g} s"
        elif code not in _OWN_CODES:
            self.message = f"the run was killed (exit code {code})"
            is_ours = interrupts.is_requested()
            self.reason = str(Reason.INTERRUPTED if is_ours else Reason.NIGHT_KILLED)
        else:
            return code
        _say(f"error: {self.message}")
        return 130 if interrupts.is_requested() else BenchError.exit_code

    def _make_run(self, lock: int, log: _Log) -> int:
        # what it says goes into a file: if this process is killed, a broken pipe must not disturb
        # how the run puts its machine back
        self._process = subprocess.Popen(
            [*_DIES_TOO, *PROGRAM, "run", str(self.scenario), "--out", str(self.run_folder),
             *self.plan.options],
            pass_fds=[lock], process_group=0, stderr=log.file, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return self._process.wait(self.plan.limit)
        except subprocess.TimeoutExpired:
            self._is_late = True
            return _end(self._process)

    def _put_back_surely(self) -> bool | None:
        """Put the machine back. A signal comes once, and does not cut it short."""
        try:
            return self.put_back()
        except KeyboardInterrupt:
            return self.put_back()

    def put_back(self) -> bool | None:
        """End what a killed run left here, and put the machine back. Return whether it is as it
        was; None for a nested host, which ends with its run."""
        if _execute("clean") != 0:
            _say("what a killed run left on this runner is still there")
        if not self.is_metal:
            return None
        is_back = _execute("recover", str(self.scenario)) == 0
        if not is_back:
            _say(
                "error: the machine is not as it was; once that is mended: barometer recover"
                f" {self.scenario}"
            )
        return is_back

    # after it ----------------------------------------------------------------------------------

    def _follow_up(self, code: int, lock: int) -> int:
        """Report, compare, explain, store, publish, remove old nights. What fails here costs no
        night: its folder has everything. Return the exit code."""
        steps: list[Callable[[], int | None]] = [
            self._report, self._compare, lambda: self._explain(lock), self._remember,
            self._write_pages, self._publish, self._prune,
        ]  # fmt: skip
        for step in steps:
            try:
                own = step()
            except (OSError, BarometerError) as exc:
                _say(f"error: {exc}")
                own = BenchError.exit_code
            if code == 0 and own is not None:
                code = own
        return code

    def _report(self) -> None:
        """Judge a run that ended before it was judged, as far as it has trials."""
        run = self.run_folder
        has_run = (run / "plan.json").is_file() or (run / "matrix.json").is_file()
        if has_run and not (run / "junit.xml").is_file():
            _execute("report", str(run))

    def _compare(self) -> int | None:
        """Compare tonight's candidate with that of the last whole night; 1 if it regressed. What
        is undecided decides nothing here."""
        nights = sorted(self.run_folder.parent.glob("2*Z"), reverse=True)
        worst = None
        for folder in _runs_in(self.run_folder):
            if not _is_whole(folder):
                continue
            cell = folder.relative_to(self.run_folder)
            before = next(
                (n / cell for n in nights if n != self.run_folder and _is_whole(n / cell)), None
            )
            if before is None:
                continue
            with (folder / "compare.txt").open("w") as file:
                code = _execute("compare", str(before), str(folder), output=file.fileno())
            sys.stdout.write((folder / "compare.txt").read_text())
            sys.stdout.flush()
            if code == 1:
                _say(f"the candidate regressed since {before}")
                self._red.append(RedNight.of(folder, before, self.run_folder.parent))
                worst = 1
        return worst

    def _explain(self, lock: int) -> int | None:
        """Explain tonight's regression, or go on with that of an earlier night, and put the
        machine back again. Return 3 if it is not as it was."""
        unfinished = RedNight.find_unfinished(self.run_folder.parent)
        red = self._red or ([unfinished] if unfinished is not None else [])
        if not red or not self.plan.budget or interrupts.is_requested():
            return None
        deadline = time.monotonic() + self.plan.budget

        def execute(*verb: str) -> int:
            return _execute_until(deadline, verb, pass_fds=[lock])

        try:
            for night in red:
                culprit = night.explain(execute, self.scenario.parent)
                _say(f"{night.run}: {culprit}: {night.run / ANSWER}")
        finally:
            is_back = self._put_back_surely()
        return BenchError.exit_code if is_back is False else None

    def _remember(self) -> None:
        """Add the night to the store."""
        with Store.open(self.place) as store:
            for _ in add_folders(store, [self.run_folder], self.machine):
                pass

    def _write_pages(self) -> None:
        with Store.open(self.place) as store:
            write_pages(store, self.plan.folder / "page", self.plan.link)

    def _prune(self) -> None:
        """Remove old nights."""
        with Store.open(self.place) as store:
            nights = self.run_folder.parent
            for night in prune_nights(store, nights, self.plan.keep, self.plan.keep_red):
                if isinstance(night, Kept):
                    _say(f"kept: {night.folder}: {night.why}")

    def _publish(self) -> None:
        new, run = self.folder / "published.new", self.run_folder
        shutil.rmtree(new, ignore_errors=True)
        for folder in _runs_in(run):
            target = new / folder.relative_to(run)
            target.mkdir(parents=True, exist_ok=True)
            for pattern in _PUBLISHED:
                for file in folder.glob(pattern):
                    shutil.copy(file, target)
        mail = self.plan.folder / "page/mail.txt"
        if mail.is_file():
            shutil.copy(mail, new)
        new.rename(self.folder / "published")


def _runs_in(folder: Path) -> list[Path]:
    """Return a run, and the cells of a matrix."""
    return [folder, *sorted(folder.glob("cells/*"))]


def _is_whole(folder: Path) -> bool:
    """True if everything was measured there and is not invalid: it has a row of results."""
    try:
        return len((folder / "results.csv").read_text("utf-8").splitlines()) > 1
    except OSError:
        return False


class _Log:
    """The file that a run's standard error goes to. What comes is passed on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def _pass_on(self) -> None:
        with self.path.open("rb") as file:
            while True:
                is_last = self._is_over.wait(_POLL_SECONDS)
                while data := file.read(65536):
                    with contextlib.suppress(OSError):  # nobody reads it any more
                        os.write(2, data)
                if is_last:
                    return

    def close(self) -> str:
        """Return the end of what came."""
        self._is_over.set()
        self._thread.join()
        self.file.close()
        return self.path.read_bytes()[-8192:].decode(errors="replace")


def _parse_end(words: str) -> tuple[str, str]:
    """Return the reason that a command ends with, and its message."""
    match = re.search(r"(?:^|\n)barometer: (?:error: )?([^\n]*)[^\0]*\nreason: ([a-z0-9-]+)\s*\Z",
                      words)  # fmt: skip
    return (match[2], match[1]) if match else ("", "")


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a run and its programs in order, and return its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _KILL_SECONDS
    while True:
        try:
            return process.wait(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            continue
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _execute(*arguments: str, output: int | None = None) -> int:
    """Run a verb to its end, also if a signal comes; return its exit code. It leads a group, so
    that a terminal's interrupt does not reach it."""
    process = subprocess.Popen(
        [*PROGRAM, *arguments], process_group=0, stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if output is None else output,
    )  # fmt: skip
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _execute_until(deadline: float, arguments: Sequence[str], pass_fds: Sequence[int]) -> int:
    """Run a verb that uses the machine, and return its exit code. A signal, or the deadline, ends
    it in order, which is the exit code of an interrupt, also if it does not even begin."""
    left = deadline - time.monotonic()
    if left <= 0 or interrupts.is_requested():
        return interrupts.EXIT_CODE
    process = subprocess.Popen(
        [*_DIES_TOO, *PROGRAM, *arguments], pass_fds=pass_fds, process_group=0,
        stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(),
    )  # fmt: skip
    try:
        return process.wait(left)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        _end(process)
        return interrupts.EXIT_CODE


def _say(text: str) -> None:
    _log.warning("nightly: %s", text)
