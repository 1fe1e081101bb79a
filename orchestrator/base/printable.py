"""Text from outside (consoles, logs, messages) as text that shows every character it has."""

from __future__ import annotations

import re

_COMMAND = re.compile(r"(?m)^[^\S\n]*::|##\[")


def escape_unprintable(text: str) -> str:
    """Escape characters that do not print, among them those that control a terminal: ESC becomes
    `\\x1b`, an override of the text's direction `\\u202e`, half a surrogate pair `\\ud800`. Line
    ends and tabs stay."""
    text = text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(ord(c)) for c in text)


def disarm_commands(text: str, before: str = "") -> str:
    r"""Escape what GitHub Actions takes for a workflow command in a log: `::` at the beginning of
    a line, and `##[` anywhere (ActionCommand.TryParseV2 and TryParse of actions/runner). In JSON
    `##\u005b` is still `##[`. `before`: what the text's first line already has."""
    done, parts = len(before), []
    for match in _COMMAND.finditer(before + text):
        if match.end() > len(before):  # its last character is of this text
            parts += [(before + text)[done : match.end() - 1], rf"\u{ord(match[0][-1]):04x}"]
            done = match.end()
    return "".join(parts) + (before + text)[done:]


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
