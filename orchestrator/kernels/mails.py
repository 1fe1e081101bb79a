"""Read patches in the forms in which they are sent: mails in an mbox, a saved mail, a plain diff.
Pure.

A file is split into its letters here; orchestrator.kernels.patch reads the diffs in them.
"""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.errors import ScenarioError
from orchestrator.kernels.patch import diffs_begin

# `From ` begins a mail only if a date follows, as in git: a sentence may begin with it, too
_FROM = re.compile(rb"(?m)^From \S.*\d:\d\d(?::\d\d)?(?: \S+)* \d{4}(?: [+-]\d{4})?\r?$\n?")
_HEADER = re.compile(rb"(?!Index:)[A-Za-z][A-Za-z0-9-]*:[ \t]")
_TAG = re.compile(r"\s*(\[[^\]]*\])")
_COUNTED = re.compile(r"\b(\d{1,4})/(\d{1,4})\b")
_VERSION = re.compile(r"(?i)\bv(\d{1,3})\b")
_REPLY = re.compile(r"\s*(re|aw|fwd?)\s*:", re.IGNORECASE)
_DIFF_HEADERS = re.compile(rb"(?m)^(?:diff -|--- |\+\+\+ |@@ -).*$")
_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Letter:
    subject: str
    """Subject without [PATCH v2 1/3]; empty if there is none."""
    number: int | None
    """The n of n/m; 0 is a cover letter."""
    total: int | None
    version: int
    """The 2 of [PATCH v2]; 1 if there is no version."""
    reply: bool
    diff: bytes
    """Text of the letter from its first diff on; empty if it has none."""


def letters(content: bytes, source: str) -> list[Letter]:
    """Return the letters of a file, in the file's order. Raises ScenarioError if it is not
    text."""
    text = _unpacked(content, source).removeprefix(_BOM)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ScenarioError(
            f"{source} is UTF-16; a patch is written as the files it changes are",
            hint="`git format-patch` or `git diff --output=FILE` write it so",
            reason="binary-file",
        )
    if b"\0" in text:
        raise ScenarioError(
            f"{source} is a binary file, not a patch",
            hint="expected a diff, a mail or an mbox of mails", reason="binary-file",
        )  # fmt: skip
    if _FROM.match(text):
        return [_letter(mail) for mail in _split(text)]
    if _HEADER.match(text):
        return [_letter(text)]
    return [Letter(_shown_subject(text), None, None, 1, False, _diff_of(text))]


def in_order(found: Sequence[Letter], source: str) -> list[Letter]:
    """Return the patches among the mails of a thread, in the order that their subjects give.
    Replies and the cover letter are left out.

    Raises ScenarioError if one of n/m is missing, is there twice or has no diff, or if the mails
    belong to more than one series.
    """
    patches = without_talk(found)
    versions = sorted({p.version for p in patches})
    totals = {p.total for p in patches}
    numbers = sorted(p.number or 0 for p in patches)
    if len(versions) > 1:
        raise _mixed(source, f"versions {', '.join(map(str, versions))}")
    if None in totals:
        return patches
    if len(totals) > 1:
        raise _mixed(source, f"of {' and of '.join(sorted(map(str, totals)))} patches")
    (total,) = totals or {0}
    if twice := [n for n, following in itertools.pairwise(numbers) if n == following]:
        raise _mixed(source, f"patch {twice[0]}/{total} is there twice")
    if missing := sorted({*range(1, (total or 0) + 1)} - {*numbers}):
        raise ScenarioError(
            f"{source}: of {total} patches {', '.join(map(str, missing[:5]))} "
            f"{'is' if len(missing) == 1 else 'are'} missing, or without a diff",
            hint="put the patches that are meant into a folder, each as a file",
            reason="incomplete-series",
        )
    return sorted(patches, key=lambda p: p.number or 0)


def _mixed(source: str, how: str) -> ScenarioError:
    return ScenarioError(
        f"{source} holds more than one series: {how}",
        hint="leave one of them in it: `b4 am MESSAGE-ID` takes the mails of one version",
        reason="mixed-series",
    )


def without_talk(found: Sequence[Letter]) -> list[Letter]:
    """Return the letters that have a diff, without cover letters. Replies are left out, too, if
    other letters remain: the diffs in replies are quotes and suggestions."""
    patches = [p for p in found if p.diff and p.number != 0]
    return [p for p in patches if not p.reply] or patches


def _unpacked(content: bytes, source: str) -> bytes:
    """Unpack the content if it is gzip: lore.kernel.org serves a thread as t.mbox.gz."""
    if not content.startswith(_GZIP):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            text = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise ScenarioError(f"{source} cannot be unpacked: {exc}", reason="binary-file") from exc
    if len(text) > _MOST_BYTES:
        raise ScenarioError(f"{source} is too large for patches", reason="binary-file")
    return text


def _split(text: bytes) -> Iterator[bytes]:
    begins = [match.end() for match in _FROM.finditer(text)]
    ends = [match.start() for match in _FROM.finditer(text)][1:]
    for begin, end in zip(begins, [*ends, len(text)], strict=True):
        yield text[begin:end]


def _letter(mail: bytes) -> Letter:
    message = email.message_from_bytes(mail)
    subject = " ".join(_decoded(message).split())
    tags, rest = "", subject
    while match := _TAG.match(rest):
        tags, rest = f"{tags} {match[1]}", rest[match.end() :]
    counted, version = _COUNTED.search(tags), _VERSION.search(tags)
    return Letter(
        subject=rest.strip(),
        number=int(counted[1]) if counted else None,
        total=int(counted[2]) if counted else None,
        version=int(version[1]) if version else 1,
        reply=_REPLY.match(subject) is not None,
        diff=_diff_of(_body(message)),
    )


def _decoded(message: email.message.Message) -> str:
    """Return the subject. It is left encoded if its encoding is unknown or wrong."""
    subject = message.get("Subject")
    if subject is None:
        return ""
    try:
        return str(email.header.make_header(email.header.decode_header(subject)))
    except (LookupError, ValueError, email.errors.MessageError):
        return str(subject)


def _body(message: email.message.Message) -> bytes:
    """Return all text parts of a mail, with the transfer encoding decoded. A patch may be an
    attachment."""
    texts = []
    for part in message.walk():
        if part.is_multipart() or part.get_content_type() == "text/html":
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            texts.append(payload if payload.endswith(b"\n") else payload + b"\n")
    return b"".join(texts)


def _diff_of(text: bytes) -> bytes:
    begin = diffs_begin(text)
    if begin is None:
        return b""
    diff = text[begin:]
    # Mail may have turned every line end into CR LF, also in the diff's headers. In a patch of a
    # file that has CR LF itself, the headers have no CR.
    if all(line.endswith(b"\r") for line in _DIFF_HEADERS.findall(diff)):
        diff = diff.replace(b"\r\n", b"\n")
    return diff if diff.endswith(b"\n") else diff + b"\n"


def _shown_subject(text: bytes) -> str:
    """Return the first indented line of the output of `git show` or `git log -p`, else ""."""
    head = text[: diffs_begin(text)]
    match = re.search(rb"(?m)^    (\S.*)$", head) if head.startswith(b"commit ") else None
    return match[1].decode("utf-8", "replace").strip() if match else ""
