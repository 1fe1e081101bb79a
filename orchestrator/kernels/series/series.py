"""Read a series of patches from files, git or lore.kernel.org, and check it before anything is
built.

read_series(series, repository, cache) -> (Patch, ...)   files, mboxes, folders, ranges, lore
series_digest(patches)                 -> str            identifies what they do
apply_patches(git, tree, patches)      -> str            the tree with all of them applied
"""

from __future__ import annotations

import re
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.process import run, tail
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.kernels.series.git import Git, commit_id, locate
from orchestrator.kernels.series.mails import (
    Letter,
    mixed_series,
    parse_letters,
    select_patches,
    sort_letters,
)
from orchestrator.kernels.series.patch import Patch, check_patch
from orchestrator.scenario.kernel_forms import is_message_id, is_range

_PATCH_NAMES = (".patch", ".diff", ".mbox", ".mbx", ".eml")
_QUILT = "series"
"""Name of the file in which quilt lists patches."""
_COVER_LETTER = re.compile(r"(v\d+-)?0+-")
"""Name that format-patch gives the file of a cover letter. Its subject may have no number."""
_LONGEST_NAME = 200
_UNKNOWN_MAIL = ("is not known", "No messages found", "error: 404", "404 Client Error")


def read_series(series: Sequence[str], repository: Path | None, cache: Cache) -> tuple[Patch, ...]:
    """Read all patches of `series`, in the order in which they are applied.

    A range A..B names commits of `repository`. Raises ScenarioError if an item does not exist, or
    if it has no patch or a patch that cannot be read; BenchError if lore.kernel.org cannot be
    reached.
    """
    patches: list[Patch] = []
    for item in series:
        if not item.strip():
            raise ScenarioError("an item of series is empty", reason=Reason.NO_SUCH_SERIES)
        for source, letter in _read(item, repository, cache):
            name = letter.subject or Path(source).name
            patches.append(check_patch(Patch(item, len(patches) + 1, name, letter.diff), source))
    return tuple(patches)


def _read(item: str, repository: Path | None, cache: Cache) -> Iterator[tuple[str, Letter]]:
    """Return the patches of one item as pairs: a name of the source for error messages, and the
    patch."""
    if is_message_id(item):
        return _from_lore(item, cache)
    try:
        if is_range(item):
            return _from_range(item, repository)
        path = Path(item)
        listing = path / _QUILT if path.is_dir() else path
        if listing.name == _QUILT and listing.is_file():
            return _from_quilt(listing)
        if path.is_dir():
            return _from_folder(path)
        if path.is_file() or not path.exists():
            return _from_file(path)
    except OSError as exc:  # a name that is too long
        raise ScenarioError(f"{item}: {exc.strerror}", reason=Reason.NO_SUCH_SERIES) from exc
    raise ScenarioError(f"{path} is neither a file nor a folder", reason=Reason.NO_SUCH_SERIES)


def _from_file(path: Path) -> Iterator[tuple[str, Letter]]:
    letters = parse_letters(_content(path), str(path))
    _refuse_none([p for p in letters if p.diff], str(path))
    # a file with a single mail is complete, even if that is "1/3": the user named it alone
    for letter in letters if len(letters) == 1 else sort_letters(letters, str(path)):
        yield _named(path, letter), letter


def _named(source: str | Path, letter: Letter) -> str:
    mail = f"{letter.number}/{letter.total}" if letter.total else letter.subject
    return f"{source} ({mail})" if mail else str(source)


def _refuse_none(diffs: Sequence[object], source: str) -> None:
    if not diffs:
        raise ScenarioError(
            f"{source} holds no diff",
            hint="expected a diff, a mail with one or an mbox, as `git format-patch` makes it",
            reason=Reason.NO_DIFF,
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise _missing(path) from exc
    except (OSError, ValueError) as exc:
        raise ScenarioError(f"{path} cannot be read: {exc}", reason=Reason.NO_SUCH_SERIES) from exc


def _missing(path: Path) -> ScenarioError:
    folder = path.parent
    if not folder.is_dir():
        return ScenarioError(
            f"there is no {path}, nor its folder",
            hint="paths are from the scenario's folder", reason=Reason.NO_SUCH_SERIES,
        )  # fmt: skip
    names = sorted(p.name for p in folder.iterdir())
    return ScenarioError(
        f"there is no {path}{nearest_name(path.name, names)}",
        hint="a series is a file, a folder, a range A..B of the tree's commits, or a message-id",
        reason=Reason.NO_SUCH_SERIES,
    )


def _from_quilt(listing: Path) -> Iterator[tuple[str, Letter]]:
    for path in _listed(listing):
        yield from _from_file(path)


def _from_folder(folder: Path) -> Iterator[tuple[str, Letter]]:
    paths = _files_of(folder)
    if not paths:
        raise ScenarioError(
            f"{folder} holds no patches",
            hint=f"expected a file `{_QUILT}`, or files that end with {', '.join(_PATCH_NAMES)}",
            reason=Reason.NO_SUCH_SERIES,
        )
    parts = [(path, parse_letters(_content(path), str(path))) for path in paths]
    for path, letters in parts:
        if not _COVER_LETTER.match(path.name):
            _refuse_none([p for p in letters if p.diff or p.number == 0], str(path))
    kept = {id(p) for p in select_patches([p for _, letters in parts for p in letters])}
    whole = [(path, p) for path, letters in parts for p in letters if id(p) in kept]
    _refuse_none(whole, str(folder))
    if _is_one_series(numbered := [p for _, p in whole if p.number is not None]):
        if len(numbered) < len(whole):
            _refuse_strays(folder, whole)
        else:
            whole.sort(key=lambda pair: pair[1].number or 0)
    for path, letter in whole:
        yield _named(path, letter), letter


def _files_of(folder: Path) -> list[Path]:
    """Return the files of a folder, or of a Maildir, that hold patches, in the order of the
    numbers in their names. `format-patch --numbered-files` gives a number for a name."""
    maildir = [place for place in (folder / "cur", folder / "new") if place.is_dir()]
    files = [path for place in maildir or [folder] for path in place.iterdir()]
    named = (p for p in files if maildir or p.name.isdecimal() or p.name.endswith(_PATCH_NAMES))
    return sorted((p for p in named if p.is_file()), key=_by_number)  # a pipe would never end


def _is_one_series(letters: Sequence[Letter]) -> bool:
    """True if numbered letters are the mails of one series, saved one by one. Then the numbers
    give the order, and the names of the files do not matter."""
    return len({letter.number for letter in letters}) == len(letters) and (
        len({(letter.total, letter.version) for letter in letters}) == 1
    )


def _refuse_strays(folder: Path, whole: Sequence[tuple[Path, Letter]]) -> None:
    """Raise ScenarioError if mails of a series are saved together with a patch without a number
    whose place is not known. A patch that the user added has its place by its file's name."""
    numbers = [letter.number for _, letter in whole if letter.number is not None]
    for path, letter in whole:
        if letter.number is None and (letter.answers or numbers != sorted(numbers)):
            raise mixed_series(str(folder), f"{path.name} has no number, other patches have")


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts 2-x.patch before 10-x.patch."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def _listed(listing: Path) -> Iterator[Path]:
    """Yield the paths of the patches that quilt's file `series` lists. Its lines are `NAME [-p1]`;
    # begins a comment."""
    any_ = False
    for number, line in enumerate(_content(listing).decode("utf-8", "replace").splitlines(), 1):
        name, *options = re.sub(r"(^|\s)#.*", "", line).split() or [""]
        if not name:
            continue
        if not {*options} <= {"-p1", "-pab"}:
            raise ScenarioError(
                f"{listing}: line {number}: {name} is to be applied with {' '.join(options)}",
                hint="patches are applied with -p1, forward: `quilt refresh -p1` makes them so",
                reason=Reason.DAMAGED_PATCH,
            )
        any_ = True
        yield listing.parent / name
    if not any_:
        raise ScenarioError(f"{listing} names no patch", reason=Reason.NO_SUCH_SERIES)


def _from_range(item: str, repository: Path | None) -> Iterator[tuple[str, Letter]]:
    if repository is None:
        raise ScenarioError(
            f"{item} is a range of commits, and there is no git repository that it is of",
            hint="a file instead: `git format-patch --stdout A..B > FILE`",
            reason=Reason.NO_SUCH_REPOSITORY,
        )
    git = locate(repository)
    first, _, last = item.partition("..")
    if last.startswith("."):
        raise ScenarioError(
            f"{item}: three dots",
            hint=f"write {first}..{last.lstrip('.')}",
            reason=Reason.NO_SUCH_REF,
        )
    begin, end = (commit_id(git, name, repository) for name in (first, last))
    if merges := _commits(git, "--merges", "--max-count=1", f"{begin}..{end}"):
        sha, subject = merges[0]
        raise ScenarioError(
            f'{item}: {sha[:12]} ("{subject}") is a merge, which is no patch',
            hint="name a range without merges, or build its end: ref instead of series",
            reason=Reason.MERGE_IN_RANGE,
        )
    commits = _commits(git, "--reverse", f"{begin}..{end}")
    if not commits:
        more = git.line("rev-list", "--count", f"{end}..{begin}")
        raise ScenarioError(
            f"{item}: there is no commit in this range of {repository}",
            hint=f"the other way round ({last}..{first}) there are {more}" if more != "0" else "",
            reason=Reason.EMPTY_RANGE,
        )
    diffs = list(_diffs(git, item, commits))
    _refuse_none(diffs, item)
    yield from diffs


def _commits(git: Git, *which: str) -> list[tuple[str, str]]:
    """Return ids and subjects of the commits that `git log` lists."""
    text = git.run("log", "--no-show-signature", "--no-color", "--format=%H %s", *which).stdout
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.split("\n")[:-1]]


def _diffs(
    git: Git, item: str, commits: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, Letter]]:
    """Yield the diff of each commit that changes something. The user's git settings have no effect
    on `git diff-tree`."""
    content = git.run(
        "diff-tree", "--stdin", "--root", "-r", "-p", "--full-index", "--no-color",
        "--no-ext-diff", "--no-textconv", "--no-renames", "--unified=3", "--src-prefix=a/",
        "--dst-prefix=b/", "--inter-hunk-context=0",
        stdin="".join(f"{sha}\n" for sha, _ in commits), doing=f"reading {item}",
    ).content  # fmt: skip
    shas = b"|".join(sha.encode() for sha, _ in commits)
    # A line with only the id begins a commit's diff. No line within a diff is like that: they
    # begin with +, -, space, ...
    parts = re.split(rb"(?m)^(" + shas + rb")\n", content)
    diffs = dict(zip(parts[1::2], parts[2::2], strict=True))
    for sha, subject in commits:
        if diff := diffs.get(sha.encode()):
            yield f"{item} ({sha[:12]})", Letter(subject, None, None, 1, False, diff)


def _from_lore(item: str, cache: Cache) -> Iterator[tuple[str, Letter]]:
    """Yield the patches that b4 finds for a message-id: the newest version of the series in that
    thread.

    They are fetched once and kept in the cache by their message-id."""
    message_id = item.strip("<>")
    name = urllib.parse.quote(message_id, safe="@+=")
    if len(name) > _LONGEST_NAME:
        name = digest_of({"message-id": message_id})
    place = cache.folder("lore") / f"{name}.mbx"
    with cache.lock(f"lore/{name}"):
        if not place.exists():
            mbox = _fetched(message_id)
            _refuse_none(sort_letters(parse_letters(mbox, item), item), item)
            beside = place.with_suffix(".part")
            beside.write_bytes(mbox)
            beside.rename(place)
    for letter in sort_letters(parse_letters(place.read_bytes(), item), item):
        yield _named(item, letter), letter


def _fetched(message_id: str) -> bytes:
    """Fetch the series with b4 and return its mbox."""
    by_hand = (
        "without b4: save https://lore.kernel.org/all/"
        f"{urllib.parse.quote(message_id, safe='@')}/t.mbox.gz and name that file in series"
    )
    with tempfile.TemporaryDirectory() as folder:  # outside any repository: b4 would read it
        try:
            done = run(["b4", "am", "-o", "-", "--no-cover", "--", message_id],
                       doing=f"fetching {message_id}", cwd=Path(folder), timeout=180,
                       accept=range(256))  # fmt: skip
        except BenchError as exc:
            exc.hint = f"install b4 (apt-get install b4), or {by_hand}"
            raise
    if done.returncode == 0 and done.content:
        return done.content
    output = tail(done.stderr + done.stdout)
    if any(words in output for words in _UNKNOWN_MAIL):
        raise ScenarioError(
            f'lore.kernel.org has no mail "{message_id}"', evidence=output,
            hint="a message-id is in a mail's header Message-ID, and in its address there",
            reason=Reason.NO_SUCH_MAIL,
        )  # fmt: skip
    raise BenchError(
        f"b4 could not fetch {message_id} from lore.kernel.org", evidence=output,
        hint=f"is there a network? Else, {by_hand}", reason=Reason.LORE_UNREACHABLE,
    )  # fmt: skip
