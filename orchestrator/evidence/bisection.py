"""bisect.json: the steps of a bisection so far. It is resumed from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, model_validator

from orchestrator.evidence.model import Evidence, Seconds


class CommitRecord(Evidence):
    """A commit of the kernel's repository."""

    sha: str
    author: str
    """NAME <MAIL>"""
    date: str
    """Author's date, as ISO 8601."""
    subject: str


class MeasuredRecord(Evidence):
    """Values that were measured with a commit's kernel."""

    unit: str
    values: tuple[float, ...] = Field(min_length=1)
    """One for each trial."""
    release: str
    digest: str
    """Digest of the kernel."""


class SkippedRecord(Evidence):
    """Why a commit has no number."""

    reason: str
    message: str
    by_bench: bool
    """True if the bench failed, not the commit."""


class StepRecord(Evidence):
    """One step."""

    commit: CommitRecord
    role: Literal["good", "bad", "step"]
    """good, bad: the ends, as the user names them."""
    outcome: Literal["good", "bad", "skip"]
    measured: MeasuredRecord | None
    skipped: SkippedRecord | None
    seconds: Seconds
    """Seconds on the runner's clock."""
    folder: str
    """Folder of the step's run, relative to the bisection's folder."""

    @model_validator(mode="after")
    def _one_result(self) -> StepRecord:
        if (self.measured is None) == (self.skipped is None):
            raise ValueError("either measured or skipped has to be null")
        return self


class BisectRecord(Evidence):
    """bisect.json."""

    schema_: Literal[1, 2] = Field(alias="schema")
    asked: dict[str, JsonValue]
    """What must be the same if the bisection is resumed."""
    steps: tuple[StepRecord, ...]
    """Steps in the order of their measurement, the ends first."""
