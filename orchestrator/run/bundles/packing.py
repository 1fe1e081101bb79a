"""Make a bundle of a run: `barometer bundle RUN`. The same run gives the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import re
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomlkit

from orchestrator.base.cache import ENTRY, Cache
from orchestrator.base.errors import BarometerError, ScenarioError
from orchestrator.base.plainfile import read_plain
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.layout import RunDir, read_json
from orchestrator.evidence.model import BothArms
from orchestrator.kernels import materialise_kernel
from orchestrator.kernels.series.git import find_repository
from orchestrator.kernels.series.patch import Patch, series_digest
from orchestrator.kernels.series.series import read_series
from orchestrator.run.bundles.outcomes import count_outcomes, find_conditions, list_metrics
from orchestrator.run.bundles.record import (
    BUNDLE,
    OF_A_MACHINE,
    RUN,
    SCENARIO,
    ArmOutcomes,
    BundledKernel,
    BundleRecord,
)
from orchestrator.run.judging.judge import Run, judge, open_run
from orchestrator.scenario.kernel_forms import DebKernel, Kernel, ModuleKernel
from orchestrator.scenario.loading import parse_toml, set_key
from orchestrator.scenario.vocabulary import ARMS, ArmName

_EVIDENCE = ("scenario.toml", "plan.json", "comparison.json", "report.txt", "kernels/*.config",
             "trials/[0-9]*/**/*")  # fmt: skip


@dataclass
class _Contents:
    """What goes into a bundle: name -> file on disk, or content."""

    parts: dict[str, Path | bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def hashes(self) -> dict[str, str]:
        return {name: sha256(_read(part)).hexdigest() for name, part in sorted(self.parts.items())}


def make_bundle(
    folder: Path, out: Path, cache: Cache, progress: Progress, *, all_kernels: bool
) -> BundleRecord:
    """Write the bundle of a run to the file `out`. Kernels from Debian's packages are named by
    version and hash; `all_kernels`: they are put into the bundle, too.

    Raises ScenarioError if `out` exists, or if a kernel that was built is no longer in the cache;
    and the errors of `judge`.
    """
    if out.exists():
        raise ScenarioError(f"{out} exists", hint="give another --out", reason=Reason.PATH)
    run_dir = open_run(folder)
    run = judge(run_dir)
    contents = _Contents()
    packer = _KernelPacker(cache, progress, contents, all_kernels=all_kernels)
    kernels = {
        arm: packer.pack(run.scenario.arms[arm].kernel, run.plan.kernels[arm], arm) for arm in ARMS
    }
    guest_kernel = None
    if run.plan.guest_kernel is not None and run.scenario.guest is not None:
        guest_kernel = packer.pack(run.scenario.guest.kernel, run.plan.guest_kernel, "guest")
    contents.parts[SCENARIO] = _rewrite_scenario(run_dir, run, kernels, guest_kernel).encode()
    for pattern in _EVIDENCE:
        for path in sorted(run_dir.path.glob(pattern)):
            if path.is_file() and not path.is_symlink():
                contents.parts[f"{RUN}/{path.relative_to(run_dir.path).as_posix()}"] = path
    record = _describe(run, kernels, guest_kernel, contents)
    with progress.stage(f"writing {out}"):
        _write(out, record, contents)
    return record


def _describe(
    run: Run, kernels: Mapping[ArmName, BundledKernel], guest_kernel: BundledKernel | None,
    contents: _Contents,
) -> BundleRecord:  # fmt: skip
    return BundleRecord(
        schema=1, barometer=run.plan.barometer, scenario=run.scenario.name, run=run.path.name,
        accel=run.plan.accel, verdict=run.comparison.verdict,
        kernels=BothArms[BundledKernel](
            baseline=kernels["baseline"], candidate=kernels["candidate"]
        ),
        guest_kernel=guest_kernel,
        conditions=BothArms[dict[str, str]](
            baseline=find_conditions(run.trials, "baseline"),
            candidate=find_conditions(run.trials, "candidate"),
        ),
        outcomes=BothArms[ArmOutcomes](
            baseline=count_outcomes(run, "baseline"), candidate=count_outcomes(run, "candidate")
        ),
        metrics=tuple(list_metrics(run)), notes=tuple(contents.notes), files=contents.hashes(),
    )  # fmt: skip


# kernels -----------------------------------------------------------------------------------------


@dataclass
class _KernelPacker:
    cache: Cache
    progress: Progress
    contents: _Contents
    all_kernels: bool

    def pack(self, kernel: Kernel, record: KernelRecord, role: str) -> BundledKernel:
        """Put a kernel into the bundle, unless Debian has it; and its patches, if it has any."""
        self._pack_series(kernel, record, role)
        folder = None
        if not _is_package(kernel) or self.all_kernels:
            place = self._find(kernel, record, role)
            folder = f"kernels/{record.digest}"
            for path in sorted(place.rglob("*")):
                name = path.relative_to(place).as_posix()
                is_plain = path.is_file() and not path.is_symlink()
                if is_plain and (name in ("vmlinuz", "config") or name.startswith("modules/")):
                    self.contents.parts[f"{folder}/{name}"] = path
        return BundledKernel(
            release=record.release, source=record.source, digest=record.digest, folder=folder
        )

    def _find(self, kernel: Kernel, record: KernelRecord, role: str) -> Path:
        """Return the kernel's folder in the cache. Raises ScenarioError if it is not there."""
        if (place := find_cached_kernel(self.cache, record)) is not None:
            return place
        if _is_package(kernel):
            bundle = materialise_kernel(pin_package(kernel, record), self.cache, self.progress)
            if bundle.digest == record.digest:
                return bundle.vmlinuz.parent
        raise ScenarioError(
            f"the kernel of the {role}, {record.source} ({record.release}), is no longer in the"
            f" cache {self.cache.root}",
            hint="repeat the run there, which builds it again, and bundle that",
            reason=Reason.BUNDLE,
        )

    def _pack_series(self, kernel: Kernel, record: KernelRecord, role: str) -> None:
        """Put the patches of a kernel into the bundle, if they still are what they were."""
        if not record.provenance.series:
            return
        try:
            patches = self._read_series(kernel)
        except BarometerError as exc:
            self.contents.notes.append(f"{role}: its patches are no longer there: {exc.message}")
            return
        known = [patch.digest for patch in record.provenance.series]
        if [series_digest([patch]) for patch in patches] != known:
            self.contents.notes.append(f"{role}: its patches have changed since the run")
            return
        for patch in patches:
            word = re.sub(r"[^A-Za-z0-9]+", "-", patch.subject).strip("-")[:60]
            name = f"series/{role}/{patch.number:04}-{word or 'patch'}.patch"
            self.contents.parts[name] = f"Subject: {patch.subject}\n\n---\n".encode() + patch.text

    def _read_series(self, kernel: Kernel) -> tuple[Patch, ...]:
        place = getattr(kernel, "tree", None) or getattr(kernel, "module", None)
        repository = place if place is not None and find_repository(place) else None
        return read_series(getattr(kernel, "series", ()), repository, self.cache)


def find_cached_kernel(cache: Cache, record: KernelRecord) -> Path | None:
    """Return the folder of a run's kernel in the cache; None if it is not there."""
    place = cache.root / "kernels" / record.digest
    if not (place / ENTRY).is_file():
        return None
    return place if cache.find("kernels", read_json(place / ENTRY)["key"]) == place else None


def _is_package(kernel: Kernel) -> bool:
    return isinstance(kernel, DebKernel) and not isinstance(kernel, ModuleKernel)


def pin_package(kernel: Kernel, record: KernelRecord) -> DebKernel:
    """Return the package of exactly the version that the run had."""
    assert isinstance(kernel, DebKernel)
    version = record.provenance.version or kernel.version
    return DebKernel(deb=kernel.deb, suite=kernel.suite, version=version)


# the scenario ------------------------------------------------------------------------------------


def _rewrite_scenario(
    run_dir: RunDir, run: Run, kernels: Mapping[ArmName, BundledKernel],
    guest_kernel: BundledKernel | None,
) -> str:  # fmt: skip
    """Return the run's scenario with kernels that are had elsewhere, too, and without what belongs
    to this lab only."""
    source = str(run_dir.path / SCENARIO)
    document = parse_toml(run_dir.scenario(), source)
    scenario, plan = run.scenario, run.plan
    for arm in ARMS:
        table = _spell(kernels[arm], scenario.arms[arm].kernel, plan.kernels[arm])
        set_key(document, ("arms", arm, "kernel"), table)
    if guest_kernel is not None and scenario.guest is not None and plan.guest_kernel is not None:
        table = _spell(guest_kernel, scenario.guest.kernel, plan.guest_kernel)
        set_key(document, ("guest", "kernel"), table)
    document.pop("history", None)
    for key in OF_A_MACHINE:
        document.get("host", {}).pop(key, None)
    if scenario.host.kind == "nested":
        set_key(document, ("host", "accel"), plan.accel)  # the numbers are of this kind
    return tomlkit.dumps(document)


def _spell(bundled: BundledKernel, kernel: Kernel, record: KernelRecord) -> Any:
    table = tomlkit.inline_table()
    if bundled.folder is not None:
        table["dir"] = bundled.folder
    else:
        table.update(pin_package(kernel, record).model_dump(exclude_none=True))
    return table


# the file ----------------------------------------------------------------------------------------


def _write(out: Path, record: BundleRecord, contents: _Contents) -> None:
    """Write the file beside `out` and rename it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    try:
        with (
            beside.open("xb") as file,
            # no name and no time: the same content gives the same file
            gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            text = json.dumps(record.model_dump(mode="json", by_alias=True), indent=1) + "\n"
            _add(archive, BUNDLE, text.encode())
            for name, part in sorted(contents.parts.items()):
                _add(archive, name, part)
        beside.rename(out)
    finally:
        beside.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, name: str, part: Path | bytes) -> None:
    content = _read(part)
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = 0o644, len(content)
    archive.addfile(entry, io.BytesIO(content))


def _read(part: Path | bytes) -> bytes:
    return part if isinstance(part, bytes) else read_plain(part)
