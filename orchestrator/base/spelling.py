"""The nearest valid name for a misspelled one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest_name(wrong: str, candidates: Sequence[str], every: Sequence[str] = ()) -> str:
    """Return `; did you mean "X"?`. If no candidate is near, return the list `every`, or "" if
    that is empty."""
    if near := difflib.get_close_matches(wrong, candidates, 1, 0.5):
        return f'; did you mean "{near[0]}"?'
    return f"; valid: {', '.join(every)}" if every else ""
