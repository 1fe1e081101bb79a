from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, EvidenceError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.surveys.checkup_facts import CheckupFacts
from orchestrator.machine.host.machine import ThisMachine
from orchestrator.machine.transport import remote
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.run import doctor
from orchestrator.run.doctor import diagnose, preflight
from orchestrator.scenario.machines import HostDevice
from tests.unit.checkups import recorded, server, value
from tests.unit.scenarios import scenario

METAL = (
    "host.kind=metal", "host.address=gpu1.lab", "device.kind=hostdev", "device.pick=largest-bar",
    "device.bar=128GiB",
)  # fmt: skip


class Examine:
    """A stand-in for `examine` that returns `facts` and records the requests."""

    def __init__(self, facts: CheckupFacts) -> None:
        self.facts = facts
        self.arguments: tuple[Any, ...] = ()
        self.how: dict[str, bool] = {}

    def __call__(self, *arguments: Any, **how: bool) -> CheckupFacts:
        self.arguments, self.how = arguments, how
        return self.facts


def asking(monkeypatch: pytest.MonkeyPatch, facts: CheckupFacts) -> Examine:
    asked = Examine(facts)
    monkeypatch.setattr(doctor, "examine", asked)
    return asked


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(said: io.StringIO) -> Progress:
    return Progress(Console(file=said, width=200))


def test_this_machine_is_asked_for_both_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = asking(monkeypatch, recorded("emulated-runner"))
    found = diagnose(None, None, None, Cache(tmp_path))
    machine, programs, versions, folders, device = asked.arguments
    assert isinstance(machine, ThisMachine)
    assert isinstance(machine.shell, LocalMachine)
    assert {"mmdebstrap", "newuidmap"} <= {*programs}
    assert "qemu-system-x86_64" in versions
    assert folders == {"nested": [str(tmp_path)], "metal": ["/var/lib/barometer"]}
    assert device is None
    assert asked.how == {"metal": True, "probe": False}
    assert (found.machine, found.system) == ("this machine", "Linux 6.18.44, x86_64")
    assert found.exit_code == 0


def test_machine_that_is_not_reached_is_a_finding(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host gpu1.lab\n HostName 127.0.0.1\n Port 1\n User root\n")
    found = diagnose(scenario(*METAL), "gpu1.lab", config, Cache(tmp_path))
    [finding] = found.findings
    assert (finding.name, finding.status) == ("ssh", "problem")
    assert "no SSH server answers at 127.0.0.1 port 1" in finding.what
    assert found.exit_code == 3


def test_machine_of_a_metal_scenario_is_the_one_that_is_asked(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host gpu1.lab\n HostName 127.0.0.1\n Port 1\n")
    asked = scenario(*METAL, f"host.ssh_config={config}")
    assert diagnose(asked, None, None, Cache(tmp_path)).machine == "gpu1.lab"


def test_address_that_ssh_does_not_take_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="does not take the address"):
        diagnose(None, "a b", None, Cache(tmp_path))


def test_machine_whose_answer_has_a_flaw_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextlib.contextmanager
    def logged_in(_endpoint: object) -> Iterator[LocalMachine]:
        yield LocalMachine()

    def refuse(*_: object, **_how: bool) -> CheckupFacts:
        raise EvidenceError("the checkup: uid: no number", reason=Reason.BAD_EVIDENCE)

    monkeypatch.setattr(remote, "logged_in", logged_in)
    monkeypatch.setattr(doctor, "examine", refuse)
    found = diagnose(None, "gpu1.lab", None, Cache(tmp_path))
    assert [(f.name, f.status) for f in found.findings] == [("checkup", "problem")]
    assert found.exit_code == 3


def test_preflight_lets_a_run_begin_and_says_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, progress: Progress, said: io.StringIO
) -> None:
    warned = value("programs", "qemu-system-x86_64", "version", to="QEMU emulator version 8.2.2")
    asked = asking(monkeypatch, server(warned))
    preflight(scenario(*METAL), Cache(tmp_path), progress, ThisMachine(LocalMachine()))
    assert asked.how == {"metal": True, "guests": False}
    assert isinstance(asked.arguments[4], HostDevice)
    assert "qemu-alignment: QEMU 8.2.2 does not align" in said.getvalue()


def test_preflight_names_all_that_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, progress: Progress
) -> None:
    asking(monkeypatch, recorded("emulated-runner"))
    with pytest.raises(BenchError) as caught:
        preflight(scenario(*METAL), Cache(tmp_path), progress, ThisMachine(LocalMachine()))
    text = str(caught.value)
    for part in ("no IOMMU is on", "/sys/class/iommu: empty", "kexec-tools", "small"):
        assert part in text
    asked = asking(monkeypatch, recorded("emulated-runner"))
    preflight(scenario(), Cache(tmp_path), progress)
    assert asked.how == {"metal": False, "guests": False}
