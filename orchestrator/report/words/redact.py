"""Take what tells of people and machines out of files that are meant to be published. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_END = r"""(?=[/\s"'<>&:;,)\]]|$)"""
_MAC, _WORDS = r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", r"(?:number|no\.?)"
_PATTERNS: Final = (
    # a home folder, with the name of its owner
    (re.compile(r"(?<![\w./-])/(?:home|Users|var/home)/[^/\s\"'<>&:;,)\]]+"), "~"),
    (re.compile(rf"(?<![\w./-])/root{_END}"), "~"),
    # who built a kernel, and where: `Linux version 7.3.0 (alice@workstation) (gcc ...`
    (re.compile(r"(Linux version \S+ )\([^()\s@]+@[^()\s]+\)"), r"\1(user@host)"),
    (re.compile(rf"(?i)(?<![\w:]){_MAC}(?![\w:])"), "00:00:00:00:00:00"),
    (re.compile(r"(?i)(device serial number )[0-9a-f]{2}(?:-[0-9a-f]{2}){7}"), r"\1(redacted)"),
    (
        re.compile(
            rf"(?i)\b((?:\w+ )?serial(?: {_WORDS})?|s/n|(?:asset|service) tag)(\s*[:=]\s*)[\w./-]+"
        ),
        r"\1\2(redacted)",
    ),
)
_LEAST_NAME = 3
_COMMON = """root user users admin test tester runner build builder buildd debian ubuntu fedora
linux host guest kernel localhost qemu libvirt barometer baseline candidate metal nested"""
"""Names that tell nothing, and that stand for something else in reports."""


@dataclass(frozen=True)
class Redaction:
    """What to take out besides what its form gives away."""

    is_on: bool = True
    """False: nothing is taken out."""

    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    """Home folders that are elsewhere."""

    def apply(self, text: str) -> str:
        """Return the text, of any format, without names, paths and numbers that identify. Nothing
        that is put in has a meaning in XML, JSON or Markdown."""
        if not self.is_on:
            return text
        for folder in filter(lambda folder: folder.count("/") > 1, self.folders):
            text = re.sub(rf"(?<![\w./-]){re.escape(folder)}{_END}", "~", text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        for names, replacement in ((self.hosts, "HOST"), (self.users, "USER")):
            for name in _telling(names):
                text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", replacement, text)
        return text


NOTHING_HIDDEN: Final = Redaction(is_on=False)


def _telling(names: Iterable[str]) -> list[str]:
    """Return the names that tell of somebody; the longest first, so that no part is left."""
    telling = {n for n in names if len(n) >= _LEAST_NAME and n.lower() not in _COMMON.split()}
    return sorted(telling, key=lambda name: (-len(name), name))
