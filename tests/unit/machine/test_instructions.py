from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError, EvidenceError
from orchestrator.base.progress import Progress
from orchestrator.evidence.layout import TrialWriter
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing import instructions
from orchestrator.machine.tracing.instructions import (
    MOST_INSTRUCTIONS,
    Instruction,
    LoggedOperation,
    choose_logs,
    fold,
    log_instructions,
    read_addresses,
)
from orchestrator.machine.transport.shell import ConnectionLostError
from tests.unit.hosts import AgentHost
from tests.unit.manifests import facts_of
from tests.unit.scenarios import map_scenario

IOCTL = "vfio_iommu_type1_ioctl"
LINE = "Trace 0: 0x7f5b2c0001c0 [0000000000000000/ffffffff81a3b2c4/00c0f3b5/ff200201] \n"
Stack = tuple[str, ...]


def executed(*words: str) -> list[Instruction]:
    """Make instructions: `name` is the first of a function, `name+4` another."""
    parts = (word.partition("+") for word in words)
    return [Instruction(name, int(offset or 0)) for name, _, offset in parts]


def stacks(*words: str, entry: str = "f") -> dict[str, int]:
    return {";".join(s): n for s, n in fold(executed(*words), entry).stacks.items()}


def test_calls_and_returns_make_the_stack() -> None:
    found = fold(
        executed("sys", "f", "f+1", "g", "g+1", "h", "g+2", "f+2", "g", "f+3", "sys+1", "sys+2"),
        "f",
    )
    assert found.stacks == {("f",): 4, ("f", "g"): 4, ("f", "g", "h"): 1}
    assert found.calls == {"g": 2, "h": 1}
    assert found.complete


def test_what_is_before_and_behind_the_entry_is_not_counted() -> None:
    assert stacks("?", "sys", "g", "sys+1", "f", "f+1", "sys+2", "g", "sys+3") == {"f": 2}


def test_function_that_is_jumped_to_at_its_end_returns_to_the_caller() -> None:
    # f calls g, which ends with a jump to h
    found = stacks("sys", "f", "g", "h", "h+1", "f+1", "sys+1")
    assert found == {"f": 2, "f;g": 1, "f;g;h": 2}


def test_entry_that_ends_in_a_jump_is_complete_when_its_caller_goes_on() -> None:
    found = fold(executed("sys", "f", "h", "h+1", "sys+1"), "f")
    assert found.complete
    assert found.stacks == {("f",): 1, ("f", "h"): 2}


@pytest.mark.parametrize(
    "thunk", ["__x86_indirect_thunk_rax", "srso_alias_safe_ret", "retbleed_untrain_ret"]
)
def test_what_a_thunk_calls_belongs_to_its_caller(thunk: str) -> None:
    assert stacks("sys", "f", thunk, f"{thunk}+4", "g", "g+1", "f+1", "sys+1") == {
        "f": 2, f"f;{thunk}": 2, "f;g": 2,
    }  # fmt: skip


def test_entry_may_be_called_and_left_through_thunks() -> None:
    words = ["sys", "__x86_indirect_thunk_rax", "f", "g", "__x86_return_thunk", "f+1",
             "__x86_return_thunk", "sys+1"]  # fmt: skip
    found = fold(executed(*words), "f")
    assert found.complete
    assert found.stacks == {
        ("f",): 2, ("f", "g"): 1, ("f", "g", "__x86_return_thunk"): 1,
        ("f", "__x86_return_thunk"): 1,
    }  # fmt: skip


def test_interrupt_is_below_what_it_interrupts() -> None:
    irq = "asm_sysvec_apic_timer_interrupt"
    found = stacks("sys", "f", "g", irq, "tick", f"{irq}+4", "g+1", "f+1", "sys+1")
    assert found == {"f": 2, "f;g": 2, f"f;g;{irq}": 2, f"f;g;{irq};tick": 1}


def test_recursion_through_another_function_has_two_places() -> None:
    assert stacks("sys", "f", "g", "f", "g+1", "f+1", "sys+1") == {"f": 2, "f;g": 2, "f;g;f": 1}


def test_entry_that_was_not_reached_has_no_instructions() -> None:
    for words in ([], ["sys", "g", "sys+1"], ["f+4", "f+8"]):
        found = fold(executed(*words), "f")
        assert not found.stacks
        assert not found.complete


def test_entry_that_was_not_left_is_not_complete() -> None:
    found = fold(executed("sys", "f", "g", "g+1"), "f")
    assert found.stacks == {("f",): 1, ("f", "g"): 2}
    assert not found.complete


Tree = tuple[str, list[Any], bool]


@st.composite
def trees(draw: st.DrawFn, depth: int = 0) -> Tree:
    """Generate a function, its callees, and whether it ends with a jump to the last of them."""
    name = f"{draw(st.sampled_from('abc'))}{depth}"
    children = draw(st.lists(trees(depth + 1), max_size=3)) if depth < 3 else []
    return name, children, bool(children) and draw(st.booleans())


def run(tree: Tree, above: Stack, expected: Counter[Stack]) -> Iterator[Instruction]:
    name, children, jumps = tree
    stack = (*above, name)
    for offset in range(len(children) + 1):
        if offset < len(children) or not jumps:
            expected[stack] += 1
            yield Instruction(name, offset)
        if offset < len(children):
            yield from run(children[offset], stack, expected)


@given(trees())
def test_stacks_of_any_calls_are_rebuilt(tree: Tree) -> None:
    expected: Counter[Stack] = Counter()
    words = list(run(tree, (), expected))
    found = fold([*executed("sys"), *words, *executed("sys+1")], tree[0])
    assert found.complete
    assert found.stacks == expected


def test_log_is_read_line_by_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        LINE + "Linking TBs 0x7f5b2c0001c0 index 0\n"
        + LINE.replace("ffffffff81a3b2c4", "00007f0000001234") + "Stopped execution of TB chain\n"
        + LINE.rstrip() + "vfio_iommu_type1_ioctl\n"
        + LINE.replace("Trace 0", "Trace 12") + LINE[:50]
    )  # fmt: skip
    assert list(read_addresses(log)) == [
        0xFFFFFFFF81A3B2C4,
        0x7F0000001234,
        *[0xFFFFFFFF81A3B2C4] * 2,
    ]


def test_empty_log_has_no_addresses(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    assert list(read_addresses(tmp_path / "log")) == []


def test_what_can_be_logged_whole_is() -> None:
    assert choose_logs(32 * GIB, {"map": 120_000.0, "unmap": float(MOST_INSTRUCTIONS)}) == [
        LoggedOperation("map", 32 * GIB, "cold"), LoggedOperation("map", 32 * GIB, "warm"),
        LoggedOperation("unmap", 32 * GIB, "warm"),
    ]  # fmt: skip


def test_what_is_too_much_is_logged_at_two_sizes() -> None:
    # 1197 instructions for each page: 1002 pages could be logged; with 166: 7229
    assert choose_logs(32 * GIB, {"map": 10.04e9, "unmap": 1.394e9}) == [
        LoggedOperation("map", 2 * MIB, "warm"), LoggedOperation("map", 4 * MIB, "warm"),
        LoggedOperation("unmap", 8 * MIB, "warm"), LoggedOperation("unmap", 16 * MIB, "warm"),
        LoggedOperation("unmap", GIB, "warm", window=True),
    ]  # fmt: skip


@given(st.integers(22, 40), st.floats(50, 4000), st.floats(50, 4000))
def test_logs_are_of_parts_of_the_bar_and_not_too_large(
    power: int, each_map: float, each_unmap: float
) -> None:
    bar = 1 << power
    costs = {"map": each_map * bar / 4096, "unmap": each_unmap * bar / 4096}
    for item in choose_logs(bar, costs):
        assert item.bytes <= bar
        assert item.bytes % (2 * MIB) == 0
        if not item.window:
            cost = costs[item.operation] * item.bytes / bar
            assert cost <= max(MOST_INSTRUCTIONS, 4000 * 1024)
            assert item.bytes == bar or item.state == "warm"
    sizes = [w.bytes for w in choose_logs(bar, costs) if w.operation == "map"]
    assert len(sizes) == 2
    assert sizes[1] in (sizes[0], 2 * sizes[0])


class FakeAgent:
    """map.py, which stops before each ioctl, on a machine whose QEMU logs what it executes."""

    NAMES = ("sys", IOCTL, "pin", "once", "?")

    def __init__(self, scratch: Path) -> None:
        self.log = scratch / "instructions.log"
        self.commands: list[str] = []
        self.refusal = ""
        self.logging = False
        self.left = True
        self.primed = False
        self._lines: Iterator[str] = iter(())
        self._said: list[str] = []
        self.asked: list[tuple[str, str, str]] = []

    def monitor(self, command: str) -> str:
        self.commands.append(command)
        self.logging = command.startswith("log exec") or (self.logging and command != "log none")
        return self.refusal

    @contextlib.contextmanager
    def stream(self, argv: list[str], timeout: float) -> Iterator[FakeAgent]:
        assert argv == ["map", "0000:01:00.0"]
        yield self

    def say(self, line: str) -> None:
        if line:
            self._lines = self._answers(json.loads(line))
        else:  # it continues at once, whether or not anybody reads
            self._said.append(next(self._lines))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return self._said.pop(0) if self._said else next(self._lines)

    def _answers(self, request: dict[str, Any]) -> Iterator[str]:
        assert request["step"]
        assert request["within"]
        yield json.dumps({"agent": {}})
        once = {"name": "warm-up", "states": ["cold"]}
        for point in [once, *request["points"]]:
            states = sorted(point["states"])
            order = ["prime", *states] if self.primed or "cold" not in states else states
            yield json.dumps({"point": {**point, "order": order}})
            for state in order:
                for operation in ("map", "unmap"):
                    yield json.dumps({"next": operation})
                    self._ioctl(point, state, operation)
                yield json.dumps({"next": ""})
                yield json.dumps({"sample": {}})
        yield json.dumps({"end": True})

    def _ioctl(self, point: dict[str, Any], state: str, operation: str) -> None:
        if not self.logging:
            return
        self.asked.append((point["name"], state, operation))
        pages = 1 + len(self.asked)
        words = [
            "sys",
            IOCTL,
            "once",
            f"{IOCTL}+1",
            *["pin", f"{IOCTL}+1"] * pages,
            *["sys+1"] * self.left,
        ]
        numbers = [
            (0xFFFF << 48) + 256 * self.NAMES.index(at.function) + at.offset
            for at in executed(*words)
        ]
        line = LINE.replace("ffffffff81a3b2c4", "{:016x}")
        self.log.write_text("".join(line.format(number) for number in numbers))

    def run(self, argv: list[str], *, stdin: bytes, doing: str) -> Any:
        assert argv == ["symbols"]
        lines = []
        for word in stdin.decode().split():
            at = int(word, 16) - (0xFFFF << 48)
            lines.append(f"{word} {self.NAMES[at // 256]} {at % 256:x}")
        return SimpleNamespace(stdout="\n".join(lines))


@pytest.fixture
def qemu(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path)


def profiled(qemu: FakeAgent, tmp_path: Path, **costs: float) -> TrialWriter:
    """Return the trial after a profile pass of a 1 GiB BAR."""
    trial = TrialWriter(tmp_path / "trials/0001-baseline", facts_of())
    host = AgentHost(shell=qemu, monitor=qemu.monitor, accel="exact", scratch=tmp_path)
    device = SimpleNamespace(address="0000:01:00.0", bar_bytes=GIB)
    log_instructions(
        cast(Host, host), cast(BoundDevice, device), map_scenario().map, costs,
        trial=trial, progress=Progress(),
    )  # fmt: skip
    return trial


def test_each_wanted_operation_is_logged_and_folded(qemu: FakeAgent, tmp_path: Path) -> None:
    trial = profiled(qemu, tmp_path, map=1000, unmap=2000)
    assert qemu.asked == [
        ("0", "cold", "map"), ("1", "warm", "map"), ("2", "warm", "unmap"),
    ]  # fmt: skip
    profile = json.loads((trial.host / "profile.json").read_text())
    assert profile["bar"] == GIB
    assert [(e["operation"], e["state"], e["window"]) for e in profile["logged"]] == [
        ("map", "cold", False), ("map", "warm", False), ("unmap", "warm", False),
    ]  # fmt: skip
    first = profile["logged"][0]
    assert first["file"] == f"profile-map-{GIB}-cold.folded"
    assert {name: n for name, n in first["calls"].items() if n} == {"once": 1, "pin": 2}
    assert first["instructions"] == 7
    folds = f"{IOCTL} 4\n{IOCTL};once 1\n{IOCTL};pin 2\n"
    assert (trial.host / first["file"]).read_text() == folds
    assert len({e["file"] for e in profile["logged"]}) == 3
    assert not qemu.log.exists()


def test_cold_map_behind_a_prime_is_the_one_that_is_logged(
    qemu: FakeAgent, tmp_path: Path
) -> None:
    qemu.primed = True
    profiled(qemu, tmp_path, map=1000)
    assert qemu.asked == [("0", "cold", "map"), ("1", "warm", "map")]


def test_nothing_is_logged_but_single_operations(qemu: FakeAgent, tmp_path: Path) -> None:
    profiled(qemu, tmp_path, map=1000)
    assert [re.sub(r"\S+/", "", command) for command in qemu.commands] == 2 * [
        "logfile instructions.log", "one-insn-per-tb on", "log exec,nochain", "log none",
        "one-insn-per-tb off",
    ]  # fmt: skip


def test_beginning_of_a_large_unmap_is_logged_as_a_window(
    qemu: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(log: Path) -> None:
        """Keep only what was executed until then: the unmap has not returned."""
        log.write_text(log.read_text().rpartition("Trace")[0])

    monkeypatch.setattr(instructions, "_wait_for_window", wait)
    trial = profiled(qemu, tmp_path, unmap=1e9)
    entries = json.loads((trial.host / "profile.json").read_text())["logged"]
    assert [(e["bytes"], e["window"]) for e in entries] == [
        (2 * MIB, False), (4 * MIB, False), (GIB, True),
    ]  # fmt: skip
    assert entries[2]["file"] == f"profile-unmap-{GIB}-warm-window.folded"


def test_operation_that_was_not_left_is_the_benchs_failure(
    qemu: FakeAgent, tmp_path: Path
) -> None:
    qemu.left = False
    with pytest.raises(BenchError, match="was not entered and left") as caught:
        profiled(qemu, tmp_path, map=1000)
    assert caught.value.reason == "profile"


def test_command_that_qemu_refuses_is_the_benchs_failure(qemu: FakeAgent, tmp_path: Path) -> None:
    qemu.refusal = "unknown command: 'logfile'\r\n"
    with pytest.raises(BenchError, match="QEMU does not take 'logfile") as caught:
        profiled(qemu, tmp_path, map=1000)
    assert "unknown command" in caught.value.evidence


def test_agent_that_ends_early_is_the_benchs_failure(
    qemu: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_answers", lambda request: iter([json.dumps({"agent": {}})]))
    with pytest.raises(ConnectionLostError) as caught:
        profiled(qemu, tmp_path, map=1000)
    assert caught.value.reason == "map-silent"


@pytest.mark.parametrize("at", [0, 2, 12])
@pytest.mark.parametrize("error", [OSError("broken pipe"), EOFError()])
def test_host_that_is_lost_while_it_is_logged_is_said_to_be(
    qemu: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: Exception
) -> None:
    whole = qemu._answers

    def lost(request: dict[str, Any]) -> Iterator[str]:
        yield from islice(whole(request), at)
        raise error

    monkeypatch.setattr(qemu, "_answers", lost)
    with pytest.raises(ConnectionLostError, match="instructions were logged") as caught:
        profiled(qemu, tmp_path, map=1000)
    assert caught.value.reason == "host-ssh-lost"
    assert not qemu.logging


@pytest.mark.parametrize("at", [0, 1, 8])
def test_map_that_the_kernel_refuses_is_a_finding(
    qemu: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = qemu._answers

    def refused(request: dict[str, Any]) -> Iterator[str]:
        yield from islice(whole(request), at)
        yield json.dumps({"refused": "Bad address"})

    monkeypatch.setattr(qemu, "_answers", refused)
    with pytest.raises(EvidenceError, match="Bad address") as caught:
        profiled(qemu, tmp_path, map=1000)
    assert caught.value.reason == "map-refused"
