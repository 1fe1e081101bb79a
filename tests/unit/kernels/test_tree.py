"""The parts of building that need no compiler."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.patch import Patch
from orchestrator.kernels.series.series import read_series
from orchestrator.kernels.source.sources import Source, find_source
from orchestrator.kernels.source.worktree import WorkTree, work_tree
from orchestrator.scenario.kernel_forms import TreeKernel

FILES = {
    "Makefile": "VERSION = 7\n",
    "Kconfig": "",
    "Kbuild": "",
    "drivers/vfio/a.c": "one\ntwo\nthree\n",
}
SERIES = """From: A <a@example.org>
Subject: [PATCH] vfio: Two is too many

---
diff --git a/drivers/vfio/a.c b/drivers/vfio/a.c
--- a/drivers/vfio/a.c
+++ b/drivers/vfio/a.c
@@ -1,3 +1,3 @@
 one
-two
+2
 three
diff --git a/drivers/vfio/new.c b/drivers/vfio/new.c
new file mode 100644
--- /dev/null
+++ b/drivers/vfio/new.c
@@ -0,0 +1 @@
+new
"""


def git(folder: Path, *args: str) -> str:
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *args]
    done = subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "linux"
    for name, text in FILES.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return base


@pytest.fixture
def repository(folder: Path) -> Path:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v7.3")
    return folder


@pytest.fixture
def tarball(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "linux-7.3.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        tar.add(folder, "linux-7.3")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def patches(tmp_path: Path, cache: Cache) -> tuple[Patch, ...]:
    (tmp_path / "fix.patch").write_text(SERIES)
    return read_series([str(tmp_path / "fix.patch")], None, cache)


def test_git_repository_is_its_commit_and_is_not_touched(repository: Path, cache: Cache) -> None:
    before = {p: p.stat().st_mtime_ns for p in repository.rglob("*")}
    source = find_source(TreeKernel(tree=repository, ref="v7.3"), cache)
    assert source.identity == git(repository, "rev-parse", "v7.3^{tree}")
    assert source.name == f"v7.3 ({git(repository, 'rev-parse', 'HEAD')[:12]})"
    with work_tree(source, "c", cache) as tree:
        assert (tree.sources / "drivers/vfio/a.c").read_text() == "one\ntwo\nthree\n"
        assert not (tree.sources / ".git").exists()  # otherwise the release would end in a "+"
    assert {p: p.stat().st_mtime_ns for p in repository.rglob("*")} == before


def test_folder_is_its_content(folder: Path, cache: Cache) -> None:
    first = find_source(TreeKernel(tree=folder), cache)
    assert (first.kind, first.identity) == ("folder", find_source(
        TreeKernel(tree=folder), cache).identity)  # fmt: skip
    (folder / "drivers/vfio/a.c").write_text("another\n")
    second = find_source(TreeKernel(tree=folder), cache)
    assert second.identity != first.identity
    with work_tree(second, "c", cache) as tree:
        assert (tree.sources / "drivers/vfio/a.c").read_text() == "another\n"
        tree.move(first.identity)
        assert (tree.sources / "drivers/vfio/a.c").read_text() == "one\ntwo\nthree\n"
    assert not (folder / ".git").exists()


@pytest.mark.parametrize("kind", ["repository", "folder", "tarball"])
def test_series_goes_in_and_out_and_leaves_the_rest_alone(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, cache: Cache
) -> None:
    source = find_source(TreeKernel(tree=request.getfixturevalue(kind)), cache)
    series = patches(tmp_path, cache)
    with work_tree(source, "c", cache) as tree:
        (tree.objects).mkdir()
        (tree.objects / "a.o").write_text("object")
        untouched = (tree.sources / "Makefile").stat().st_mtime_ns
        base, patched = tree.base(series), tree.patched(series)
        tree.move(patched)
        assert (tree.sources / "drivers/vfio/a.c").read_text() == "one\n2\nthree\n"
        assert (tree.sources / "drivers/vfio/new.c").read_text() == "new\n"
        tree.move(base)
        assert_pristine(tree)
        assert (tree.objects / "a.o").exists()
        assert (tree.sources / "Makefile").stat().st_mtime_ns == untouched
        tree.move(patched)
    with work_tree(source, "c", cache) as again:  # the series is still applied in it
        assert_pristine(again)


def assert_pristine(tree: WorkTree) -> None:
    for name, text in FILES.items():
        assert (tree.sources / name).read_text() == text
    assert not (tree.sources / "drivers/vfio/new.c").exists()


def test_tree_that_was_left_half_done_is_put_right(
    repository: Path, cache: Cache, tmp_path: Path
) -> None:
    source = find_source(TreeKernel(tree=repository), cache)
    with work_tree(source, "c", cache) as tree:
        folder = tree.folder
    (folder / "work/source/drivers/vfio/a.c").write_text("half of it")
    (folder / "git/index.lock").touch()
    with work_tree(source, "c", cache) as tree:
        assert_pristine(tree)
    (folder / "ready").unlink()  # as if it was killed while it made the tree
    with work_tree(source, "c", cache) as tree:
        assert_pristine(tree)


def test_commits_of_one_repository_share_a_tree_and_configurations_do_not(
    repository: Path, cache: Cache
) -> None:
    first = find_source(TreeKernel(tree=repository), cache)
    (repository / "drivers/vfio/a.c").write_text("later\n")
    git(repository, "commit", "-qam", "two")
    second = find_source(TreeKernel(tree=repository), cache)

    def place(source: Source, configuration: str) -> Path:
        with work_tree(source, configuration, cache) as tree:
            assert git(repository, "show", f"{source.facts['commit']}:drivers/vfio/a.c") == (
                (tree.sources / "drivers/vfio/a.c").read_text().strip()
            )
            return tree.folder

    assert place(first, "c") == place(second, "c") == place(first, "c") != place(first, "d")


def test_tree_that_nobody_used_for_a_month_makes_room(repository: Path, cache: Cache) -> None:
    source = find_source(TreeKernel(tree=repository), cache)
    folders = []
    for configuration, days in (("c", 31), ("d", 29)):
        with work_tree(source, configuration, cache) as tree:
            folders.append(tree.folder)
        before = time.time() - days * 24 * 3600
        os.utime(tree.folder / "ready", (before, before))
    with work_tree(source, "e", cache):
        assert [folder.exists() for folder in folders] == [False, True]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: p / "none", "none"),
        (lambda p: p, "Kbuild.*Kconfig.*Makefile"),
        (lambda p: Path(__file__), Path(__file__).name),
    ],
)
def test_what_is_no_source_is_named(make, name: str, tmp_path: Path, cache: Cache) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScenarioError, match=name) as refused:
        find_source(TreeKernel(tree=make(tmp_path)), cache)
    assert refused.value.reason == "no-such-source"


def test_folder_has_no_refs(folder: Path, cache: Cache) -> None:
    with pytest.raises(ScenarioError, match=r"v7\.3") as caught:
        find_source(TreeKernel(tree=folder, ref="v7.3"), cache)
    assert caught.value.reason == Reason.NO_SUCH_SOURCE
