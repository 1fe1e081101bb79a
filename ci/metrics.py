"""Writes the table of metrics into README.md, from orchestrator/scenario/metrics.py.

    .venv/bin/python -m ci.metrics

tests/unit/test_metrics.py fails if README.md has another table.
"""

from __future__ import annotations

from ci.reasons import README, replace_between
from orchestrator.scenario.metrics import METRIC_WORDS, MetricWords

_BEGIN = "<!-- metrics: written by ci/metrics.py -->\n"
_END = "<!-- end of metrics -->\n"


def write_metrics(readme: str) -> str:
    """Return a README whose table is that of METRIC_WORDS. Raises ValueError if it has no
    markers."""
    return replace_between(readme, _BEGIN, _END, _table())


def _table() -> str:
    head = ("metric", "title", "kind", "pass: `guest-boot`", "`map`", "what it is")
    rows = [head, ("---",) * len(head), *map(_row, METRIC_WORDS)]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def _row(words: MetricWords) -> tuple[str, ...]:
    kind = {"s": "seconds"}.get(words.kind, words.kind)
    return f"`{words.name}`", words.title, kind, words.in_boots, words.in_maps, words.meaning


if __name__ == "__main__":
    README.write_text(write_metrics(README.read_text("utf-8")), "utf-8")
