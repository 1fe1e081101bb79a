"""The form of what a machine answers: an agent there may be cut short, or be somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.command import tail
from orchestrator.errors import BenchError


@contextmanager
def has_form(what: str, words: str) -> Iterator[None]:
    """The block takes an answer apart. Raises BenchError (`answer-garbled`) with the words if they
    do not have the form that the block expects."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise BenchError(
            f"{what} cannot be understood: {type(exc).__name__}: {exc}", evidence=tail(words),
            reason="answer-garbled",
        ) from exc  # fmt: skip
