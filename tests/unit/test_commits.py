"""Names and order of commits, and git's search among them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.analysis.verdict.bisection import StepOutcome
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.run.commits import Search, find_commits
from tests.unit.histories import git, history, straight


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with 64 commits after the first, c0."""
    folder = tmp_path_factory.mktemp("linux")
    straight(folder, 65)
    return folder


def searched(search: Search, says: Callable[[str], StepOutcome]) -> list[str]:
    """Run the search and return the subjects of the commits that it tried."""
    asked = []
    while (commit := search.choose_next()) is not None:
        asked.append(commit.subject)
        search.mark(commit, says(commit.subject))
    return asked


def test_commits_are_known_by_any_name(linux: Path) -> None:
    found = find_commits(linux, ["c1", "master~60"], "HEAD", ())
    assert [one.subject for one in found.good] == ["c1", "c4"]
    assert found.bad.subject == "c64"
    assert found.bad.author == "A Developer <dev@example.org>"
    assert found.bad.date == "2023-11-14T22:14:25+00:00"
    assert found.repository == linux


def test_repository_is_found_from_a_folder_within(linux: Path) -> None:
    (linux / "drivers/vfio").mkdir(parents=True, exist_ok=True)
    assert find_commits(linux / "drivers/vfio", ["c1"], "c3", ()).repository == linux


def test_bare_repositories_and_linked_work_trees_are_repositories(
    linux: Path, tmp_path: Path
) -> None:
    git(linux, "worktree", "add", "--no-checkout", "--detach", str(tmp_path / "tree"), "c9")
    subprocess.run(["git", "clone", "-q", "--bare", linux, tmp_path / "bare"], check=True)
    for tree, last in ((tmp_path / "tree", "HEAD"), (tmp_path / "bare", "c9")):
        commits = find_commits(tree, ["c1"], last, ())
        search = Search(tmp_path / f"repo-{tree.name}", commits)
        searched(search, lambda subject: "bad" if subject in ("c7", "c8") else "good")
        assert [commit.subject for commit in search.find_first_bad()] == ["c7"]


@pytest.mark.parametrize(
    ("good", "bad", "paths", "expected"),
    [
        (["v0"], "c3", (), "v0"),
        (["c1"], "v3", (), "v3"),
        (["c1"], "--help", (), "--help"),
        (["c3"], "c3", (), "--good and --bad are the same commit"),
        (["c3", "c7"], "c5", (), "is no ancestor of --bad"),
        (["c1"], "c3", ("drivers",), "touches drivers"),
    ],
)
def test_what_cannot_be_searched_is_said(
    linux: Path, good: list[str], bad: str, paths: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(ScenarioError) as caught:
        find_commits(linux, good, bad, paths)
    assert expected in caught.value.message


def test_ends_that_are_swapped_are_said_to_be(linux: Path) -> None:
    with pytest.raises(ScenarioError) as swapped:
        find_commits(linux, ["c3"], "c1", ())
    assert swapped.value.reason == Reason.NO_ANCESTOR
    assert "--bad" in swapped.value.hint
    assert "later" in swapped.value.hint


def test_folder_in_no_repository_is_refused(tmp_path: Path) -> None:
    for tree in (tmp_path, tmp_path / "none"):
        with pytest.raises(ScenarioError, match="no git repository"):
            find_commits(tree, ["a"], "b", ())


@pytest.mark.parametrize("first", [1, 2, 17, 32, 33, 48, 63, 64])
def test_search_is_git_s(linux: Path, tmp_path: Path, first: int) -> None:
    search = Search(tmp_path / "repo", find_commits(linux, ["c0"], "c64", ()))
    asked = searched(search, lambda subject: "bad" if int(subject[1:]) >= first else "good")
    assert [commit.subject for commit in search.find_first_bad()] == [f"c{first}"]
    assert (len(asked), search.about) == (6, 6)


def test_user_s_repository_is_left_as_it_was(tmp_path: Path) -> None:
    linux = tmp_path / "linux"
    straight(linux, 9)
    git(linux, "bisect", "start", "--no-checkout", "c7", "c2")  # the user's own bisection

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in linux.rglob("*") if path.is_file()}

    before = files()
    search = Search(tmp_path / "repo", find_commits(linux, ["c0"], "c8", ()))
    assert searched(search, lambda subject: "good")
    assert files() == before


def test_skips_hide_which_it_is(linux: Path, tmp_path: Path) -> None:
    def says(subject: str) -> StepOutcome:
        number = int(subject[1:])
        return "skip" if 30 <= number < 33 else "bad" if number >= 31 else "good"

    search = Search(tmp_path / "repo", find_commits(linux, ["c0"], "c64", ()))
    searched(search, says)
    assert {commit.subject for commit in search.find_first_bad()} == {"c30", "c31", "c32", "c33"}
    assert search.choose_next() is None


def test_neighbours_need_no_step(linux: Path, tmp_path: Path) -> None:
    search = Search(tmp_path / "repo", find_commits(linux, ["c4"], "c5", ()))
    assert searched(search, lambda subject: "good") == []
    assert [commit.subject for commit in search.find_first_bad()] == ["c5"]


MERGED = {
    "base": [], "m1": ["base"], "m2": ["m1"],
    "t1": ["base"], "t2": ["t1"], "t3": ["t2"],
    "merge": ["m2", "t3"], "m3": ["merge"], "m4": ["m3"],
}  # fmt: skip


@pytest.mark.parametrize("first", ["t2", "m1", "merge", "m4"])
def test_merged_branches_are_searched(tmp_path: Path, first: str) -> None:
    history(tmp_path / "linux", MERGED)

    def after(subject: str) -> bool:
        return subject == first or any(after(one) for one in MERGED[subject])

    search = Search(tmp_path / "repo", find_commits(tmp_path / "linux", ["base"], "m4", ()))
    searched(search, lambda subject: "bad" if after(subject) else "good")
    assert [commit.subject for commit in search.find_first_bad()] == [first]


def test_what_a_second_good_commit_has_is_not_searched(tmp_path: Path) -> None:
    history(tmp_path / "linux", MERGED)
    search = Search(tmp_path / "repo", find_commits(tmp_path / "linux", ["base", "t3"], "m4", ()))
    asked = searched(search, lambda subject: "bad")
    assert not {"t1", "t2", "t3"} & {*asked}
    assert [commit.subject for commit in search.find_first_bad()] == ["m1"]


def test_only_commits_that_touch_the_paths_are_searched(tmp_path: Path) -> None:
    touching = dict.fromkeys((f"c{i}" for i in range(2, 30, 5)), "drivers/vfio/pci.c")
    history(tmp_path / "linux", {f"c{i}": [f"c{i - 1}"] if i else [] for i in range(30)}, touching)
    commits = find_commits(tmp_path / "linux", ["c0"], "c29", ["drivers/vfio"])
    search = Search(tmp_path / "repo", commits)
    asked = searched(search, lambda subject: "bad" if int(subject[1:]) >= 17 else "good")
    assert {*asked} <= touching.keys()
    assert [commit.subject for commit in search.find_first_bad()] == ["c17"]


def test_shallow_clone_is_searched_as_far_as_it_goes(linux: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth=9", f"file://{linux}", shallow], check=True)
    search = Search(tmp_path / "repo", find_commits(shallow, ["HEAD~8"], "HEAD", ()))
    searched(search, lambda subject: "bad" if int(subject[1:]) >= 60 else "good")
    assert [commit.subject for commit in search.find_first_bad()] == ["c60"]
