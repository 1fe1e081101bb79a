"""A way in: a person's shell on a host of one arm, booted as for a trial, or on its guest."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, BenchError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.machine.host.host import Host
from orchestrator.machine.transport.shell import Shell
from orchestrator.machine.transport.terminal import can_ask, run_terminal
from orchestrator.run.holding import held_host
from orchestrator.run.kernels import RunKernels
from orchestrator.run.trial import Visit
from orchestrator.run.trials import ready_bench, ready_runner
from orchestrator.scenario.choices import Hold
from orchestrator.scenario.factors import Cell, ScenarioFile, load_scenarios
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ArmName

_TEXT_START = 0xFFFFFFFF81000000
"""Address of _text in vmlinux on x86: __START_KERNEL_map and CONFIG_PHYSICAL_START's default."""


def load_place(path: Path, overrides: list[str]) -> ScenarioFile:
    """Load the scenario of a file, or of a run's folder."""
    return load_scenarios(path / "scenario.toml" if path.is_dir() else path, overrides)


def choose_cell(file: ScenarioFile, names: list[str]) -> Cell:
    """Return the one cell of these names. Raises ScenarioError if there are several."""
    cell, *others = file.select_cells(names)
    if others:
        raise ScenarioError(
            f"{file.name} has several cells", hint=f"name one: --cell {cell.name}",
            reason=Reason.NO_SUCH_CELL,
        )  # fmt: skip
    return cell


def visit_host(
    scenario: Scenario, text: str, arm: ArmName, command: str, *, on_guest: bool, gdb: bool,
    progress: Progress,
) -> int:  # fmt: skip
    """Boot the arm's host, and its guest if `on_guest`; run a shell or `command` there with this
    process's streams, and return its exit code. Afterwards nothing is left. `text`: that of the
    scenario. `gdb`: print how to debug the host's kernel."""
    if on_guest and scenario.guest is None:
        raise ScenarioError(
            "--guest: the scenario boots no guest", hint='workload = "guest-boot"',
            reason=Reason.SCENARIO,
        )  # fmt: skip
    codes: list[int] = []

    def visit(shell: Shell) -> None:
        with progress.paused():
            codes.append(run_terminal(shell, command))

    with (
        tempfile.TemporaryDirectory(prefix="barometer-shell-") as folder,
        ready_runner(RunKernels(Cache()), progress) as runner,
        ready_bench(scenario, text, Path(folder) / "run", runner) as bench,
        held_host(bench, arm) as held,
    ):
        host = held.ready.host
        if gdb:
            progress.note(start_debugger(host))
        if on_guest:
            held.visit_guest(visit)
        else:
            visit(host.shell)
    return codes[0]


def hold_for_visit(when: Hold, progress: Progress) -> Visit:
    """Return what a trial calls when its workload has ended: a person gets a shell on the host if
    the trial failed, or always; leaving it goes on. Raises ScenarioError if no person is there."""
    if not can_ask():
        raise ScenarioError(
            f"--hold {when}: nobody is at a terminal", reason=Reason.COMMAND_LINE
        )  # fmt: skip

    def visit(host: Host, failure: BarometerError | None) -> None:
        if failure is None and when == "failed":
            return
        progress.note(f"held: {failure.message if failure else 'the trial has ended'}")
        progress.note("a shell on the host; leave it to go on")
        with progress.paused(), contextlib.suppress(BarometerError):  # the host may be gone
            run_terminal(host.shell)

    return visit


def start_debugger(host: Host) -> str:
    """Have the host's QEMU wait for gdb on a socket; return how to connect. Raises BenchError if
    QEMU refuses, and for a host that runs in no QEMU of ours."""
    socket = host.scratch / "gdb"
    answer = host.monitor(f"gdbserver unix:{socket},server=on,wait=off")
    if "Waiting for gdb connection" not in answer:
        raise BenchError("QEMU starts no server for gdb", evidence=answer, reason=Reason.MONITOR)
    lines = host.shell.run("grep -E ' _text$' /proc/kallsyms", check=False).stdout.split()
    offset = int(lines[0], 16) - _TEXT_START if lines else 0
    return (
        f"gdb -ex 'target remote {socket}' -ex 'symbol-file -o {offset:#x} VMLINUX'\n"
        f"VMLINUX: that of a kernel you build; of Debian's {host.release}"
        f" /usr/lib/debug/boot/vmlinux-{host.release} (package linux-image-{host.release}-dbg)"
    )
