"""Find the functions that C source defines, to tell which of a profile's are in changed files."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DEFINITION = re.compile(
    rb"(?m)^(?:[A-Za-z_][\w \t*]*[ \t*])?([A-Za-z_]\w*)[ \t]*"
    rb"\((?:[^;{}()]|\([^;{}()]*\))*\)\s*(?:__\w+\s*)*\n\{",
    re.ASCII,
)
"""A definition in the kernel's style: its name begins a line or follows its type there, and a {
alone begins the line of its body."""


def find_definitions(files: Iterable[bytes | None]) -> list[str]:
    """Return the names of the functions that C files define. None stands for a file that is
    gone."""
    names = {match[1].decode() for text in files for match in _DEFINITION.finditer(text or b"")}
    return sorted(names)
