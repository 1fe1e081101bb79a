"""Text from outside (consoles, logs, messages) as text that shows every character it has."""

from __future__ import annotations


def escape_unprintable(text: str) -> str:
    """Escape characters that do not print, among them those that control a terminal: ESC becomes
    `\\x1b`, an override of the text's direction `\\u202e`, half a surrogate pair `\\ud800`. Line
    ends and tabs stay."""
    text = text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
