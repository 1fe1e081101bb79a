"""A night that regressed: both candidates are measured again, and what that says. `run` and
`bisect` leave what they would leave; their evidence is judged as any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.kernels.directory import copy_kernel
from orchestrator.run.nights.red import ANSWER, KernelCommit, RedNight, build_again
from orchestrator.scenario.kernel_forms import DebKernel, DirKernel, ModuleKernel, TreeKernel
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.bundles.made import exact_run
from tests.unit.fabricated import map_trial
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.kernels.repositories import commit, head, new_repository
from tests.unit.recorded import sealed

GOOD, RED = "20260830T010000Z", "20260831T010000Z"


@dataclass
class Lab:
    """Two nights of a scenario; the second regressed."""

    folder: Path
    cache: Cache
    kernel_is_to_blame: bool = True
    bisection: dict[str, object] | None = None
    """Content of bisect.json; None: the bisection leaves none."""
    code: int = 0
    """Exit code of the bisection."""
    verbs: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def nights(self) -> Path:
        return self.folder / "runs"

    def make(self, name: str, release: str) -> Path:
        """Make a night, whose candidate has a kernel of its own."""
        kernels = self.folder / name
        folder_kernel(kernels / "candidate", release)
        (kernels / "candidate/config").write_text("# whole\n")
        return exact_run(self.nights / name, kernels, self.cache)

    def red(self) -> RedNight:
        return RedNight.of(self.nights / RED, self.nights / GOOD, self.nights)

    def explain(self) -> str:
        red = RedNight.find_unfinished(self.nights) or self.red()
        culprit = red.explain(self.execute, self.folder)
        assert culprit in ("kernel", "machine", "not known")
        return culprit

    @property
    def answer(self) -> str:
        return (self.nights / RED / ANSWER).read_text()

    def execute(self, *verb: str) -> int:
        self.verbs.append(verb)
        out = Path(verb[verb.index("--out") + 1])
        if verb[0] == "run":
            if not out.exists():
                exact_run(out, self.folder / "again", self.cache)
                shutil.rmtree(out / "trials")
                for number, (arm, has_series) in enumerate(
                    (("baseline", True), ("candidate", not self.kernel_is_to_blame)), 1
                ):
                    record = json.loads((out / "plan.json").read_text())["kernels"][arm]
                    del record["provenance"]
                    sealed(map_trial(out / "trials", arm, series=has_series, number=number,
                                     kernel=record, release=record["release"]))  # fmt: skip
            return 1
        if self.bisection is not None:
            out.mkdir(exist_ok=True)
            (out / "bisect.json").write_text(json.dumps(self.bisection))
            (out / "bisect.txt").write_text("1a2b3c4d5e6f is the first bad commit\n")
        return self.code


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("BAROMETER_CACHE", str(tmp_path / "cache"))
    lab = Lab(tmp_path, Cache())
    lab.make(GOOD, "7.3.1")
    lab.make(RED, "7.3.2")
    return lab


@pytest.fixture
def commits(lab: Lab) -> tuple[str, str]:
    """Make the candidates commits of one repository."""
    repository = new_repository(lab.folder / "linux")
    shas = head(repository), commit(repository, "second", {"a": "1\n"})
    for night, sha in zip((GOOD, RED), shas, strict=True):
        KernelCommit(repository, sha).write(lab.nights / night)
    return shas


def test_a_candidate_that_costs_more_than_the_last_good_one_is_to_blame(lab: Lab) -> None:
    assert lab.explain() == "kernel"
    [run] = lab.verbs
    assert run[0] == "run"
    assert "bar_map_cost" in lab.answer
    assert "regressed" in lab.answer
    assert RedNight.find_unfinished(lab.nights) is None


def test_candidates_that_are_alike_leave_the_machine(lab: Lab, commits: tuple[str, str]) -> None:
    lab.kernel_is_to_blame = False
    assert lab.explain() == "machine"
    assert [verb[0] for verb in lab.verbs] == ["run"]


def test_commits_of_one_repository_are_bisected(lab: Lab, commits: tuple[str, str]) -> None:
    lab.bisection = {"first_bad": {"sha": "1a2b3c4d5e6f"}, "one_of": []}
    assert lab.explain() == "kernel"
    bisect = lab.verbs[1]
    options = dict(zip(bisect[1::2], bisect[2::2], strict=True))
    assert (options["--good"], options["--bad"]) == commits
    assert options["--tree"] == str(lab.folder / "linux")
    assert options["--scenario"].endswith("again.toml")
    assert options["--metric"].startswith("bar_")
    assert "1a2b3c4d5e6f" in lab.answer


@pytest.mark.parametrize(
    ("bisection", "code"), [(None, 130), ({"first_bad": None}, 130), (None, 3)]
)
def test_a_bisection_that_is_not_done_goes_on_in_the_next_night(
    lab: Lab, commits: tuple[str, str], bisection: dict[str, object] | None, code: int
) -> None:
    lab.bisection, lab.code = bisection, code
    assert lab.explain() == "kernel"
    assert f"--good {commits[0]}" in lab.answer  # the command with which anybody can go on
    assert RedNight.find_unfinished(lab.nights) == lab.red()
    lab.bisection, lab.code = {"first_bad": {"sha": "1a2b3c4d5e6f"}}, 0
    assert lab.explain() == "kernel"
    assert "1a2b3c4d5e6f" in lab.answer
    assert RedNight.find_unfinished(lab.nights) is None
    assert lab.verbs[0] == lab.verbs[2]
    assert lab.verbs[1] == lab.verbs[3]


def test_a_bisection_that_cannot_be_made_is_not_begun_each_night(
    lab: Lab, commits: tuple[str, str]
) -> None:
    lab.code = 2
    lab.explain()
    assert "barometer bisect" in lab.answer
    assert RedNight.find_unfinished(lab.nights) is None


def test_a_run_that_does_not_begin_is_no_answer(lab: Lab) -> None:
    red = lab.red()
    assert red.explain(lambda *_verb: 3, lab.folder) == "not known"
    assert "exit code 3" in lab.answer


def test_a_kernel_that_is_gone_is_no_answer(lab: Lab) -> None:
    shutil.rmtree(lab.folder / "cache/kernels")
    assert lab.explain() == "not known"
    assert not lab.verbs
    assert "7.3.1" in lab.answer


def test_both_candidates_are_the_kernels_that_were_measured(lab: Lab) -> None:
    tonight = lab.nights / RED
    text = (tonight / "scenario.toml").read_text()
    text = text.replace("[arms.candidate]", '[arms.candidate]\ncmdline = "nohz=off"')
    (tonight / "scenario.toml").write_text(
        text.replace('bar_map_cost = "improved"', 'bar_map_cost = "<= 0.5"')
    )
    scenario, _ = parse_scenario(
        build_again(lab.nights / GOOD, tonight, lab.folder, lab.cache), "again.toml"
    )
    for arm, release in zip(ARMS, ("7.3.1", "7.3.2"), strict=True):
        kernel = scenario.arms[arm].kernel
        assert isinstance(kernel, DirKernel)
        assert copy_kernel(kernel, lab.cache).release == release
        assert scenario.arms[arm].cmdline == "nohz=off"
    assert {str(value) for value in scenario.expect.values()} == {"not-regressed"}


def test_a_candidates_commit_is_what_its_name_means_now(tmp_path: Path) -> None:
    repository = new_repository(tmp_path / "linux")
    first = head(repository)
    tree, modules = TreeKernel(tree=repository), {"deb": "linux-image-amd64", "suite": "trixie"}
    assert KernelCommit.of(tree) == KernelCommit(repository, first)
    second = commit(repository, "second", {"a": "1\n"})
    assert KernelCommit.of(tree) == KernelCommit(repository, second)
    assert KernelCommit.of(ModuleKernel(**modules, module=repository, ref="HEAD~1")) == (
        KernelCommit(repository, first)
    )
    patched = TreeKernel(tree=repository, series=("fix.mbox",))
    for kernel in (patched, DebKernel(**modules), ModuleKernel(**modules, module=tmp_path)):
        assert KernelCommit.of(kernel) is None
    with pytest.raises(ScenarioError):
        KernelCommit.of(TreeKernel(tree=repository, ref="no-such"))
    assert KernelCommit.read(tmp_path) is None
    KernelCommit(repository, first).write(tmp_path)
    assert KernelCommit.read(tmp_path) == KernelCommit(repository, first)
