"""night.json: what became of a night and of its machine, also if there was no run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.evidence.manifest import Time
from orchestrator.evidence.model import Evidence, Seconds

NIGHT = "night.json"


class NightRecord(Evidence):
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    machine: str
    scenario: str
    started: Time
    exit_code: int
    reason: str
    """Reason of the run's end, if the run says one; empty if the run was made."""
    message: str
    put_back: bool | None
    """Whether the machine is as it was; null if nothing was to be put back."""
    seconds: Seconds
