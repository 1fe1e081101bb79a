"""Read patches in the forms in which they are sent: mails in an mbox, a saved mail, a plain diff.

git splits an mbox and decodes its mails, as it does for `git am`;
orchestrator.kernels.series.patch reads the diffs in them.
"""

from __future__ import annotations

import contextlib
import email.errors
import email.header
import gzip
import io
import itertools
import re
import tempfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.git import Git
from orchestrator.kernels.series.patch import find_diffs

# A line `From`, or the name of a header. A bare diff may begin with Subversion's "Index:".
_MAIL = re.compile(rb"\s*(?:From |(?!Index:)[!-9;-~]+:)")
# A line `From` without a date, at which mailsplit would not begin a mail (is_from_line() there)
_DATELESS = re.compile(
    rb"(?!From [^\n]*\d[^\n]\d\d:\d\d[ \t]*\d*(?:9[1-9]|\d{3})[^\n:]*\n)From [^\n]*\n"
)
_NEXT_DATELESS = re.compile(
    rb"(?mi)^%b(?=(?:from|to|date|subject|received|return-path|message-id"
    rb"|delivered-to|mime-version|content-type|x-[\w-]+):)" % _DATELESS.pattern
)
_DATED = b"From a Thu Jan  1 00:00:00 1970\n"
# The header of a mail that was saved with CR LF. In other mails, a CR is the patched file's own.
_CR_LF = re.compile(rb"(?:[^\r\n].*\n)*\r\n")
# The HTML part of a mail, up to the next boundary. It repeats the text, and git would read both.
_HEADERS = rb"(?:[\w-]+:[^\n]*\n(?:[ \t][^\n]*\n)*)*?"
_HTML = re.compile(
    rb"(?ims)(?:(\A(?:From [^\n]*\n)?%b)|^(--\S[^\r\n]*)\r?\n%b)content-type:\s*text/html"
    rb".*?(?=^\2|\Z)" % (_HEADERS, _HEADERS)
)
# What a mail has if its text might have a diff once it is decoded; format=flowed moves lines
_MAY_HAVE_DIFF = re.compile(
    rb"(?mi)^(?:diff -|--- |content-transfer-encoding:\s*(?:base64|quoted))|format=\"?flowed"
)
_SUBJECT = re.compile(rb"(?i)(?:.+\n)*?subject:(.*(?:\n[ \t].*)*)")
_ANSWERS = re.compile(rb"(?i)(?:.+\n)*?(?:in-reply-to|references):")
_AS_IT_CAME = ("-k", "--no-inbody-headers", "--no-scissors", "--quoted-cr=nowarn")
_TAGS = re.compile(r"\A(?:\s*\[[^\]]*\])*\s*")
# n/m, which is the last in its brackets: [PATCH 6.1/6.6 1/2]. No 19/5 of 4.19/5.4, no 2026/05.
_COUNTED = re.compile(r"\[[^\]]*(?<![\w./])(\d{1,4})/([1-9]\d{0,3})(?![\w./])[^\]]*\]")
_VERSION = re.compile(r"(?i)(?:\b|PATCH)v(\d{1,3})\b")
# Re: or, in another language, text with a colon before [PATCH]; maybe behind a list's own
# tag: [list] Re: [PATCH]
_REPLY = re.compile(
    r"(?i)(?:\[(?![^\]]*\b(?:PATCH|RFC))[^\]]*\]|\s)*"
    r"(?:re\s*(?:[(\[]?\d+[)\]]?)?\s*[:\uff1a]|[^\[]*[:\uff1a]\s*\[[^\]]*\b(?:PATCH|RFC))"
)
_COLON = re.compile(r"[:\uff1a]\s*\Z")
# What `format-patch` writes between a commit's message and its diff. A cover letter may have a
# diff, too: of a test, or `--interdiff`. A patch may be 0/n: `--start-number=0`.
_DASHES = re.compile(rb"---\n(?: .*\n)*\n?diff -")
_DIFF_HEADERS = re.compile(rb"(?m)^(?:diff -|--- |\+\+\+ |@@ -).*$")
_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Letter:
    subject: str
    """Subject without [PATCH v2 1/3]; empty if there is none."""
    number: int | None
    """The n of n/m."""
    total: int | None
    version: int
    """The 2 of [PATCH v2]; 1 if there is no version."""
    reply: bool
    diff: bytes
    """Text of the letter from its first diff on; empty if it has none, or is a cover letter."""
    header: str = ""
    """Subject as it stands in the mail."""
    answers: bool = False
    """True if the mail's header names one that it answers."""


def parse_letters(content: bytes, source: str) -> list[Letter]:
    """Return the letters of a file, in the file's order. Raises ScenarioError if it cannot be
    read."""
    text = _unpacked(content, source).removeprefix(_BOM)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ScenarioError(
            f"{source} is UTF-16; a patch must have the encoding of the files that it changes",
            hint="`git format-patch` or `git diff --output=FILE` write it so",
            reason=Reason.BINARY_FILE,
        )
    if _MAIL.match(text):
        letters = _mails(text, source)
    else:
        letters = [Letter(_shown_subject(text), None, None, 1, False, _diff_of(text))]
    if b"\0" in text and not any(letter.diff for letter in letters):
        raise ScenarioError(
            f"{source} is a binary file, not a patch",
            hint="expected a diff, a mail or an mbox of mails", reason=Reason.BINARY_FILE,
        )  # fmt: skip
    return letters


def sort_letters(letters: Sequence[Letter], source: str) -> list[Letter]:
    """Return the patches among the mails of a thread, in the order that their subjects give.
    Replies and the cover letter are left out.

    Raises ScenarioError if one of n/m is missing, is there twice or has no diff, or if the mails
    belong to more than one series.
    """
    patches = select_patches(letters)
    if not patches:
        raise ScenarioError(
            f"{source}: only replies hold diffs, which are quotes and suggestions",
            hint="name the reply that is meant alone: a file with one mail",
            reason=Reason.NO_DIFF,
        )
    versions = sorted({p.version for p in patches})
    numbered = [p for p in patches if p.number is not None]
    totals = {p.total for p in numbered}
    numbers = sorted(p.number or 0 for p in numbered)
    if len(versions) > 1:
        raise mixed_series(source, f"versions {', '.join(map(str, versions))}")
    if not numbered:
        return patches
    if len(totals) > 1:
        raise mixed_series(source, f"of {' and of '.join(sorted(map(str, totals)))} patches")
    (total,) = totals
    if twice := [n for n, following in itertools.pairwise(numbers) if n == following]:
        raise mixed_series(source, f"patch {twice[0]}/{total} is there twice")
    if missing := sorted({*range(1, (total or 0) + 1)} - {*numbers}):
        raise ScenarioError(
            f"{source}: of {total} patches {', '.join(map(str, missing[:5]))} "
            f"{'is' if len(missing) == 1 else 'are'} missing, or without a diff",
            hint="put the patches that are meant into a folder, each as a file",
            reason=Reason.INCOMPLETE_SERIES,
        )
    if stray := [p.subject for p in patches if p.number is None]:
        raise mixed_series(source, f'"{stray[0]}" has no number, other patches have')
    return sorted(patches, key=lambda p: p.number or 0)


def mixed_series(source: str, how: str) -> ScenarioError:
    """Return the error for mails of more than one series."""
    return ScenarioError(
        f"{source} holds more than one series: {how}",
        hint="leave one of them in it: `b4 am MESSAGE-ID` takes the mails of one version",
        reason=Reason.MIXED_SERIES,
    )


def select_patches(letters: Sequence[Letter]) -> list[Letter]:
    """Return the letters of a thread that are patches. The diffs in replies are quotes and
    suggestions, unless the reply is all there is."""
    patches = [letter for letter in letters if letter.diff]
    if len(letters) == 1:
        return patches
    headers = {letter.header for letter in letters if letter.header}
    return [p for p in patches if not p.reply and not (p.answers and _has_prefix(p, headers))]


def _has_prefix(letter: Letter, headers: Collection[str]) -> bool:
    """True if a letter's subject is one of the others with a word and a colon before it. So are
    subjects of replies in any language, but also of a patch "vfio: fix" after a patch "fix"."""
    subject = letter.header
    return any(
        subject.endswith(other) and _COLON.search(subject.removesuffix(other)) for other in headers
    )


def _unpacked(content: bytes, source: str) -> bytes:
    """Unpack the content if it is gzip: lore.kernel.org serves a thread as t.mbox.gz."""
    if not content.startswith(_GZIP):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            text = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise ScenarioError(
            f"{source} cannot be unpacked: {exc}", reason=Reason.BINARY_FILE
        ) from exc
    if len(text) > _MOST_BYTES:
        raise ScenarioError(f"{source} is too large for patches", reason=Reason.BINARY_FILE)
    return text


def _mails(text: bytes, source: str) -> list[Letter]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        git = Git(folder)  # not a repository, so that no repository's settings apply
        (folder / "mbox").write_bytes(_with_dates(text))
        git.run("mailsplit", "-b", "--keep-cr", "--mboxrd", "-d9", f"-o{folder}", folder / "mbox",
                doing=f"splitting {source}")  # fmt: skip
        return [_letter(git, mail, source) for mail in sorted(folder.glob("0*"))]


def _with_dates(text: bytes) -> bytes:
    """Give the lines `From` of an mbox dates if the first one has none: mailsplit begins a mail
    only at one that has."""
    first = _DATELESS.match(text.lstrip())
    if first is None:
        return text
    return _NEXT_DATELESS.sub(_DATED, _DATED + first.string[first.end() :])


def _letter(git: Git, mail: Path, source: str) -> Letter:
    content = mail.read_bytes()
    if _CR_LF.match(content):
        content = content.replace(b"\r\n", b"\n")
    if b"text/html" in content.lower():
        content = _HTML.sub(rb"\1", content)
    if _MAY_HAVE_DIFF.search(content):
        subject, text = _decode(git, content, f"mail {int(mail.name)} of {source}")
    else:  # most mails of a thread
        subject, text = _read_subject(content), b""
    rest = _TAGS.sub("", subject)
    tags = subject.removesuffix(rest)
    counted, version = _COUNTED.search(tags), _VERSION.search(tags)
    number = int(counted[1]) if counted else None
    is_cover = number == 0 and _DASHES.match(text) is None
    return Letter(
        subject=rest,
        number=number,
        total=int(counted[2]) if counted else None,
        version=int(version[1]) if version else 1,
        reply=_REPLY.match(subject) is not None,
        diff=b"" if is_cover else _diff_of(text),
        header=subject,
        answers=_ANSWERS.match(content) is not None,
    )


def _decode(git: Git, content: bytes, which: str) -> tuple[str, bytes]:
    """Return a mail's subject, and its text from what might be a diff on, as git decodes them."""
    diff = git.git_dir / "diff"
    for keep_charset in ((), ("-n",)):  # -n for a mail whose charset is unknown or wrong
        done = git.run("mailinfo", *_AS_IT_CAME, *keep_charset, "/dev/null", diff, stdin=content,
                       accept=(0, 1, 128), doing=f"reading {which}")  # fmt: skip
        if done.returncode == 0:
            subject = " ".join(re.findall(r"(?m)^Subject:(.*)", done.stdout))
            return " ".join(subject.split()), diff.read_bytes()
    raise ScenarioError(
        f"git cannot read {which}", evidence=tail(done.stderr), reason=Reason.DAMAGED_PATCH
    )


def _read_subject(content: bytes) -> str:
    match = _SUBJECT.match(content)
    text = match[1].decode("utf-8", "replace") if match else ""
    with contextlib.suppress(LookupError, ValueError, email.errors.HeaderParseError):
        text = str(email.header.make_header(email.header.decode_header(text)))
    return " ".join(text.split())


def _diff_of(text: bytes) -> bytes:
    begin = find_diffs(text)
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
    head = text[: find_diffs(text)]
    match = re.search(rb"(?m)^    (\S.*)$", head) if head.startswith(b"commit ") else None
    return match[1].decode("utf-8", "replace").strip() if match else ""
