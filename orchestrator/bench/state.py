"""What a run has on this machine outside its run folder, recorded before it is made.

`barometer clean` reads the records of runs that are gone and ends what they left, and only that:
a QEMU is known by the UUID of its domain, a run by its process id and start time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path

from platformdirs import user_state_path

from orchestrator.evidence import write_json

SHM = Path("/dev/shm")  # where libvirt's ivshmem device has its file


def default_root() -> Path:
    """BAROMETER_STATE, or the user's state folder."""
    given = os.environ.get("BAROMETER_STATE")
    return Path(given).absolute() if given else user_state_path("barometer")


@dataclass
class BenchState:
    """One run's record and its private folder."""

    token: str
    pid: int
    started: int
    """The run's process, and its start in clock ticks since boot (proc_pid_stat(5), field 22)."""
    folder: Path
    """Short and private: libvirt's state, keys, initramfs images."""
    domains: list[str] = field(default_factory=list)
    """UUIDs of the domains of this machine."""
    shm: list[str] = field(default_factory=list)
    """Names of files under /dev/shm."""
    partial: list[str] = field(default_factory=list)
    """Folders of trials that are not complete."""
    hosts: list[str] = field(default_factory=list)
    """Arguments of `barometer recover` for the metal hosts that are changed."""
    _record: Path = Path()
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Trials of one run may be at work at the same time."""

    def add(self, **more: str) -> None:
        """Record `domains`, `shm`, `partial` or `hosts` before it is made."""
        with self._lock:
            for name, value in more.items():
                getattr(self, name).append(value)
            self._save()

    def remove_shm(self, name: str) -> None:
        """Remove a file under /dev/shm that was recorded."""
        with self._lock:
            _remove_shm([name])
            self.shm.remove(name)
            self._save()

    def _save(self) -> None:
        names = (f.name for f in fields(self) if not f.name.startswith("_"))
        facts = {name: getattr(self, name) for name in names}
        write_json(self._record, facts | {"folder": str(self.folder)})


@contextlib.contextmanager
def bench_state(root: Path | None = None, *, keep: bool = False) -> Iterator[BenchState]:
    """A record and a private folder, gone when the block is left; `keep` leaves the folder."""
    root = root or default_root()
    root.mkdir(parents=True, exist_ok=True)
    token = token_prefix(root) + uuid.uuid4().hex[:6]
    # The folder's name is decided before it is made, so that it is recorded when it is.
    folder = Path(tempfile.gettempdir()) / f"barometer-{token}"
    state = BenchState(
        token, os.getpid(), process_start(os.getpid()) or 0, folder, _record=root / f"{token}.json"
    )
    try:
        state._save()
        folder.mkdir(mode=0o700)
        yield state
    finally:
        _end_machines(state.domains)  # none is left, unless its start was interrupted
        _remove_shm(state.shm)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        state._record.unlink(missing_ok=True)


def token_prefix(root: Path | None = None) -> str:
    """First characters of the tokens of all runs with the state folder `root`. The token is in
    the name of every domain, shared-memory file and private folder, so what these runs left can
    be told from what others left."""
    return sha256(bytes((root or default_root()).absolute())).hexdigest()[:4]


def process_start(pid: int) -> int | None:
    """A process's start in clock ticks since boot; with its id it names it for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def clean(root: Path | None = None) -> Iterator[str]:
    """End and remove what runs left that were killed; says what it did, a line each."""
    root = root or default_root()
    for record in sorted(root.glob("*.json")):
        try:
            facts = json.loads(record.read_text())
            token, pid, started = str(facts["token"]), int(facts["pid"]), int(facts["started"])
            folder, domains, shm = Path(facts["folder"]), facts["domains"], facts["shm"]
            partial = [Path(p) for p in facts["partial"]]
            hosts = facts.get("hosts", [])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            yield f"{record}: cannot be read ({exc}); left alone"
            continue
        if process_start(pid) == started:
            yield f"run {token}: still running as process {pid}; left alone"
            continue
        for ended in _end_machines(domains):
            yield f"run {token}: ended QEMU {ended}"
        for name in _remove_shm(shm):
            yield f"run {token}: removed {SHM / name}"
        for path in (folder, *partial):
            if path.exists():
                shutil.rmtree(path, ignore_errors=True)
                yield f"run {token}: removed {path}"
        for host in dict.fromkeys(hosts):  # the runs of a matrix have one
            yield f"run {token}: a metal host may be changed: barometer recover {host}"
        record.unlink(missing_ok=True)
        yield f"run {token}: cleaned"


def _remove_shm(names: list[str]) -> list[str]:
    removed = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            (SHM / name).unlink()
            removed.append(name)
    return removed


def _end_machines(uuids: list[str]) -> list[int]:
    """Kill the QEMU processes that run a domain with one of the UUIDs, and wait for their end."""
    ours = qemu_processes(uuids)
    for pid in ours:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(process_start(pid) for pid in ours) and time.monotonic() < deadline:
        time.sleep(0.05)
    return ours


def qemu_processes(uuids: list[str]) -> list[int]:
    """Ids of the QEMU processes that run a domain with one of the UUIDs."""
    ours = []
    for process in Path("/proc").glob("[0-9]*"):
        words = _command_line(int(process.name))
        if "qemu-system" in words[0] and any(uuid in words for uuid in uuids):
            ours.append(int(process.name))
    return ours


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]
