"""Details in the lines of the watch agent (guests/agents/watch.py). A line may be cut short: then
its parser returns None."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from orchestrator.evidence.model import Count, Evidence

_THREADS = TypeAdapter(tuple[Count, ...])


class StartRecord(Evidence):
    """`E <ns> started DETAIL`: the process of QEMU."""

    pid: Count
    start_ns: Count
    """Start of the process in nanoseconds of CLOCK_MONOTONIC, in steps of 10 ms."""


def parse_start(detail: str) -> StartRecord | None:
    try:
        return StartRecord.model_validate_json(detail)
    except ValidationError:
        return None


def parse_threads(detail: str) -> set[int] | None:
    """Parse `E <ns> threads [N, ...]`: QEMU's threads at the boot mark."""
    try:
        return set(_THREADS.validate_json(detail, strict=True))
    except ValidationError:
        return None
