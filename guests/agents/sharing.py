"""Put back what a trial changed on a host that several trials share, and report the host's state.
Plain Python 3, with the keeper beside it.

Reads the changes as JSON on standard input, [[KIND, {...}], ...] in the order in which they were
made, with kinds and facts as in the keeper's journal. Answers {"failed": [...], "state": {NAME:
TEXT}}: unless something is left, the state equals that before the changes.
"""

from __future__ import annotations

import collections
import glob
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # `python3 -I` leaves the program's own folder out of the path
    sys.path.insert(0, str(Path(__file__).parent))

from keeper import machine
from keeper.changes import files, pci, settings
from keeper.machine import RefusedError

RUN = "/run/barometer"
_TRACEFS = "/sys/kernel/tracing"
_UNDO = {
    "write": settings.unwrite,
    "tracing": settings.end_tracing,
    "guest": settings.end_guest,
    "claim": files.unclaim,
    "bind": pci.unbind,
}
_FILES = (
    "/sys/module/*vfio*/parameters/*", "/sys/module/*iommu*/parameters/*",
    "/sys/module/kvm*/parameters/*",
    "/sys/kernel/mm/transparent_hugepage/*", "/sys/kernel/mm/transparent_hugepage/khugepaged/*",
    "/sys/kernel/mm/transparent_hugepage/hugepages-*/*enabled",
    "/sys/kernel/mm/hugepages/*/nr_hugepages",
    "/proc/sys/kernel/*", "/proc/sys/vm/*",
    *(f"{_TRACEFS}/{name}" for name in ("set_event", "current_tracer", "tracing_on", "trace_clock",
                                        "kprobe_events", "uprobe_events")),
)  # fmt: skip
"""Files whose text is part of the state: settings, and whether the kernel has complained
(tainted)."""
_COUNTERS = (
    "ns_last_pid", "perf_event_max_sample_rate", "full_scans", "pages_collapsed", "stat_refresh",
)  # fmt: skip
"""Names of those files in _FILES that the kernel changes by itself; they are left out."""
_FOLDERS = (f"{_TRACEFS}/instances", "/var/log/libvirt/qemu", "/tmp", "/dev/shm")


def put_back(changes: list[list[Any]]) -> list[str]:
    """Undo the changes, the latest first; return what could not be undone, and why."""
    failed = []
    for kind, what in reversed(changes):
        try:
            _UNDO[kind](what)
        except (RefusedError, OSError) as exc:
            failed.append(f"{kind}: {exc}")
    for path in sorted(machine.at(RUN).glob("*")):  # files that the trial made
        try:
            files.unclaim({"paths": [f"{RUN}/{path.name}"]})
        except (RefusedError, OSError) as exc:
            failed.append(str(exc))
    return failed


def state() -> dict[str, str]:
    """Return the texts of everything that a trial may change, by name."""
    return {name: " ".join(text.split()) for name, text in _parts()}


def _parts() -> Iterator[tuple[str, str]]:
    for line in (machine.text("/proc/modules") or "").splitlines():
        yield f"module {line.split()[0]}", "loaded"
    for line in (machine.text("/proc/self/mounts") or "").splitlines():
        yield f"mount {line.split()[1]}", line
    for pattern in _FILES:
        for path in _found(pattern):
            if path.rpartition("/")[2] not in _COUNTERS and machine.at(path).is_file():
                yield path, machine.text(path) or ""
    for folder in _FOLDERS:
        yield folder, " ".join(sorted(path.name for path in machine.at(folder).glob("*")))
    inside = (str(path) for path in machine.at(RUN).rglob("*"))
    yield RUN, " ".join(sorted(inside))
    for device in _found("/sys/bus/pci/devices/*"):
        driver = machine.at(f"{device}/driver")
        yield f"driver of {Path(device).name}", driver.resolve().name if driver.exists() else ""
        yield f"{device}/driver_override", machine.text(f"{device}/driver_override") or ""
    for name, number in collections.Counter(_processes()).items():
        yield f"processes {name}", str(number)


def _found(pattern: str) -> list[str]:
    root = str(machine.at("/")).rstrip("/")
    return sorted(path[len(root) :] for path in glob.glob(f"{root}{pattern}"))


def _processes() -> Iterator[str]:
    """Yield the names of all processes but the kernel's threads, this one and its ancestors."""
    own = {1}
    pid = os.getpid()
    while pid > 1:
        own.add(pid)
        pid = _stat(pid)[1]
    for path in machine.at("/proc").glob("[0-9]*"):
        name, parent = _stat(int(path.name))
        if int(path.name) not in own and parent not in (0, 2):
            yield name


def _stat(pid: int) -> tuple[str, int]:
    """Return a process's name and parent; the parent is 0 if it has ended, or is ending."""
    head, _, rest = (machine.text(f"/proc/{pid}/stat") or "").rpartition(")")
    status = rest.split()
    return head.partition("(")[2], 0 if status[:1] in ([], ["Z"]) else int(status[1])


def main() -> None:
    failed = put_back(json.load(sys.stdin))
    print(json.dumps({"failed": failed, "state": state()}))


if __name__ == "__main__":
    main()
