"""Find the first commit that costs more: git's own bisection, with a measurement at each step.

    OUT/bisect.json bisect.txt      every step and its number, written after each step; the answer
    OUT/ends/                       an ordinary run: the good commit against the bad one
    OUT/steps/0003-1a2b3c4d5e6f/    a run of one arm, which has the commit's kernel
    OUT/repo/                       git's state; the objects are those of the user's repository

Git chooses the commits, in a repository of our own that borrows the objects: the user's checkout,
refs and any bisection of theirs stay as they are. Git is told `good`, `bad` and `skip` step by
step from here, not by `git bisect run`. That would need a process for each step, with its own
connection to libvirt and its own progress, and an interrupt would end git before that process. The
measurements are in bisect.json alone: whenever the bisection is resumed, git is told all of them
again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from orchestrator import __version__
from orchestrator.analysis.verdict.bisection import (
    BisectCommit,
    BisectEnds,
    Bisection,
    BisectStep,
    Measured,
    Skipped,
    StepOutcome,
    StepRole,
    build_step,
    step_json,
)
from orchestrator.analysis.verdict.metrics import resolution_of
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, EvidenceError, ScenarioError, key_named
from orchestrator.base.folderlock import LOCK, only_writer
from orchestrator.base.plainfile import replace_file
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason, parse_reason
from orchestrator.evidence.bisection import BisectRecord
from orchestrator.evidence.layout import RunDir, write_json
from orchestrator.evidence.model import read_evidence
from orchestrator.kernels.debian.package import resolve_version
from orchestrator.report.text.bisect_text import bisect_report
from orchestrator.report.words.quantities import format_quantity
from orchestrator.run.commits import Commits, Search
from orchestrator.run.diskspace import no_space_explained
from orchestrator.run.judging.judge import judge, read_samples
from orchestrator.run.trials import Runner, run_plan
from orchestrator.scenario.builder import add_config, build_commit_file
from orchestrator.scenario.kernel_forms import (
    DebKernel,
    Kernel,
    ModuleKernel,
    TreeKernel,
    resolve_kernel_paths,
)
from orchestrator.scenario.kernel_spec import EXAMPLES, parse_kernel
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, ArmName, Metric, current_name

RECORD = "bisect.json"
_SCHEMA = 2
"""Version of bisect.json. Up to 1, costs were called seconds (scenario.py `current_name`)."""
_REPOSITORY = "repo"
_TRIALS = 3
"""Trials of a commit if its numbers have noise."""
_NOT_THE_COMMITS = (Reason.RUN_EXISTS, Reason.RUN_CHANGED, Reason.SCENARIO)
"""Reasons of ScenarioErrors that say nothing about the step's commit."""


@dataclass(frozen=True)
class CommitKernels:
    """Function from a commit to its kernel."""

    repository: Path
    on: DebKernel | None = None
    """The package whose modules the commits change; None if each commit is a whole kernel."""
    config: tuple[str, ...] = ()
    """Configuration options of whole kernels."""

    def __call__(self, commit: BisectCommit) -> Kernel:
        if self.on is None:
            whole = TreeKernel(tree=self.repository, ref=commit.sha)
            return add_config(whole, self.config)
        package = self.on.model_dump(exclude_none=True)
        return ModuleKernel(**package, module=self.repository, ref=commit.sha)

    def pin(self, cache: Cache) -> CommitKernels:
        """Return the same with the package's present version: the archive may get a newer one
        during the bisection."""
        if self.on is None or self.on.version is not None:
            return self
        version, _ = resolve_version(self.on, cache)
        return replace(self, on=self.on.model_copy(update={"version": version}))


def parse_commit_kernels(
    commits: Commits, on: str | None, config: Sequence[str], folder: Path
) -> CommitKernels:
    """Return the kernels as the command line names them, with paths from `folder`. Raises
    ScenarioError."""
    if on is None:
        whole = TreeKernel(tree=commits.repository, config=tuple(config))
        absolute = resolve_kernel_paths(whole, folder)
        return CommitKernels(commits.repository, config=getattr(absolute, "config", ()))
    package = parse_kernel(on, "--on", folder=folder)
    if not isinstance(package, DebKernel):
        raise ScenarioError(
            f"--on {on}: expected the package whose modules change, as {EXAMPLES['deb']}",
            reason=Reason.KERNEL_SPELLING,
        )
    if config:
        raise ScenarioError(
            "--config applies to kernels that are built whole, and --on builds modules only",
            reason=Reason.KERNEL_SPELLING,
        )
    return CommitKernels(commits.repository, package)


@dataclass(frozen=True)
class Question:
    """The question of a bisection: which commits, by which metric, measured how."""

    commits: Commits
    """The first good one is the commit that the others are compared with."""
    kernel: CommitKernels
    metric: Metric
    template: str
    """Text of a scenario file: how to measure."""
    requested_trials: int | None = None
    """Trials of each commit; None: 1 if numbers are exact, else _TRIALS."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions that numbers depend on and that must stay the same: barometer's, the runner's
    QEMU's."""

    @cached_property
    def scenario(self) -> Scenario:
        return parse_scenario(self.template, RECORD)[0]

    @property
    def trials(self) -> int:
        return self.requested_trials or (1 if self.scenario.host.exact else _TRIALS)

    def to_json(self) -> dict[str, object]:
        """Return the facts that must be the same if a bisection is resumed."""
        commits, kernel = self.commits, self.kernel
        return {
            "repository": str(commits.repository), "good": [commit.sha for commit in commits.good],
            "bad": commits.bad.sha, "paths": list(commits.paths), "metric": self.metric,
            "trials": self.trials, "on": kernel.on and str(kernel.on),
            "config": list(kernel.config), "scenario": self.template, "under": dict(self.versions),
        }  # fmt: skip


class CommitBench(Protocol):
    """A bench that measures commits."""

    def measure_ends(self, question: Question, folder: Path) -> tuple[Measured, Measured]:
        """Measure the first good commit and the bad one. Raises EvidenceError if either has no
        number, or BenchError if the bench failed to measure it."""

    def measure_step(
        self, question: Question, commit: BisectCommit, folder: Path
    ) -> Measured | Skipped:
        """Measure one commit, alone."""


class BisectionFile:
    """bisect.json, which is written after every step. A bisection is resumed from it alone."""

    def __init__(self, out: Path, question: Question) -> None:
        """Read the record in `out`, if there is one. Raises ScenarioError if `out` holds something
        else, or another bisection."""
        self._out, self._question = out, question
        self.steps: list[BisectStep] = []
        self.first_bad: tuple[BisectCommit, ...] = ()
        path = out / RECORD
        if path.exists():
            known = read_evidence(BisectRecord, path)
            _check_same(out, known.asked, question.to_json())
            # the bench's failure says nothing about the commit, which is measured again
            steps = map(build_step, known.steps)
            self.steps = [step for step in steps if not step.failed_by_bench]
        # bisect.json is written after git's state: without it nothing has run yet
        elif out.exists() and not {p.name for p in out.iterdir()} <= {_REPOSITORY, LOCK}:
            raise ScenarioError(
                f"{out} is not empty and holds no bisection", reason=Reason.RUN_EXISTS
            )

    def add(self, *steps: BisectStep) -> None:
        self.steps += steps
        self.save()

    def save(self) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        write_json(self._out / RECORD, self.document())
        replace_file(self._out / "bisect.txt", bisect_report(self.bisection()))

    @property
    def exit_code(self) -> int:
        """4 if skipped commits hide the answer, else 0."""
        return 0 if len(self.first_bad) == 1 else EvidenceError.exit_code

    def bisection(self) -> Bisection:
        return Bisection(self._question.metric, tuple(self.steps), self.first_bad)

    def document(self) -> dict[str, object]:
        """Return bisect.json."""
        first_bad = [asdict(commit) for commit in self.first_bad]
        ends = self.bisection().ends
        return {
            "schema": _SCHEMA, "barometer": __version__, "asked": self._question.to_json(),
            "threshold": ends and ends.threshold,
            "first_bad": first_bad[0] if len(first_bad) == 1 else None,
            "one_of": first_bad if len(first_bad) > 1 else [],
            "steps": [step_json(step) for step in self.steps],
        }  # fmt: skip


def _check_same(out: Path, then: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise ScenarioError if a fact of the question is not what it was."""
    then = dict(then) | {"metric": current_name(str(then.get("metric")))}
    for key, value in now.items():
        if then.get(key) != value:
            both = "" if key == "scenario" else f": {then.get(key)}, now {value}"
            raise ScenarioError(
                f"{out} holds a bisection with another {key}{both}",
                hint="give another --out, or what it was begun with to go on",
                reason=Reason.RUN_CHANGED,
            )


def bisect_commits(
    question: Question, out: Path, bench: CommitBench, progress: Progress
) -> BisectionFile:
    """Run the bisection to its end, from where it was left. Each measurement is saved in `out` at
    once.

    Raises ScenarioError if `out` holds something else, EvidenceError if the ends do not differ or
    cannot be measured, and BenchError if the bench failed twice in a row for the same reason. A
    call with the same arguments resumes the bisection.
    """
    record = BisectionFile(out, question)
    search = Search(out / _REPOSITORY, question.commits)
    record.save()
    loop = _Loop(question, out, bench, progress, record)
    ends = loop.measure_ends()
    for step in record.steps:
        if step.role == "step":
            search.mark(step.commit, step.outcome)
    while (commit := search.choose_next()) is not None:
        number = 1 + sum(step.role == "step" for step in record.steps)
        title = f"step {number} of about {max(number, search.about)}"
        step = loop.measure_step(commit, "step", ends, f"steps/{number:04d}-{commit.short}", title)
        _stop_if_broken(record, step)
        search.mark(commit, step.outcome)
        record.add(step)
        progress.note(f"{title}: {_describe_step(step)}")
    record.first_bad = search.find_first_bad()
    record.save()
    return record


@dataclass(frozen=True)
class _Loop:
    """One running bisection, with the operations that it repeats."""

    question: Question
    out: Path
    bench: CommitBench
    progress: Progress
    record: BisectionFile

    def measure_ends(self) -> BisectEnds:
        """Return the measurements of both ends, made now unless they are recorded. The other good
        commits are measured, too. Raises EvidenceError if the ends do not differ enough, or if a
        good commit is not good."""
        record, first, bad = self.record, *self._end_commits
        if (ends := record.bisection().ends) is None:
            started = time.monotonic()
            with self.progress.stage(f"good {first.short} and bad {bad.short}"):
                ends = BisectEnds(*self.bench.measure_ends(self.question, self.out / "ends"))
            seconds = time.monotonic() - started
            record.add(
                BisectStep(first, "good", "good", ends.good, seconds, "ends"),
                BisectStep(bad, "bad", "bad", ends.bad, seconds, "ends"),
            )
        self._check_ends_differ(ends)
        known = {step.commit.sha for step in record.steps if step.role == "good"}
        for commit in self.question.commits.good:
            if commit.sha not in known:
                folder = f"steps/good-{commit.short}"
                step = self.measure_step(commit, "good", ends, folder, f"good {commit.short}")
                if step.outcome != "good":
                    raise EvidenceError(
                        f"bisect: --good {commit.short} is not good: {_describe_step(step)}",
                        reason=Reason.NOTHING_TO_BISECT,
                    )
                record.add(step)
        return ends

    @property
    def _end_commits(self) -> tuple[BisectCommit, BisectCommit]:
        return self.question.commits.good[0], self.question.commits.bad

    def _check_ends_differ(self, ends: BisectEnds) -> None:
        """Raise EvidenceError if the numbers of the ends are too near to tell them apart."""
        metric = self.question.metric
        if why := ends.too_near(resolution_of(self.question.scenario.workload, metric)):
            numbers = (format_quantity(end.value, end.unit) for end in (ends.good, ends.bad))
            good, bad = (
                f"{commit.short} has {number}"
                for commit, number in zip(self._end_commits, numbers, strict=True)
            )
            raise EvidenceError(
                f"bisect: good and bad do not differ in {metric}: good {good}, bad {bad}; {why}",
                hint=f"their report is {self.out}/ends/report.txt; take another metric, more"
                " trials, or other commits",
                reason=Reason.NOTHING_TO_BISECT,
            )

    def measure_step(
        self, commit: BisectCommit, role: StepRole, ends: BisectEnds, folder: str, title: str
    ) -> BisectStep:
        started = time.monotonic()
        with self.progress.stage(f"{title}: {commit.short} {commit.subject}"):
            result = self.bench.measure_step(self.question, commit, self.out / folder)
        seconds = time.monotonic() - started
        outcome: StepOutcome = ends.side(result) if isinstance(result, Measured) else "skip"
        return BisectStep(commit, role, outcome, result, seconds, folder)


def _describe_step(step: BisectStep) -> str:
    if isinstance(step.found, Measured):
        return f"{step.outcome}, {format_quantity(step.found.value, step.found.unit)}"
    return f"{step.outcome}, {step.found.reason}: {step.found.message}"


def _stop_if_broken(record: BisectionFile, step: BisectStep) -> None:
    """Raise BenchError if the bench failed at two commits in a row for one reason. That says
    nothing about either commit: both are measured again when the bisection goes on."""
    reason, result = step.failed_by_bench, step.found
    if not reason or record.steps[-1].failed_by_bench != reason or isinstance(result, Measured):
        return
    record.steps.pop()
    record.save()
    raise BenchError(
        f"bisect: the bench failed at two commits in a row for the same reason: {result.message}",
        hint="the same command goes on with the first of them, once the bench is in order",
        reason=parse_reason(reason) or Reason.NOT_MEASURED,
    )


class KernelBench:
    """The bench that boots the commits' kernels."""

    def __init__(self, here: Runner) -> None:
        self._here = here

    def choose_kernel(self, question: Question, commit: BisectCommit) -> Kernel:
        """Return the kernel to build for a commit, or the package itself if the commit has the
        package's own sources. Raises ScenarioError for a commit that is known not to build."""
        kernel = question.kernel(commit)
        try:
            self._here.kernels.check(kernel)
        except ScenarioError as exc:
            if exc.reason == Reason.NOTHING_CHANGED and question.kernel.on is not None:
                return question.kernel.on
            raise
        return kernel

    def measure_ends(self, question: Question, folder: Path) -> tuple[Measured, Measured]:
        commits = question.commits
        good, bad = (
            self.choose_kernel(question, commit) for commit in (commits.good[0], commits.bad)
        )
        text = build_commit_file(question.template, "bisect-ends", good, bad, question.trials)
        self._run(text, folder)
        run = RunDir.open(folder)
        results = {arm: _read_result(run, arm, question.metric) for arm in ARMS}
        judge(run).save()
        for end, result in zip(("good", "bad"), results.values(), strict=True):
            if isinstance(result, Skipped):
                kind = BenchError if result.by_bench else EvidenceError
                raise kind(
                    f"bisect: the {end} commit has no number: {result.message}",
                    hint=f"its evidence is in {folder}/trials",
                    reason=parse_reason(result.reason) or Reason.NOT_MEASURED,
                )
        measured = [result for result in results.values() if isinstance(result, Measured)]
        return measured[0], measured[1]

    def measure_step(
        self, question: Question, commit: BisectCommit, folder: Path
    ) -> Measured | Skipped:
        try:
            good, other = (
                self.choose_kernel(question, each) for each in (question.commits.good[0], commit)
            )
            name = f"bisect-{commit.short}"
            text = build_commit_file(question.template, name, good, other, question.trials)
            self._run(text, folder, only="candidate")
        except ScenarioError as exc:
            if exc.reason in _NOT_THE_COMMITS:
                raise
            return Skipped(exc.reason, exc.message)
        except BenchError as exc:
            return Skipped(exc.reason, exc.message, by_bench=True)
        return _read_result(RunDir.open(folder), "candidate", question.metric)

    def _run(self, text: str, folder: Path, only: ArmName | None = None) -> None:
        scenario, text = parse_scenario(text, str(folder / "scenario.toml"), folder)
        run_plan(scenario, text, folder, self._here, only=only)


def _read_result(run: RunDir, arm: ArmName, metric: Metric) -> Measured | Skipped:
    """Return what the trials of one arm measured, even if some of them ended early."""
    unit, values, unmeasured = read_samples(run, arm, metric)
    if values:
        kernel = run.plan().kernels[arm]
        return Measured(unit, values, kernel.release, kernel.digest)
    if not unmeasured:
        return Skipped(Reason.NOT_MEASURED, f"no trial has {metric}")
    # what the commit's kernel did tells more than what the bench did
    first = min(unmeasured, key=lambda result: result.by_bench)
    return Skipped(first.reason, first.message, first.by_bench)


def run_bisection(question: Question, out: Path, here: Runner) -> BisectionFile:
    """Run `bisect_commits` on this machine, in one process at a time. Before anything is built,
    both ends are checked as far as possible, which may raise ScenarioError."""
    commits, bench = question.commits, KernelBench(here)
    question = replace(
        question, kernel=question.kernel.pin(here.cache), versions=_read_versions(here)
    )
    with no_space_explained(out), only_writer(out):
        with here.progress.stage("looking at the ends"):
            for option, commit in (("--good", commits.good[0]), ("--bad", commits.bad)):
                with key_named(option):
                    bench.choose_kernel(question, commit)
        return bisect_commits(question, out, bench, here.progress)


def _read_versions(here: Runner) -> dict[str, str]:
    return {"barometer": __version__, "qemu": here.libvirt.version()["qemu"]}
