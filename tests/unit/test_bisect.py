"""The loop of a bisection over real repositories, with kernels that nobody boots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.verdict.bisection import BisectCommit, Measured, Skipped
from orchestrator.base.errors import BenchError, EvidenceError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.run.bisect import (
    BisectionFile,
    CommitKernels,
    Question,
    bisect_commits,
    parse_commit_kernels,
)
from orchestrator.run.commits import find_commits
from orchestrator.scenario.builder import Setting, build_bisect_file
from orchestrator.scenario.kernel_forms import DebKernel, ModuleKernel, TreeKernel
from tests.unit.histories import history, straight

Says = Callable[[str], Measured | Skipped]
COUNT = 65


def number(*values: float, unit: str = "Ginsn") -> Measured:
    return Measured(unit, values, "7.3.0", "d1")


def from_(first: int, before: float = 0.011, after: float = 0.022) -> Says:
    """Commits from c<first> on cost more."""
    return lambda subject: number(after if int(subject[1:]) >= first else before)


class Fake:
    """A bench that returns prescribed measurements and records the requests."""

    def __init__(self, says: Says) -> None:
        self._says = says
        self.asked: list[str] = []
        self.folders: list[Path] = []

    def measure_ends(self, question: Question, folder: Path) -> tuple[Measured, Measured]:
        self.folders.append(folder)
        good, bad = self._say(question.commits.good[0]), self._say(question.commits.bad)
        assert isinstance(good, Measured)
        assert isinstance(bad, Measured)
        return good, bad

    def measure_step(
        self, question: Question, commit: BisectCommit, folder: Path
    ) -> Measured | Skipped:
        self.folders.append(folder)
        return self._say(commit)

    def _say(self, commit: BisectCommit) -> Measured | Skipped:
        self.asked.append(commit.subject)
        return self._says(commit.subject)


class Fixture:
    def __init__(self, linux: Path, out: Path, last: str = "c64") -> None:
        self.linux, self.out, self._last = linux, out, last

    def question(
        self, good: str = "c0", bad: str = "", paths: tuple[str, ...] = (),
        metric: str = "bar_map_cost", accel: Any = "exact",
    ) -> Question:  # fmt: skip
        commits = find_commits(self.linux, good.split(), bad or self._last, paths)
        kernels = CommitKernels(self.linux)
        text = build_bisect_file(Setting(accel), metric, kernels(commits.bad))
        return Question(commits, kernels, metric, text)

    def run(self, bench: Fake, **asked: Any) -> BisectionFile:
        return bisect_commits(self.question(**asked), self.out, bench, Progress())

    def saved(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "bisect.json").read_text())
        return found


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with 64 commits after the first, c0."""
    folder = tmp_path_factory.mktemp("linux")
    straight(folder, COUNT)
    return folder


@pytest.fixture
def fixture(linux: Path, tmp_path: Path) -> Fixture:
    return Fixture(linux, tmp_path / "out")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with eight commits after the first, for tests to which the search does not
    matter."""
    folder = tmp_path_factory.mktemp("few")
    straight(folder, 9)
    return folder


@pytest.fixture
def short(few: Path, tmp_path: Path) -> Fixture:
    return Fixture(few, tmp_path / "out", last="c8")


@pytest.fixture(scope="module")
def ended(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bisection that found c3."""
    folder = tmp_path_factory.mktemp("ended") / "out"
    Fixture(few, folder, last="c8").run(Fake(from_(3)))
    return folder


@pytest.fixture
def finished(short: Fixture, ended: Path) -> Fixture:
    shutil.copytree(ended, short.out)
    return short


def subjects(record: BisectionFile) -> list[str]:
    return [commit.subject for commit in record.first_bad]


@pytest.mark.parametrize("first", [1, 23, 64])
def test_first_bad_commit_is_found_in_six_steps(fixture: Fixture, first: int) -> None:
    bench = Fake(from_(first))
    record = fixture.run(bench)
    assert (subjects(record), record.exit_code) == ([f"c{first}"], 0)
    assert bench.asked[:2] == ["c0", "c64"]
    assert len(bench.asked) == len({*bench.asked}) == 2 + 6
    saved = fixture.saved()
    assert saved["first_bad"]["subject"] == f"c{first}"
    assert saved["one_of"] == []
    assert saved == json.loads(json.dumps(record.document()))
    assert [step["commit"]["subject"] for step in saved["steps"]] == bench.asked
    assert [step["role"] for step in saved["steps"]] == ["good", "bad", *["step"] * 6]
    for step in saved["steps"][2:]:
        assert step["outcome"] == (
            "bad" if int(step["commit"]["subject"][1:]) >= first else "good"
        )


def test_every_step_has_a_folder_of_its_own(fixture: Fixture) -> None:
    bench = Fake(from_(5))
    record = fixture.run(bench)
    assert bench.folders[0] == fixture.out / "ends"
    names = [folder.name for folder in bench.folders[1:]]
    assert [name.partition("-")[0] for name in names] == [f"{i:04d}" for i in range(1, 7)]
    assert [fixture.out / step.folder for step in record.steps[2:]] == bench.folders[1:]


def test_bad_may_be_the_cheaper_one(fixture: Fixture) -> None:
    assert subjects(fixture.run(Fake(from_(23, before=0.02, after=0.01)))) == ["c23"]


def test_threshold_is_the_geometric_mean(fixture: Fixture) -> None:
    values = {"c0": 1.0, "c64": 100.0}

    def says(subject: str) -> Measured:
        # nearer to good by factors, nearer to bad by difference: 10 is between
        return number(values.get(subject, 9.9 if int(subject[1:]) < 40 else 10.1))

    record = fixture.run(Fake(says))
    assert subjects(record) == ["c40"]
    assert fixture.saved()["threshold"] == pytest.approx(10)


def test_counts_may_be_none(fixture: Fixture) -> None:
    def says(subject: str) -> Measured:
        return number(0 if int(subject[1:]) < 9 else 8, unit="count")

    record = fixture.run(Fake(says), metric="pfn_faults_per_map")
    assert subjects(record) == ["c9"]
    assert fixture.saved()["threshold"] == 4


def skipping(
    first: int, *skipped: int, by_bench: bool = False, reason: str = "build-failed"
) -> Says:
    says = from_(first)

    def skips(subject: str) -> Measured | Skipped:
        if int(subject[1:]) in skipped:
            return Skipped(reason, f"{subject} does not do", by_bench)
        return says(subject)

    return skips


def test_commit_that_does_not_build_is_skipped(fixture: Fixture) -> None:
    bench = Fake(skipping(23, 32))
    assert subjects(fixture.run(bench)) == ["c23"]
    skipped = fixture.saved()["steps"][2]
    assert (skipped["commit"]["subject"], skipped["outcome"]) == ("c32", "skip")
    assert skipped["measured"] is None
    assert skipped["skipped"] == {
        "reason": "build-failed", "message": "c32 does not do", "by_bench": False
    }  # fmt: skip
    said = (fixture.out / "bisect.txt").read_text()
    assert "build-failed: c32" in said
    assert "c32 does not do" in said


def test_skips_that_hide_the_commit_leave_those_that_it_may_be(fixture: Fixture) -> None:
    record = fixture.run(Fake(skipping(23, 21, 22, 23)))
    assert {*subjects(record)} == {"c21", "c22", "c23", "c24"}
    assert record.exit_code == 4
    saved = fixture.saved()
    assert saved["first_bad"] is None
    assert len(saved["one_of"]) == 4


STEPS = 4
INTERRUPTED = skipping(3, 4)


@pytest.fixture(scope="module")
def asked(few: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The commits that an uninterrupted bisection measures."""
    bench = Fake(INTERRUPTED)
    Fixture(few, tmp_path_factory.mktemp("reference") / "out", last="c8").run(bench)
    assert len(bench.asked) == 2 + STEPS
    return bench.asked


@pytest.mark.parametrize(
    ("at", "error"),
    [
        *((at, KeyboardInterrupt()) for at in range(2 + STEPS)),
        *((at, RuntimeError("a bug")) for at in (1, 3)),
    ],
)
def test_interrupted_bisection_goes_on_where_it_was(
    short: Fixture, asked: list[str], at: int, error: BaseException
) -> None:
    calls = 0

    def interrupted(subject: str) -> Measured | Skipped:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise error
        return INTERRUPTED(subject)

    broken = Fake(interrupted)
    with pytest.raises(type(error)):
        short.run(broken)
    again = Fake(INTERRUPTED)
    assert subjects(short.run(again)) == ["c3"]
    done = broken.asked[:-1] if at > 1 else []  # both ends are one run, which resumes by itself
    assert done + again.asked == asked


def test_bench_that_fails_once_is_a_skip(fixture: Fixture) -> None:
    bench = Fake(skipping(23, 32, by_bench=True, reason="host-hang"))
    assert subjects(fixture.run(bench)) == ["c23"]


def test_bench_that_fails_twice_in_a_row_ends_it_and_both_are_measured_again(
    fixture: Fixture,
) -> None:
    bench = Fake(skipping(23, *range(1, 64), by_bench=True, reason="mirror-unreachable"))
    with pytest.raises(BenchError, match="two commits in a row for the same reason") as caught:
        fixture.run(bench)
    assert (caught.value.reason, caught.value.exit_code) == ("mirror-unreachable", 3)
    assert len(bench.asked) == 2 + 2
    assert len(fixture.saved()["steps"]) == 2
    again = Fake(from_(23))
    assert subjects(fixture.run(again)) == ["c23"]
    assert again.asked[0] == bench.asked[2]


def test_bench_that_fails_for_two_reasons_goes_on(fixture: Fixture) -> None:
    reasons = iter(["mirror", "host-hang"])

    def says(subject: str) -> Measured | Skipped:
        reason = next(reasons, None) if subject not in ("c0", "c64") else None
        return Skipped(reason, "broken", by_bench=True) if reason else from_(23)(subject)

    assert subjects(fixture.run(Fake(says))) == ["c23"]


def test_what_the_bench_failed_at_before_an_interrupt_is_measured_again(fixture: Fixture) -> None:
    says = skipping(23, *range(1, 64), by_bench=True, reason="mirror")
    calls = 0

    def interrupted(subject: str) -> Measured | Skipped:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return says(subject)

    with pytest.raises(KeyboardInterrupt):
        fixture.run(Fake(interrupted))
    bench = Fake(says)
    with pytest.raises(BenchError, match="two commits in a row"):
        fixture.run(bench)
    assert bench.asked == ["c32", "c25"]


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        (number(0.011), number(0.011), "less than 3 times"),
        (number(0.011), number(0.011015), "less than 3 times"),  # 0.14 %
        (number(2e-6), number(3.1e-6), "less than 3 times"),  # 1100 instructions
        (number(4, unit="count"), number(4, unit="count"), "the two are equal"),
        (number(1, 2, 3, unit="s"), number(3, 4, 5, unit="s"), "their trials overlap"),
        (number(1, unit="s"), number(1.9, unit="s"), "differ by a factor of two"),
    ],
)
def test_ends_that_are_too_near_are_nothing_to_bisect(
    short: Fixture, good: Measured, bad: Measured, why: str
) -> None:
    bench = Fake(lambda subject: good if subject == "c0" else bad)
    for again in (False, True):  # measurements are not repeated
        with pytest.raises(EvidenceError) as caught:
            short.run(bench)
        assert caught.value.exit_code == 4
        assert why in caught.value.message
        assert "has " in caught.value.message
        assert bench.asked == ["c0", "c8"], again


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (number(0.011), number(0.01103)),  # 0.27 %
        (number(2e-6), number(3.7e-6)),
        (number(4, unit="count"), number(5, unit="count")),
        (number(1, 1.1, unit="s"), number(1.2, 1.3, unit="s")),
        (number(2, unit="s"), number(1, unit="s")),
    ],
)
def test_ends_that_can_be_told_apart_are_bisected(
    short: Fixture, good: Measured, bad: Measured
) -> None:
    bench = Fake(lambda subject: good if int(subject[1:]) < 5 else bad)
    assert subjects(short.run(bench)) == ["c5"]


def test_other_good_commits_are_measured_too(fixture: Fixture) -> None:
    bench = Fake(from_(23))
    record = fixture.run(bench, good="c0 c9 c12")
    assert subjects(record) == ["c23"]
    assert bench.asked[:4] == ["c0", "c64", "c9", "c12"]
    assert [step.role for step in record.steps[:4]] == ["good", "bad", "good", "good"]
    again = Fake(from_(23))
    fixture.run(again, good="c0 c9 c12")
    assert again.asked == []


@pytest.mark.parametrize(("says", "expected"), [
    (from_(5), r"--good \w+ is not good: bad, 22 Minsn"),
    (skipping(23, 9), r"--good \w+ is not good: skip, build-failed: c9 does not do"),
])  # fmt: skip
def test_good_commit_that_is_not_good_is_an_error(
    fixture: Fixture, says: Says, expected: str
) -> None:
    with pytest.raises(EvidenceError, match=expected):
        fixture.run(Fake(says), good="c0 c9")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"good": "c1"}, "good"),
        ({"bad": "c7"}, "bad"),
        ({"paths": ("common",)}, "paths"),
        ({"metric": "bar_unmap_cost"}, "metric"),
        ({"accel": "kvm"}, "trials"),
    ],
)
def test_other_arguments_do_not_go_on(
    finished: Fixture, changed: dict[str, Any], key: str
) -> None:
    before = finished.saved()
    bench = Fake(from_(3))
    with pytest.raises(ScenarioError, match=f"holds a bisection with another {key}"):
        finished.run(bench, **changed)
    assert (bench.asked, finished.saved()) == ([], before)


def test_bisection_of_schema_1_goes_on(finished: Fixture) -> None:
    saved = finished.saved()
    saved["schema"], saved["asked"]["metric"] = 1, "bar_map_seconds"
    (finished.out / "bisect.json").write_text(json.dumps(saved))
    bench = Fake(from_(3))
    finished.run(bench)
    assert bench.asked == []
    assert finished.saved()["schema"] == 2
    assert finished.saved()["asked"]["metric"] == "bar_map_cost"


def test_folder_with_something_else_is_left_alone(fixture: Fixture) -> None:
    fixture.out.mkdir()
    (fixture.out / "letter").write_text("dear")
    with pytest.raises(ScenarioError, match="holds no bisection"):
        fixture.run(Fake(from_(23)))
    assert [path.name for path in fixture.out.iterdir()] == ["letter"]


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found | {"schema": 3},
        lambda found: found | {"asked": []},
        lambda found: found | {"steps": [{}]},
        lambda found: found | {"steps": [found["steps"][0] | {"measured": {"values": []}}]},
        lambda found: found | {"steps": [found["steps"][0] | {"commit": {"x": 1}}]},
    ],
)
def test_broken_record_is_refused(finished: Fixture, change: Callable[[Any], Any]) -> None:
    (finished.out / "bisect.json").write_text(json.dumps(change(finished.saved())))
    with pytest.raises(EvidenceError):
        finished.run(Fake(from_(3)))


def test_bisection_that_has_ended_asks_for_nothing(finished: Fixture) -> None:
    bench = Fake(from_(3))
    assert subjects(finished.run(bench)) == ["c3"]
    assert bench.asked == []


def test_merges_are_bisected(tmp_path: Path) -> None:
    parents = {"c0": [], "c1": ["c0"], "c2": ["c1"], "c10": ["c0"], "c11": ["c10"],
               "c12": ["c2", "c11"], "c64": ["c12"]}  # fmt: skip
    history(tmp_path / "linux", parents)
    bench = Fake(lambda subject: number(2 if subject in ("c11", "c12", "c64") else 1))
    assert subjects(Fixture(tmp_path / "linux", tmp_path / "out").run(bench)) == ["c11"]


def test_kernel_of_a_commit_is_its_tree_or_changed_modules(linux: Path) -> None:
    commits = find_commits(linux, ["c0"], "c64", ())
    sha = commits.bad.sha
    assert parse_commit_kernels(commits, None, ["CONFIG_A=y", "x.config"], Path("/etc"))(
        commits.bad
    ) == (TreeKernel(tree=linux, ref=sha, config=("CONFIG_A=y", "/etc/x.config")))
    on = "deb:linux-image-cloud-amd64@trixie"
    assert parse_commit_kernels(commits, on, [], Path())(commits.bad) == ModuleKernel(
        deb="linux-image-cloud-amd64", suite="trixie", module=linux, ref=sha
    )
    assert parse_commit_kernels(commits, on, [], Path()).on == DebKernel(
        deb="linux-image-cloud-amd64", suite="trixie"
    )


@pytest.mark.parametrize(
    ("on", "config", "expected"),
    [("dir:/usr", [], "expected the package"), ("deb:a1@trixie", ["CONFIG_A=y"], "--config")],
)
def test_modules_are_of_a_package_and_have_no_configuration(
    linux: Path, on: str, config: list[str], expected: str
) -> None:
    with pytest.raises(ScenarioError, match=expected):
        parse_commit_kernels(find_commits(linux, ["c0"], "c64", ()), on, config, Path())
