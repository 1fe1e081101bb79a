from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.applying import _OTHER_VERSION, apply_patches
from orchestrator.kernels.series.git import Git, own_repository
from orchestrator.kernels.series.patch import DamagedError, Patch, series_digest
from orchestrator.kernels.series.series import read_series
from tests.unit.examples import share
from tests.unit.kernels.repositories import commit, git, head, new_repository, state_of, tree_of
from tests.unit.stable import numbers_in

LINES = "".join(f"line {n};\n" for n in range(1, 41))


@dataclass
class Bench:
    """A developer's repository, and barometer's own beside it."""

    repository: Path
    own: Git
    cache: Cache

    def series(self, range_: str) -> tuple[Patch, ...]:
        return read_series([range_], self.repository, self.cache)

    def mailed(self, range_: str, *options: str) -> tuple[Patch, ...]:
        """Return the patches of a range as they arrive by mail."""
        mbox = self.cache.folder("test") / "series.mbox"
        mbox.write_bytes(git(self.repository, "format-patch", "--stdout", *options, range_))
        return read_series([str(mbox)], None, self.cache)

    def refused(self, tree: str, patches: tuple[Patch, ...]) -> ScenarioError:
        before = self.own.git_dir, sorted(self.own.git_dir.iterdir())
        with pytest.raises(ScenarioError) as caught:
            apply_patches(self.own, tree, patches)
        assert (self.own.git_dir, sorted(self.own.git_dir.iterdir())) == before
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    repository = new_repository(
        tmp_path / "linux",
        {"drivers/vfio/vfio.c": LINES, "drivers/old.c": LINES, "Makefile": "VERSION = 7\n",
         "tool.sh": "#!/bin/sh\n", "gone.c": "int gone;\n", "init/main.c": "int main;\n"},
    )  # fmt: skip
    git(repository, "tag", "base")
    return Bench(repository, own_repository(tmp_path / "own", repository), Cache(tmp_path / "c"))


def three_patches(repository: Path) -> None:
    changed = LINES.replace("line 5;", "line five;").replace("line 35;", "line thirty-five;")
    commit(repository, "five", {"drivers/vfio/vfio.c": changed})
    changed = changed.replace("line 6;", "line six;")
    commit(repository, "six, new, gone", {
        "drivers/vfio/vfio.c": changed, "a new/für.c": "int new;\n", "gone.c": None,
        "empty": "", "no-newline": "x",
    })  # fmt: skip
    (repository / "tool.sh").chmod(0o755)
    git(repository, "mv", "drivers/old.c", "drivers/renamed.c")
    (repository / "link").symlink_to("Makefile")
    commit(repository, "modes and names", {"drivers/renamed.c": LINES + "more;\n"})


@pytest.mark.parametrize(
    "options", [[], ["--no-renames"], ["--src-prefix=i/", "--dst-prefix=w/"], ["-C", "-C"]]
)
def test_tree_is_that_of_git_itself(bench: Bench, options: list[str]) -> None:
    three_patches(bench.repository)
    patches = bench.mailed("base..main", *options)
    assert len(patches) == 3
    assert apply_patches(bench.own, tree_of(bench.repository, "base"), patches) == tree_of(
        bench.repository
    )


def test_range_and_tree_without_patches(bench: Bench) -> None:
    three_patches(bench.repository)
    base, end = tree_of(bench.repository, "base"), tree_of(bench.repository)
    assert apply_patches(bench.own, base, bench.series("base..main")) == end
    assert apply_patches(bench.own, base, ()) == base


def test_developers_repository_stays_as_it_was(bench: Bench) -> None:
    three_patches(bench.repository)
    before = state_of(bench.repository)
    patches = bench.series("base..main")
    base, end = tree_of(bench.repository, "base"), tree_of(bench.repository)
    assert apply_patches(bench.own, base, patches) == end
    bench.refused(end, patches)
    assert state_of(bench.repository) == before


def test_tree_may_hold_only_the_files_that_are_touched(bench: Bench) -> None:
    three_patches(bench.repository)
    patches = bench.mailed("base..main")
    touched = {name for patch in patches for name in patch.files}
    trees = []
    for name in ("base", "main"):
        index = Git(bench.own.git_dir, index=bench.own.git_dir / f"test-{name}")
        listed = bench.own.run("ls-tree", "-r", "-z", tree_of(bench.repository, name)).stdout
        some = [line for line in listed.split("\0")[:-1] if line.split("\t")[1] in touched]
        index.run("update-index", "-z", "--index-info", stdin="".join(f"{x}\0" for x in some))
        trees.append(index.line("write-tree"))
    assert apply_patches(bench.own, trees[0], patches) == trees[1]
    assert trees[0] != tree_of(bench.repository, "base")


def test_it_works_inside_of_another_repository(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_patches(bench.repository)
    outer = new_repository(tmp_path / "outer")
    own = own_repository(outer / "work/own", bench.repository)
    monkeypatch.chdir(outer / "work")
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))
    base = tree_of(bench.repository, "base")
    end = tree_of(bench.repository)
    assert apply_patches(own, base, bench.series("base..main")) == end


def test_hunk_may_be_found_at_another_line_but_not_in_another_text(bench: Bench) -> None:
    commit(bench.repository, "six", {"drivers/vfio/vfio.c": LINES.replace("line 36;", "six;")})
    patches = bench.series("base..main")
    git(bench.repository, "switch", "--quiet", "--detach", "base")
    commit(bench.repository, "above", {"drivers/vfio/vfio.c": "above;\n" * 9 + LINES})
    done = apply_patches(bench.own, tree_of(bench.repository), patches)
    moved = bench.own.line("cat-file", "blob", f"{done}:drivers/vfio/vfio.c")
    assert moved == ("above;\n" * 9 + LINES.replace("line 36;", "six;")).rstrip()
    # with its fuzz, `patch` would accept a context that differs in one line of three
    commit(bench.repository, "33", {"drivers/vfio/vfio.c": LINES.replace("line 33;", "x;")})
    assert bench.refused(tree_of(bench.repository), patches).reason == "series-does-not-apply"


def test_patch_that_does_not_apply_is_shown_with_what_is_there(bench: Bench) -> None:
    three_patches(bench.repository)
    patches = bench.series("base..main")
    git(bench.repository, "switch", "--quiet", "--detach", "base")
    other = "above;\n" * 3 + LINES.replace("line 6;", "line VI;")
    commit(bench.repository, "other", {"drivers/vfio/vfio.c": other})
    error = bench.refused(tree_of(bench.repository), patches)
    assert error.reason == "series-does-not-apply"
    assert all(part in error.message for part in ('"five"', "base..main", "drivers/vfio/vfio.c"))
    assert numbers_in(error.message) == ["1", "3", "2"]  # patch 1 of 3, line 2
    assert "  -line 5;\n  +line five;" in error.evidence
    assert "  8: line 5;\n  9: line VI;\n" in error.evidence
    assert "line 30;" not in error.evidence
    assert error.hint == _OTHER_VERSION


def test_later_patch_is_shown_against_the_earlier_ones(bench: Bench) -> None:
    three_patches(bench.repository)
    patches = bench.series("base..main")
    clash = Patch("x.patch", 2, "six", patches[0].text.replace(b"five;", b"cinq;"))
    error = bench.refused(tree_of(bench.repository, "base"), (patches[0], clash))
    assert '"six"' in error.message
    assert "x.patch" in error.message
    assert numbers_in(error.message)[:2] == ["2", "2"]
    assert "  5: line five;" in error.evidence


def test_series_that_is_there_already_is_recognised(bench: Bench) -> None:
    three_patches(bench.repository)
    patches = bench.series("base..main")
    middle = tree_of(bench.repository, "main~2")
    first_alone = bench.refused(middle, patches).hint
    whole = bench.refused(tree_of(bench.repository), patches).hint
    assert len({first_alone, whole, _OTHER_VERSION}) == 3


def test_file_that_is_not_there_is_named_with_what_is_near(bench: Bench) -> None:
    commit(bench.repository, "x", {"drivers/old.c": LINES.replace("1;", "one;")})
    patches = bench.series("base..main")
    git(bench.repository, "switch", "--quiet", "--detach", "base")
    git(bench.repository, "mv", "drivers/old.c", "init/old.c")
    commit(bench.repository, "moved", {})
    error = bench.refused(tree_of(bench.repository), patches)
    assert "drivers/old.c" in error.message
    assert "init/old.c" in error.message
    git(bench.repository, "mv", "init/old.c", "drivers/olds.c")
    commit(bench.repository, "renamed", {})
    error = bench.refused(tree_of(bench.repository), patches)
    assert "drivers/old.c" in error.message
    assert '"drivers/olds.c"' in error.message


def test_file_that_is_made_must_not_be_there(bench: Bench) -> None:
    commit(bench.repository, "new", {"new.c": "int n;\n"})
    patches = bench.series("base..main")
    commit(bench.repository, "other", {"new.c": "int other;\n"})
    error = bench.refused(tree_of(bench.repository), patches)
    assert error.reason == Reason.SERIES_DOES_NOT_APPLY
    assert "new.c" in error.message


def test_file_in_place_of_a_folder_and_the_other_way_round_is_refused(bench: Bench) -> None:
    base = tree_of(bench.repository, "base")
    for path in ("init", "init/main.c/x.c"):
        text = f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n"
        patch = Patch("x.patch", 1, "x", text.encode())
        assert bench.refused(base, (patch,)).reason == "series-does-not-apply"


def test_white_space_that_a_mailer_changed_is_recognised(bench: Bench) -> None:
    base = commit(bench.repository, "tabs", {"tabs.c": "\tone;\n\ttwo;\n\tthree;\n"})
    commit(bench.repository, "two", {"tabs.c": "\tone;\n\t2;\n\tthree;\n"})
    (patch,) = bench.series("main~1..main")
    spaced = Patch("x.patch", 1, "two", patch.text.replace(b"\t", b"        "))
    error = bench.refused(tree_of(bench.repository, base), (spaced,))
    assert "`git format-patch`" in error.hint


def test_patch_that_changes_nothing_is_refused(bench: Bench) -> None:
    text = "--- a/Makefile\n+++ b/Makefile\n@@ -1 +1 @@\n-VERSION = 7\n+VERSION = 7\n"
    error = bench.refused(
        tree_of(bench.repository, "base"), (Patch("x.patch", 1, "x", text.encode()),)
    )
    assert error.reason == "patch-changes-nothing"


def test_what_git_does_not_take_for_a_patch_is_refused(bench: Bench) -> None:
    text = (
        "diff --git a/Makefile b/Makefile\nnew file mode 100644\n"
        "--- a/Makefile\n+++ b/Makefile\n"
        "@@ -1 +1 @@\n-VERSION = 7\n+VERSION = 8\n"
    )
    error = bench.refused(
        tree_of(bench.repository, "base"), (Patch("x.patch", 1, "x", text.encode()),)
    )
    assert error.reason == Reason.SERIES_DOES_NOT_APPLY
    assert "x.patch" in error.message


@pytest.mark.parametrize(
    "written",
    [
        "--- {0}drivers/old.c\n+++ {1}drivers/old.c\n@@ -1,2 +1,2 @@\n-line 1;\n+x;\n line 2;\n",
        "--- /dev/null\n+++ {1}drivers/new.c\n@@ -0,0 +1 @@\n+int new;\n",
        "diff --git {0}init/main.c {1}init/main.c\nold mode 100644\nnew mode 100755\n",
        "--- {0}init/main.c.orig\n+++ {1}init/main.c\n@@ -1 +1 @@\n-int main;\n+int x;\n",
    ],
)
def test_first_part_of_names_is_a_prefix_unless_it_is_a_folder_of_the_tree(
    bench: Bench, written: str
) -> None:
    base = tree_of(bench.repository, "base")
    prefixes = [("a/", "b/"), ("k/", "k/"), ("linux-9.9/", "linux-9.9/"), ("k.orig/", "k/")]
    patches = [Patch("x", 1, "x", written.format(*pair).encode()) for pair in prefixes]
    assert len({apply_patches(bench.own, base, (patch,)) for patch in patches} - {base}) == 1
    error = bench.refused(base, (Patch("x", 1, "x", written.format("", "").encode()),))
    assert "-p0" in error.message


def test_cr_of_a_file_is_part_of_it(bench: Bench) -> None:
    commit(bench.repository, "dos", {"dos.txt": b"a\r\nb\r\n"})
    commit(bench.repository, "dos 2", {"dos.txt": b"a\r\nc\r\n"})
    end, base = tree_of(bench.repository), tree_of(bench.repository, "main~1")
    assert apply_patches(bench.own, base, bench.series("main~1..main")) == end
    mbox = bench.cache.folder("test") / "crlf.mbox"
    commit(bench.repository, "unix", {"Makefile": "VERSION = 8\n"})
    sent = git(bench.repository, "format-patch", "--stdout", "main~1..main")
    mbox.write_bytes(sent.replace(b"\n", b"\r\n"))
    patches = read_series([str(mbox)], None, bench.cache)
    assert apply_patches(bench.own, end, patches) == tree_of(bench.repository)


def test_sha256_repository(tmp_path: Path) -> None:
    folder = tmp_path / "linux"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main", "--object-format=sha256")
    base = commit(folder, "first", {"a": "1\n", "gone": "x\n"})
    commit(folder, "second", {"a": "2\n", "gone": None})
    own = own_repository(tmp_path / "own", folder)
    patches = read_series([f"{base}..main"], folder, Cache(tmp_path / "c"))
    assert apply_patches(own, tree_of(folder, base), patches) == tree_of(folder)


# --- anything ---

_NAMES = st.sampled_from(["a.c", "b.c", "d/a.c", "d/e/f.c", "with space.c", "für.c", "d/-x"])
_CONTENT = st.lists(
    st.sampled_from(["a", "b", "", "-- ", "--- a/x", "+++ b/x", "@@ -1 +1 @@", "\tint;", "From me",
                     "diff --git a/x b/x", "x\r", "\x0c", "> q", "ü"]), max_size=12,
)  # fmt: skip
_FILES = st.dictionaries(
    _NAMES, st.tuples(_CONTENT, st.booleans()).map(lambda c: "\n".join(c[0]) + "\n" * c[1]),
    max_size=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    folder = tmp_path_factory.mktemp("round")
    repository = new_repository(folder / "linux")
    git(repository, "tag", "empty")
    cache = Cache(folder / "cache")
    own = own_repository(folder / "own", repository)

    def same(versions: list[dict[str, str]], options: list[str]) -> None:
        git(repository, "reset", "--quiet", "--hard", "empty")
        git(repository, "clean", "-fdqx")
        commits = [head(repository)]
        for number, files in enumerate(versions):
            names = git(repository, "ls-files", "-z").decode().split("\0")
            gone = dict.fromkeys(n for n in names if n and n != "README" and n not in files)
            commits.append(commit(repository, f"[x] {number}: From", {**gone, **files}))
        base, end = commits[1], commits[-1]
        trees = [tree_of(repository, ref) for ref in commits[1:]]
        if any(before == after for before, after in itertools.pairwise(trees)):
            return  # a commit without a change, which format-patch numbers
        (folder / "mbox").write_bytes(
            git(repository, "format-patch", "--stdout", *options, f"{base}..{end}")
        )
        patches = read_series([str(folder / "mbox")], None, cache)
        assert apply_patches(own, tree_of(repository, base), patches) == tree_of(repository, end)
        from_range = read_series([f"{base}..{end}"], repository, cache)
        assert apply_patches(own, tree_of(repository, base), from_range) == tree_of(
            repository, end
        )
        assert "--no-renames" not in options or series_digest(patches) == series_digest(from_range)

    return same


@share(0.15)
@given(st.lists(_FILES, min_size=2, max_size=4), st.sampled_from([[], ["--no-renames"], ["-B"]]))
def test_what_git_sends_comes_out_as_git_has_it(
    round_trip: Callable[..., None], versions: list[dict[str, str]], options: list[str]
) -> None:
    round_trip(versions, options)


_WHOLE = st.sampled_from([
    "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-a tree\n+b\n",
    "--- a/README\n+++ b/README\n@@ -1 +1,2 @@\n a tree\n+b\n",
    "--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+b\n\\ No newline at end of file\n",
    "diff --git a/x b/x\ndeleted file mode 100644\n"
    "--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-a tree\n",
    "diff --git a/x b/d/y\nsimilarity index 100%\nrename from x\nrename to d/y\n",
    "diff --git a/x b/x\nold mode 100644\nnew mode 100755\n",
    "diff --git a/x b/z\nsimilarity index 90%\ncopy from x\ncopy to z\n",
    "diff --git a/e b/e\nnew file mode 100644\nindex 0000000..e69de29\n",
])  # fmt: skip
_PIECES = st.sampled_from([
    "diff --git a/x b/x\n", "--- a/x\n", "+++ b/x\n", "--- /dev/null\n", "+++ /dev/null\n",
    "@@ -1 +1 @@\n", "@@ -0,0 +1 @@\n", "-a tree\n", "+b\n", " a tree\n", "\n", "-- \n2.39\n",
    "\\ No newline at end of file\n", "rename from x\n", "new file mode 1\n", "index 1..2\n",
    "deleted file mode 100644\n", "old mode 100644\n",
])  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Git, str]:
    folder = tmp_path_factory.mktemp("small")
    repository = new_repository(folder / "linux", {"README": "a tree\n", "x": "a tree\n"})
    return own_repository(folder / "own", repository), tree_of(repository)


@share(0.4)
@given(st.lists(st.one_of(_WHOLE, _WHOLE, _PIECES), max_size=5).map("".join))
def test_any_patch_is_applied_or_refused(small: tuple[Git, str], text: str) -> None:
    patch = Patch("any", 1, "any", text.encode())
    try:
        patch.diffs  # noqa: B018  # read_series refuses what cannot be read
    except DamagedError:
        return
    with contextlib.suppress(ScenarioError):
        assert apply_patches(*small, (patch,)) != small[1]
