"""The exceptions of barometer: what is wrong, what to do, and the proof.

Only `cli.py` turns one into an exit code. The class says what failed: the bench (`BenchError`), or
what runs under the proven kernel (`ArmFailedError`). Whom a trial's failure is charged to is
decided by its reason, in `faults.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.bounded import cut_message, quoted

UNNAMED = "error"
"""The reason of an error that needs none."""


class BarometerError(Exception):
    """Something a user can act on. `reason` is a short stable name (`guest-panic`)."""

    exit_code = 70

    def __init__(
        self, message: str, *, hint: str = "", evidence: str = "", reason: str = UNNAMED
    ) -> None:
        # both may have a machine's words in them, which may be of any length
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
    """The proven kernel under test, or the guest on it, did not do its work."""

    exit_code = 1


class EvidenceError(BarometerError):
    """Saved evidence is missing or cannot be read."""

    exit_code = 4


class LastStageEnded(Exception):  # noqa: N818 - nothing is wrong
    """A trial that is only to go through a certain stage has gone through it."""


@contextmanager
def key_named(key: str) -> Iterator[None]:
    """Put the scenario's key, or the option, in front of what is wrong with its value."""
    try:
        yield
    except ScenarioError as exc:
        raise ScenarioError(
            f"{key}: {exc.message}", hint=exc.hint, evidence=exc.evidence, reason=exc.reason
        ) from exc
