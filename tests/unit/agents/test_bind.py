"""Devices that are bound on a host without a journal, by the binder of the keeper."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.machine.host.changes import RememberedChanges
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Completed, Shell
from tests.unit.agents.keeper.machines import GPU, NIC, Machine, made_up
from tests.unit.agents.loading import AGENTS, agent

binder, sharing = agent("bind"), agent("sharing")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with the driver loaded."""
    with made_up() as made:
        (made.root / "sys/bus/pci/drivers/vfio-pci").mkdir()
        made.file("/sys/kernel/tracing/kprobe_events", "")
        yield made


class HostShell(LocalMachine):
    """Runs the agents of this repository."""

    name = "host"

    def run(self, argv: Sequence[str] | str, **how: Any) -> Completed:
        words = [word.replace("/payload/agents", str(AGENTS)) for word in argv]
        assert words[0] == "python3"  # the made-up machine has none
        return super().run([sys.executable, *words[1:]], **how)


def remembered() -> RememberedChanges:
    return RememberedChanges(cast(Shell, HostShell()), "/payload")


def test_what_was_bound_is_put_back_from_the_answer_alone(machine: Machine) -> None:
    before, change = sharing.state(), remembered()
    files = machine.all()
    change.bind([GPU, NIC])
    assert (machine.driver(GPU), machine.driver(NIC)) == ("vfio-pci", "vfio-pci")
    assert [(kind, facts["address"]) for kind, facts in change.made] == [
        ("bind", GPU), ("bind", NIC),
    ]  # fmt: skip
    assert sharing.put_back(json.loads(json.dumps(change.made))) == []
    assert (machine.driver(GPU), machine.driver(NIC)) == (None, "igb")
    after = sharing.state()
    names = {name for name in before if before[name] != after.get(name)}
    assert names <= {f"/sys/bus/pci/devices/{address}/driver_override" for address in (GPU, NIC)}
    config = f"sys/bus/pci/devices/{GPU}/config"
    assert machine.all()[config] == files[config]  # it was written to, to try its decoding


def test_facts_are_those_of_the_keepers_journal(machine: Machine) -> None:
    (facts,) = binder.bind("vfio-pci", [GPU])["bound"]
    machine.acquire()
    assert sharing.put_back([["bind", facts]]) == []
    assert machine.done("bind", address=GPU, driver="vfio-pci") == facts


@pytest.mark.parametrize(
    ("breaks", "reason", "words"),
    [
        ("shy", "bind", "vfio-pci did not take the device, no driver has it"),
        ("unloaded", "bind", "the driver is not loaded"),
        ("gone", "bind", "the machine has no such device"),
    ],
)
def test_refusal_is_an_error_with_the_keepers_reason(
    machine: Machine, breaks: str, reason: str, words: str
) -> None:
    if breaks == "shy":
        machine.file("/shy", "")
    if breaks == "unloaded":
        (machine.root / "sys/bus/pci/drivers/vfio-pci").rmdir()
    change = remembered()
    with pytest.raises(BenchError) as caught:
        change.bind(["0000:ff:00.0" if breaks == "gone" else GPU])
    assert caught.value.reason == reason
    assert words in caught.value.message


class Answering:
    name = "host"

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def run(self, argv: object, **_: object) -> Completed:
        return Completed(self.answer, "", 0)


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)
       | st.dictionaries(st.sampled_from(["bound", "refused", "message"]), st.none() | st.text())
       .filter(lambda answer: not answer.get("message")).map(json.dumps))  # fmt: skip
def test_any_other_answer_is_an_error_and_never_a_bound_device(answer: str) -> None:
    with pytest.raises(BenchError):
        RememberedChanges(cast(Shell, Answering(answer)), "/payload").bind([GPU])


def test_it_runs_with_nothing_but_the_folder_of_agents(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", AGENTS / "bind.py", "vfio-pci", GPU], text=True, check=True,
        capture_output=True, env={"BAROMETER_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert json.loads(done.stdout)["refused"] == "bind"
