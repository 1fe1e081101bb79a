"""Hold barometer's reading of series to git's: random histories, written by `git format-patch`
with each of its options, in several transfer encodings. Whatever `git am` makes of the mails,
barometer must build, byte for byte.

    ci/bench/histories.py [--histories 1000] [--seed 1] [--options 25]

`git am` takes a CR before a line's end for the mail's; `git am --keep-cr` takes it for the patched
file's. Barometer finds out which, so its tree must be one of these two, and the commits' own tree
if that is among them.

Prints how many series were alike, refused by both, and refused by one alone (each kind with an
example); fails if a tree differs, or if barometer makes another tree than the commits' own of what
`git am` refuses.
"""

from __future__ import annotations

import argparse
import base64
import email
import email.policy
import os
import quopri
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError
from orchestrator.kernels.series.applying import apply_patches
from orchestrator.kernels.series.git import own_repository
from orchestrator.kernels.series.series import read_series

OPTIONS = (
    (), ("--attach",), ("--inline",), ("--numbered",), ("--no-numbered",), ("-v3",),
    ("--cover-letter",), ("--thread=deep",), ("--signature=x -- y",), ("--no-signature",),
    ("--encode-email-headers",), ("--no-encode-email-headers",), ("--rfc",), ("--no-stat",),
    ("--full-index",), ("--subject-prefix=PATCH 6.1/6.6",), ("--in-reply-to=a@b",),
    ("--from=C D <c@d>",), ("-U1",), ("-U10",), ("--no-renames",), ("--patience",),
    ("--zero-commit",), ("--start-number=3",), ("--no-numbered", "--cover-letter"),
)  # fmt: skip
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
       for what, value in (("NAME", "A. D\u00e9veloper"), ("EMAIL", "a@d.example"))},
}  # fmt: skip
WORDS = ("vfio", "pfnmap", "d\u00e9j\u00e0", "\u65e5\u672c", "x" * 70, "=3D", "a\tb", "--", "diff")
BODIES = (
    "", "Explain why.", "A list:\n\n  - one\n  - two", "Fixes: 0123456789ab (\"x\")\nCc: a@b",
    "It was\n\n    diff of nothing\n\nbefore.", "caf\u00e9 \u2026 " + "long " * 40,
    "Subject: not this one", "[PATCH] is in the text", "> a quoted line\n\nand an answer",
)  # fmt: skip
LINES = (
    b"int a;\n", b"\tint b = 1;\n", b"\n", b"/* caf\xc3\xa9 */\n", b"/* latin \xe9 */\n",
    b"From here on\n", b"-- \n", b"--- a\n", b"+++ b\n", b"=3D =20\n", b"trailing  \n",
    b"x" * 200 + b"\n", b">From\n", b"@@ -1 +1 @@\n", b"diff --git a/x b/x\n", b"---\n",
)  # fmt: skip
WITH_CR = (*LINES, b"cr\r\n", b"\r\n")
ONE_IN = 8
"""Histories per history with CR in its files."""


def git(
    folder: Path, *words: str | Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", *words], cwd=folder, input=stdin, env=ENVIRONMENT, capture_output=True, check=False
    )


def make_history(draw: random.Random, folder: Path) -> bool:
    """Make a repository with a commit `base` and up to four commits after it. Return whether its
    files have lines that end with CR LF."""
    has_cr = draw.randrange(ONE_IN) == 0
    lines = WITH_CR if has_cr else LINES
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in ("a.c", "sub/b.c", "sub/c d.h"):
        write(folder / name, [draw.choice(lines) for _ in range(draw.randint(5, 40))], draw)
    commit(folder, "base")
    git(folder, "tag", "base")
    for _ in range(draw.randint(1, 4)):
        change(folder, lines, draw)
        subject = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6)))
        commit(folder, f"{subject}\n\n{draw.choice(BODIES)}\n")
    return has_cr


def write(path: Path, lines: list[bytes], draw: random.Random) -> None:
    path.parent.mkdir(exist_ok=True)
    text = b"".join(lines)
    path.write_bytes(text if draw.random() < 0.9 else text.rstrip(b"\n"))


def change(folder: Path, some: tuple[bytes, ...], draw: random.Random) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    path = draw.choice(files)
    kind = draw.random()
    if kind < 0.7 or len(files) < 3:
        lines = path.read_bytes().splitlines(keepends=True) or [b""]
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(lines))
            lines[at : at + draw.randint(0, 2)] = [draw.choice(some)] * draw.randint(1, 2)
        write(path, lines, draw)
    elif kind < 0.8:
        write(folder / f"new{draw.randint(0, 99)}.c", [draw.choice(some) for _ in range(5)], draw)
    elif kind < 0.9:
        path.unlink()
    else:
        path.rename(path.with_name(f"moved{draw.randint(0, 99)}.c"))


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "-F", "-", stdin=message.encode())


def as_it_is(mail: bytes) -> bytes:
    return mail


def with_crlf(mail: bytes) -> bytes:
    return mail.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def flowed(mail: bytes) -> bytes:
    """Return a mail of one part as format=flowed (RFC 3676), in which such lines get a space."""
    head, _, body = mail.partition(b"\n\n")
    if b"multipart" in head:
        return mail
    if b"\nContent-Type:" not in head:
        head += b"\nMIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8"
    head = re.sub(rb"(?m)^(Content-Type: .*)$", rb"\1; format=flowed", head)
    return head + b"\n\n" + re.sub(rb"(?m)^(?= |>|From )", b" ", body)


def encoded(kind: str) -> Callable[[bytes], bytes]:
    """Return a function that gives a mail of one part another transfer encoding."""

    def encode(mail: bytes) -> bytes:
        begin, _, rest = mail.partition(b"\n")
        message = email.message_from_bytes(rest, policy=email.policy.compat32)
        if message.is_multipart():
            return mail
        body = message.get_payload(decode=True)
        assert isinstance(body, bytes)
        del message["Content-Transfer-Encoding"]
        message["Content-Transfer-Encoding"] = kind
        if kind == "base64":
            text = base64.encodebytes(body)
        else:  # a CR before a line's end would be taken for a part of the end
            text = quopri.encodestring(body.replace(b"\r\n", b"\0\n")).replace(b"=00", b"=0D")
        message.set_payload(text.decode("ascii"))
        return begin + b"\n" + message.as_bytes(policy=email.policy.compat32)

    return encode


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "8bit": as_it_is, "crlf": with_crlf, "base64": encoded("base64"),
    "quoted-printable": encoded("quoted-printable"), "flowed": flowed,
}  # fmt: skip


def tree_of_git(folder: Path, mails: list[Path], *options: str) -> str | None:
    """Return the tree that `git am` makes, or None if it refuses."""
    git(folder, "checkout", "--quiet", "--force", "--detach", "base")
    done = git(folder, "am", "--quiet", *options, *mails)
    tree = tree_of(folder, "HEAD")
    if done.returncode:
        git(folder, "am", "--abort")
        return None
    return tree


def tree_of(folder: Path, ref: str) -> str:
    return git(folder, "rev-parse", f"{ref}^{{tree}}").stdout.decode().strip()


def tree_of_barometer(folder: Path, series: Path, cache: Cache) -> str:
    """Return the tree that barometer builds. Raises BarometerError if it refuses."""
    base = tree_of(folder, "base")
    with tempfile.TemporaryDirectory() as scratch:
        own = own_repository(Path(scratch) / "git", folder)
        return apply_patches(own, base, read_series([str(series)], None, cache))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--options", type=int, default=len(OPTIONS))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="histories-") as name:
        cache = Cache(Path(name) / "cache")
        for number in range(given.histories):
            folder = Path(name) / f"{number}"
            has_cr = make_history(draw, folder)
            for options in OPTIONS[: given.options]:
                # CR LF at each line's end hides what the files' own ends are
                encoding = draw.choice([k for k in ENCODINGS if k != "crlf" or not has_cr])
                # "3/6" at the beginning of one file would be an incomplete series
                in_one = draw.random() < 0.5 and "--start-number=3" not in options
                outcome, why = compare(folder, options, encoding, in_one, cache)
                counts[outcome] += 1
                how = f"history {number}, {options}, {encoding}, {'mbox' if in_one else 'files'}"
                examples.setdefault(outcome, f"{how}: {why}")
            subprocess.run(["rm", "-rf", folder], check=True)
    for outcome, count in counts.most_common():
        print(f"{count:7}  {outcome}    {examples[outcome] if outcome != 'alike' else ''}")
    return int(bool(counts["differs"] or counts["applied what git am refuses"]))


def compare(
    folder: Path, options: tuple[str, ...], encoding: str, in_one: bool, cache: Cache
) -> tuple[str, str]:
    """Return what became of one series, and a detail. Barometer reads it from one mbox, or from a
    folder of files."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        git(folder, "format-patch", "--quiet", "-o", out, *options, "base..main")
        mails = sorted(out.glob("*"))
        if not mails:
            return "alike", ""
        for mail in mails:
            mail.write_bytes(ENCODINGS[encoding](mail.read_bytes()))
        patches = [mail for mail in mails if not re.search(r"(^|-)0000-", mail.name)]
        trees = {tree_of_git(folder, patches), tree_of_git(folder, patches, "--keep-cr")} - {None}
        if (written := tree_of(folder, "main")) in trees:
            trees = {written}
        if in_one:
            (Path(name) / "mbox").write_bytes(b"".join(mail.read_bytes() for mail in mails))
        try:
            ours = tree_of_barometer(folder, Path(name) / "mbox" if in_one else out, cache)
        except BarometerError as exc:
            text = " ".join(exc.message.replace(name, "").split())[:160]
            return (f"refused: {exc.reason}" if trees else "refused by both"), text
    if not trees and ours == written:  # git am loses a space at the end of flowed lines
        return "the commits' own tree, refused by git am", ours
    if not trees:
        return "applied what git am refuses", ours
    return ("alike", "") if ours in trees else ("differs", f"{ours} {trees}")


if __name__ == "__main__":
    sys.exit(main())
