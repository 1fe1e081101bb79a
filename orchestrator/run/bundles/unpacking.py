"""Open a bundle, which somebody else made: `barometer run BUNDLE`.

Nothing in it is trusted: only plain files are unpacked, below a folder of the cache, each with the
sha256 that bundle.json has. Its scenario may name kernels of the bundle and packages of Debian,
and nothing that is read or run on this machine.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from orchestrator.base.cache import Cache
from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.base.hashing import sha256_file
from orchestrator.base.plainfile import open_plain, read_plain_text
from orchestrator.base.reasons import Reason
from orchestrator.evidence.model import parse_evidence
from orchestrator.run.bundles.record import BUNDLE, OF_A_MACHINE, SCENARIO, BundleRecord
from orchestrator.scenario.loading import parse_toml

_GZIP = b"\x1f\x8b"
_OF_DAMAGE = (
    tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, EvidenceError,
)  # fmt: skip
_MOST_FILES = 50_000
_MOST_BYTES = 8 << 30
"""Of a whole bundle: three kernels with all their modules take a tenth."""
_MOST_OF_A_FILE = 1 << 30
_CHUNK = 1 << 20
_PACKAGE_KEYS = {"deb", "suite", "version"}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked and unpacked."""

    path: Path
    folder: Path
    record: BundleRecord

    @property
    def scenario(self) -> Path:
        return self.folder / SCENARIO


def is_bundle(path: Path) -> bool:
    """True if a file is packed as bundles are. A scenario never is: it is text."""
    try:
        with open_plain(path) as file:
            return file.read(2) == _GZIP
    except OSError:
        return False


def open_bundle(path: Path, cache: Cache) -> Bundle:
    """Unpack a bundle into the cache. Raises ScenarioError if it is none, if it is damaged, or if
    its scenario asks for something of this machine."""
    try:
        key = {"kind": "bundle", "schema": 1, "sha256": sha256_file(path)}
        place = cache.entry("bundles", key, lambda folder: _unpack(path, folder))
        record = parse_evidence(BundleRecord, read_plain_text(place / BUNDLE), f"{path}: {BUNDLE}")
    except _OF_DAMAGE as exc:
        raise _damaged(path, getattr(exc, "message", "") or str(exc)) from exc
    bundle = Bundle(path, place, record)
    _check_scenario(bundle)
    return bundle


def _unpack(path: Path, folder: Path) -> None:
    with (
        open_plain(path) as file,
        gzip.GzipFile(fileobj=file) as packed,
        tarfile.open(fileobj=packed, mode="r|") as archive,
    ):
        first = archive.next()
        if first is None or first.name != BUNDLE or not first.isreg():
            raise ScenarioError(
                f"{path} is no bundle: it does not begin with {BUNDLE}",
                hint="`barometer bundle RUN` makes one", reason=Reason.BUNDLE,
            )  # fmt: skip
        _unpack_file(archive, first, folder, path)
        text = read_plain_text(folder / BUNDLE)
        # FileName: no name in it leads out of the folder
        files = parse_evidence(BundleRecord, text, f"{path}: {BUNDLE}").files
        if len(files) > _MOST_FILES:
            raise _damaged(path, f"it has {len(files)} files, and may have {_MOST_FILES}")
        seen, size = {BUNDLE}, 0
        while (entry := archive.next()) is not None:
            size += entry.size
            if not entry.isreg() or entry.name not in files or entry.name in seen:
                raise _damaged(path, f"{entry.name!r} is not one of its files")
            if size > _MOST_BYTES:
                raise _damaged(path, f"it has more than {_MOST_BYTES} bytes")
            seen.add(entry.name)
            if _unpack_file(archive, entry, folder, path) != files[entry.name]:
                raise _damaged(path, f"{entry.name} does not have its recorded sha256")
        if missing := sorted(files.keys() - seen):
            raise _damaged(path, f"{missing[0]} is missing")
        while packed.read(_CHUNK):
            pass  # its checksum, which covers bundle.json, is at the end


def _unpack_file(
    archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path, path: Path
) -> str:
    """Write a file below the folder, which has no links, and return its sha256."""
    if entry.size > _MOST_OF_A_FILE:
        raise _damaged(path, f"{entry.name} has {entry.size} bytes")
    content = archive.extractfile(entry)
    assert content is not None  # it is a regular file
    target = folder / entry.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        return _copy(content, file)


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> ScenarioError:
    return ScenarioError(f"{path}: {why}", reason=Reason.BUNDLE)


def _check_scenario(bundle: Bundle) -> None:
    """Raise ScenarioError if the scenario names what a bundle must not: machines, commands, files
    and kernels of whoever runs it."""
    if not bundle.scenario.is_file():
        raise _damaged(bundle.path, f"{SCENARIO} is missing")
    source = f"{bundle.path}: {SCENARIO}"
    document = parse_toml(read_plain_text(bundle.scenario), source).unwrap()
    host = _table(document.get("host"))
    keys = [f"host.{key}" for key in OF_A_MACHINE if key in host]
    keys += [key for key in ("history", "matrix") if key in document]
    kernels = bundle.record.kernels
    own = {kernels.baseline.folder, kernels.candidate.folder}
    if bundle.record.guest_kernel is not None:
        own.add(bundle.record.guest_kernel.folder)
    for key, kernel in _find_kernels(document):
        is_package = "deb" in kernel and kernel.keys() <= _PACKAGE_KEYS
        is_own = kernel.keys() == {"dir"} and kernel["dir"] in own
        if not is_package and not is_own:
            keys.append(key)
    if keys:
        raise ScenarioError(
            f"{source}: {', '.join(keys)}: a bundle may not name that",
            hint="a machine of your own: --set host.address=root@HOST",
            reason=Reason.BUNDLE,
        )


def _find_kernels(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each kernel that the scenario names, by its key. What is no table is no kernel, and is
    refused when the scenario is loaded."""
    arms = _table(document.get("arms"))
    owners = {f"arms.{name}": _table(arm) for name, arm in arms.items()}
    for key, owner in (owners | {"guest": _table(document.get("guest"))}).items():
        if "kernel" in owner:
            yield f"{key}.kernel", _table(owner["kernel"])


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
