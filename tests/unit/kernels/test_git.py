from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.foreign import disarm_programs
from orchestrator.kernels.series.git import Git, find_commit, find_repository, own_repository
from orchestrator.kernels.series.series import read_series
from tests.unit.kernels.repositories import (
    commit,
    git,
    head,
    new_repository,
    state_of,
    tree_of,
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return new_repository(tmp_path / "linux", {"Makefile": "VERSION = 7\n", "a/b.c": "int b;\n"})


def refused(repository: Path, ref: str | None) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        find_commit(repository, ref)
    return caught.value


def test_repository_is_found_at_its_top_only(repository: Path, tmp_path: Path) -> None:
    assert find_repository(repository) == repository / ".git"
    assert find_repository(repository / "a") is None
    assert find_repository(repository / "a/b.c") is None
    assert find_repository(tmp_path) is None
    assert find_repository(tmp_path / "none") is None


def test_repository_may_be_named_by_its_git_dir(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", repository, "bare.git")
    assert find_repository(tmp_path / "bare.git") == tmp_path / "bare.git"
    assert find_repository(repository / ".git") == repository / ".git"
    commits = {
        find_commit(path, None).sha
        for path in (repository, repository / ".git", tmp_path / "bare.git")
    }
    assert commits == {head(repository)}


def test_folder_with_names_of_a_git_dir_is_none(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "HEAD").write_text("something else\n")
    assert find_repository(tmp_path) is None


def test_worktree_has_its_own_commit_and_changes(repository: Path, tmp_path: Path) -> None:
    worktree = tmp_path / "linked"
    git(repository, "worktree", "add", "--quiet", "-b", "mine", worktree)
    mine = commit(worktree, "mine", {"a/b.c": "int mine;\n"})
    assert find_commit(worktree, None).sha == mine
    git_dir = find_repository(worktree)
    assert git_dir is not None
    assert find_commit(git_dir, None).sha == mine
    assert find_commit(repository, None).sha == head(repository) != mine
    (worktree / "a/b.c").write_text("int forgotten;\n")
    assert refused(worktree, None).reason == "uncommitted-changes"
    assert refused(git_dir, None).reason == "uncommitted-changes"
    find_commit(repository, None)


def test_worktree_without_its_repository_is_refused(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "--quiet", tmp_path / "linked")
    repository.rename(tmp_path / "moved")
    with pytest.raises(ScenarioError, match="linked") as caught:
        find_repository(tmp_path / "linked")
    assert caught.value.reason == "broken-repository"
    assert "`git worktree repair`" in caught.value.hint


def test_git_dir_elsewhere_still_has_its_work_tree(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    git(tmp_path / "tree", "init", "--quiet", f"--separate-git-dir={tmp_path / 'store'}")
    commit(tmp_path / "tree", "first", {"x": "1\n"})
    (tmp_path / "tree/x").write_text("2\n")
    git_dir = find_repository(tmp_path / "tree")
    assert git_dir is not None
    assert refused(git_dir, None).reason == "uncommitted-changes"
    assert refused(tmp_path / "store", None).reason == "no-work-tree"
    assert find_commit(tmp_path / "store", "HEAD").sha == head(tmp_path / "tree")


def test_submodule_is_a_repository(repository: Path, tmp_path: Path) -> None:
    outer = new_repository(tmp_path / "outer")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", repository, "k")
    git(outer, "commit", "--quiet", "-m", "submodule")
    assert find_commit(outer / "k", None).sha == head(repository)
    find_commit(outer, None)
    (outer / "k/Makefile").write_text("VERSION = 8\n")
    assert refused(outer / "k", None).reason == "uncommitted-changes"


def test_commit_has_id_tree_and_description(repository: Path) -> None:
    first = head(repository)
    git(repository, "tag", "-a", "-m", "release", "v7.0")
    second = commit(repository, "second", {"a/b.c": "int c;\n"})
    source = find_commit(repository, None)
    assert (source.sha, source.tree) == (second, tree_of(repository))
    assert source.describe == f"v7.0-1-g{second[:12]}"
    tagged = find_commit(repository, "v7.0")
    assert (tagged.sha, tagged.describe) == (first, "v7.0")  # the commit, not the tag object
    assert find_commit(repository, "HEAD^{/first}").sha == first
    assert find_commit(repository, first[:9]).sha == first


def test_commit_without_a_tag_is_described_by_its_id(repository: Path) -> None:
    assert find_commit(repository, "main").describe == head(repository)[:12]


@pytest.mark.parametrize("staged", [False, True])
def test_changes_that_are_not_committed_are_refused(repository: Path, staged: bool) -> None:
    (repository / "a/b.c").write_text("int forgotten;\n")
    if staged:
        git(repository, "add", "a/b.c")
    error = refused(repository, None)
    assert error.reason == "uncommitted-changes"
    assert "in 1 file" in error.message
    assert "a/b.c" in error.evidence
    assert 'ref = "HEAD"' in error.hint
    assert find_commit(repository, "HEAD").sha == head(repository)


def test_many_changes_are_counted(repository: Path) -> None:
    commit(repository, "many", {f"f{i}": "1\n" for i in range(30)})
    for i in range(30):
        (repository / f"f{i}").write_text("2\n")
    error = refused(repository, None)
    assert "in 30 files" in error.message
    assert error.evidence.splitlines()[-1] == "and 20 more"


def test_files_that_git_does_not_track_are_no_changes(repository: Path) -> None:
    (repository / "vmlinux.o").write_text("built")
    os.utime(repository / "Makefile", (1, 1))  # touched, but unchanged
    assert find_commit(repository, None).sha == head(repository)


@pytest.mark.parametrize(
    "ref", ["", "no-such", "-x", "--all", "^HEAD", "HEAD..HEAD", "HEAD:Makefile", "a\0b", "0" * 40]
)
def test_what_names_no_commit_is_refused(repository: Path, ref: str) -> None:
    assert refused(repository, ref).reason == "no-such-ref"


def test_near_names_are_offered(repository: Path) -> None:
    for tag in ("v6.12", "v7.0-rc1", "v7.1"):
        git(repository, "tag", tag)
    git(repository, "branch", "vfio-strides")
    assert "vfio-strides" in refused(repository, "vfio-stride").hint
    hint = refused(repository, "v7.2").hint
    assert "v7.1" in hint
    assert "vfio" not in hint


def test_repository_without_a_commit_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    error = refused(tmp_path, None)
    assert error.reason == Reason.NO_SUCH_REF
    assert "HEAD" in error.message


def test_commit_that_a_shallow_clone_lacks_is_refused(repository: Path, tmp_path: Path) -> None:
    first = head(repository)
    commit(repository, "second", {"a/b.c": "int c;\n"})
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    assert find_commit(tmp_path / "shallow", None).sha == head(repository)
    assert "fetch --unshallow" in refused(tmp_path / "shallow", first).hint


def test_folder_is_no_repository(tmp_path: Path) -> None:
    assert refused(tmp_path, "HEAD").reason == "no-such-repository"


def test_environment_and_settings_of_the_user_do_not_count(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_repository(tmp_path / "other")
    # the environment under `git bisect run` in another repository
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    monkeypatch.setenv("GIT_NAMESPACE", "x")
    monkeypatch.setenv("LANGUAGE", "de")
    settings = tmp_path / "gitconfig"
    settings.write_text("[core]\nabbrev = 40\n[alias]\nx = y\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    source = find_commit(repository, None)
    assert source.sha == head(repository)
    assert source.describe == source.sha[:12]
    assert Git(repository / ".git").run("config", "alias.x", accept=(1,)).stdout == ""


def keys_of_git() -> list[str]:
    """Return every key that git lists, with the name `evil` in the place of its variable part."""
    listed = subprocess.run(
        ["git", "help", "--config"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    # the help has no key with a * of its own, and not what newer versions or other programs read
    more = ["filter.evil.process", "diff.evil.command", "credential.https://x.helper",
            "trailer.evil.cmd", "trailer.evil.command", "tar.evil.command", "gpg.x509.program",
            "hook.evil.command", "pager.status", "pager.log", "pager.diff",
            "alias.status"]  # fmt: skip
    return [
        re.sub("<[^>]*>", "evil", key) for key in listed if "." in key and "*" not in key
    ] + more


PROGRAMS = [key for key, _ in disarm_programs(keys_of_git())]


def test_keys_that_name_a_program_are_known() -> None:
    """Held against git's own list: a key whose name tells of a program is one that is known, or
    does not name one."""
    words = re.compile(
        r"(?i)(cmd|command|program|helper|driver|clean|smudge|process|textconv|editor|pager|askpass"
        r"|gitproxy|hookspath|hook|uploadpack|receivepack|vcs|tunnel|browser|filter|external)$"
    )
    no_program = {
        "clone.filterSubmodules", "color.pager", "column.clean", "help.browser",
        "diff.evil.cachetextconv", "remote.evil.partialclonefilter",
        "uploadpack.allowFilter", "gitcvs.dbDriver",
        "notes.rewrite.evil", "core.fsmonitorHookVersion", "interactive.singleKey",
    }  # fmt: skip
    named = {key for key in keys_of_git() if words.search(key) and not key.startswith("advice.")}
    assert named - {*PROGRAMS} <= no_program
    assert len(PROGRAMS) > 40


@pytest.fixture
def trapped(repository: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a repository whose attributes ask for every driver named `evil`, with a second commit
    to be read as a series; and the file that a program of it would write."""
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\necho $0 $* >> {tmp_path}/sprung\ncat\n")
    trap.chmod(0o755)
    commit(repository, "second", {
        ".gitattributes": "* filter=evil diff=evil merge=evil\n", "Makefile": "VERSION = 8\n",
    })  # fmt: skip
    (repository / ".git/info").mkdir(exist_ok=True)
    (repository / ".git/info/attributes").write_text("* filter=evil diff=evil merge=evil\n")
    hooks = repository / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        "post-index-change",
        "reference-transaction",
        "post-checkout",
        "fsmonitor-watchman",
    ):
        (hooks / name).unlink(missing_ok=True)
        (hooks / name).symlink_to(trap)
    return repository, tmp_path / "sprung"


def use(repository: Path, cache: Cache) -> None:
    """Do all that barometer does with somebody's repository."""
    os.utime(repository / "Makefile", (1, 1))
    with contextlib.suppress(ScenarioError):
        find_commit(repository, None)
    read_series(["main~1..main"], repository, cache)
    own = own_repository(cache.folder("own"), repository)
    tree = own.line("rev-parse", f"{head(repository)}^{{tree}}")
    worktree = cache.folder("work")
    Git(own.git_dir, work_tree=worktree).run("read-tree", "--reset", "-u", tree)


def test_no_program_of_the_repository_is_run(trapped: tuple[Path, Path], tmp_path: Path) -> None:
    repository, sprung = trapped
    lines = []
    for key in PROGRAMS:
        section, _, rest = key.partition(".")
        name, dot, last = rest.rpartition(".")
        lines.append(f'[{section} "{name}"]' if dot else f"[{section}]")
        lines.append(f"\t{last} = {tmp_path}/trap")
    lines += ['[filter "evil"]', "\trequired = true", "[log]", "\tshowSignature = true",
              "[extensions]", "\tpartialClone = evil", '[remote "evil"]', "\tpromisor = true",
              f"\turl = ext::{tmp_path}/trap", "[protocol]", "\tallow = always",
              '[protocol "ext"]', "\tallow = always"]  # fmt: skip
    with (repository / ".git/config").open("a") as file:
        file.write("\n".join(lines) + "\n")
    use(repository, Cache(tmp_path / "cache"))
    assert not sprung.exists(), sprung.read_text()


def test_program_in_an_included_file_is_not_run(
    trapped: tuple[Path, Path], tmp_path: Path
) -> None:
    repository, sprung = trapped
    (repository / ".git/more").write_text(
        f'[filter "evil"]\n\tclean = {tmp_path}/trap\n\tprocess = {tmp_path}/trap\n'
    )
    git(repository, "config", "include.path", "more")
    use(repository, Cache(tmp_path / "cache"))
    assert not sprung.exists()


def test_object_that_a_partial_clone_lacks_is_not_fetched(
    trapped: tuple[Path, Path], tmp_path: Path
) -> None:
    repository, sprung = trapped
    blob = git(repository, "rev-parse", "HEAD:Makefile").decode()
    (repository / ".git/objects" / blob[:2] / blob[2:]).unlink()
    (repository / "Makefile").unlink()  # git would read it there
    for key, value in {
        "core.repositoryFormatVersion": "1", "extensions.partialClone": "evil",
        "remote.evil.promisor": "true", "remote.evil.url": f"ext::{tmp_path}/trap %S",
        "protocol.ext.allow": "always",
    }.items():  # fmt: skip
        git(repository, "config", key, value)
    with pytest.raises((BenchError, ScenarioError)):
        read_series(["main~1..main"], repository, Cache(tmp_path / "cache"))
    assert not sprung.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
class TestOwner:
    @pytest.fixture
    def foreign(self, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        os.chown(repository / ".git", 12345, 12345)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
        monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
        return repository

    def test_repository_of_another_user_is_refused(self, foreign: Path) -> None:
        caught = refused(foreign, "HEAD")
        assert caught.reason == Reason.OTHER_OWNER
        assert f"safe.directory {foreign}" in caught.hint

    @pytest.mark.parametrize("name", ["*", "{}", "{}/.git", "{}/../*"])
    def test_repository_that_the_user_trusts_is_taken(
        self, foreign: Path, tmp_path: Path, name: str
    ) -> None:
        value = os.path.normpath(name.format(foreign)) if "{" in name else name
        (tmp_path / "gitconfig").write_text(f"[safe]\n\tdirectory = {value}\n")
        assert find_commit(foreign, "HEAD").describe

    def test_an_empty_value_forgets_those_before(self, foreign: Path, tmp_path: Path) -> None:
        (tmp_path / "gitconfig").write_text("[safe]\n\tdirectory = *\n\tdirectory =\n")
        assert refused(foreign, "HEAD").reason == Reason.OTHER_OWNER

    def test_who_called_sudo_is_trusted(
        self, foreign: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUDO_UID", "12345")
        assert find_commit(foreign, "HEAD").describe


def test_nothing_in_the_repository_is_written(repository: Path) -> None:
    os.utime(repository / "Makefile", (1, 1))  # `git status` would record this in the index
    before = state_of(repository)
    find_commit(repository, None)
    find_commit(repository, "main")
    refused(repository, "none")
    assert state_of(repository) == before


def test_own_repository_reads_the_objects_of_another(repository: Path, tmp_path: Path) -> None:
    before = state_of(repository)
    own = own_repository(tmp_path / "cache/own", repository)
    assert own.line("cat-file", "-t", tree_of(repository)) == "tree"
    made = own.run("hash-object", "-w", "--stdin", stdin="new\n").stdout.strip()
    assert state_of(repository) == before
    assert own_repository(tmp_path / "cache/own").line("cat-file", "-p", made) == "new"
    assert find_commit(own.git_dir, head(repository)).tree == tree_of(repository)


def test_own_repository_of_a_worktree_and_of_sha256(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "--quiet", tmp_path / "linked")
    own = own_repository(tmp_path / "own", tmp_path / "linked")
    assert own.line("cat-file", "-t", tree_of(repository)) == "tree"
    (tmp_path / "sha256").mkdir()
    git(tmp_path / "sha256", "init", "--quiet", "--object-format=sha256")
    sha = commit(tmp_path / "sha256", "first", {"x": "1\n"})
    assert own_repository(tmp_path / "own256", tmp_path / "sha256").line(
        "rev-parse", f"{sha}^{{tree}}"
    ) == tree_of(tmp_path / "sha256")


def test_our_commits_are_the_same_each_time(tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        own = own_repository(tmp_path / name)
        tree = own.line("mktree")
        ids.add(own.line("commit-tree", "-m", "empty", tree))
    assert len(ids) == 1


def test_git_that_fails_is_the_benchs_error(repository: Path) -> None:
    with pytest.raises(BenchError) as caught:
        Git(repository / ".git").run("cat-file", "-t", "0" * 40)
    assert caught.value.reason == Reason.PROGRAM_FAILED
    assert "cat-file" in caught.value.evidence


def test_missing_git_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BenchError, match=r"\bgit\b") as caught:
        find_commit(repository, None)
    assert caught.value.reason == Reason.PROGRAM_MISSING
