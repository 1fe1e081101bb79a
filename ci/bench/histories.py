"""Hold barometer's reading of series to git's: random histories, written by `git format-patch`
with each of its options, in several transfer encodings. Whatever `git am` makes of the mails,
barometer must build, byte for byte.

    ci/bench/histories.py [--histories 1000] [--seed 1] [--options 25]

Prints how many series were alike, refused by both, and refused by barometer alone (each kind with
an example); fails if a tree differs, or if barometer applies what `git am` refuses.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import os
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
    b"From here on\n", b"-- \n", b"--- a\n", b"+++ b\n", b"=3D =20\n", b"cr\r\n", b"trailing  \n",
    b"x" * 200 + b"\n", b">From\n", b"@@ -1 +1 @@\n",
)  # fmt: skip


def git(
    folder: Path, *words: str | Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", *words], cwd=folder, input=stdin, env=ENVIRONMENT, capture_output=True, check=False
    )


def make_history(draw: random.Random, folder: Path) -> None:
    """Make a repository with a commit `base` and up to four commits after it."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in ("a.c", "sub/b.c", "sub/c d.h"):
        write(folder / name, [draw.choice(LINES) for _ in range(draw.randint(5, 40))], draw)
    commit(folder, "base")
    git(folder, "tag", "base")
    for _ in range(draw.randint(1, 4)):
        change(folder, draw)
        subject = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6)))
        commit(folder, f"{subject}\n\n{draw.choice(BODIES)}\n")


def write(path: Path, lines: list[bytes], draw: random.Random) -> None:
    path.parent.mkdir(exist_ok=True)
    text = b"".join(lines)
    path.write_bytes(text if draw.random() < 0.9 else text.rstrip(b"\n"))


def change(folder: Path, draw: random.Random) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    path = draw.choice(files)
    kind = draw.random()
    if kind < 0.7 or len(files) < 3:
        lines = path.read_bytes().splitlines(keepends=True) or [b""]
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(lines))
            lines[at : at + draw.randint(0, 2)] = [draw.choice(LINES)] * draw.randint(1, 2)
        write(path, lines, draw)
    elif kind < 0.8:
        write(folder / f"new{draw.randint(0, 99)}.c", [draw.choice(LINES) for _ in range(5)], draw)
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
        message.set_payload(body)
        if kind == "base64":
            email.encoders.encode_base64(message)
        else:
            email.encoders.encode_quopri(message)
        return begin + b"\n" + message.as_bytes(policy=email.policy.compat32)

    return encode


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "8bit": as_it_is, "crlf": with_crlf, "base64": encoded("base64"),
    "quoted-printable": encoded("quoted-printable"),
}  # fmt: skip


def tree_of_git(folder: Path, mails: list[Path]) -> str | None:
    """Return the tree that `git am` makes, or None if it refuses."""
    git(folder, "checkout", "--quiet", "--detach", "base")
    done = git(folder, "am", "--quiet", "--keep-non-patch", *mails)
    tree = git(folder, "rev-parse", "HEAD^{tree}").stdout.decode().strip()
    if done.returncode:
        git(folder, "am", "--abort")
        return None
    return tree


def tree_of_barometer(folder: Path, mails: list[Path], cache: Cache) -> str:
    """Return the tree that barometer builds. Raises BarometerError if it refuses."""
    base = git(folder, "rev-parse", "base^{tree}").stdout.decode().strip()
    with tempfile.TemporaryDirectory() as scratch:
        own = own_repository(Path(scratch) / "git", folder)
        return apply_patches(own, base, read_series([str(mails[0].parent)], None, cache))


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
            make_history(draw, folder)
            for options in OPTIONS[: given.options]:
                encoding = draw.choice([*ENCODINGS])
                outcome, why = compare(folder, options, encoding, cache)
                counts[outcome] += 1
                examples.setdefault(outcome, f"history {number}, {options}, {encoding}: {why}")
            subprocess.run(["rm", "-rf", folder], check=True)
    for outcome, count in counts.most_common():
        print(f"{count:7}  {outcome}    {examples[outcome] if outcome != 'alike' else ''}")
    return int(bool(counts["differs"] or counts["applied what git am refuses"]))


def compare(
    folder: Path, options: tuple[str, ...], encoding: str, cache: Cache
) -> tuple[str, str]:
    """Return what became of one series, and a detail."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        git(folder, "format-patch", "--quiet", "-o", out, *options, "base..main")
        mails = sorted(out.glob("*"))
        if not mails:
            return "alike", ""
        for mail in mails:
            mail.write_bytes(ENCODINGS[encoding](mail.read_bytes()))
        patches = [mail for mail in mails if not re.search(r"(^|-)0000-", mail.name)]
        theirs = tree_of_git(folder, patches)
        try:
            ours = tree_of_barometer(folder, mails, cache)
        except BarometerError as exc:
            text = " ".join(exc.message.replace(name, "").split())[:160]
            return ("refused by both" if theirs is None else f"refused: {exc.reason}"), text
    if theirs is None:
        return "applied what git am refuses", ours
    return ("alike", "") if ours == theirs else ("differs", f"{ours} {theirs}")


if __name__ == "__main__":
    sys.exit(main())
