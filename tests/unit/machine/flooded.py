"""Flood barometer's readers with real programs, in a process of its own:

    python -m tests.unit.machine.flooded FOLDER

prints {KIND: {"reason", "seconds", "rss", "disk"}} as JSON: the reason of the error, and the most
memory and disk until then, in bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orchestrator.run.ab  # a run has this in memory as well
from orchestrator.base.bounded import ANSWER_BYTES, CONSOLE_BYTES, TRACE_BYTES
from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import Charged
from orchestrator.evidence.layout import TrialWriter
from orchestrator.machine.guest.watching import Limits, Watched
from orchestrator.machine.host.console import Console
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.kernelwatch import KernelWatch
from orchestrator.machine.metal.consoles import following_dmesg, running_console_command
from orchestrator.machine.runner.filelimits import limited_files
from orchestrator.machine.tracing import probes
from orchestrator.machine.tracing.armer import ArmedProbes
from orchestrator.machine.tracing.probes import timing_spec
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Completed, Shell
from tests.unit.manifests import facts_of

assert orchestrator.run.ab
SECONDS = 30.0


def check(path: Path, start: int = 0) -> None:
    """Check the host as a trial does. Returns if all is well."""
    host = SimpleNamespace(
        console=(console := Console(path, start)), kernel=KernelWatch(console), release="7.3",
        is_alive=lambda: True,
    )  # fmt: skip
    Host.check(cast(Host, host))


def until_raised(does: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        does()
        time.sleep(0.05)


def qemus_console(folder: Path) -> None:
    """Run a program that writes the file itself in small pieces, as QEMU does."""
    path = folder / "console.log"
    with path.open("wb") as file:
        program = subprocess.Popen(["dd", "if=/dev/zero", "bs=128", "status=none"], stdout=file)
    with limited_files({path: CONSOLE_BYTES}, program.kill):
        program.wait()
    check(path)


def console_of_300_mib(folder: Path) -> None:
    path = folder / "console.log"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    check(path)


def command(folder: Path, program: str) -> None:
    with running_console_command(program, folder / "console.log", print) as console:
        assert console is not None
        until_raised(lambda: check(console.path))


def messages(folder: Path) -> None:
    class Flooding(LocalMachine):
        def _words(self, argv: object) -> list[str]:
            return ["yes", "[    1.0] a message of the kernel's"]

    with following_dmesg(cast(Shell, Flooding()), folder / "console.log"):
        until_raised(lambda: check(folder / "console.log"))


def agent(folder: Path, line: str) -> None:
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(LocalMachine().stream(["yes", line], timeout=SECONDS))
        watched = Watched(lines, folder)
        host = cast(Host, SimpleNamespace(check=lambda: None, slow=False, accel="exact"))
        limits = Limits(host, watched, 1 << 30)
        until_raised(lambda: limits.check("the mark"))


def endless_line(folder: Path) -> None:
    with LocalMachine().stream(["cat", "/dev/zero"], timeout=SECONDS) as lines:
        watched = Watched(lines, folder)
        time.sleep(2)
        assert not watched.ended
    raise BenchError("its caller's deadline", reason=Reason.TIMEOUT)


def wide_answer(folder: Path) -> None:
    """Answer with as many characters as are allowed, four bytes each in memory."""
    said = LocalMachine().run(f"yes \U0001f980{'x' * 1000} | head -c {ANSWER_BYTES} >&2; echo on")
    assert len(said.stderr) > ANSWER_BYTES - 100_000


def trace(folder: Path) -> None:
    """Print the largest trace that is allowed, which does not compress."""
    size = TRACE_BYTES - 1000
    (folder / "trace").write_text(os.urandom(size // 2).hex())

    class Tracing(LocalMachine):
        """A machine with that trace, and nothing else."""

        def run(self, argv: Sequence[str] | str, **how: Any) -> Completed:
            is_trace = str(argv).endswith("/trace")
            return super().run(["cat", str(folder / "trace")] if is_trace else "true", **how)

    spec = timing_spec([1 << 30])
    trial = TrialWriter(folder / "0001-baseline", facts_of(arm="baseline"))
    with Tracing().stream(["true"], timeout=SECONDS) as dialogue:
        probes._save(ArmedProbes(Tracing(), spec, dialogue), "map", trial)
    assert (trial.host / "trace-map.txt.gz").stat().st_size > size // 4


def quoted(folder: Path) -> None:
    """Make an error from one line of 30 MB, and use it in each of its outputs."""
    line = "x" * 30_000_000
    error = BenchError(f"the host did not start: {line}", evidence=line, reason=Reason.HOST_START)
    trial = TrialWriter(folder / "0001-baseline", facts_of(arm="baseline"))
    trial.failed(error, "boot", Charged("bench", "it did not start"))
    trial.complete()
    print(error, file=sys.stderr)
    raise error


KINDS: dict[str, Callable[[Path], object]] = {
    "qemus-console": qemus_console,
    "console-of-300-mib": console_of_300_mib,
    "command-zero": lambda folder: command(folder, "cat /dev/zero"),
    "command-lines": lambda folder: command(folder, "yes"),
    "messages": messages,
    "agent-lines": lambda folder: agent(folder, 'C 1 "y"'),
    "agent-long-lines": lambda folder: agent(folder, f'C 1 "{"y" * 60_000}"'),
    "agent-events": lambda folder: agent(folder, "E 1 event"),
    "endless-line": endless_line,
    "answer": lambda _: LocalMachine().run("cat /dev/zero"),
    "errors": lambda _: LocalMachine().run("cat /dev/zero >&2"),
    "wide-answer": wide_answer,
    "trace": trace,
    "quoted": quoted,
}


def measured(kind: str, folder: Path) -> dict[str, object]:
    folder.mkdir()
    reason = "none"
    try:
        KINDS[kind](folder)
    except BarometerError as exc:
        reason = exc.reason
    disk = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
    # ru_maxrss would include the process that started this one, from before its exec
    status = Path("/proc/self/status").read_text()
    rss = int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)) << 10
    return {"reason": reason, "rss": rss, "disk": disk}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps({kind: measured(kind, place / kind) for kind in KINDS}))
