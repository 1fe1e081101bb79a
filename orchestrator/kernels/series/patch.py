"""Parse a patch, strictly. Pure.

Text around the diffs (a mail's text, `git show`'s header, signatures) is ignored. Within a diff
nothing is ignored: a diff that git would guess at, or apply in part, is refused here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.base.errors import ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.reasons import Reason

_GIT = re.compile(rb"diff --git (.+)")
_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_BEGINNING = re.compile(rb"(?m)^(?:diff -|--- .*\n\+\+\+ .*\n@@ -)")
_BEGINNING_OF_NAMES = re.compile(rb"(?m)^--- .*\n\+\+\+ ")
_SAME_NAMES = re.compile(rb"([^/]+)/(?P<name>.+) ([^/]+)/(?P=name)")
_EXTENDED = re.compile(
    rb"(old mode|new mode|deleted file mode|new file mode|copy from|copy to|rename from|rename to"
    rb"|rename old|rename new|similarity index|dissimilarity index|index) (.+)"
)
_KEPT = ("old mode", "new mode", "deleted file mode", "new file mode")
_RENAMED = (("copy from", "copy to"), ("rename from", "rename to"), ("rename old", "rename new"))
_NAMED = tuple(itertools.chain(*_RENAMED))
_BINARY = re.compile(rb"GIT binary patch|Binary files .* differ|Files .* differ")
_ESCAPE = re.compile(rb'\\([0-7]{3}|[abfnrtv"\\])')
_ESCAPED = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t",
            b"v": b"\v", b'"': b'"', b"\\": b"\\"}  # fmt: skip


class DamagedError(ValueError):
    """A diff that cannot be applied as it is meant; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Hunk:
    old_start: int
    new_start: int
    lines: tuple[bytes, ...]
    r"""Lines with their first character: space, -, + or \ (no newline at the end of the file)."""

    @property
    def before(self) -> list[bytes]:
        """Lines that the hunk expects in the file, without their first character."""
        return [line[1:] for line in self.lines if line[:1] in b" -"]


@dataclass(frozen=True)
class FileDiff:
    old: str | None
    """Path before the patch; None if the patch makes the file."""
    new: str | None
    """Path after the patch; None if the patch removes the file."""
    notes: tuple[str, ...]
    """Lines of git's extended header about modes, renames and copies."""
    hunks: tuple[Hunk, ...]
    stripped: str | None = None
    """First part of both names, if it is the same in both. If the tree has a folder of that name,
    nothing had to be stripped."""


@dataclass(frozen=True)
class Patch:
    origin: str
    """Item of the scenario's series that the patch comes from."""
    number: int
    """Place in the whole series, from 1."""
    subject: str
    text: bytes
    """The diffs, without a mail's encoding and without the text before them."""

    @cached_property
    def diffs(self) -> tuple[FileDiff, ...]:
        return parse(self.text)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths that the patch touches, by old and new names, without a/ and b/."""
        names = {name for diff in self.diffs for name in (diff.old, diff.new) if name is not None}
        return tuple(sorted(names))


def series_facts(patches: Sequence[Patch]) -> list[dict[str, Any]]:
    """Return what identifies each patch, for a kernel's provenance."""
    return [
        {"origin": p.origin, "subject": p.subject, "files": list(p.files),
         "digest": series_digest([p])}
        for p in patches
    ]  # fmt: skip


def series_digest(patches: Sequence[Patch]) -> str:
    """Return a digest of what the patches do, in their order: paths, modes, places and lines.

    Commit messages, ids of blobs (`index`), names of functions after @@ and dates after paths do
    not count. `git patch-id` would not do: it ignores white space and line numbers, and two
    kernels can differ by these.
    """
    return digest_of({"patches": [[_canonical(diff) for diff in p.diffs] for p in patches]})


def _canonical(diff: FileDiff) -> list[object]:
    hunks = [
        [hunk.old_start, hunk.new_start, [line.decode("latin-1") for line in hunk.lines]]
        for hunk in diff.hunks
    ]
    return [diff.old, diff.new, list(diff.notes), hunks]


def find_diffs(text: bytes) -> int | None:
    """Return the offset of the first diff in a text, or None. Names of files without a hunk behind
    them are one only if nothing else is: a message may have such lines."""
    match = _BEGINNING.search(text) or _BEGINNING_OF_NAMES.search(text)
    return match.start() if match else None


def parse(text: bytes) -> tuple[FileDiff, ...]:
    """Parse all diffs of a text, in their order. Behind the first one, every line that might be of
    a diff must be whole. Raises DamagedError."""
    return tuple(_Reader(text, is_text=True).diffs()) or tuple(_Reader(text).diffs())


class _Reader:
    """Parser that goes line by line and counts: a line of a hunk may look like a header, and only
    the counts in the hunk's header show where it ends."""

    def __init__(self, text: bytes, is_text: bool = False) -> None:
        self._is_text = is_text  # before the first diff, where not every line must be of a diff
        self._text = text.split(b"\n")
        if self._text[-1] == b"":
            self._text.pop()  # not a line: the rest after the last newline
        self._at = 0
        # prefixes of the two names of a file: a/ and b/, i/ and w/, linux.orig/ and linux/
        self._prefixes = {b"a", b"b"}
        self._alike: str | None = None  # first part of the last pair of names, if it is one
        for line, following in itertools.pairwise(self._text):
            if line.startswith(b"--- ") and following.startswith(b"+++ "):
                self._note_prefixes(line[4:], following[4:])

    def _note_prefixes(self, old: bytes, new: bytes) -> None:
        firsts = {name.lstrip(b'"').split(b"/", 1)[0] for name in (old, new) if b"/" in name}
        if len(firsts) == 2 and b"" not in firsts:  # "" is that of /dev/null
            self._prefixes |= firsts

    def _here(self, ahead: int = 0) -> bytes:
        at = self._at + ahead
        return self._text[at] if at < len(self._text) else b""

    def _damaged(self, flaw: str, hint: str = "") -> DamagedError:
        return DamagedError(f"line {self._at + 1}: {flaw}", hint)

    def diffs(self) -> Iterator[FileDiff]:
        while self._at < len(self._text):
            line = self._here()
            if self._is_text and not self._at_change():
                self._at += 1
                continue
            if match := _GIT.fullmatch(line.rstrip(b"\r")):
                self._at += 1
                yield self._git_diff(match[1])
            elif self._at_names():
                old, new, hunks = self._names_and_hunks()
                if old and new:  # FILE.orig and FILE: the same file, as find_name_common() has it
                    old = new = old if new.startswith(old) else new
                yield FileDiff(old, new, (), hunks, self._alike)
            elif line.startswith((b"diff --cc ", b"diff --combined ")):
                raise self._damaged("a merge's combined diff cannot be applied")
            elif _BINARY.fullmatch(line.rstrip(b"\r")):
                raise self._binary()
            elif _HUNK.match(line):
                raise self._damaged("a hunk without the name of a file before it", _WHOLE)
            else:
                self._at += 1
                continue
            self._is_text = False

    def _at_change(self) -> bool:
        """True unless the line looks like the beginning of a diff and has no change behind it.
        `git apply` ignores such lines: a message may have them."""
        if self._at_names():
            return self._here(2).startswith(b"@@ -")
        following = self._here(1)
        return not self._here().startswith(b"diff --git ") or (
            following.startswith(b"--- ") or _EXTENDED.match(following) is not None
        )

    def _at_names(self) -> bool:
        return self._here().startswith(b"--- ") and self._here(1).startswith(b"+++ ")

    def _binary(self) -> DamagedError:
        return self._damaged("a change of a binary file; only text can be patched here")

    def _git_diff(self, names: bytes) -> FileDiff:
        if names.count(b" ") == 1:
            self._note_prefixes(*names.split(b" "))
        self._alike = None
        header = self._header()
        notes = tuple(f"{key} {header[key]}" for key in (*_KEPT, *_NAMED) if key in header)
        hunks: tuple[Hunk, ...] = ()
        old: str | None
        new: str | None
        if self._at_names():
            old, new, hunks = self._names_and_hunks()
        elif not notes:
            raise self._damaged("a header without a change behind it", _WHOLE)
        elif renamed := [
            (header[source], header[target]) for source, target in _RENAMED if source in header
        ]:
            ((old, new),) = renamed
            if names == f"{old} {new}".encode():
                raise self._without_prefix(old.encode())
        else:
            old = new = self._same(names)
        return FileDiff(
            None if "new file mode" in header else old,
            None if "deleted file mode" in header else new,
            notes,
            hunks,
            self._alike,
        )

    def _header(self) -> dict[str, str]:
        """Parse git's lines between the names of a diff and its hunks."""
        header = {}
        while match := _EXTENDED.fullmatch(self._here().rstrip(b"\r")):
            key = match[1].decode()
            name = key in _NAMED
            header[key] = (
                self._text_of(_unquoted(match[2])) if name else match[2].decode("utf-8", "replace")
            )
            self._at += 1
        if _BINARY.fullmatch(self._here().rstrip(b"\r")):
            raise self._binary()
        if not _is_one_change(header):
            raise self._damaged("the header of a diff contradicts itself", _WHOLE)
        return header

    def _names_and_hunks(self) -> tuple[str | None, str | None, tuple[Hunk, ...]]:
        old, new = self._names()
        hunks = self._hunks()
        if not hunks:
            raise self._damaged("names of files without a hunk behind them", _WHOLE)
        return old, new, hunks

    def _same(self, names: bytes) -> str:
        """Return NAME of `a/NAME b/NAME`, for a diff whose other lines do not contain the name."""
        if names.startswith(b'"'):
            quoted = re.fullmatch(rb'("(?:[^"\\]|\\.)*") ("(?:[^"\\]|\\.)*")', names)
            if quoted is None:
                raise self._damaged("names of files that cannot be told apart")
            return self._stripped(_unquoted(quoted[1]), _unquoted(quoted[2]))[1]
        match = _SAME_NAMES.fullmatch(names)
        if match is None:
            raise self._without_prefix(names.split(b" ")[0])
        return self._stripped(*(match[i] + b"/" + match["name"] for i in (1, 3)))[1]

    def _names(self) -> tuple[str | None, str | None]:
        """Parse the `---`/`+++` pair and leave the cursor after it."""
        raw = []
        for line in (self._here(), self._here(1)):
            name = line[4:].rstrip(b"\r").split(b"\t")[0]
            name = _unquoted(name)
            raw.append(None if name == b"/dev/null" else name)
        old, new = raw
        if old is None and new is None:
            raise self._damaged("/dev/null is no name of a file")
        names = self._stripped(old, new)
        self._at += 2
        return (None if old is None else names[0]), (None if new is None else names[1])

    def _stripped(self, old: bytes | None, new: bytes | None) -> tuple[str, str]:
        """Strip the first part of both names, as `-p1` does. A name that is missing is replaced by
        the other."""
        both = [name for name in (old, new) if name is not None]
        for name in both:
            if b"/" not in name:
                raise self._without_prefix(name)
        firsts = {name.split(b"/", 1)[0] for name in both}
        is_known = len(firsts) == 2 or firsts <= self._prefixes
        self._alike = None if is_known else firsts.pop().decode("utf-8", "replace")
        names = [self._text_of(name.split(b"/", 1)[1]) for name in both]
        return names[0], names[-1]

    def _without_prefix(self, name: bytes) -> DamagedError:
        flaw = _without_prefix(name.decode("utf-8", "replace"))
        return self._damaged(str(flaw), flaw.hint)

    def _text_of(self, name: bytes) -> str:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"the path {name!r} is not UTF-8") from None
        parts = text.split("/")
        bad = {"", ".", "..", ".git"}
        if bad & {part.lower() for part in parts} or not text.isprintable():
            raise self._damaged(f"{text!r} is no path inside a tree")
        return text

    def _hunks(self) -> tuple[Hunk, ...]:
        hunks = []
        while match := _HUNK.match(self._here()):
            hunks.append(self._hunk(match))
        return tuple(hunks)

    def _hunk(self, match: re.Match[bytes]) -> Hunk:
        header = self._at + 1
        old, new = (1 if match[i] is None else int(match[i]) for i in (2, 4))
        self._at += 1
        lines = []
        while old > 0 or new > 0:
            if self._at >= len(self._text):
                raise self._damaged(f"the hunk of line {header} ends early", _WHOLE)
            line = self._here()
            if line == b"":  # a blank line whose space was removed by a mail program
                line = b" "
            kind = line[:1]
            if kind not in (b" ", b"-", b"+", b"\\"):
                raise self._damaged(
                    f"the hunk of line {header} has a line that begins with neither +, - nor a"
                    " space",
                    _WHOLE,
                )
            old -= kind in (b" ", b"-")
            new -= kind in (b" ", b"+")
            lines.append(line)
            self._at += 1
        if old < 0 or new < 0:
            raise self._damaged(f"the hunk of line {header} has more lines than it says", _WHOLE)
        if self._here().startswith(b"\\ "):
            lines.append(self._here())
            self._at += 1
        return Hunk(int(match[1]), int(match[3]), tuple(lines))


def _without_prefix(name: str) -> DamagedError:
    return DamagedError(
        f'the path "{name}" has no a/ or b/ before it (a -p0 patch)',
        "make it with `git format-patch`, or `git diff --src-prefix=a/ --dst-prefix=b/`",
    )


_WHOLE = "a mail program may have broken its lines: take the file that `git format-patch` makes"


def _is_one_change(keys: Collection[str]) -> bool:
    """True if a header has one change: the file is made, removed, or changed in mode or name."""
    kinds = [key for key in ("new file mode", "deleted file mode") if key in keys]
    pairs = (("old mode", "new mode"), *_RENAMED)
    halves = [pair for pair in pairs if (pair[0] in keys) != (pair[1] in keys)]
    named = [pair for pair in _RENAMED if pair[0] in keys]
    moded = "old mode" in keys or "new mode" in keys
    return not halves and len(kinds) + len(named) <= 1 and not (kinds and moded)


def _unquoted(name: bytes) -> bytes:
    r"""Undo git's C quotes: "a/f\303\274.c"."""
    if len(name) < 2 or not (name.startswith(b'"') and name.endswith(b'"')):
        return name
    return _ESCAPE.sub(
        lambda m: _ESCAPED[m[1]] if m[1] in _ESCAPED else bytes([int(m[1], 8) & 0xFF]), name[1:-1]
    )


def check_patch(patch: Patch, source: str) -> Patch:
    """Return the patch if its diffs can be read, else raise ScenarioError. `source` names where
    the patch is from."""
    try:
        diffs = patch.diffs
    except DamagedError as exc:
        raise ScenarioError(
            f"{source}: {exc}", hint=exc.hint, reason=Reason.DAMAGED_PATCH
        ) from exc  # fmt: skip
    if not diffs:
        raise ScenarioError(f"{source} holds no diff", reason=Reason.NO_DIFF)
    if b"\0" in patch.text:
        raise ScenarioError(
            f"{source} has NUL bytes in its diff; only text can be patched here",
            reason=Reason.BINARY_FILE,
        )
    return patch


def check_strip(patch: Patch, source: str, files: Container[str], folders: Container[str]) -> None:
    """Raise ScenarioError if names of a patch have no a/ or b/ before them: they begin with one of
    the tree's `folders`, and the tree has, or gets, files of these names. `files` are the tree's,
    `source` names where the patch is from."""
    for diff in patch.diffs:
        name = diff.new or diff.old
        if diff.stripped is None or diff.stripped not in folders:
            continue
        whole = f"{diff.stripped}/{name}"
        if diff.old is None or whole in files or name not in files:
            flaw = _without_prefix(whole)
            raise ScenarioError(f"{source}: {flaw}", hint=flaw.hint, reason=Reason.DAMAGED_PATCH)
