"""Check of the form of a machine's answer: the agent may be cut short, or be somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.base.errors import BenchError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason


@contextmanager
def parsing(name: str, words: str) -> Iterator[None]:
    """Turn the errors of a block that parses an answer into BenchError (`answer-garbled`), which
    quotes the end of `words`. `name` is that of the answer."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise BenchError(
            f"{name} cannot be understood: {type(exc).__name__}: {exc}", evidence=tail(words),
            reason=Reason.ANSWER_GARBLED,
        ) from exc  # fmt: skip
