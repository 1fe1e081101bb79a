"""Public names for tests that use the plugin `orchestrator.pytest_plugin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from orchestrator.harness.claims import JudgedMetric, JudgedPair
from orchestrator.harness.kernel_log import KernelLog
from orchestrator.scenario.vocabulary import ArmName

if TYPE_CHECKING:
    from orchestrator.harness.live import LiveBar, LiveGuest, LiveHost, MappedBar

__all__ = [
    "ArmName", "JudgedMetric", "JudgedPair", "KernelLog", "LiveBar", "LiveGuest", "LiveHost",
    "MappedBar", "arms", "needs",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Return a class of the live half. Only here: judging saved runs needs no bench."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator.harness import live  # noqa: PLC0415

    return getattr(live, name)


def arms(*names: ArmName) -> pytest.MarkDecorator:
    """Mark: run the test with the fixture `arm` on these arms only."""
    return pytest.mark.barometer_arms(*names)


def needs(*names: str, otherwise: Literal["fail", "skip"] = "fail") -> pytest.MarkDecorator:
    """Mark: a live test needs what `barometer doctor` has these names for. If something is
    missing the test fails with the doctor's advice, or is skipped if the mark asks for that."""
    return pytest.mark.barometer_needs(*names, otherwise=otherwise)
