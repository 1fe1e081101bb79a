"""Lines for mail: ASCII, at most 76 columns, so that a quoted report still fits 80."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from textwrap import wrap

WIDTH = 76
_INDENT = 4
_DEEPEST = 24
"""Deepest indent in columns. Text that begins farther right would have no room."""
_KEY = re.compile(r" *\S+(?: \S+)? {2,}(?=\S)")
"""The key before the text of a line: `device` in `device     ivshmem`."""
_WITHIN_NUMBER = re.compile(r"(?<=\d) (?=(?:[mun]?s|[GMk]?insn)\b)| (?=\+- )|(?<=\+-) ")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-~])")
"""Escape sequences (ECMA-48, 5.4 and 5.3), with which firmware and loaders colour a console."""


def to_ascii(text: str) -> str:
    """Return one line of printable ASCII, whatever a console or a package put into the text.
    Letters lose their accents; any other character becomes `?`."""
    plain = unicodedata.normalize("NFKD", _ESCAPES.sub("", text).expandtabs())
    return "".join(
        c if " " <= c <= "~" else "?" for c in plain if not unicodedata.combining(c)
    )  # fmt: skip


def shorten(text: str, width: int = WIDTH) -> str:
    """Shorten a line to at most `width` columns by a cut in the middle: the ends of a path say the
    most."""
    text = to_ascii(text)
    if len(text) <= width:
        return text
    left = (width - 3) // 2
    return f"{text[:left]}...{text[len(text) - (width - 3 - left) :]}"


def wrap_text(text: str, first: str = "", then: str = "") -> list[str]:
    """Return the lines of a paragraph. A number stays with its unit. A word that is longer than a
    line is broken."""
    lines = wrap(
        _WITHIN_NUMBER.sub("\0", to_ascii(text)), WIDTH, initial_indent=first,
        subsequent_indent=then, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", " ").rstrip() for line in lines] or [first.rstrip()]


def fit_lines(text: str) -> str:
    """Make every line printable and no longer than 76 columns. A long line continues below the
    beginning of its text."""
    lines: list[str] = []
    for line in map(to_ascii, text.split("\n")):
        if len(line) <= WIDTH:
            lines.append(line.rstrip())
            continue
        body = line.lstrip()
        key = _KEY.match(line)
        indent = min(len(line) - len(body), _DEEPEST)
        hang = key.end() if key and key.end() <= _DEEPEST else indent + _INDENT
        lines += wrap_text(body, " " * indent, " " * hang)
    return "\n".join(lines)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str] | str]) -> list[str]:
    """Return the rows below their header. The first and the last column are aligned to the left,
    the numbers between them to the right. A row that is a text spans the table.

    A row is one line. If any row is too long for that, each row is two lines, with its first cell
    above the others. If any is still too long, each cell has a line of its own.
    """
    whole = [header, *(row for row in rows if not isinstance(row, str))]
    room, *widths = (max(map(len, column)) for column in zip(*whole, strict=True))

    def rest(row: Sequence[str]) -> str:
        *numbers, last = row[1:] or [""]
        placed = [f"{cell:>{width}}" for cell, width in zip(numbers, widths[:-1], strict=True)]
        return "  ".join([*placed, last]).rstrip()

    longest = max(len(rest(row)) for row in whole)
    if room + 2 + longest <= WIDTH:
        lines = [row if isinstance(row, str) else f"{row[0]:<{room}}  {rest(row)}"
                 for row in (header, *rows)]  # fmt: skip
    elif _INDENT + longest <= WIDTH:
        lines = [row if isinstance(row, str) else f"{row[0]}\n{'':{_INDENT}}{rest(row)}"
                 for row in (header, *rows)]  # fmt: skip
    else:
        lines = [row if isinstance(row, str) else _listed(header, row) for row in rows]
    return [line.rstrip() for row in lines for line in row.split("\n")]


def _listed(header: Sequence[str], row: Sequence[str]) -> str:
    titles = max(map(len, header[1:]))
    cells = [
        f"{'':{_INDENT}}{title:<{titles}}  {cell}"
        for title, cell in zip(header[1:], row[1:], strict=True)
        if cell
    ]
    return "\n".join([row[0], *cells])
