"""A bisection by a metric: its ends, its steps, and on which side of the threshold each step is.
Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.verdict.effect import FEW_FLOOR, Resolution
from orchestrator.evidence.bisection import StepRecord

StepOutcome = Literal["good", "bad", "skip"]
StepRole = Literal["good", "bad", "step"]
"""Purpose of a measurement. `good` and `bad` are the ends, as the user names them."""
CLEAR = 3
"""Good and bad must differ by at least this many times the resolution of instruction counts."""


@dataclass(frozen=True)
class BisectCommit:
    sha: str
    author: str = ""
    """NAME <MAIL>"""
    date: str = ""
    """Author's date, as ISO 8601."""
    subject: str = ""

    @property
    def short(self) -> str:
        return self.sha[:12]


@dataclass(frozen=True)
class Measured:
    """Values that were measured with a commit's kernel."""

    unit: str
    values: tuple[float, ...]
    """One for each trial, at least one."""
    release: str
    digest: str
    """Digest of the kernel."""

    @cached_property
    def value(self) -> float:
        return summarize(self.unit, self.values).middle


@dataclass(frozen=True)
class Skipped:
    """A commit that has no number."""

    reason: str
    """Short stable name."""
    message: str
    by_bench: bool = False
    """True if the bench failed, not the commit."""


@dataclass(frozen=True)
class BisectStep:
    commit: BisectCommit
    role: StepRole
    outcome: StepOutcome
    found: Measured | Skipped
    seconds: float
    """Seconds on the runner's clock."""
    folder: str
    """Folder of the step's run, relative to the bisection's folder."""

    @property
    def failed_by_bench(self) -> str:
        """Reason of the bench's failure if the step has no number because the bench failed, else
        empty."""
        result = self.found
        return result.reason if isinstance(result, Skipped) and result.by_bench else ""


@dataclass(frozen=True)
class Bisection:
    """A bisection as far as it has come."""

    metric: str
    steps: tuple[BisectStep, ...]
    """Steps in the order of their measurement, the ends first."""
    found: tuple[BisectCommit, ...] = ()
    """The first bad commit. Several commits: skips hide which of them it is. Empty: it is not
    known yet."""

    @property
    def ends(self) -> BisectEnds | None:
        good, bad = (
            next((s.found for s in self.steps if s.role == role), None) for role in ("good", "bad")
        )
        if isinstance(good, Measured) and isinstance(bad, Measured):
            return BisectEnds(good, bad)
        return None


@dataclass(frozen=True)
class BisectEnds:
    """Measurements of the good and the bad commit, and the threshold between them."""

    good: Measured
    bad: Measured

    @property
    def threshold(self) -> float:
        """Geometric mean of the two values, so that both differ from it by the same factor. The
        arithmetic mean if one of them is 0, as a count may be."""
        good, bad = self.good.value, self.bad.value
        return math.sqrt(good * bad) if good > 0 and bad > 0 else (good + bad) / 2

    def side(self, measured: Measured) -> Literal["good", "bad"]:
        """Return the side of the threshold that a value is on. The bad side may be the cheaper
        one, because the user chooses which end is bad."""
        above = measured.value > self.threshold
        below = measured.value < self.threshold
        return "bad" if (above if self.bad.value > self.good.value else below) else "good"

    def too_near(self, resolution: Resolution) -> str:
        """Return why the two cannot be told apart, or an empty string if they can.

        Instruction counts must differ by CLEAR times their resolution or more. For other numbers,
        the trials of the two may not overlap, and single times must differ by a factor of two.
        """
        good, bad = self.good.values, self.bad.values
        low, high = sorted((self.good.value, self.bad.value))
        if self.good.unit == "Ginsn":
            ratio = 1 + CLEAR * (resolution.ratio - 1)
            if high > low * ratio and high - low > CLEAR * resolution.ginsn:
                return ""
            return f"that is less than {CLEAR} times the difference between boots of one kernel"
        if min(good) <= max(bad) and min(bad) <= max(good):
            return "their trials overlap" if low != high else "the two are equal"
        if self.good.unit == "s" and len(good) == 1 == len(bad) and high < FEW_FLOOR * low:
            return "single times must differ by a factor of two"
        return ""


def step_json(step: BisectStep) -> dict[str, object]:
    """Return a step as bisect.json has it."""
    result = step.found
    measured = asdict(result) | {"value": result.value} if isinstance(result, Measured) else None
    return {
        "commit": asdict(step.commit), "role": step.role, "outcome": step.outcome,
        "measured": measured, "skipped": None if measured else asdict(result),
        "seconds": round(step.seconds, 1), "folder": step.folder,
    }  # fmt: skip


def build_step(record: StepRecord) -> BisectStep:
    """Return what `step_json` recorded."""
    commit, measured, skipped = record.commit, record.measured, record.skipped
    result: Measured | Skipped
    if measured is not None:
        result = Measured(measured.unit, measured.values, measured.release, measured.digest)
    else:
        assert skipped is not None  # the record has one of the two
        result = Skipped(skipped.reason, skipped.message, skipped.by_bench)
    return BisectStep(
        BisectCommit(commit.sha, commit.author, commit.date, commit.subject), record.role,
        record.outcome, result, record.seconds, record.folder,
    )  # fmt: skip
