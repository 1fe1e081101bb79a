"""The table of metrics, from orchestrator/scenario/metrics.py."""

from __future__ import annotations

from orchestrator.scenario.metrics import METRIC_WORDS, MetricWords


def format_metrics() -> str:
    head = ("metric", "title", "kind", "pass: `guest-boot`", "`map`", "what it is")
    rows = [head, ("---",) * len(head), *map(_row, METRIC_WORDS)]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def _row(words: MetricWords) -> tuple[str, ...]:
    kind = {"s": "seconds"}.get(words.kind, words.kind)
    return f"`{words.name}`", words.title, kind, words.in_boots, words.in_maps, words.meaning
