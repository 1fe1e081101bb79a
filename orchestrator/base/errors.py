"""The exceptions of barometer. Each has a message, a hint what to do, and evidence.

Only `cli/entry.py` turns an exception into an exit code. The class says what failed, for example
the bench (`BenchError`) or the proven kernel and what runs on it (`ArmFailedError`). The reason of
a trial's failure decides to which party it is charged (`faults.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.base.bounded import cut_message, quoted
from orchestrator.base.reasons import Reason


class BarometerError(Exception):
    """An error that a user can act on. Every error has a `reason` (see reasons.py)."""

    exit_code = 70

    def __init__(
        self, message: str, *, hint: str = "", evidence: str = "", reason: Reason
    ) -> None:
        # both may contain a machine's output, of any length
        self.message = cut_message(message)
        super().__init__(self.message)
        self.hint = hint
        self.evidence = quoted(evidence)
        self.reason = reason

    def __str__(self) -> str:
        parts = [self.message]
        if self.evidence:
            parts += [f"  | {line}" for line in self.evidence.splitlines()]
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)


class ScenarioError(BarometerError):
    """The scenario or the command line is wrong; found before anything boots."""

    exit_code = 2


class BenchError(BarometerError):
    """The bench failed: the runner, an image, a mirror, the host before its kernel is proven."""

    exit_code = 3


class ArmFailedError(BarometerError):
    """The proven kernel under test, or the guest on it, failed."""

    exit_code = 1


class EvidenceError(BarometerError):
    """Saved evidence is missing or cannot be read."""

    exit_code = 4


class LastStageEnded(Exception):  # noqa: N818 - nothing is wrong
    """A trial that is to end after a certain stage has completed that stage."""


@contextmanager
def key_named(key: str) -> Iterator[None]:
    """Put `key` (a key of the scenario, or an option) before the message of a ScenarioError that
    the block raises."""
    try:
        yield
    except ScenarioError as exc:
        raise ScenarioError(
            f"{key}: {exc.message}", hint=exc.hint, evidence=exc.evidence, reason=exc.reason
        ) from exc
