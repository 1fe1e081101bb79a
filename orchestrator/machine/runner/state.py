"""Records of what a run makes on this machine outside its run folder. Each thing is recorded
before it is made.

`barometer clean` reads the records of runs that are gone and ends what they left, and only that: a
QEMU is identified by the UUID of its domain, a run by its owner (`owner.py`). A record is locked
(flock(2)) while its run lives. The lock is visible across PID namespaces, too. A free lock proves
nothing: on NFS, other clients may not see the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Literal

from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from orchestrator.base.errors import BarometerError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.plainfile import open_plain
from orchestrator.machine.runner.owner import Owner, process_start

_END_SECONDS = 5.0
"""Time for killed processes to end. A process that is stuck in the kernel ends later."""
_LONGEST_RECORD = 1 << 20
_WRITERS_SECONDS = 3.0
SHM = Path("/dev/shm")  # libvirt's ivshmem device has its file here

_Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,16}$")]
_Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_Name = Annotated[str, StringConstraints(pattern=r"^[^/\x00]+$")]
_Partial = Annotated[str, StringConstraints(pattern=r"^(/[^/\x00]+){2,}/\.[^/\x00]+\.partial$")]


class BenchRecord(BaseModel):
    """A run's file in the state folder. The file may be damaged, so it is valid only if every name
    in it has the form of something that barometer makes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Literal[2] = 2
    token: _Token
    owner: Owner
    folder: str
    """Path of a private folder for libvirt's state, keys and initramfs images. It is short."""
    domains: list[_Uuid] = Field(default_factory=list)
    """UUIDs of the domains on this machine."""
    shm: list[_Name] = Field(default_factory=list)
    """Names of files under /dev/shm."""
    partial: list[_Partial] = Field(default_factory=list)
    """Folders of trials that are not complete."""
    hosts: list[str] = Field(default_factory=list)
    """Arguments of `barometer recover` for the metal hosts that are changed."""

    @classmethod
    def read(cls, text: str) -> BenchRecord:
        """Parse a record. Raises ValueError if it is not valid."""
        record = cls.model_validate_json(text)
        name = f"barometer-{record.token}"
        if not all(file.startswith(name) for file in record.shm):
            raise ValueError("its shared memory is not named by its token")
        if Path(record.folder).name != name or not Path(record.folder).is_absolute():
            raise ValueError("its folder is not named by its token")
        if record.owner.pid < 1:
            raise ValueError("its process is none")
        return record


class BenchState:
    """One run's record, and the means to end and remove what it names."""

    def __init__(self, path: Path, record: BenchRecord) -> None:
        self._path, self._record = path, record
        self._locked: IO[str] | None = None
        self._lock = threading.Lock()
        """Needed because trials of one run may be at work at the same time."""
        self._save(record)

    @property
    def token(self) -> str:
        return self._record.token

    @property
    def folder(self) -> Path:
        return Path(self._record.folder)

    def add(self, **more: str) -> None:
        """Record one of `domains`, `shm`, `partial` or `hosts` before it is made. Raises
        ValueError if `clean_killed_runs` would not accept the name."""
        with self._lock:
            lists = {name: [*getattr(self._record, name), value] for name, value in more.items()}
            self._save(self._record.model_copy(update=lists))

    def remove_shm(self, name: str) -> None:
        """Remove a file under /dev/shm that was recorded."""
        with self._lock:
            _remove_shm([name])
            remaining = [file for file in self._record.shm if file != name]
            self._save(self._record.model_copy(update={"shm": remaining}))

    def end(self) -> None:
        """End and remove what is left. Only things whose start was interrupted are left here."""
        end_machines(self._record.domains)
        _remove_shm(self._record.shm)

    def forget(self, *, unlink: bool = True) -> None:
        """Remove the record, unless `unlink` is off, and give up its lock."""
        if unlink:
            self._path.unlink(missing_ok=True)
        if self._locked is not None:
            self._locked.close()

    def _save(self, record: BenchRecord) -> None:
        """Write the record under another name, lock it and rename it, so that whoever reads the
        record of a living run finds it complete and locked. No program that is started inherits
        the lock."""
        text = record.model_dump_json(indent=1) + "\n"
        self._record = BenchRecord.read(text)
        beside = _beside(self._path)
        file = beside.open("w")
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(text)
            file.flush()
            beside.rename(self._path)
        except BaseException:
            file.close()
            beside.unlink(missing_ok=True)
            raise
        if self._locked is not None:
            self._locked.close()
        self._locked = file


def default_state_folder() -> Path:
    """Return BAROMETER_STATE, or the user's state folder."""
    folder = os.environ.get("BAROMETER_STATE")
    return Path(folder).absolute() if folder else user_state_path("barometer")


@contextlib.contextmanager
def bench_state(root: Path | None = None, *, keep: bool = False) -> Iterator[BenchState]:
    """Keep a record and a private folder while the block runs; `keep` leaves the folder after."""
    root = root or default_state_folder()
    root.mkdir(parents=True, exist_ok=True)
    token = token_prefix(root) + uuid.uuid4().hex[:6]
    # The folder's name is decided first, so that it is recorded before the folder is made.
    folder = Path(tempfile.gettempdir()).absolute() / f"barometer-{token}"
    record = BenchRecord(token=token, owner=Owner.here(), folder=str(folder))
    state = BenchState(root / f"{token}.json", record)
    is_left = False
    try:
        folder.mkdir(mode=0o700)
        try:
            yield state
        finally:
            state.end()
            if not keep:
                is_left = not remove_folder(folder)
    finally:
        state.forget(unlink=not is_left)  # `barometer clean` has to know of what is left


def token_prefix(root: Path | None = None) -> str:
    """Return the first characters of the tokens of all runs with the state folder `root`. The
    token is in the name of every domain, shared-memory file and private folder, which
    distinguishes what these runs left from what others left."""
    return sha256(bytes((root or default_state_folder()).absolute())).hexdigest()[:4]


def clean_killed_runs(root: Path | None = None) -> Iterator[str]:
    """End and remove what killed runs left; yield what was done, a line each. A run that is not
    proven to have ended is left alone."""
    root = root or default_state_folder()
    for path in sorted(root.glob("*.json")):
        try:
            # keep the file open, so that the lock is that of the content that was read
            with open_plain(path) as file:
                yield from _clean_run(path, file.read(_LONGEST_RECORD), locked=_is_locked(file))
        except FileNotFoundError:  # its run has just ended
            continue
        except OSError as exc:  # the records of other runs are cleaned all the same
            yield f"{path}: cannot be read or removed ({exc.strerror}); left alone"


def _clean_run(path: Path, content: bytes, *, locked: bool) -> Iterator[str]:
    try:
        record = BenchRecord.read(content.decode())
    except ValueError as exc:
        if locked:
            yield f"{path}: its run lives, and is of another version; left alone"
        else:
            yield from _set_aside(path, exc)
        return
    run = f"run {record.token}"
    state, why = record.owner.fate()
    if locked and state != "alive":
        state, why = "alive", f"on {record.owner.host}: its record is locked"
    if state == "alive":
        yield f"{run}: still running {why}; left alone"
        return
    if state == "unknown":
        yield (
            f"{run}: may be running: {why}; left alone. Run barometer clean there; if there is no"
            f" such place any more, remove {path}"
        )
        return
    yield from _end(record)
    _beside(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    yield f"{run}: cleaned"


def _end(record: BenchRecord) -> Iterator[str]:
    """End and remove what an ended run left; yield what was done, a line each."""
    run = f"run {record.token}"
    for pid in end_machines(record.domains):
        yield f"{run}: ended QEMU {pid}"
    for name in _remove_shm(record.shm):
        yield f"{run}: removed {SHM / name}"
    if (folder := Path(record.folder)).exists():
        yield f"{run}: {_remove_folder(folder)}"
    for partial in map(Path, record.partial):
        if not partial.exists():
            continue
        try:
            with only_writer(partial.parents[1]):
                yield f"{run}: {_remove_folder(partial)}"
        except (BarometerError, OSError) as exc:  # the run may have been resumed
            yield f"{run}: {partial} is left alone: {exc}"
    for host in dict.fromkeys(record.hosts):  # the runs of a matrix share one
        yield f"{run}: a metal host may be changed: barometer recover {host}"


def _set_aside(path: Path, exc: ValueError) -> Iterator[str]:
    """Rename a record that cannot be read, so that it is reported only once."""
    aside = path.with_suffix(".unreadable")
    path.rename(aside)
    why = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else str(exc)
    prefix = f"barometer-{path.stem}"
    yield (
        f"{path}: cannot be read ({why}); now {aside}. What its run may have left is named"
        f" {prefix}*: QEMU processes, files in {SHM} and {tempfile.gettempdir()}"
    )


def remove_folder(path: Path) -> bool:
    """Remove a private folder; return whether it is gone. What was ended a moment ago may still
    write into it: libvirt's log of a machine that it did not end itself."""
    end = time.monotonic() + _WRITERS_SECONDS
    while True:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.05)


def _remove_folder(path: Path) -> str:
    return f"removed {path}" if remove_folder(path) else f"{path} cannot be removed"


def _beside(path: Path) -> Path:
    """Return the path at which a record is written before it is renamed."""
    return path.with_name(f".{path.name}.new")


def _is_locked(file: IO[bytes]) -> bool:
    """True if a living run holds the record's lock, in whatever PID namespace."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _remove_shm(names: list[str]) -> list[str]:
    removed = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            (SHM / name).unlink()
            removed.append(name)
    return removed


def end_machines(uuids: Sequence[str]) -> list[int]:
    """Kill the QEMU processes that run a domain with one of the UUIDs, and wait for their end.
    Return their ids."""
    ours = qemu_processes(uuids)
    for pid in ours:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_SECONDS
    while any(process_start(pid) for pid in ours) and time.monotonic() < deadline:
        time.sleep(0.05)
    return ours


def qemu_processes(uuids: Sequence[str]) -> list[int]:
    """Return the ids of the QEMU processes that run a domain with one of the UUIDs."""
    ours = []
    for process in Path("/proc").glob("[0-9]*"):
        words = _command_line(int(process.name))
        if any(runs_domain(words, uuid) for uuid in uuids):
            ours.append(int(process.name))
    return ours


def runs_domain(command: Sequence[str], uuid: str) -> bool:
    """True if a command line is that of the QEMU which libvirt started for the domain. Its program
    is qemu-system-x86_64, or qemu-kvm on distributions that have only one. The UUID alone does not
    tell: it is also in the names of files that other programs of QEMU's (qemu-img) work on."""
    return "qemu" in Path(command[0]).name and ("-uuid", uuid) in pairwise(command)


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]
