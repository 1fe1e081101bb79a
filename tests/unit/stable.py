"""What tests hold on to in texts for people: parts that stay when the wording changes."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:0x[0-9a-f]+|\d+(?:\.\d+)?)(?!\w|\.\d)")


def numbers_in(text: str) -> list[str]:
    """Return the numbers of a text in their order, without digits inside of words and versions."""
    return _NUMBER.findall(text)


def has_in_order(text: str, *parts: str) -> bool:
    """True if a paragraph of the text has these words in this order, and anything between them.
    A paragraph ends at an empty line; where its lines are wrapped does not matter."""
    pattern = re.compile(".*?".join(rf"(?<![\w.]){re.escape(part)}(?!\w)" for part in parts))
    return any(
        pattern.search(" ".join(paragraph.split())) for paragraph in re.split(r"\n\s*\n", text)
    )
