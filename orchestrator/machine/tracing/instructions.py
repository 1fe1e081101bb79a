"""Instructions of one map and one unmap, by kernel function: the `profile` pass.

An exact host's QEMU logs the address of each instruction it executes (`log exec` with one
instruction for each translation block) while the map agent does a single ioctl. The log is
reduced to folded stacks: `outer;inner;innermost COUNT`, the form that flame graph tools read.

A map of millions of pages has billions of instructions, too many to log. Then two smaller maps
are logged instead. Their pages lie within the mapping of the whole BAR, so that they take the same
path; the difference of the two gives the cost of a page. But small maps have smaller leaves in the
IOMMU's page table, which an unmap walks for each page. So the beginning of an unmap of a large
leaf is logged, too (`window`), for the cost of that walk.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.base.errors import BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.evidence.layout import TrialWriter, write_json
from orchestrator.formats.abi import LEAVES, PAGE
from orchestrator.formats.units import GIB
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing.mapagent import build_request, parse_answer
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.shell import ConnectionLostError, Dialogue
from orchestrator.scenario.map_workload import Map

ENTRY_FUNCTIONS = {"type1": "vfio_iommu_type1_ioctl", "iommufd": "iommufd_fops_ioctl"}
"""Kernel function that handles the ioctls of each backend."""
MOST_INSTRUCTIONS = 1_200_000
"""Most instructions that are logged for one ioctl: about 100 MB of log."""
INSTRUCTIONS, INSTRUCTIONS_BYTES = "instructions.log", 400 << 20
"""Name of QEMU's log of one ioctl in the private folder, and its limit in bytes: a log that is
more than four times as large as expected is a log of something else."""
_WINDOW_BYTES, _WINDOW_SECONDS = 40 << 20, 60.0
# `Trace 0: 0x7f5b2c0001c0 [0000000000000000/ffffffff81a3b2c4/00c0f3b5/ff200201] name`
_EXECUTED = re.compile(r"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/", re.MULTILINE)
# Thunks through which calls go. The function that a thunk calls is counted as called by the
# thunk's caller.
_THUNK = re.compile(r"__x86_(indirect|return)_|srso_|retbleed_|__pi___x86|clear_bhb")


@dataclass(frozen=True)
class Instruction:
    function: str
    offset: int
    """Bytes from the function's first instruction."""


@dataclass(frozen=True)
class LoggedOperation:
    operation: str
    """map or unmap"""
    bytes: int
    state: str
    window: bool = False
    """True: only the beginning of the operation is logged."""


@dataclass(frozen=True)
class Folded:
    stacks: Counter[tuple[str, ...]]
    """Instructions in the innermost function of each stack."""
    calls: Counter[str]
    """Number of times that each function was entered."""
    complete: bool
    """True if the entry function returned."""


def fold(executed: Iterable[Instruction], entry: str) -> Folded:
    """Count the instructions from the first one of `entry` to its return, by stack. The task that
    executes them must not be interrupted by another task.

    The stack is rebuilt from the addresses alone. The first instruction of a function means a call
    or tail call of it; another place in a function that is on the stack means the return to it.
    """
    stacks: Counter[tuple[str, ...]] = Counter()
    calls: Counter[str] = Counter()
    stack: list[str] = []
    base = -1
    """Place of `entry` on the stack, once it was entered."""
    for at in executed:
        if not stack or at.function != stack[-1]:
            if at.offset and at.function in stack:
                while stack[-1] != at.function:
                    stack.pop()
                if len(stack) <= base:
                    return Folded(stacks, calls, complete=True)
            else:
                while stack and _THUNK.match(stack[-1]):
                    stack.pop()
                stack.append(at.function)
                if base >= 0:
                    calls[at.function] += 1
            if base < 0 and (at.function, at.offset) == (entry, 0):
                base = len(stack) - 1
        if base >= 0:
            stacks[tuple(stack[base:])] += 1
    return Folded(stacks, calls, complete=False)


def read_addresses(log: Path) -> array[int]:
    """Read the address of every instruction in QEMU's log, in order."""
    executed = array("Q")
    with log.open(errors="replace") as file:
        while lines := file.readlines(1 << 24):
            executed.extend(int(a, 16) for a in _EXECUTED.findall("".join(lines)))
    return executed


def log_instructions(
    host: Host,
    device: BoundDevice,
    spec: Map,
    costs: dict[str, float],
    *,
    trial: TrialWriter,
    progress: Progress,
) -> None:
    """Log the instructions of a map and an unmap. `costs`: approximate number of instructions of a
    warm "map" and a warm "unmap" of the whole BAR. The evidence goes into host/profile.json and
    host/profile-*.folded."""
    operations = choose_logs(device.bar_bytes, costs)
    logs: list[array[int]] = []
    for log in _logs(host, device, spec, operations):
        logs.append(log)
        progress.detail(f"{len(logs)} of {len(operations)} instruction logs")
    names = _name_functions(host, {address for log in logs for address in log})
    entry = ENTRY_FUNCTIONS[spec.backend]
    entries = []
    for item, log in zip(operations, logs, strict=True):
        result = fold((names[address] for address in log), entry)
        if not result.stacks or not (result.complete or item.window):
            raise BenchError(
                f"{entry} was not entered and left in QEMU's log of {len(log)} instructions",
                reason=Reason.PROFILE,
            )
        file = f"profile-{item.operation}-{item.bytes}-{item.state}"
        file += "-window.folded" if item.window else ".folded"
        lines = (f"{';'.join(stack)} {n}\n" for stack, n in sorted(result.stacks.items()))
        (trial.host / file).write_text("".join(lines))
        calls = dict(sorted(result.calls.items()))
        entries.append({**asdict(item), "file": file, "calls": calls,
                      "instructions": sum(result.stacks.values())})  # fmt: skip
    write_json(trial.host / "profile.json", {"bar": device.bar_bytes, "logged": entries})


def choose_logs(bar: int, costs: dict[str, float]) -> list[LoggedOperation]:
    """Choose the operations to log: those of the whole BAR. An operation that is too long is
    replaced by two smaller ones, of which the larger has about as many instructions as can be
    logged. To such an unmap, a window is added: the beginning of the unmap of one largest leaf."""
    operations = []
    for operation, cost in costs.items():
        if cost <= MOST_INSTRUCTIONS:
            # only a map can be cold
            states = ("cold", "warm") if operation == "map" else ("warm",)
            operations += [LoggedOperation(operation, bar, state) for state in states]
            continue
        pages = int(MOST_INSTRUCTIONS / (cost / (bar // PAGE)))
        # 2 MiB at least: below that the IOMMU's leaves would be 4 KiB, at a cost unlike the BAR's
        large = max(1 << (pages.bit_length() - 1), 2 * LEAVES["2MiB"] // PAGE)
        large = min(large, bar // PAGE)
        operations += [LoggedOperation(operation, n * PAGE, "warm") for n in (large // 2, large)]
        if operation == "unmap":
            operations.append(LoggedOperation(operation, min(bar, GIB), "warm", window=True))
    return operations


def _logs(
    host: Host, device: BoundDevice, spec: Map, operations: Sequence[LoggedOperation]
) -> Iterator[array[int]]:
    """Yield the addresses of the instructions of each wanted operation, in order."""
    points = [
        {"name": str(i), "size": w.bytes, "alignment": GIB, "states": [w.state]}
        for i, w in enumerate(operations)
    ]
    request = build_request(spec, points, 1, exact=host.accel == "exact", within=True, step=True)
    log = host.scratch / INSTRUCTIONS
    item: LoggedOperation | None = None
    states: Iterator[str] = iter(())
    state = ""
    with host.staying_agent("map", device.address) as staying:
        agent = staying.dialogue(300)
        agent.say(json.dumps(request))
        while True:
            kind, value = _read_answer(agent)
            if kind == "point":
                item = operations[int(value["name"])] if value["name"].isdecimal() else None
                states = iter([*value["order"]])
            elif kind == "next":
                state = next(states) if value == "map" else state
                if item is not None and (item.operation, item.state) == (value, state):
                    with _logging(host, log):
                        agent.say("")
                        if item.window:
                            _wait_for_window(log)
                        else:
                            _read_answer(agent)  # the agent's next question: the ioctl is done
                    if item.window:
                        _read_answer(agent)
                    yield read_addresses(log)
                    log.unlink()
                agent.say("")
            elif kind == "end":
                return


def _read_answer(agent: Dialogue) -> tuple[str, Any]:
    """Read the agent's next line. Raises EvidenceError if the kernel refused the operation, and
    ConnectionLostError if no line comes: the requested operation may have crashed the host."""
    try:
        line = next(agent, None)
    except (OSError, EOFError) as exc:
        raise ConnectionLostError(
            f"the map agent was lost while its instructions were logged: {exc!r}",
            reason=Reason.HOST_SSH_LOST,
        ) from exc
    if line is None:
        raise ConnectionLostError("the map agent ended before its time", reason=Reason.MAP_SILENT)
    return parse_answer(line)


def _wait_for_window(log: Path) -> None:
    def filled() -> bool | None:
        return True if log.exists() and log.stat().st_size > _WINDOW_BYTES else None

    until(filled, within=_WINDOW_SECONDS, waiting_for="QEMU's log of instructions")


@contextmanager
def _logging(host: Host, log: Path) -> Iterator[None]:
    """Have QEMU log every instruction to `log` while the block runs."""
    for command in (f"logfile {log}", "one-insn-per-tb on", "log exec,nochain"):
        answer = host.monitor(command)
        if answer.strip():
            raise BenchError(
                f"QEMU does not take {command!r}", evidence=answer, reason=Reason.PROFILE
            )
    try:
        yield
    finally:
        host.monitor("log none")
        host.monitor("one-insn-per-tb off")


def _name_functions(host: Host, addresses: set[int]) -> dict[int, Instruction]:
    request = "".join(f"{address:x}\n" for address in sorted(addresses))
    answer = host.run_agent("symbols", request=request.encode(), doing="naming kernel functions")
    names: dict[int, Instruction] = {}
    with parsing("the list of kernel functions", answer.stdout):
        for line in answer.stdout.splitlines():
            address, function, offset = line.split()
            names[int(address, 16)] = Instruction(function, int(offset, 16))
    return names
