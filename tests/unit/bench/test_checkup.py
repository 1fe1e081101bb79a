from __future__ import annotations

import json

import pytest

from orchestrator.abi import OVMF_CODE, OVMF_VARIABLES
from orchestrator.bench import checkup
from orchestrator.bench.checkup import evidence, traced_functions
from orchestrator.bench.local import LocalMachine
from orchestrator.bench.shell import Completed
from orchestrator.bench.staging import STATE
from orchestrator.errors import BenchError
from orchestrator.scenario import HostDevice


class Lacking(LocalMachine):
    """A machine whose python3 gives this answer."""

    def __init__(self, answer: Completed) -> None:
        self.answer = answer

    def run(self, argv, **how):  # type: ignore[no-untyped-def]
        return self.answer


@pytest.fixture
def no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "kvm_problem", lambda _machine, _within: "no KVM in a test")


@pytest.mark.usefixtures("no_kvm")
def test_this_machine_is_asked_everything() -> None:
    said = evidence(LocalMachine(), ["sh", "no-such-program"], ["sh"], {"nested": ["/tmp/x/y"]})
    json.dumps(said)
    assert said["kvm"] == "no KVM in a test"
    assert said["libvirt"].count(".") == 2
    assert said["programs"]["sh"]["path"].endswith("/sh")
    assert said["programs"]["no-such-program"] is None
    assert {*said["symbols"]} == {*traced_functions()}
    assert said["folder_uses"] == {"nested": ["/tmp/x/y"]}
    assert said["folders"]["/tmp/x/y"]["free"] >= 0
    assert said["files"]["/proc/cpuinfo"].startswith("processor")
    assert {OVMF_CODE, OVMF_VARIABLES, STATE} <= {*said["present"]}
    for bar in said["bars"]:
        assert {*bar} == {"address", "index", "size", "placed", "driver", "growable", "refused"}


def test_without_guests_kvm_is_not_tried() -> None:
    assert "kvm" not in evidence(LocalMachine(), [], [], {}, guests=False)


def test_a_guest_that_does_not_answer_is_no_word_of_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(machine: LocalMachine, within: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(checkup, "kvm_problem", silent)
    said = evidence(LocalMachine(), [], [], {}, metal=False)
    assert (said["kvm_silent"], "kvm" in said) == (checkup._GUEST_SECONDS, False)


def test_a_device_that_cannot_be_had_is_evidence() -> None:
    asked = {"kind": "hostdev", "address": "ffff:ff:1f.7", "bar": "1GiB"}
    device = HostDevice.model_validate(asked)
    said = evidence(LocalMachine(), [], [], {}, device, guests=False)
    assert said["device"]["why"] == "the machine has no device ffff:ff:1f.7"


def test_traced_functions_are_those_of_the_tracer() -> None:
    found = traced_functions()
    assert found["vaddr_get_pfns"] == "vfio_iommu_type1"
    assert found["vfio_pci_mmap_huge_fault"] == "vfio_pci_core"
    assert found["iommu_map"] == found["fixup_user_fault"] == found["iommu_iova_to_phys"] == ""


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
        checkup._checkup(Lacking(answer), {})
    assert caught.value.reason == reason
    assert caught.value.evidence == answer.stderr
    with pytest.raises(BenchError):
        evidence(Lacking(answer), [], [], {}, guests=False)
