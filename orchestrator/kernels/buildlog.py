"""What a compiler, a linker or make said: the log of a build."""

from __future__ import annotations

import re

from orchestrator.command import tail

STEP = re.compile(r"\s*(?:CC|LD|AS|AR|HOSTCC|OBJCOPY|KSYMS|NM|LZ4|BUILD|MODPOST)\b.*")
"""A line of kbuild's that says what it makes."""
_FAILED = re.compile(r"(?:fatal )?error: |undefined reference|^ERROR: |: \*\*\* ")
_BEFORE = re.compile(r"\S+: In function|In file included|\s+from ")
_MAKE = re.compile(r"make(\[\d+\])?: ")
# the build root's folder, and the source as make sees it from the objects
_PLACE = re.compile(r"(?m)^(?:/build/(?:source|tree)/|\.\./)")
_MOST = 12


def first_errors(log: str) -> str:
    """What went wrong first, with what led to it; paths are those of the kernel's tree."""
    lines = _PLACE.sub("", log).splitlines()
    at = next((i for i, line in enumerate(lines) if _FAILED.search(line)), None)
    if at is None:
        return tail(log)
    start = at
    while start and at - start < 4 and _BEFORE.match(lines[start - 1]):
        start -= 1
    found = [line for line in lines[start:] if not STEP.fullmatch(line)][:_MOST]
    # what make says of each folder on the way up is of no help where a compiler spoke
    spoken = [line for line in found if not _MAKE.match(line)]
    return "\n".join(spoken or found)
