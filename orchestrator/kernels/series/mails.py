"""Read patches in the forms in which they are sent: mails in an mbox, a saved mail, a plain diff.

git splits an mbox and decodes its mails, as it does for `git am`;
orchestrator.kernels.series.patch reads the diffs in them.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.git import Git
from orchestrator.kernels.series.patch import find_diffs

_MAIL = re.compile(rb"\s*(?:From |(?!Index:)[A-Za-z][A-Za-z0-9-]*:[ \t])")
# The header of a mail that was saved with CR LF. In other mails, a CR is the patched file's own.
_CR_LF = re.compile(rb"(?:[^\r\n].*\n)*\r\n")
# The HTML part of a mail, up to the next boundary. It repeats the text, and git would read both.
_HEADERS = rb"(?:[\w-]+:[^\n]*\n(?:[ \t][^\n]*\n)*)*?"
_HTML = re.compile(
    rb"(?ims)(?:(\A(?:From [^\n]*\n)?%b)|^(--\S[^\r\n]*)\r?\n%b)content-type:\s*text/html"
    rb".*?(?=^\2|\Z)" % (_HEADERS, _HEADERS)
)
_AS_IT_CAME = ("-k", "--no-inbody-headers", "--no-scissors", "--quoted-cr=nowarn")
_TAGS = re.compile(r"\A(?:\s*\[[^\]]*\])*\s*")
_COUNTED = re.compile(r"(?<![\w./])(\d{1,4})/(\d{1,4})(?![\w./])")  # no 19/5 in [PATCH 4.19/5.4]
_VERSION = re.compile(r"(?i)(?:\b|PATCH)v(\d{1,3})\b")
# Re: or its equivalent in another language, which ends with a colon before [PATCH]
_REPLY = re.compile(r"(?i)\s*(?:re|aw|fwd?)\s*:|[^\[]*[:\uff1a]\s*\[[^\]]*\b(?:PATCH|RFC)")
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
    if b"\0" in text:
        raise ScenarioError(
            f"{source} is a binary file, not a patch",
            hint="expected a diff, a mail or an mbox of mails", reason=Reason.BINARY_FILE,
        )  # fmt: skip
    if _MAIL.match(text):
        return _mails(text, source)
    return [Letter(_shown_subject(text), None, None, 1, False, _diff_of(text))]


def sort_letters(letters: Sequence[Letter], source: str) -> list[Letter]:
    """Return the patches among the mails of a thread, in the order that their subjects give.
    Replies and the cover letter are left out.

    Raises ScenarioError if one of n/m is missing, is there twice or has no diff, or if the mails
    belong to more than one series.
    """
    patches = select_patches(letters)
    versions = sorted({p.version for p in patches})
    numbered = [p for p in patches if p.number]
    totals = {p.total for p in numbered}
    numbers = sorted(p.number or 0 for p in numbered)
    if len(versions) > 1:
        raise _mixed(source, f"versions {', '.join(map(str, versions))}")
    if not numbered:
        return patches
    if len(totals) > 1:
        raise _mixed(source, f"of {' and of '.join(sorted(map(str, totals)))} patches")
    (total,) = totals
    if twice := [n for n, following in itertools.pairwise(numbers) if n == following]:
        raise _mixed(source, f"patch {twice[0]}/{total} is there twice")
    if missing := sorted({*range(1, (total or 0) + 1)} - {*numbers}):
        raise ScenarioError(
            f"{source}: of {total} patches {', '.join(map(str, missing[:5]))} "
            f"{'is' if len(missing) == 1 else 'are'} missing, or without a diff",
            hint="put the patches that are meant into a folder, each as a file",
            reason=Reason.INCOMPLETE_SERIES,
        )
    if stray := [p.subject for p in patches if not p.number]:
        raise _mixed(source, f'"{stray[0]}" has no number, other patches have')
    return sorted(patches, key=lambda p: p.number or 0)


def _mixed(source: str, how: str) -> ScenarioError:
    return ScenarioError(
        f"{source} holds more than one series: {how}",
        hint="leave one of them in it: `b4 am MESSAGE-ID` takes the mails of one version",
        reason=Reason.MIXED_SERIES,
    )


def select_patches(letters: Sequence[Letter]) -> list[Letter]:
    """Return the letters that have a diff, without cover letters. Replies are left out, too, if
    other letters remain: the diffs in replies are quotes and suggestions."""
    patches = [p for p in letters if p.diff and p.number != 0]
    return [p for p in patches if not p.reply] or patches


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
        (folder / "mbox").write_bytes(text)
        git.run("mailsplit", "-b", "--keep-cr", "--mboxrd", "-d9", f"-o{folder}", folder / "mbox",
                doing=f"splitting {source}")  # fmt: skip
        return [_letter(git, mail, source) for mail in sorted(folder.glob("0*"))]


def _letter(git: Git, mail: Path, source: str) -> Letter:
    content = mail.read_bytes()
    if _CR_LF.match(content):
        content = content.replace(b"\r\n", b"\n")
    if b"text/html" in content.lower():
        content = _HTML.sub(rb"\1", content)
    diff = git.git_dir / "diff"
    for keep_charset in ((), ("-n",)):  # -n for a mail whose charset is unknown or wrong
        done = git.run("mailinfo", *_AS_IT_CAME, *keep_charset, "/dev/null", diff, stdin=content,
                       accept=(0, 1, 128), doing=f"reading a mail of {source}")  # fmt: skip
        if done.returncode == 0:
            break
    else:
        raise ScenarioError(
            f"{source}: git cannot read mail {int(mail.name)} of it",
            evidence=tail(done.stderr), reason=Reason.DAMAGED_PATCH,
        )  # fmt: skip
    subject = " ".join(" ".join(re.findall(r"(?m)^Subject:(.*)", done.stdout)).split())
    rest = _TAGS.sub("", subject)
    tags = subject.removesuffix(rest)
    counted, version = _COUNTED.search(tags), _VERSION.search(tags)
    return Letter(
        subject=rest,
        number=int(counted[1]) if counted else None,
        total=int(counted[2]) if counted else None,
        version=int(version[1]) if version else 1,
        reply=_REPLY.match(subject) is not None,
        diff=_diff_of(diff.read_bytes()),
    )


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
