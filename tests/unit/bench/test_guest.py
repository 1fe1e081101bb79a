"""Whose failure it is when an exact host's clock all but stands still."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.bench import guest
from orchestrator.bench.shell import Completed, ConnectionLostError
from orchestrator.errors import ArmFailedError, BarometerError, BenchError


@dataclass
class FakeHost:
    accel: str
    step: float
    """Seconds that its clock goes on in one of ours; below 0: it does not answer."""
    shell: Any = None
    told: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shell = self

    def run(self, argv: list[str], timeout: float) -> Completed:
        if self.step < 0:
            raise ConnectionLostError("gone", reason="host-ssh-lost")
        self.told.append(1000.0 + self.step * guest._SPEED_SECONDS * len(self.told))
        return Completed(f"{self.told[-1]:.2f} 0.00\n", "", 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_SPEED_SECONDS", 0.05)


def given_up(host: Any) -> BarometerError:
    with pytest.raises(BarometerError) as raised, guest._crawling_is_the_benchs(host):
        raise ArmFailedError("no SSH", evidence="console", reason="guest-no-ssh")
    return raised.value


@pytest.mark.parametrize("step", [0.0, 0.02, -1.0])
def test_guest_on_an_exact_host_that_crawls_is_the_benchs(step: float) -> None:
    failure = given_up(FakeHost("exact", step))
    assert isinstance(failure, BenchError)
    assert (failure.reason, failure.evidence) == ("exact-crawl", "console")
    assert "no SSH" in failure.message


@pytest.mark.parametrize(("accel", "step"), [("exact", 0.7), ("exact", 50.0), ("tcg", 0.0)])
def test_guest_on_a_host_that_goes_on_is_the_arms(accel: str, step: float) -> None:
    failure = given_up(FakeHost(accel, step))
    assert isinstance(failure, ArmFailedError)
    assert failure.reason == "guest-no-ssh"


def test_guest_that_boots_is_nobodys_failure() -> None:
    with guest._crawling_is_the_benchs(FakeHost("exact", 0.0)):  # type: ignore[arg-type]
        pass
