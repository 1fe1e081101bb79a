"""Commits measured by runs of one arm: the evidence becomes a number or a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.analysis.verdict.bisection import Measured, Skipped
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, BenchError, EvidenceError, ScenarioError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import RunDir
from orchestrator.run import bisect
from orchestrator.run import kernels as run_kernels
from orchestrator.run.bisect import CommitKernels, KernelBench, Question, run_bisection
from orchestrator.run.commits import find_commits
from orchestrator.run.judging.judge import judge, read_samples
from orchestrator.run.kernels import RunKernels
from orchestrator.run.trials import Runner
from orchestrator.scenario.builder import Setting, build_bisect_file
from orchestrator.scenario.kernel_forms import DebKernel, ModuleKernel, TreeKernel
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, ArmName
from tests.unit.fabricated import sealed_map_trial
from tests.unit.histories import straight
from tests.unit.recorded import RUN, sealed

ENDED = {"stage": "host-boot", "message": "it did not come up", "evidence": ""}
Makes = Callable[[Path, ArmName, str], None]


def measured(trials: Path, arm: ArmName, subject: str) -> None:
    """Write the evidence of a commit. From c5 on, a map walks page by page."""
    number = 1 + (arm == "candidate")
    sealed_map_trial(
        trials, arm, series=int(subject[1:]) < 5, passes=("plain", "counts"), number=number, pair=1
    )


def ended(kind: str, reason: str, *, by_bench: bool = False) -> Makes:
    def makes(trials: Path, arm: ArmName, subject: str) -> None:
        measured(trials, arm, subject)
        folder = trials / f"{1 + (arm == 'candidate'):04d}-{arm}"
        sealed(folder, outcome=ENDED | {"kind": kind, "reason": reason, "by_bench": by_bench})

    return makes


def nothing(trials: Path, arm: ArmName, subject: str) -> None:
    pass


class Fixture:
    """A machine whose runs leave prescribed evidence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        shas = straight(folder / "linux", 9)
        self._subjects = {sha: subject for subject, sha in shas.items()}
        commits = find_commits(folder / "linux", ["c0"], "c8", ())
        kernels = CommitKernels(commits.repository)
        text = build_bisect_file(
            Setting("exact", bar="4GiB"), "bar_map_cost", kernels(commits.bad),
            ['map.sizes=["1GiB", "2GiB", "full"]', 'map.alignment=["1GiB", "2MiB", "4KiB"]',
             'trace.passes=["plain", "counts"]'],
        )  # fmt: skip
        self.question = Question(commits, kernels, "bar_map_cost", text)
        self.here = Runner(
            RunKernels(Cache(folder / "cache")),
            cast(Any, None),
            cast(Any, SimpleNamespace(version=lambda: {"qemu": "10.0.2"})),
            Progress(),
        )
        self.ran: list[tuple[str, ArmName | None]] = []
        self.makes: Makes = measured
        self.raises: BarometerError | None = None
        monkeypatch.setattr(bisect, "run_plan", self._run_plan)
        monkeypatch.setattr(run_kernels, "check_kernel", lambda kernel, cache: None)

    def _run_plan(
        self, scenario: Scenario, text: str, out: Path, here: Runner, *, only: ArmName | None
    ) -> bool:
        self.ran.append((out.name, only))
        if self.raises is not None:
            raise self.raises
        shutil.rmtree(out, ignore_errors=True)
        (out / "trials").mkdir(parents=True)
        (out / "scenario.toml").write_text(text)
        plan = json.loads((RUN / "plan.json").read_text())
        plan |= {"accel": "exact", "guest_kernel": None}
        for arm in ARMS:
            kernel = scenario.arms[arm].kernel
            assert isinstance(kernel, TreeKernel)
            subject = self.subject_of(kernel)
            plan["kernels"][arm] |= {"release": f"7.3-{subject}", "digest": f"d-{subject}"}
            if only in (None, arm):
                self.makes(out / "trials", arm, subject)
        (out / "plan.json").write_text(json.dumps(plan))
        return True

    def subject_of(self, kernel: TreeKernel) -> str:
        return self._subjects[kernel.ref or ""]

    def step(self, subject: str = "c6") -> Measured | Skipped:
        names = {subject: sha for sha, subject in self._subjects.items()}
        commit = find_commits(self.question.commits.repository, ["c0"], names[subject], ()).bad
        return KernelBench(self.here).measure_step(self.question, commit, self.out / "steps/1")


@pytest.fixture
def fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fixture:
    return Fixture(monkeypatch, tmp_path)


def test_commit_is_measured_alone(fixture: Fixture) -> None:
    before, after = fixture.step("c4"), fixture.step("c5")
    assert isinstance(before, Measured)
    assert isinstance(after, Measured)
    assert (after.unit, after.release, after.digest) == ("Ginsn", "7.3-c5", "d-c5")
    assert len(after.values) == 1
    assert after.value > 1000 * before.value
    assert fixture.ran == [("1", "candidate")] * 2


def test_run_of_one_arm_alone_is_judged_as_what_it_is(fixture: Fixture) -> None:
    fixture.step()
    run = RunDir.open(fixture.out / "steps/1")
    found = judge(run).save()
    assert (found.document["verdict"], found.exit_code) == ("invalid", 4)
    assert "the baseline has no trial" in found.report.replace("\n", " ")
    assert len(read_samples(run, "candidate", "bar_map_cost").values) == 1
    assert read_samples(run, "baseline", "bar_map_cost") == ("Ginsn", (), ())
    assert read_samples(run, "candidate", "pfn_lookups_per_map").unit == "count"


@pytest.mark.parametrize(
    ("makes", "expected"),
    [
        (ended("failed", "host-panic"), Skipped("host-panic", ENDED["message"])),
        (ended("invalid", "lost-events"), Skipped("lost-events", ENDED["message"])),
        (
            ended("invalid", "host-hang", by_bench=True),
            Skipped("host-hang", ENDED["message"], by_bench=True),
        ),
        (nothing, Skipped("not-measured", "no trial has bar_map_cost")),
    ],
)
def test_commit_without_a_number_says_why(
    fixture: Fixture, makes: Makes, expected: Skipped
) -> None:
    fixture.makes = makes
    assert fixture.step() == expected


def test_commit_that_cannot_be_had_is_skipped(fixture: Fixture) -> None:
    fixture.raises = ScenarioError("it does not build", reason=Reason.BUILD_FAILED)
    assert fixture.step() == Skipped("build-failed", "it does not build")
    fixture.raises = BenchError("no mirror", reason=Reason.MIRROR_UNREACHABLE)
    assert fixture.step() == Skipped("mirror-unreachable", "no mirror", by_bench=True)


@pytest.mark.parametrize("reason", [Reason.RUN_EXISTS, Reason.RUN_CHANGED])
def test_what_says_nothing_of_the_commit_ends_it(fixture: Fixture, reason: Reason) -> None:
    fixture.raises = ScenarioError("another process", reason=reason)
    with pytest.raises(ScenarioError, match="another process"):
        fixture.step()


def test_bisection_of_runs_finds_the_commit(fixture: Fixture) -> None:
    record = run_bisection(fixture.question, fixture.out, fixture.here)
    assert [commit.subject for commit in record.first_bad] == ["c5"]
    assert fixture.ran[0] == ("ends", None)
    assert {only for _, only in fixture.ran[1:]} == {"candidate"}
    ends = (fixture.out / "ends/report.txt").read_text()
    assert "bisect-ends: regressed" in ends  # good against bad, a report like any other
    measured = [step.found for step in record.steps if isinstance(step.found, Measured)]
    assert [one.release for one in measured[:2]] == ["7.3-c0", "7.3-c8"]


@pytest.mark.parametrize(("by_bench", "error"), [(True, BenchError), (False, EvidenceError)])
def test_end_without_a_number_is_an_error(
    fixture: Fixture, by_bench: bool, error: type[BarometerError]
) -> None:
    fixture.makes = lambda trials, arm, subject: (
        ended("invalid", "lost", by_bench=by_bench) if arm == "candidate" else measured
    )(trials, arm, subject)
    with pytest.raises(error, match="the bad commit has no number: it did not come up"):
        run_bisection(fixture.question, fixture.out, fixture.here)
    if by_bench:  # the bench was repaired
        fixture.makes = measured
        assert run_bisection(fixture.question, fixture.out, fixture.here).exit_code == 0


def test_ends_are_checked_before_anything_is_built(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kernel: TreeKernel, cache: Cache) -> None:
        if kernel.ref == fixture.question.commits.bad.sha:
            raise ScenarioError("has no Kconfig", reason=Reason.NO_SUCH_SOURCE)

    monkeypatch.setattr(run_kernels, "check_kernel", refused)
    with pytest.raises(ScenarioError, match=r"^--bad: has no Kconfig"):
        run_bisection(fixture.question, fixture.out, fixture.here)
    assert (fixture.ran, fixture.out.exists()) == ([], False)


def test_bisection_goes_on_under_the_same_qemu_alone(fixture: Fixture) -> None:
    run_bisection(fixture.question, fixture.out, fixture.here)
    fixture.here.libvirt.version = lambda: {"qemu": "10.1.0"}  # type: ignore[method-assign]
    with pytest.raises(ScenarioError, match=r"another under: .*10\.0\.2.*10\.1\.0") as caught:
        run_bisection(fixture.question, fixture.out, fixture.here)
    assert caught.value.reason == "run-changed"


def test_bisection_is_run_by_one_process_at_a_time(fixture: Fixture) -> None:
    with only_writer(fixture.out), pytest.raises(ScenarioError) as caught:
        run_bisection(fixture.question, fixture.out, fixture.here)
    assert (caught.value.reason, fixture.ran) == ("run-exists", [])


def test_commit_with_the_sources_of_the_package_is_the_package(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = DebKernel(deb="linux-image-cloud-amd64", suite="trixie")
    commits = fixture.question.commits
    question = replace(fixture.question, kernel=CommitKernels(commits.repository, on))

    def pristine(kernel: ModuleKernel, cache: Cache) -> None:
        if kernel.ref == commits.good[0].sha:
            raise ScenarioError(
                "the sources are those of the package", reason=Reason.NOTHING_CHANGED
            )

    monkeypatch.setattr(run_kernels, "check_kernel", pristine)
    bench = KernelBench(fixture.here)
    assert bench.choose_kernel(question, commits.good[0]) == on
    assert bench.choose_kernel(question, commits.bad) == ModuleKernel(
        deb=on.deb, suite="trixie", module=commits.repository, ref=commits.bad.sha
    )
    with pytest.raises(ScenarioError):  # for a whole kernel that error has another cause
        bench.choose_kernel(
            replace(question, kernel=CommitKernels(commits.repository)), commits.good[0]
        )


def test_commit_that_is_known_not_to_build_is_skipped(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kernel: TreeKernel, cache: Cache) -> None:
        if fixture.subject_of(kernel) == "c6":
            raise ScenarioError("reaches the kernel itself", reason=Reason.BEYOND_MODULES)

    monkeypatch.setattr(run_kernels, "check_kernel", refused)
    assert fixture.step("c6") == Skipped("beyond-modules", "reaches the kernel itself")
    assert fixture.ran == []
    assert isinstance(fixture.step("c7"), Measured)
