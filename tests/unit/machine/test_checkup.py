from __future__ import annotations

import json

import pytest

from orchestrator.base.errors import BenchError, EvidenceError
from orchestrator.evidence.surveys.checkup_facts import NOT_EXAMINED, RefusedDevice
from orchestrator.formats.abi import OVMF_CODE, OVMF_VARIABLES
from orchestrator.machine.checkup import checkup
from orchestrator.machine.checkup.checkup import examine, list_traced_functions
from orchestrator.machine.host.machine import FoundMachine, ThisMachine
from orchestrator.machine.metal.staging import STATE
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Completed
from orchestrator.scenario.machines import HostDevice


class Lacking(LocalMachine):
    """A machine whose python3 gives this answer."""

    def __init__(self, answer: Completed) -> None:
        self.answer = answer

    def run(self, argv, **how):  # type: ignore[no-untyped-def]
        return self.answer


@pytest.fixture
def no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "find_kvm_problem", lambda _machine, _within: "no KVM in a test")


@pytest.mark.usefixtures("no_kvm")
def test_this_machine_is_asked_everything() -> None:
    machine = ThisMachine(LocalMachine())
    facts = examine(machine, ["sh", "no-such-program"], ["sh"], {"nested": ["/tmp/x/y"]})
    assert facts.kvm == "no KVM in a test"
    assert facts.libvirt is not NOT_EXAMINED
    assert facts.libvirt.count(".") == 2
    shell, folder = facts.programs["sh"], facts.folders["/tmp/x/y"]
    assert shell is not None
    assert shell.path.endswith("/sh")
    assert facts.programs["no-such-program"] is None
    assert {*facts.symbols} == {*list_traced_functions()}
    assert facts.folder_uses == {"nested": ("/tmp/x/y",)}
    assert folder is not None
    assert folder.free >= 0
    assert facts.files["/proc/cpuinfo"].startswith("processor")
    assert {OVMF_CODE, OVMF_VARIABLES, STATE} <= {*facts.present}
    assert facts.bars is not NOT_EXAMINED
    assert facts.means is not NOT_EXAMINED


def test_without_guests_kvm_is_not_tried() -> None:
    assert examine(ThisMachine(LocalMachine()), [], [], {}, guests=False).kvm is NOT_EXAMINED


def test_a_guest_that_does_not_answer_is_no_word_of_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(machine: LocalMachine, within: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(checkup, "find_kvm_problem", silent)
    facts = examine(ThisMachine(LocalMachine()), [], [], {}, metal=False)
    assert (facts.kvm_silent, facts.kvm) == (checkup._GUEST_SECONDS, NOT_EXAMINED)
    assert facts.bars is facts.means is facts.leases is NOT_EXAMINED


def test_a_device_that_cannot_be_had_is_evidence() -> None:
    asked = {"kind": "hostdev", "address": "ffff:ff:1f.7", "bar": "1GiB"}
    device = HostDevice.model_validate(asked)
    chosen = examine(ThisMachine(LocalMachine()), [], [], {}, device, guests=False).device
    assert isinstance(chosen, RefusedDevice)
    assert chosen.why == "the machine has no device ffff:ff:1f.7"


def test_traced_functions_are_those_of_the_tracer() -> None:
    found = list_traced_functions()
    assert found["vaddr_get_pfns"] == "vfio_iommu_type1"
    assert found["vfio_pci_mmap_huge_fault"] == "vfio_pci_core"
    assert found["iommu_map"] == found["fixup_user_fault"] == found["iommu_iova_to_phys"] == ""


def test_an_answer_with_a_flaw_names_its_key() -> None:
    lacking = Lacking(Completed(json.dumps({"schema": 1, "release": 7}), "", 0))
    with pytest.raises(EvidenceError, match="checkup of the machine: release: ") as caught:
        examine(FoundMachine(lacking), [], [], {}, metal=False, guests=False)
    assert caught.value.reason == "bad-evidence"


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        (Completed("", "sh: python3: not found", 127), "no-python", "there is no python3"),
        (Completed("", "MemoryError", 1), "checkup", "cannot be asked"),
    ],
)
def test_a_machine_that_cannot_answer_says_why(
    answer: Completed, reason: str, message: str
) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        checkup._checkup(FoundMachine(Lacking(answer)), {})
    assert caught.value.reason == reason
    assert caught.value.evidence == answer.stderr
    with pytest.raises(BenchError):
        examine(FoundMachine(Lacking(answer)), [], [], {}, guests=False)
