"""Parser for the text of a tracefs histogram (Documentation/trace/histogram.rst)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason

# `{ ret:          1 } hitcount:    8388608`, `{ order: 18, ret: 100 } hitcount: 32`
_ROW = re.compile(r"^\{ (?P<keys>.*) \} hitcount:\s+(?P<hits>\d+)")
_KEY = re.compile(r"(\w+):\s*([0-9a-fA-F]+)\b")
_TOTALS = re.compile(r"Hits: (\d+)\s+Entries: (\d+)\s+Dropped: (\d+)")


@dataclass(frozen=True)
class Histogram:
    rows: tuple[tuple[tuple[int, ...], int], ...]
    """((key, ...), hits), keys in the order of the trigger."""
    hits: int
    dropped: int


def parse_hist(text: str, hex_keys: tuple[str, ...] = ()) -> Histogram:
    """Parse a histogram. Keys named in `hex_keys` are printed in hexadecimal without a prefix.

    Raises EvidenceError if the totals are missing (a file cut short) or do not add up, and for a
    row whose keys are not numbers.
    """
    totals = _TOTALS.search(text)
    if totals is None:
        raise EvidenceError("the histogram has no totals", reason=Reason.BAD_HISTOGRAM)
    rows: list[tuple[tuple[int, ...], int]] = []
    for line in text.splitlines():
        if (match := _ROW.match(line)) is None:
            continue
        try:
            keys = tuple(
                int(value, 16 if name in hex_keys else 10)
                for name, value in _KEY.findall(match["keys"])
            )
        except ValueError:
            keys = ()
        if not keys or (rows and len(keys) != len(rows[0][0])):
            raise EvidenceError(
                f"the histogram has a row without numbers: {line[:120]!r}",
                reason=Reason.BAD_HISTOGRAM,
            )
        rows.append((keys, int(match["hits"])))
    hits, _, dropped = map(int, totals.groups())
    if sum(count for _, count in rows) + dropped != hits:
        raise EvidenceError(
            f"the histogram's rows add up to {sum(c for _, c in rows)}, its total is {hits}",
            reason=Reason.BAD_HISTOGRAM,
        )
    return Histogram(tuple(rows), hits, dropped)
