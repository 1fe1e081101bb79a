"""Run pytest in several processes at the same time, each with folders and a state of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ci.lanes.groups import ROOT

_LAST_SECONDS = 120.0
"""Seconds for an interrupted process to end its machines and to put a metal one back."""


@dataclass(frozen=True)
class Process:
    """One process of pytest to run."""

    name: str
    arguments: tuple[str, ...]
    expected: float
    """Seconds that the process took before."""
    on_tmpfs: bool = False
    """True if its temporary files are kept in memory: for tests that flush small files."""
    boots: bool = True
    """False if none of its tests boots a machine."""


@dataclass
class Finished:
    process: Process
    code: int
    log: Path
    junit: Path
    left: str
    """Output of `barometer clean` after the process; empty if the process left nothing behind."""


@dataclass
class _Running:
    process: Process
    child: subprocess.Popen[bytes]
    folder: Path
    started: float = field(default_factory=time.monotonic)


@dataclass
class Runner:
    """Runs processes, with a folder for the results and a function that reports progress."""

    results: Path
    tell: Callable[[str], None]
    prefix: str = field(default_factory=lambda: f"bt-{os.getpid():x}-")
    """Prefix of the names of the processes' folders. Whatever a process starts has it in its
    environment or on its command line, because TMPDIR is below."""

    def run(self, queue: Sequence[Process], at_once: int) -> Iterator[Finished]:
        """Run the queue in its order and yield each process as it ends. `at_once`: how many that
        boot machines run at the same time; one that boots none runs beside them. However this call
        ends, the processes and whatever they started end with it."""
        waiting, running = [*queue], list[_Running]()
        reported = time.monotonic()
        try:
            while waiting or running:
                for boots, places in ((True, at_once), (False, 1)):
                    of_kind = [process for process in waiting if process.boots == boots]
                    free = places - [each.process.boots for each in running].count(boots)
                    for process in of_kind[:free]:
                        waiting.remove(process)
                        running.append(self._start(process))
                for ended in [each for each in running if each.child.poll() is not None]:
                    running.remove(ended)
                    yield self._finish(ended)
                if time.monotonic() - reported > 60 and running:
                    reported = time.monotonic()
                    self.tell("running: " + ", ".join(map(self._describe_position, running)))
                time.sleep(0.1)
        finally:
            for ended in running:
                self.tell(f"{ended.process.name}: interrupted, ending what it started")
                with contextlib.suppress(ProcessLookupError):
                    ended.child.send_signal(signal.SIGINT)
            for ended in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    ended.child.wait(_LAST_SECONDS)
                self._finish(ended, is_cut_off=True)

    def _start(self, process: Process) -> _Running:
        memory = Path("/dev/shm")
        where = memory if process.on_tmpfs and os.access(memory, os.W_OK) else None
        # short: sockets are below it, and a socket's path has 107 characters at most
        folder = Path(tempfile.mkdtemp(prefix=self.prefix, dir=where))
        (folder / "tmp").mkdir()
        for each in (folder, folder / "tmp"):
            # PostgreSQL does not run as root: its user goes through to the folder that it is given
            each.chmod(0o711)
        log, junit = self._files(process)
        junit.unlink(missing_ok=True)
        command = [
            # SIGINT when this process is killed: pytest then tears down its fixtures, which end
            # machines.
            "setpriv", "--pdeathsig", "INT",
            sys.executable, "-m", "pytest", f"--junit-xml={junit}", *process.arguments,
        ]  # fmt: skip
        environment = os.environ | {
            "TMPDIR": str(folder / "tmp"), "BAROMETER_STATE": str(folder / "state"),
        }  # fmt: skip
        about = f", about {process.expected:.0f} s" if process.expected else ""
        self.tell(f"{process.name}: started{about}")
        with log.open("wb") as file:
            child = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return _Running(process, child, folder)

    def _finish(self, running: _Running, *, is_cut_off: bool = False) -> Finished:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(running.child.pid, signal.SIGKILL)  # the rest of its session
        code = running.child.wait()
        log, junit = self._files(running.process)
        states = [running.folder / "state"]
        if is_cut_off:  # a test with a state of its own has not cleaned it
            states += (running.folder / "tmp").rglob("state")
        left = "".join(map(_clean, states))
        shutil.rmtree(running.folder, ignore_errors=True)
        return Finished(running.process, code, log, junit, left)

    def _files(self, process: Process) -> tuple[Path, Path]:
        """Return the paths of the process's log and junit file."""
        name = process.name.replace(" ", "-")
        return self.results / f"{name}.log", self.results / f"{name}.xml"

    def _describe_position(self, running: _Running) -> str:
        log, _ = self._files(running.process)
        lines = [line for line in log.read_text(errors="replace").splitlines() if "::" in line]
        test = f" at {lines[-1].split('::')[-1].split()[0]}" if lines else ""
        return f"{running.process.name}{test} ({time.monotonic() - running.started:.0f} s)"


def _clean(state: Path) -> str:
    """End what the runs of a killed process left, and return the output of `barometer clean`."""
    if not state.is_dir() or not any(state.iterdir()):
        return ""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "clean"], cwd=ROOT, check=False,
        env=os.environ | {"BAROMETER_STATE": str(state)}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr


@contextmanager
def in_background(commands: Mapping[str, Sequence[str]], log: Path) -> Iterator[Callable[[], str]]:
    """Run the commands one after the other while the block runs; its end ends them. The yielded
    function waits for them, and returns the last lines of their output if one failed, else ""."""
    script = " && ".join(
        f"{shlex.join(['echo', name])} && {shlex.join(command)}"
        for name, command in commands.items()
    )
    with log.open("wb") as file:
        child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "sh", "-c", script], cwd=ROOT,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def wait() -> str:
        code = child.wait()
        return "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if code else ""

    try:
        yield wait
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
