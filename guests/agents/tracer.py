"""Arm, read and clear kernel probes in a tracefs instance of their own. Plain Python 3.

    tracer.py symbols NAME...  print as JSON which of these functions the kernel has
    tracer.py arm       arm as specified by JSON on standard input; answer as JSON
    tracer.py finish    print the evidence as JSON, {"files": {NAME: TEXT}}, and undo everything
    tracer.py clear     undo everything that is left

The specification:
    instance       name of the tracefs instance
    group          event group of the probes; nothing else may use it
    clock          trace clock, for example mono
    buffer_kb      ring buffer for each CPU
    symbols        functions that must exist on the running kernel
    definitions    kprobe_events lines
    filters        {"GROUP/EVENT": filter}
    triggers       {"GROUP/EVENT": hist trigger}
    enable         ["GROUP/EVENT", ...]; the trigger arms an event that has one
If the kernel refuses something, the answer has its reason (error_log), and nothing stays armed.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

TRACEFS = Path("/sys/kernel/tracing")
BUSY_SECONDS = 10.0


class RefusedError(Exception):
    pass


def append(path: Path, line: str) -> None:
    """Append a line with one write(2), because each is one command to the kernel.

    open("ab") would seek to the end, which tracefs refuses.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


def put(path: Path, line: str) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            file.write(line.encode() + b"\n")
    except OSError as exc:
        raise RefusedError(f"{path}: {line!r}: {exc.strerror}\n{why()}") from exc


def why() -> str:
    """Return the ends of the error logs, with the kernel's reason for refusing a line."""
    logs = [TRACEFS / "error_log", *TRACEFS.glob("instances/*/error_log")]
    texts = [log.read_text() for log in logs]
    return "\n".join(text.strip()[-600:] for text in texts if text)


def missing(symbols: list[str]) -> list[str]:
    """Return the functions that are not on this kernel under their own name."""
    wanted = set(symbols)
    with open("/proc/kallsyms") as table:
        for line in table:
            wanted.discard(line.split("\t")[0].split()[2])
            if not wanted:
                break
    return sorted(wanted)


def of_kernel(definition: str, loaded: set[str]) -> str:
    """Return `p:GROUP/EVENT MODULE:FUNCTION ...` without MODULE if that is built in, which shows
    in that it is not loaded: the kernel would wait for the module, and the probe would never
    fire."""
    head, place, *rest = definition.split(" ")
    module, colon, function = place.partition(":")
    return " ".join([head, function if colon and module not in loaded else place, *rest])


def arm(spec: dict[str, Any]) -> None:
    clear(spec["instance"], spec["group"])
    lost = missing(spec["symbols"])
    if lost:
        raise RefusedError("functions not on this kernel under these names: " + ", ".join(lost))
    instance = TRACEFS / "instances" / spec["instance"]
    instance.mkdir()
    put(instance / "tracing_on", "0")
    put(instance / "trace_clock", spec["clock"])
    put(instance / "buffer_size_kb", str(spec["buffer_kb"]))
    put(TRACEFS / "error_log", "")
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    for asked in spec["definitions"]:
        definition = of_kernel(asked, loaded)
        try:
            append(TRACEFS / "kprobe_events", definition)
        except OSError as exc:
            raise RefusedError(f"{definition}: {exc.strerror}\n{why()}") from exc
    for event, text in spec["filters"].items():
        put(instance / "events" / event / "filter", text)
    for event, text in spec["triggers"].items():
        put(instance / "events" / event / "trigger", text)
    for event in spec["enable"]:
        put(instance / "events" / event / "enable", "1")
        if (instance / "events" / event / "enable").read_text().strip()[:1] != "1":
            raise RefusedError(f"{event} is not enabled after enabling it")
    put(instance / "tracing_on", "1")


def collect(instance_name: str, group: str) -> dict[str, str]:
    instance = TRACEFS / "instances" / instance_name
    put(instance / "tracing_on", "0")
    files = {"trace.txt": (instance / "trace").read_text(errors="replace")}
    files["clock.txt"] = (instance / "trace_clock").read_text()
    files["stats.txt"] = "".join(
        f"{cpu.name}\n{(cpu / 'stats').read_text()}"
        for cpu in sorted(instance.glob("per_cpu/cpu*"))
    )
    profile = (TRACEFS / "kprobe_profile").read_text().splitlines()
    ours = {p.name for p in (instance / "events" / group).iterdir() if p.is_dir()}
    files["profile.txt"] = "".join(
        f"{line}\n" for line in profile if line.split() and line.split()[0] in ours
    )
    for event in sorted(ours):
        trigger = (instance / "events" / group / event / "trigger").read_text()
        if "hist:" in trigger:
            hist = (instance / "events" / group / event / "hist").read_text()
            files[f"hist-{event}.txt"] = hist
    return files


def clear(instance_name: str, group: str) -> None:
    instance = TRACEFS / "instances" / instance_name
    if instance.is_dir():
        put(instance / "tracing_on", "0")
        for trigger in instance.glob("events/*/*/trigger"):
            lines = trigger.read_text().splitlines()
            for line in lines:
                if line and not line.startswith("#"):
                    append(trigger, "!" + line.split(" [")[0])
        for enable in instance.glob("events/*/enable"):
            if enable.read_text().strip() in ("1", "X"):
                put(enable, "0")
        remove(instance)
    events = TRACEFS / "kprobe_events"
    for line in events.read_text().splitlines():
        name = line.split()[0].split(":", 1)[1]
        if name.startswith(f"{group}/"):
            append(events, f"-:{name}")


def remove(instance: Path) -> None:
    """Remove the instance. Wait while its trace_marker is open: a QEMU or a watch agent that is
    ending may still have it."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return instance.rmdir()
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def main() -> None:
    verb, *rest = sys.argv[1:]
    try:
        if verb == "arm":
            spec = json.load(sys.stdin)
            try:
                arm(spec)
            except RefusedError:
                clear(spec["instance"], spec["group"])
                raise
            print(json.dumps({"armed": True}))
        elif verb == "symbols":
            print(json.dumps(sorted({*rest} - {*missing(rest)})))
        elif verb == "finish":
            said: dict[str, Any] = {"files": collect(*rest)}
            try:
                clear(*rest)
            except (RefusedError, OSError) as exc:
                said["clear_error"] = str(exc)
            print(json.dumps(said))
        else:
            clear(*rest)
    except RefusedError as exc:
        print(json.dumps({"armed": False, "why": str(exc)}))


if __name__ == "__main__":
    main()
