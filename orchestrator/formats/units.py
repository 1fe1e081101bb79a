"""Units of sizes, times and instruction counts: parse and format sizes."""

from __future__ import annotations

import re

PREFIXES = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "Ginsn": {"Ginsn": 1.0, "Minsn": 1e-3, "kinsn": 1e-6, "insn": 1e-9},
}
"""Unit of a cost -> its unit with each SI prefix, the largest first, and what that is in it."""


KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40


_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}


SIZE = re.compile(r"([1-9][0-9]*)\s*(KiB|MiB|GiB|TiB)")


def parse_size(text: object) -> int:
    """Parse "32GiB", "512MiB" or "1TiB" into bytes. Raises ValueError; decimal units are
    refused."""
    match = SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'{text!r} is not a size; write it like "32GiB" (KiB, MiB, GiB or TiB)')
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """Return the shortest exact spelling: 34359738368 is "32GiB"."""
    for unit, factor in reversed(_UNITS.items()):
        if size % factor == 0 and size:
            return f"{size // factor}{unit}"
    return f"{size} bytes"
