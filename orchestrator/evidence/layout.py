"""The evidence on disk: the only thing that passes from collecting to judging.

    RUN/scenario.toml plan.json
    RUN/kernels/baseline.config              and candidate.config, for kernels that come with one
    RUN/comparison.json report.txt report.html   the results of judging; for other tools:
    RUN/junit.xml results.ktap kcidb.json results.csv
    RUN/timelines/0001-baseline-guest-1.pftrace   for each traced guest boot, for ui.perfetto.dev
    RUN/trials/0001-baseline/manifest.json   stages, outcome, versions, sha256 of every file
    RUN/trials/0001-baseline/host/           domain.xml console.log dmesg.txt facts.json
                                             device.json (metal host, before the device was bound)
                                             trace-guest-1.txt.gz stats-guest-1.txt hist-*.txt
                                             profile-*.folded
    RUN/trials/0001-baseline/guest-0/        domain.xml console.log marks.txt dmesg.txt facts.json
    RUN/trials/0001-baseline/map.json        maps from the host's user space, by pass

A trial is written as `.0001-baseline.partial` and renamed when it is complete.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.base.bounded import TRIAL_BYTES
from orchestrator.base.errors import (
    ArmFailedError,
    BarometerError,
    BenchError,
    EvidenceError,
    LastStageEnded,
    ScenarioError,
)
from orchestrator.base.folderlock import LOCK
from orchestrator.base.hashing import digest_of, sha256_file
from orchestrator.base.plainfile import find_below, read_plain_text, replace_file, unpack_plain
from orchestrator.base.reasons import Reason
from orchestrator.evidence.facts import GuestFacts, HostFacts
from orchestrator.evidence.faults import Attempt, Charged
from orchestrator.evidence.manifest import (
    KEYS,
    AttemptRecord,
    GuestRecord,
    Manifest,
    StageRecord,
    TrialFacts,
    Unended,
)
from orchestrator.evidence.maps import LogsRecord, MapRecord
from orchestrator.evidence.model import Model, parse_evidence, read_evidence
from orchestrator.evidence.plan import Plan, TrialRecord
from orchestrator.formats.kernelreports import KernelReport, reports_in
from orchestrator.scenario.vocabulary import ARMS, ArmName, Pass

MANIFEST = "manifest.json"
SCHEMA = 1
"""Version of manifest.json and plan.json. A reader refuses any other."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON under another name and rename it to `path`, so that a reader sees either the old
    file or the new one."""
    replace_file(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises EvidenceError if it is missing or is not JSON."""
    try:
        return json.loads(read_plain_text(find_below(path.parent, path.name)))
    except FileNotFoundError as exc:
        raise EvidenceError(f"{path} is missing", reason=Reason.MISSING_EVIDENCE) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise EvidenceError(f"{path} cannot be read: {exc}", reason=Reason.BAD_EVIDENCE) from exc


class TrialFolder:
    """The files of one trial."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def host_reports(self) -> tuple[KernelReport, ...]:
        """Return what the host's kernel reported about itself."""
        return reports_in(self.text("host/console.log") or "")

    @property
    def host(self) -> Path:
        return self.path / "host"

    def guest(self, index: int) -> Path:
        return self.path / f"guest-{index}"

    def text(self, name: str) -> str | None:
        """Return the text of a file of the evidence, plain or from NAME.gz, or None if there is
        none. Raises EvidenceError if a file cannot be read or unpacked."""
        try:
            return read_plain_text(find_below(self.path, name), "replace")
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise EvidenceError(
                f"{name} cannot be read: {exc}", reason=Reason.BAD_EVIDENCE
            ) from exc
        try:
            return unpack_plain(find_below(self.path, f"{name}.gz")).decode(errors="replace")
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error) as exc:
            raise EvidenceError(
                f"{name}.gz cannot be unpacked: {exc}", reason=Reason.BAD_EVIDENCE
            ) from exc


class TrialDir(TrialFolder):
    """One trial's evidence, complete."""

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        super().__init__(path)
        self.manifest = manifest
        self.digest = digest
        """Digest of the manifest, which has the hashes of all files. It is equal for equal
        evidence."""

    @classmethod
    def open(cls, path: Path) -> TrialDir:
        """Open a complete trial. Raises EvidenceError if its manifest is malformed."""
        document = read_json(path / MANIFEST)
        manifest = read_evidence(Manifest, path / MANIFEST)
        return cls(path, manifest, digest_of(document))

    def verify(self) -> str | None:
        """Describe the first file that is missing or changed since it was collected, or return
        None."""
        if not self.manifest.files:
            return "the manifest lists no files"
        for name, expected in self.manifest.files.items():
            try:
                if sha256_file(find_below(self.path, name)) != expected:
                    return f"{name} changed since it was collected"
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return f"{name} is missing"
            except OSError as exc:
                return f"{name} cannot be read: {exc}"
        return None

    def text(self, name: str) -> str | None:
        """Return the text of a file as `TrialFolder` does. Raises EvidenceError also for a file
        that the manifest does not list: nothing proves that it was collected."""
        text = super().text(name)
        if text is not None and not {name, f"{name}.gz"} & self.manifest.files.keys():
            raise EvidenceError(
                f"{name} is not among the files that were collected",
                reason=Reason.EVIDENCE_CHANGED,
            )
        return text

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the attempts of `Manifest.attempts`."""
        return self.manifest.attempts()

    def host_facts(self) -> HostFacts | None:
        """Return host/facts.json, or None if there is none. Like the next three methods, it
        raises EvidenceError if the file is malformed."""
        return self._parsed(HostFacts, "host/facts.json")

    def guest_facts(self, index: int) -> GuestFacts | None:
        """Return guest-N/facts.json, or None if there is none."""
        return self._parsed(GuestFacts, f"guest-{index}/facts.json")

    def maps(self) -> MapRecord | None:
        """Return map.json, or None if there is none."""
        return self._parsed(MapRecord, "map.json")

    def instruction_logs(self) -> LogsRecord | None:
        """Return host/profile.json, or None if there is none."""
        return self._parsed(LogsRecord, "host/profile.json")

    def _parsed(self, model: type[Model], name: str) -> Model | None:
        text = self.text(name)
        return None if text is None else parse_evidence(model, text, name)

    def add_attempt(self, attempt: Attempt) -> None:
        """Add an attempt of the other arm beside this trial to the manifest on disk."""
        repeated = (*self.manifest.repeated, AttemptRecord.of(attempt))
        self.manifest = self.manifest.model_copy(update={"repeated": repeated})
        write_json(self.path / MANIFEST, self.manifest.to_json())


class TrialWriter(TrialFolder):
    """A trial that is being collected."""

    @staticmethod
    def partial_path(final: Path) -> Path:
        """Return the folder in which a trial is written until it is complete."""
        return final.with_name(f".{final.name}.partial")

    def __init__(self, final: Path, facts: TrialFacts) -> None:
        super().__init__(self.partial_path(final))
        self._final = final
        self._started = time.monotonic()
        self.last_stage = ""
        """The last stage to run; empty if all stages run."""
        self.path.mkdir(parents=True)
        self.host.mkdir()
        begun = {
            "schema": SCHEMA, "trial": final.name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "stages": [], "outcome": {"kind": "unfinished"}, "guests": [],
        }  # fmt: skip
        self.manifest = _manifest_of(facts.to_json() | begun)
        """The manifest so far, which is on disk, too."""
        self._save()

    def record(self, **facts: object) -> None:
        """Add facts to the manifest, on disk at once. Raises TypeError for a key that a Manifest
        does not have, and ValueError for a value that the key does not take."""
        if unknown := facts.keys() - KEYS:
            raise TypeError(f"a manifest has no {', '.join(sorted(unknown))}")
        self.manifest = _manifest_of(self.manifest.to_json() | facts)
        self._save()

    def add_guest(self, index: int, in_pass: Pass, memory: int) -> None:
        """Record a guest boot that begins."""
        guest = GuestRecord.model_validate({"index": index, "pass": in_pass, "memory": memory})
        self._replace(guests=(*self.manifest.guests, guest))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the block as a stage: its start and length, in seconds of the runner, and how it
        ended. Raises BenchError if the evidence so far is larger than a trial's may be, and
        LastStageEnded instead of beginning a stage after the last one."""
        before = self.manifest.stages
        if self.last_stage in [stage.name for stage in before if stage.outcome == "ok"]:
            raise LastStageEnded
        start = time.monotonic()
        begun = StageRecord(
            name=name, start=round(start - self._started, 3), outcome="running"
        )  # fmt: skip
        self._replace(stages=(*before, begun))
        outcome = "ok"
        try:
            self._check_size()
            yield
        except BaseException as exc:
            outcome = str(getattr(exc, "reason", type(exc).__name__))
            raise
        finally:
            seconds = round(time.monotonic() - start, 3)
            ended = begun.model_copy(update={"outcome": outcome, "seconds": seconds})
            within = self.manifest.stages[len(before) + 1 :]  # stages of the block
            self._replace(stages=(*before, ended, *within))

    def _check_size(self) -> None:
        size = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        if size > TRIAL_BYTES:
            raise BenchError(
                f"the trial's evidence has {size} bytes, and may have {TRIAL_BYTES}",
                reason=Reason.TRIAL_TOO_LARGE,
            )

    def failed(self, exc: BarometerError, stage: str, charged: Charged, line: str = "") -> None:
        """Record what ended the trial early, and the party that it is charged to. `line` is the
        report of the host's kernel that decided this. An undecided outcome is `failed` if the
        kernel was proven to run, else `invalid`."""
        is_failed = charged.charge == "arm" or (
            charged.charge == "undecided" and isinstance(exc, ArmFailedError)
        )
        self.record(
            outcome={
                "kind": "failed" if is_failed else "invalid",
                "by_bench": not is_failed and isinstance(exc, BenchError | ArmFailedError),
                "charge": charged.charge, "why": charged.why, "stage": stage,
                "reason": exc.reason, "message": exc.message, "evidence": exc.evidence,
                "line": line,
            }
        )  # fmt: skip

    def complete(self) -> TrialDir:
        """Hash every file, write the manifest for the last time, and give the trial its name."""
        is_whole = self.manifest.outcome.kind == "unfinished"
        files = {
            path.relative_to(self.path).as_posix(): sha256_file(path)
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        self._replace(
            outcome=Unended(kind="collected") if is_whole else self.manifest.outcome,
            seconds=round(time.monotonic() - self._started, 3), files=files,
        )  # fmt: skip
        for path in self.path.rglob("*"):  # QEMU's files are private; evidence is for all
            path.chmod(0o755 if path.is_dir() else 0o644)
        if self._final.exists():  # an earlier attempt
            shutil.rmtree(self._final)
        self.path.rename(self._final)
        return TrialDir.open(self._final)

    def _replace(self, **values: object) -> None:
        """Give fields of the manifest new values, on disk at once."""
        self.manifest = self.manifest.model_copy(update=values)
        self._save()

    def _save(self) -> None:
        write_json(self.path / MANIFEST, self.manifest.to_json())


def _manifest_of(document: Mapping[str, object]) -> Manifest:
    """Return the manifest of a JSON object, in which parts may be models. Raises ValueError if it
    is none: what a writer adds is not evidence yet, and a flaw is a bug."""
    text = json.dumps(document, default=lambda part: part.to_json(), ensure_ascii=False)
    # a program's output may have lone surrogates, which are no UTF-8
    return Manifest.model_validate_json(text.encode(errors="replace"))


def _same_plan(path: Path, then: Plan, now: Plan) -> None:
    """Raise ScenarioError unless a run is resumed with the same kernels, accelerator and trials
    with which it was begun."""
    pairs: list[tuple[str, str, str]] = [("accelerator", then.accel, now.accel)]
    for arm in ARMS:
        pairs.append((f"{arm}'s kernel", then.kernels[arm].digest, now.kernels[arm].digest))
    if now.guest_kernel is not None:
        before = then.guest_kernel.digest if then.guest_kernel is not None else "none"
        pairs.append(("guest's kernel", before, now.guest_kernel.digest))
    for part, old, new in pairs:
        if old != new:
            raise ScenarioError(
                f"{path} was begun with another {part} ({old}, now {new})",
                hint="its trials would not be comparable: give another --out",
                reason=Reason.RUN_CHANGED,
            )
    if then.trials != now.trials:
        raise ScenarioError(
            f"{path} was begun with other trials, or in another order, by barometer"
            f" {then.barometer}",
            hint="the two would mix: give another --out",
            reason=Reason.RUN_CHANGED,
        )


def _number(trial: Path) -> tuple[int, str]:
    """Return the sort key of a trial: 0010-baseline comes before 10000-candidate."""
    digits = trial.name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0, trial.name


class RunDir:
    """One run: a scenario, its plan, its trials."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls, path: Path, scenario: str, plan: Plan, configs: Mapping[ArmName, str] = {}
    ) -> RunDir:
        """Create a run, or resume the same run after an interrupt. `configs` has the
        configurations of the arms' kernels.

        Raises ScenarioError if the folder holds something else.
        """
        run = cls(path)
        if (path / "plan.json").exists():
            if (path / "scenario.toml").read_text() != scenario:
                raise ScenarioError(
                    f"{path} holds a run of another scenario",
                    hint="give another --out, or the scenario it was started with to go on",
                    reason=Reason.RUN_EXISTS,
                )
            _same_plan(path, run.plan(), plan)
            return run
        # plan.json is written last, so without it no trial has run yet
        begun = {"scenario.toml", "trials", "kernels", LOCK}
        if path.exists() and not {p.name for p in path.iterdir()} <= begun:
            raise ScenarioError(f"{path} is not empty and holds no run", reason=Reason.RUN_EXISTS)
        run.trials_path.mkdir(parents=True, exist_ok=True)
        (path / "scenario.toml").write_text(scenario)
        for arm, config in configs.items():
            run._config_path(arm).parent.mkdir(exist_ok=True)
            run._config_path(arm).write_text(config)
        write_json(path / "plan.json", plan.to_json())
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open a run. Raises EvidenceError if there is none at `path`."""
        if not (path / "plan.json").is_file():
            raise EvidenceError(
                f"{path} holds no run: it has no plan.json",
                hint="give the folder that `barometer run` printed as its last line",
                reason=Reason.MISSING_EVIDENCE,
            )
        return cls(path)

    def extend(self, scenario: str, trials: Sequence[TrialRecord]) -> None:
        """Give the run more trials, after those of its plan. Raises ScenarioError if they do not
        begin with these."""
        plan = self.plan()
        if tuple(trials[: len(plan.trials)]) != plan.trials:
            raise ScenarioError(
                f"{self.path} was begun with other trials, or in another order",
                reason=Reason.RUN_CHANGED,
            )
        replace_file(self.path / "scenario.toml", scenario)
        write_json(
            self.path / "plan.json", plan.model_copy(update={"trials": tuple(trials)}).to_json()
        )

    @property
    def trials_path(self) -> Path:
        return self.path / "trials"

    def plan(self) -> Plan:
        """Read plan.json. Raises EvidenceError if it is malformed."""
        return read_evidence(Plan, self.path / "plan.json")

    def scenario(self) -> str:
        """Read the scenario that the run was started with. Raises EvidenceError if it cannot be
        read."""
        try:
            return read_plain_text(find_below(self.path, "scenario.toml"))
        except (OSError, ValueError) as exc:
            raise EvidenceError(
                f"{self.path / 'scenario.toml'} cannot be read: {exc}",
                reason=Reason.MISSING_EVIDENCE,
            ) from exc

    def config(self, arm: ArmName) -> str | None:
        """Read the configuration of an arm's kernel; None if there is none. Raises EvidenceError
        if it cannot be read."""
        path = self._config_path(arm)
        try:
            return read_plain_text(find_below(self.path, f"kernels/{arm}.config"), "replace")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise EvidenceError(
                f"{path} cannot be read: {exc}", reason=Reason.BAD_EVIDENCE
            ) from exc

    def _config_path(self, arm: ArmName) -> Path:
        return self.path / "kernels" / f"{arm}.config"

    def trials(self) -> list[TrialDir]:
        """Return every complete trial, in order. Raises EvidenceError for a link."""
        folders = [*self.trials_path.glob("[0-9]*")]
        for path in (self.trials_path, *folders):
            if path.is_symlink():
                raise EvidenceError(
                    f"{path} is a symbolic link, which is not followed", reason=Reason.BAD_EVIDENCE
                )
        return [TrialDir.open(p) for p in sorted(folders, key=_number)]
