"""Find the errors in the log of a build: what the compiler, the linker or make printed."""

from __future__ import annotations

import re

from orchestrator.base.process import tail

STEP = re.compile(r"\s*(?:CC|LD|AS|AR|HOSTCC|OBJCOPY|KSYMS|NM|LZ4|BUILD|MODPOST)\b.*")
"""A line in which kbuild names the file that it makes."""
_FAILED = re.compile(r"(?:fatal )?error: |undefined reference|^ERROR: |: \*\*\* ")
_BEFORE = re.compile(r"\S+: In function|In file included|\s+from ")
_MAKE = re.compile(r"make(\[\d+\])?: ")
# start of a path in the build root, or of the source as make sees it from the objects
_PLACE = re.compile(r"(?m)^(?:/build/(?:source|tree)/|\.\./)")
_MOST = 12


def first_errors(log: str) -> str:
    """Return the log from the first error on, 12 lines at most, with the lines that lead to it;
    the log's tail if there is no error. Paths are those of the kernel's tree."""
    lines = _PLACE.sub("", log).splitlines()
    at = next((i for i, line in enumerate(lines) if _FAILED.search(line)), None)
    if at is None:
        return tail(log)
    start = at
    while start and at - start < 4 and _BEFORE.match(lines[start - 1]):
        start -= 1
    shown = [line for line in lines[start:] if not STEP.fullmatch(line)][:_MOST]
    # make repeats the failure for each folder on the way up: no help if a compiler has spoken
    spoken = [line for line in shown if not _MAKE.match(line)]
    return "\n".join(spoken or shown)
