"""Read Debian's package archive with apt: signatures are checked, nothing is installed.

apt has a private root in the cache for each set of suites. The mirror is BAROMETER_MIRROR or
http://deb.debian.org/debian; security suites come from BAROMETER_SECURITY_MIRROR.
"""

from __future__ import annotations

import contextlib
import email.parser
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.plainfile import read_plain_text
from orchestrator.base.process import Finished, run
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Names for "did you mean" only: the mirror decides which suites exist.
KNOWN_SUITES = (
    "bookworm", "bookworm-backports", "bookworm-security", "bookworm-updates",
    "trixie", "trixie-backports", "trixie-security", "trixie-updates",
    "forky", "sid", "testing", "unstable", "experimental",
)  # fmt: skip
_FRESH_SECONDS = 6 * 3600
_UPDATE_SECONDS, _DOWNLOAD_SECONDS = 300.0, 1800.0
"""Deadlines of apt for package lists and for packages. apt itself has none for a mirror that sends
a byte now and then."""
_RETRIES = 3
# apt's messages about files that are not signed, or differ from the mirror's signed lists.
_UNTRUSTED = re.compile(
    r"is not signed|GPG error|Clearsigned file isn't valid|Hash Sum mismatch|unexpected size"
    r"|No Hash entry|Unable to parse|is not valid yet|is expired"
)
# apt's message about a server that refuses a file. apt also reports such a file as not signed.
_REFUSED = re.compile(r"Failed to fetch \S+\s+[45]\d\d ")
# Messages of mmdebstrap's apt about a mirror, within all the output of a build.
_OF_A_MIRROR = re.compile(
    r"(?m)^E: (Failed to fetch|The repository .* (is not signed|does not have a Release file))"
)


def mirror() -> str:
    return os.environ.get("BAROMETER_MIRROR", "http://deb.debian.org/debian").rstrip("/")


def security_mirror() -> str:
    default = mirror().removesuffix("/debian") + "/debian-security"
    return os.environ.get("BAROMETER_SECURITY_MIRROR", default).rstrip("/")


def source_lines(suites: tuple[str, ...]) -> list[str]:
    """Return sources.list lines for the suites, bound to Debian's keyring."""
    return [
        f"deb [signed-by={KEYRING}] "
        f"{security_mirror() if suite.endswith('-security') else mirror()} {suite} main"
        for suite in suites
    ]


def own_settings() -> list[str]:
    """Return this machine's proxies and transport settings as apt.conf lines, which apply to the
    private root, too."""
    done = run(["apt-config", "dump", "Acquire"], doing="reading apt's configuration")
    return done.stdout.splitlines()


def mirror_error(text: str, packages: str = "") -> BenchError:
    """Return the mirror's error for apt's output `text`: `mirror-untrusted` or
    `mirror-unreachable`. `packages`: the packages that could not be fetched."""
    lines = "\n".join(re.findall(r"(?m)^[EW]: .*$", text)[:5])
    behind = f": {packages}" if packages else ""
    if _UNTRUSTED.search(text) and not _REFUSED.search(text):
        return BenchError(
            f"the mirror {mirror()} serves files that cannot be trusted{behind}",
            evidence=lines,
            hint="it may be in the middle of an update, or something on the way changes files:"
            " try again later, or set BAROMETER_MIRROR to another mirror",
            reason=Reason.MIRROR_UNTRUSTED,
        )
    return BenchError(
        f"the mirror {mirror()} cannot be reached{behind}",
        evidence=lines,
        hint="set BAROMETER_MIRROR to a Debian mirror this machine reaches",
        reason=Reason.MIRROR_UNREACHABLE,
    )


@contextlib.contextmanager
def mirror_blamed() -> Iterator[None]:
    """If a program in the block fails because its apt cannot use the mirror, raise the mirror's
    error instead."""
    try:
        yield
    except BenchError as exc:
        if exc.reason == Reason.PROGRAM_FAILED and _OF_A_MIRROR.search(exc.evidence):
            raise mirror_error(exc.evidence) from exc
        raise


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    source: str
    filename: str
    sha256: str


class AptArchive:
    """The packages of some suites, as apt in a private root reports them."""

    def __init__(self, suites: tuple[str, ...], cache: Cache) -> None:
        self.suites = suites
        self._root = cache.folder("apt") / "+".join(suites)
        self._held = functools.partial(cache.held, f"apt/{'+'.join(suites)}")
        self._conf = self._root / "apt.conf"

    def update(self) -> None:
        """Fetch the package lists unless they are younger than six hours.

        Raises ScenarioError if the mirror has no such suite, BenchError if it cannot be reached
        and there are no older lists.
        """
        sources = "\n".join(source_lines(self.suites)) + "\n"
        with self._held():
            self._prepare()
            stamp, listed = self._root / "updated", self._root / "etc/apt/sources.list"
            same = listed.exists() and listed.read_text() == sources and stamp.exists()
            if same and time.time() - stamp.stat().st_mtime < _FRESH_SECONDS:
                return
            listed.write_text(sources)
            if (text := self._fetch_lists()) is None:
                stamp.touch()
                return
            for suite in self.suites:
                # E: The repository 'http://MIRROR SUITE Release' does not have a Release file.
                missing = rf"{re.escape(f' {suite} Release')}' (does not have|no longer)"
                if re.search(missing, text) and re.search(r"(?i)not found", text):
                    others = [name for name in KNOWN_SUITES if name != suite]
                    raise ScenarioError(
                        f'the mirror {mirror()} has no suite "{suite}"'
                        + ("" if suite in KNOWN_SUITES else nearest_name(suite, others, others)),
                        hint="is BAROMETER_MIRROR the folder that dists/ is in?",
                        reason=Reason.NO_SUCH_SUITE,
                    )
            if not same:  # older lists of the same suites will do
                stamp.unlink(missing_ok=True)
                raise mirror_error(text)

    def _fetch_lists(self) -> str | None:
        """Fetch the package lists. Return apt's output if that fails, else None."""
        argv = ["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"]
        try:
            done = self._apt(argv, accept=(0, 100), timeout=_UPDATE_SECONDS)
        except BenchError as exc:
            if exc.reason != Reason.PROGRAM_TIMEOUT:
                raise
            return f"E: the package lists did not come within {_UPDATE_SECONDS:.0f} s"
        return done.stdout + done.stderr if done.returncode else None

    def remembered(self, question: str, ask: Callable[[], Any]) -> Any:
        """Return the JSON answer of `ask`, kept under `question` until the package lists change:
        apt takes seconds."""
        memory = self._root / "answers.json"
        with self._held():
            lists = (self._root / "updated").stat().st_mtime_ns
            try:
                answers = json.loads(read_plain_text(memory))
            except (OSError, ValueError, RecursionError):
                answers = {}
            if not isinstance(answers, dict) or answers.get("lists") != lists:
                answers = {"lists": lists}
            if question not in answers:
                answers[question] = ask()
                memory.write_text(json.dumps(answers))
            return answers[question]

    def versions(self, name: str) -> list[tuple[str, str]]:
        """Return (version, suite) of every package of that name, newest first."""
        text = self._apt(["apt-cache", "madison", name]).stdout
        rows = []
        for line in text.splitlines():  # ` NAME | VERSION | MIRROR SUITE/COMPONENT ARCH Packages`
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3 and fields[2].endswith("Packages"):
                rows.append((fields[1], fields[2].split()[1].rsplit("/", 1)[0]))
        return rows

    def names_like(self, start: str) -> list[str]:
        return self._apt(["apt-cache", "pkgnames", start]).stdout.split()

    def dependencies(self, name: str, version: str) -> list[Package]:
        """Return the package and all it depends on, as apt would install them into an empty
        system."""
        text = self._apt(
            ["apt-get", "install", "--simulate", "--no-install-recommends", "-q",
             *[part for suite in self.suites for part in ("-t", suite)], f"{name}={version}"],
        ).stdout  # fmt: skip
        chosen = re.findall(r"(?m)^Inst (\S+) \((\S+) ", text)  # Inst NAME (VERSION ORIGIN ...)
        return self._show(chosen)

    def download(self, packages: list[Package], folder: Path) -> list[Path]:
        """Fetch the packages into `folder`; apt checks their hashes against the signed lists."""
        versions = [f"{p.name}={p.version}" for p in packages]
        try:
            done = self._apt(["apt-get", "download", "-q", *versions], cwd=folder,
                             accept=(0, 100), timeout=_DOWNLOAD_SECONDS)  # fmt: skip
        except BenchError as exc:
            if exc.reason == Reason.PROGRAM_TIMEOUT:
                raise mirror_error(exc.message, " ".join(versions)) from exc
            raise
        if done.returncode:
            error = mirror_error(done.stderr, " ".join(versions))
            error.hint += "; it may have moved on: remove the folder apt/ of the cache, and retry"
            raise error
        return sorted(folder.glob("*.deb"))

    def _show(self, chosen: list[tuple[str, str]]) -> list[Package]:
        text = self._apt(
            ["apt-cache", "show", "--no-all-versions", *[f"{n}={v}" for n, v in chosen]]
        ).stdout
        packages = []
        for block in text.strip().split("\n\n"):
            fields = email.parser.HeaderParser().parsestr(block)
            packages.append(
                Package(
                    name=fields["Package"],
                    version=fields["Version"],
                    source=(fields["Source"] or fields["Package"]).split()[0],
                    filename=fields["Filename"],
                    sha256=fields["SHA256"],
                )
            )
        return packages

    def _prepare(self) -> None:
        if not KEYRING.exists():
            raise BenchError(
                f"Debian's keyring {KEYRING} is missing, so signatures cannot be checked",
                hint="apt-get install debian-archive-keyring",
                reason=Reason.KEYRING_MISSING,
            )
        for folder in (
            "etc/apt/preferences.d", "etc/apt/apt.conf.d", "etc/apt/sources.list.d",
            "var/lib/dpkg", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial",
        ):  # fmt: skip
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        (self._root / "var/lib/dpkg/status").touch()
        own = "".join(f"{line}\n" for line in own_settings())
        text = (
            f"{own}"
            f'Dir "{self._root}";\n'
            f'Dir::State::status "{self._root}/var/lib/dpkg/status";\n'
            f'Dir::Etc::Main "{self._conf}";\nDir::Etc::Parts "{self._root}/etc/apt/apt.conf.d";\n'
            'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\n'
            f'Acquire::Languages "none";\nAcquire::Retries "{_RETRIES}";\n'
            'APT::Sandbox::User "";\nDebug::NoLocking "true";\n'
        )
        # replaced in one step: a process that reads half of it would use the system's mirrors
        if not self._conf.exists() or self._conf.read_text() != text:
            beside = self._conf.with_suffix(".new")
            beside.write_text(text)
            beside.rename(self._conf)

    def _apt(
        self, argv: list[str], *, cwd: Path | None = None, accept: tuple[int, ...] = (0,),
        timeout: float = 120,
    ) -> Finished:  # fmt: skip
        return run(argv, doing="asking Debian's archive", env={"APT_CONFIG": str(self._conf),
                   "LC_ALL": "C.UTF-8"}, cwd=cwd, accept=accept, timeout=timeout)  # fmt: skip
