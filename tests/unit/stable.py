"""What tests hold on to in texts for people: parts that stay when the wording changes."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:0x[0-9a-f]+|\d+(?:\.\d+)?)(?!\w|\.\d)")


def numbers_in(text: str) -> list[str]:
    """Return the numbers of a text in their order, without digits inside of words and versions."""
    return _NUMBER.findall(text)
