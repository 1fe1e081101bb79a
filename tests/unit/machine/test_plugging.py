"""A host's state through QEMU's monitor, on a QEMU that answers as it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.machine.vm import plugging
from orchestrator.machine.vm.hypervisor import Domain


class FakeQemu:
    """A domain whose QEMU reports these states of a migration, one after the other."""

    name = "barometer-1"

    def __init__(self, *states: dict[str, Any], refuses: str = "") -> None:
        self.states, self.refuses = [*states], refuses
        self.executed: list[tuple[str, dict[str, Any]]] = []

    def monitor(self, request: str, *, qmp: bool = False) -> str:
        assert qmp
        command = json.loads(request)
        name = command["execute"]
        self.executed.append((name, command["arguments"]))
        if name == self.refuses:
            return json.dumps({"error": {"class": "GenericError", "desc": "no such file"}})
        return json.dumps({"return": self.states.pop(0) if name == "query-migrate" else {}})


def domain(qemu: FakeQemu) -> Domain:
    return cast(Domain, qemu)


PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40)


@given(PATHS.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200))
def test_state_is_written_to_a_file_of_any_name_that_only_its_owner_reads(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    path = tmp_path_factory.mktemp("state") / name
    qemu = FakeQemu({"status": "active"}, {"status": "completed"})
    plugging.write_state(domain(qemu), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ("migrate", {"uri": f"file:{path}"}) in qemu.executed
    assert qemu.states == []


def test_state_is_read_until_all_of_it_is_there() -> None:
    # QEMU reports nothing before the first byte
    qemu = FakeQemu({}, {"status": "setup"}, {"status": "active"}, {"status": "completed"})
    plugging.read_state(domain(qemu), Path("/cache/state"))
    assert qemu.executed[0] == ("migrate-incoming", {"uri": "file:/cache/state"})
    assert qemu.states == []


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_failure_of_a_migration_is_named_in_qemus_words(status: str, tmp_path: Path) -> None:
    states = {"status": "active"}, {"status": status, "error-desc": "No space left on device"}
    for act in (plugging.read_state, plugging.write_state):
        with pytest.raises(BenchError) as caught:
            act(domain(FakeQemu(*states)), tmp_path / "state")
        assert "No space left on device" in caught.value.evidence


@pytest.mark.parametrize("command", ["migrate-set-parameters", "migrate"])
def test_refusal_of_a_command_names_it_and_its_reason(command: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"{command}.*no such file"):
        plugging.write_state(domain(FakeQemu(refuses=command)), tmp_path / "state")
