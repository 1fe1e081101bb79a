"""Text from outside (consoles, logs, messages) as text that shows every character it has."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with all that would not show, or would act, made visible: ESC is U+241B,
    an override of direction `\\u202e`, half a surrogate pair `\\ud800`. Lines and tabs stay."""
    text = text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _picture(ord(c)) for c in text)


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    if code == 0x7F:
        return "\u2421"
    return f"\\u{code:04x}"
