"""A place to try a fault in: a folder with a home, a cache, a state folder and temporary files of
its own, in which `barometer` runs as a user runs it. No request leaves this machine."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import pytest

from orchestrator.machine.runner.state import SHM, token_prefix
from tests.faults.table import ROWS, Row
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.recorded import copied_run
from tests.unit.scenarios import MAPS

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9/debian"
"""Address of a mirror that nobody serves: port 9, discard."""
MOST_SECONDS = 60.0
"""Deadline of a command. One that takes longer is taken to wait without end."""
_GOING_SECONDS = 3.0
"""Seconds in which the processes of a command that has ended must be gone."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def reason(self) -> str:
        """NAME, if the last line on standard error is `reason: NAME`; otherwise empty."""
        last = (self.err.splitlines() or [""])[-1]
        match = re.fullmatch(r"reason: ([a-z-]+)", last)
        return match[1] if match else ""


class Place:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.home, self.tmp, self.work = root / "home", root / "tmp", root / "work"
        self.state, self.cache = root / "state", root / "cache/barometer"
        for folder in (self.home, self.tmp, self.work, self.state, self.cache):
            folder.mkdir(parents=True)
        # Ignore this machine's settings: they may set a proxy, or disable the check of dates.
        # By default, apt also pauses between its tries, and waits half a minute for a mirror that
        # sends nothing.
        (root / "apt.conf").write_text(
            'Dir::Etc::Main "/nonexistent";\nDir::Etc::Parts "/nonexistent";\n'
            'Acquire::Retries::Delay "false";\nAcquire::http::Timeout "2";\n'
        )
        self.environment = {
            "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "COLUMNS": "200",
            "HOME": str(self.home), "TMPDIR": str(self.tmp), "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(root / "cache"),
            "BAROMETER_STATE": str(self.state), "BAROMETER_MIRROR": NOBODY,
            "APT_CONFIG": str(root / "apt.conf"),
        }  # fmt: skip

    def scenario(self, text: str = MAPS) -> Path:
        """Write a scenario file and the kernel folders that it names. Return the file's path."""
        for name in ("old", "new"):
            if not (self.work / name).exists():
                folder_kernel(self.work / name, f"7.0.0-{name}")
        path = self.work / "scenario.toml"
        path.write_text(text)
        return path

    def recorded(self) -> Path:
        """Return a copy of a complete run."""
        return copied_run(self.work / "run")

    def run(self, *arguments: object, **how: Any) -> Ended:
        """Run `barometer ARGUMENTS` to its end; `how` as for `started`. A wait without end fails
        the test."""
        with self.started(*arguments, **how) as running:
            return running.ended()

    @contextlib.contextmanager
    def started(
        self,
        *arguments: object,
        under: Sequence[str] = (),
        shorter: Mapping[str, float] = MappingProxyType({}),
        stdout: int | IO[bytes] = subprocess.PIPE,
        most: float = MOST_SECONDS,
        pass_fds: Sequence[int] = (),
        **environment: str,
    ) -> Iterator[Running]:
        """Start `barometer ARGUMENTS` and yield it. At the end of the block it is killed with its
        process group if it still runs. `under`: a command that runs it. `shorter`: deadlines in
        seconds by MODULE.NAME, so that no test waits for half an hour. `most`: deadline of the
        command in seconds. `environment`: more variables."""
        program = "".join(
            f"import {name.rpartition('.')[0]}; {name} = {seconds}\n"
            for name, seconds in shorter.items()
        )
        program += "from orchestrator.cli import main; main()"
        process = subprocess.Popen(
            [*under, sys.executable, "-P", "-c", program, *map(str, arguments)], cwd=self.work,
            env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=subprocess.PIPE, start_new_session=True, pass_fds=pass_fds,
        )  # fmt: skip
        try:
            yield Running(process, most)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()

    def left(self) -> list[str]:
        """List what remains of a command that has ended: processes, mounts, sockets, shared
        memory, temporary files, records, unfinished builds and trials. Empty if all is well."""
        end = time.monotonic() + _GOING_SECONDS
        while (going := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        sockets = Path("/proc/net/unix").read_text().splitlines()
        shm = SHM.glob(f"barometer-{token_prefix(self.state)}*")
        return [
            *(f"process {pid}: {words}" for pid, words in going.items()),
            *(f"mount {line}" for line in mounts if str(self.root) in line),
            *(f"socket {line}" for line in sockets if str(self.root) in line),
            *(f"shared memory {path}" for path in shm),
            *(f"temporary file {path}" for path in sorted(self.tmp.rglob("*"))),
            *(f"record {path}" for path in sorted(self.state.rglob("*"))),
            *(f"build {path}" for path in sorted(self.cache.glob("*/.*.*"))),
            *(f"trial {path}" for path in sorted(self.work.rglob(".*.partial"))),
        ]

    def processes(self) -> dict[int, str]:
        """Return process id -> command line of each process that a command in this place started.
        The processes have inherited BAROMETER_STATE from it."""
        ours = f"BAROMETER_STATE={self.state}".encode()
        owned = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if ours in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if words != [""]:  # a zombie has no command line
                        owned[int(folder.name)] = shlex.join(words)[:200]
        return owned

    def programs(self, *without: str, scripts: Mapping[str, str] = MappingProxyType({})) -> str:
        """Return a PATH that has every program of this machine except those in `without`.
        `scripts`: shell scripts that replace or add programs, by name."""
        folder = self.root / "programs"
        folder.mkdir()
        for place in self.environment["PATH"].split(":"):
            for program in Path(place).glob("*") if Path(place).is_dir() else ():
                if program.name not in without and not (folder / program.name).is_symlink():
                    (folder / program.name).symlink_to(program)
        for name, script in scripts.items():
            target = folder / name
            target.unlink(missing_ok=True)
            target.write_text(f"#!/bin/sh\n{script}\n")
            target.chmod(0o755)
        return str(folder)


@dataclass
class Running:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    most: float
    begun: float = 0.0
    err: bytes = b""

    def __post_init__(self) -> None:
        self.begun = time.monotonic()

    def until(self, words: str) -> None:
        """Wait until `words` are on standard error."""
        assert self.process.stderr is not None
        while words.encode() not in self.err:
            left = self.begun + self.most - time.monotonic()
            ready = select.select([self.process.stderr], [], [], max(0.0, left))[0]
            chunk = os.read(self.process.stderr.fileno(), 1 << 16) if ready else b""
            assert chunk, f"it never said {words!r}:\n{self.err.decode(errors='replace')}"
            self.err += chunk

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> Ended:
        left = self.begun + self.most - time.monotonic()
        try:
            out, err = self.process.communicate(timeout=max(0.1, left))
        except subprocess.TimeoutExpired:
            stack = Path(f"/proc/{self.process.pid}/wchan").read_text()
            raise AssertionError(f"a wait without end, in {stack}") from None
        return Ended(
            self.process.returncode, (out or b"").decode(errors="replace"),
            (self.err + err).decode(errors="replace"), time.monotonic() - self.begun,
        )  # fmt: skip


def row_of(test: str) -> Row:
    """Return the row that a test proves, by the test's id. Raises KeyError."""
    rows = {row.test: row for row in ROWS}
    name = test.removeprefix("tests/faults/")
    return rows.get(name) or rows[name.partition("[")[0]]


def check(row: Row, ended: Ended) -> None:
    """Raise AssertionError unless a command ended as the row says."""
    output = f"{ended.out}\n{ended.err}"
    assert "Traceback" not in output, output
    assert (ended.code, ended.reason) == (row.code, row.last_reason), output
    unbroken = "".join(output.split())  # a report breaks a path that is longer than its lines
    for name in row.names:
        assert "".join(name.split()) in unbroken, f"it does not name {name}:\n{output}"
    assert ended.seconds < row.seconds, f"{ended.seconds:.1f} s:\n{output}"


# means ---------------------------------------------------------------------------------------


def namespace(script: str, *more: str) -> list[str]:
    """Return a command that runs a script, and then its arguments, in a mount namespace of its
    own. `more`: further options of unshare(1). An ordinary user is root for the script alone."""
    root, back = [], ""
    if os.geteuid():
        root = ["--map-root-user"]
        back = f"unshare --map-user={os.geteuid()} --map-group={os.getegid()} -- "
    return [
        "unshare", *root, "--mount", *more, "--", "sh", "-ec", f'{script}\nexec {back}"$@"', "sh",
    ]  # fmt: skip


def disk(folder: Path, size: str = "4m", *, full: bool = False) -> str:
    """Return a script that mounts a small disk at the folder. `full`: with no free space."""
    at = shlex.quote(str(folder))
    fill = f"head -c {size} /dev/zero > {at}/fill 2> /dev/null || :" if full else ":"
    return f"mount -t tmpfs -o size={size} none {at}; {fill}"


def read_only(folder: Path) -> str:
    """Return a script that makes the folder read-only."""
    at = shlex.quote(str(folder))
    return f"mount --bind {at} {at}; mount -o remount,ro,bind {at}"


def powerless() -> list[str]:
    """Return a command that runs its arguments without root's power over the permissions of
    files; empty for an ordinary user."""
    if os.geteuid():
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]


# fixtures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A row, and the place to try its fault in."""

    row: Row
    place: Place

    def ends(self, *arguments: object, left: Sequence[str] = (), **how: Any) -> Ended:
        """Run `barometer ARGUMENTS`, `how` as for Place.run. Check that it ends as the row says,
        and that each line of Place.left() begins with one of `left`."""
        return self.ended(self.place.run(*arguments, **how), left=left)

    def ended(self, ended: Ended, left: Sequence[str] = ()) -> Ended:
        """Check the same for a command that has ended."""
        check(self.row, ended)
        assert [line for line in self.place.left() if not line.startswith(tuple(left))] == []
        return ended


@pytest.fixture
def place() -> Iterator[Place]:
    with made_place() as made:
        yield made


@contextlib.contextmanager
def made_place() -> Iterator[Place]:
    """Keep a new place while the block runs. Then kill what still runs there and remove it."""
    # a short path, because libvirt's sockets are below it
    root = Path(tempfile.mkdtemp(prefix="f-"))
    made = Place(root)
    try:
        yield made
    finally:
        for pid in made.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["chmod", "-R", "u+rwX", root], check=True)
        shutil.rmtree(root)


@pytest.fixture
def fault(request: pytest.FixtureRequest, place: Place) -> Fault:
    return Fault(row_of(request.node.nodeid), place)
