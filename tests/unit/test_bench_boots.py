"""ci/bench/boots.py: the row of a host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import Charge, Charged
from orchestrator.evidence.layout import TrialWriter
from tests.unit.manifests import facts_of

PATH = Path(__file__).parents[2] / "ci/bench/boots.py"


@pytest.fixture(scope="module")
def boots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("boots", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("error", [ArmFailedError, BenchError])
@pytest.mark.parametrize("charge", ["arm", "bench", "undecided"])
def test_row_has_whom_the_failure_was_charged_to(
    boots: ModuleType, tmp_path: Path, error: type[BenchError], charge: Charge
) -> None:
    trial = TrialWriter(tmp_path / "trial", facts_of(arm="candidate"))
    with trial.stage("host-boot"):
        pass
    trial.failed(error("x", reason=Reason.GUEST_HANG), "guest-0-plain", Charged(charge, "why"))
    row = boots.row_of(trial.complete())
    assert (row["arm"], row["reason"], row["charged"]) == ("candidate", "guest-hang", charge)
    assert row["host_seconds"] >= 0


def test_row_of_a_host_that_went_well_has_no_charge(boots: ModuleType, tmp_path: Path) -> None:
    row = boots.row_of(TrialWriter(tmp_path / "trial", facts_of()).complete())
    assert (row["reason"], row["charged"], row["host_seconds"]) == ("", "", None)
